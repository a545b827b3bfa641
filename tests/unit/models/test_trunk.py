"""Layers below all adapters, computed once: the same numbers and gradients as whole passes, and bits that depend on nothing but a row's company."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from accord.errors import FailedPreconditionError, InvalidArgumentError
from accord.models.adapter_files import read_lora_config
from accord.models.base import BaseModel, load_base_model
from accord.models.batching import collate
from accord.models.inference import InferenceModel
from accord.models.kvpool import KvPool
from accord.models.lora import AdaptedModel
from accord.models.ragged import Piece
from accord.runspec_parts import LoraSpec
from accord.training.recomputation import recompute_activations

SEQUENCES = [([1, 70, 80, 90], [100, 110, 2]), ([1, 75], [85, 2])]
BATCH = collate(SEQUENCES, pad_id=0)
ROWS = [(*prompt, *response) for prompt, response in SEQUENCES]


@pytest.fixture
def adapted(tiny: BaseModel) -> AdaptedModel:
    """`high` is on the last layer alone, `whole` on all."""
    model = AdaptedModel(tiny)
    model.add("high", LoraSpec(rank=4, last_layers=1), seed=1)
    model.add("whole", LoraSpec(rank=4), seed=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in ("high", "whole"):
            for parameter in model.parameters(name):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def hidden(model: AdaptedModel, adapter: str | None) -> Tensor:
    result = model.hidden(BATCH.input_ids, BATCH.attention_mask, adapter=adapter, position_ids=BATCH.position_ids, asked=BATCH.predicting_mask)
    return result[BATCH.predicting_mask]


def count_layers(model: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers' attention, as it is called."""
    called: list[int] = []
    for index, layer in enumerate(model.module.model.layers):

        def counted(*args: Any, index: int = index, forward: Any = layer.self_attn.forward, **named: Any) -> Any:
            called.append(index)
            return forward(*args, **named)

        monkeypatch.setattr(layer.self_attn, "forward", counted)
    return called


def test_the_first_layer_that_an_adapter_changes(adapted: AdaptedModel) -> None:
    layers = len(adapted.module.model.layers)
    assert [adapted.first_layer(name) for name in ("high", "whole", None)] == [layers - 1, 0, layers]


