"""An adapter that starts from a parent has the parent's form, rank, alpha, modules and layers: another one is refused, and not ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.training.surroundings import make_context, make_ppo, planted_pairs, run_here, write_rows

from accord.errors import InvalidArgumentError
from accord.rundir import read_run_file
from accord.runspec_parts import LoraSpec
from accord.serving.parent_lora import check_lora, read_lora
from accord.training.__main__ import build

FORM = {"rank": 3, "alpha": 5.0, "target_modules": ["v_proj", "q_proj"], "last_layers": 1}


def publish_parent(root: Path, model: Path) -> dict[str, Any]:
    """A policy of that form; the data of its run."""
    data = write_rows(root / "rows.jsonl", planted_pairs())
    run_here(root, model, {"adapter": "parent", "steps": 1, "lora": FORM, "sft": {"data": data}}, name="parent")
    return data


@pytest.mark.parametrize(
    ("lora", "field", "words"),
    [
        ({"rank": 4}, "lora.rank", "adapters/parent/versions/1, which the run starts from, has 3, not 4"),
        ({"rank": 3, "alpha": 6}, "lora.alpha", "has 5, not 6"),
        ({"target_modules": ["q_proj"]}, "lora.target_modules", "has q_proj, v_proj, not q_proj"),
        ({"last_layers": 0}, "lora.last_layers", "has 1, not 0"),
    ],
)
@pytest.mark.parametrize("kind", ["dpo", "reward_model"])
def test_another_form_is_refused(tmp_path: Path, tiny_folder: Path, kind: str, lora: dict[str, Any], field: str, words: str) -> None:
    data = publish_parent(tmp_path, tiny_folder)
    algorithm = build(make_context(tmp_path, tiny_folder, {"parent_adapter": "adapters/parent", "lora": lora, kind: {"data": data}}))
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        algorithm.setup()
    assert caught.value.field == field


@pytest.mark.parametrize("lora", [{}, {"rank": 3}, {**FORM, "target_modules": ["q_proj", "v_proj"]}])
def test_the_parents_form_is_taken_where_none_or_the_same_is_given(tmp_path: Path, tiny_folder: Path, lora: dict[str, Any]) -> None:
    """As the run's process reads it, out of run.yaml, and by PPO's fresh critic too."""
    data = publish_parent(tmp_path, tiny_folder)
    values = {"parent_adapter": "adapters/parent", "lora": lora}
    context, algorithm, _ = make_ppo(tmp_path, tiny_folder, values, {"data": data, "value_from_reward_model": False})
    assert read_run_file(context.directory.path / "run.yaml").spec.lora.model_fields_set == set(lora)
    algorithm.setup()
    for name in ("policy", "value"):
        assert context.adapted.first_layer(name) == context.adapted.first_layer(None) - 1
        shapes = {key: tuple(tensor.shape) for key, tensor in context.adapted.state(name).items()}
        assert {key.rsplit(".", 3)[1] for key in shapes} == {"q_proj", "v_proj"}
        assert {shape[0] for key, shape in shapes.items() if "lora_A" in key} == {3}


def test_what_is_no_configuration_of_lora_has_no_form() -> None:
    """Whoever loads the adapter says what it is instead."""
    plain = b'{"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "layers_to_transform": [1, 2]}'
    assert read_lora(plain) == LoraSpec(rank=8, alpha=16, target_modules=("q_proj",), last_layers=2)
    for content in (b"{}", b"[]", b"\xff", plain.replace(b'["q_proj"]', b'"all-linear"'), plain.replace(b"8", b"0")):
        assert read_lora(content) is None
    check_lora(LoraSpec(alpha=None), LoraSpec(rank=8), "adapters/x/versions/1")