@pytest.mark.parametrize("adapter", ["high", "whole", None])
@pytest.mark.parametrize("prepared", [False, True])
def test_shared_passes_give_what_whole_ones_give(adapted: AdaptedModel, adapter: str | None, prepared: bool) -> None:
    with torch.no_grad():
        whole = hidden(adapted, adapter)
        with adapted.shared_trunk():
            assert adapted.trunk is not None
            if prepared:
                adapted.trunk.prepare(ROWS, size=1)
            torch.testing.assert_close(hidden(adapted, adapter), whole, rtol=1e-5, atol=1e-6)
        assert adapted.trunk is None
        assert torch.equal(hidden(adapted, adapter), whole)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_whole_passes_also_where_a_scorer_came_first(adapted: AdaptedModel, checkpointing: bool) -> None:
    if checkpointing:
        recompute_activations(adapted)
    adapted.set_trainable("high")
    hidden(adapted, "high").square().sum().backward()
    whole = [parameter.grad for parameter in adapted.parameters("high")]
    for parameter in adapted.parameters("high"):
        parameter.grad = None
    with adapted.shared_trunk():
        with torch.inference_mode():
            hidden(adapted, None)
        hidden(adapted, "high").square().sum().backward()
    for parameter, gradient in zip(adapted.parameters("high"), whole, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_each_layer_below_runs_once_for_all_adapters(adapted: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    called = count_layers(adapted, monkeypatch)
    last = len(adapted.module.model.layers) - 1
    with adapted.shared_trunk(), torch.no_grad():
        for adapter in ("high", None, "high"):
            hidden(adapted, adapter)
        assert sorted(called) == sorted([*range(last), last, last, last])
        called.clear()
        hidden(adapted, "whole")  # reaches lower, and is computed whole
        assert called == list(range(last + 1))


def test_prepared_rows_have_the_same_bits_whoever_asked_before_and_in_whichever_company(adapted: AdaptedModel) -> None:
    def found(earlier: list[list[int]]) -> list[Tensor]:
        with adapted.shared_trunk(), torch.no_grad():
            trunk = adapted.trunk
            assert trunk is not None
            for members in earlier:
                batch = collate([SEQUENCES[index] for index in members], pad_id=0)
                trunk.states(batch.input_ids, batch.attention_mask)
            trunk.prepare(ROWS, size=2)
            one = collate(SEQUENCES[:1], pad_id=0)
            return [trunk.states(BATCH.input_ids, BATCH.attention_mask), trunk.states(one.input_ids, one.attention_mask)]

    plain, after = found([]), found([[1], [1, 0], [0, 1]])
    assert all(torch.equal(left, right) for left, right in zip(plain, after, strict=True))
    assert torch.equal(plain[0][0, : len(ROWS[0])], plain[1][0])
    assert not plain[0][1, len(ROWS[1]) :].any()


def test_what_lacks_the_last_token_of_a_prepared_row_is_there_too(adapted: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut response, which scorers read with an end and the policy without."""
    with adapted.shared_trunk(), torch.no_grad():
        assert adapted.trunk is not None
        adapted.trunk.prepare([(*row, 9) for row in ROWS], size=2)
        called = count_layers(adapted, monkeypatch)
        found = hidden(adapted, "high")
        assert called == list(range(adapted.trunk.depth, len(adapted.module.model.layers)))
    torch.testing.assert_close(found, hidden(adapted, "high"), atol=1e-5, rtol=1e-5)


def test_with_adapters_on_all_layers_nothing_is_shared(tiny: BaseModel) -> None:
    model = AdaptedModel(tiny)
    model.add("whole", LoraSpec(rank=4), seed=2)
    with model.shared_trunk():
        assert model.trunk is None


def test_more_layers_than_there_are(tiny: BaseModel) -> None:
    with pytest.raises(InvalidArgumentError, match="99 is more than the") as caught:
        AdaptedModel(tiny).add("a", LoraSpec(last_layers=99), seed=1)
    assert caught.value.field == "lora.last_layers"


def test_it_is_written_as_peft_has_it_and_comes_back(adapted: AdaptedModel, tmp_path: Path) -> None:
    adapted.save("high", tmp_path)
    assert read_lora_config(tmp_path).layers_to_transform == [len(adapted.module.model.layers) - 1]
    adapted.load("again", tmp_path)
    assert adapted.first_layer("again") == adapted.first_layer("high")
    assert torch.equal(hidden(adapted, "again"), hidden(adapted, "high"))


def test_the_engine_serves_it(adapted: AdaptedModel, tiny_folder: Path, tmp_path: Path) -> None:
    adapted.save("high", tmp_path)
    with torch.no_grad():
        wanted = adapted.hidden(BATCH.input_ids[:1], BATCH.attention_mask[:1], adapter="high", position_ids=BATCH.position_ids[:1])[0]
    engine = InferenceModel(load_base_model(tiny_folder))
    engine.load_adapter("high", tmp_path)
    slot = KvPool(engine.shape, max_tokens=64).take(len(ROWS[0]))
    assert slot is not None
    with torch.inference_mode():
        found = engine.forward([Piece(slot, list(ROWS[0]), 0, 0, adapter="high")])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [[], "last", [True], [-1]])
def test_indices_of_layers_that_are_none(adapted: AdaptedModel, tmp_path: Path, layers: object) -> None:
    adapted.save("high", tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layers_to_transform": layers}))
    with pytest.raises(FailedPreconditionError, match="layers_to_transform"):
        read_lora_config(tmp_path)
