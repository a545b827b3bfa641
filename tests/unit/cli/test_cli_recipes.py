"""Every shipped training recipe is a valid run, and settings go where they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from accord.cli.recipes import load_train_recipe, shipped_recipes
from accord.data.readers import check_source
from accord.errors import InvalidArgumentError


def test_eight_recipes_are_shipped() -> None:
    found = {name: load_train_recipe(name) for name in shipped_recipes()}
    assert {name: spec.algorithm for name, spec in found.items()} == {
        "sft": "sft", "reward-model": "reward_model", "dpo": "dpo", "online-dpo": "online_dpo", "ppo": "ppo", "grpo": "grpo", "rloo": "rloo",
        "ppo-rating-judge": "ppo",
    }  # fmt: skip
    assert {spec.adapter for spec in found.values()} == set(found)


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_a_recipe_reads_data_that_is_there_and_holds_out_some(name: str) -> None:
    spec = load_train_recipe(name)
    part = spec.sft or spec.reward_model or spec.dpo or spec.online_dpo or spec.rollout_part
    assert part is not None
    check_source(part.data.uri)
    assert part.eval_data is not None
    assert part.eval_data.split != part.data.split
    assert spec.checkpoint_every_steps


def test_recipes_fit_together() -> None:
    published = {"adapters/sft/versions/1", "adapters/reward-model/versions/1"}
    specs = [load_train_recipe(name) for name in shipped_recipes()]
    assert {spec.parent_adapter for spec in specs} - {""} <= published
    scoring = {name for spec in specs if spec.rollout_part is not None for name in spec.rollout_part.reward_models.values()}
    assert scoring == {"adapters/reward-model/versions/1"}


def test_a_reward_model_is_asked_for_by_its_short_name_too() -> None:
    assert load_train_recipe("reward") == load_train_recipe("reward-model")


def test_settings_are_yaml_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = load_train_recipe("sft", ["steps=5", "optimizer.learning_rate=1e-3", "sft.data={uri: mine.jsonl, strict: true}", "lora.alpha=null"])
    assert spec.sft is not None
    assert (spec.steps, spec.optimizer.learning_rate, spec.lora.alpha) == (5, 1e-3, None)
    assert spec.optimizer.warmup_steps == 2
    assert (spec.sft.data.uri, spec.sft.data.strict) == (str(tmp_path / "mine.jsonl"), True)
    assert spec.sft.eval_data is not None
    assert spec.sft.eval_data.uri == "sample:summarization"


@pytest.mark.parametrize("setting", ["data.uri=mine.jsonl", "data={uri: mine.jsonl}", "data.uri=sample:conversation"])
@pytest.mark.parametrize(("name", "part"), [("reward-model", "reward_model"), ("dpo", "dpo")])
def test_pairs_of_one_data_set_are_not_held_out_of_another_without_a_word(name: str, part: str, setting: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"held-out pairs are still those of sample:summarization: set {part}.eval_data.uri to") as error:
        load_train_recipe(name, [f"{part}.{setting}"])
    assert error.value.field == f"{part}.eval_data.uri"
    for said in ("eval_data=null", "eval_data.uri=sample:summarization", "eval_data={uri: held.jsonl}"):
        load_train_recipe(name, [f"{part}.{setting}", f"{part}.{said}"])
    load_train_recipe(name, [f"{part}.data.limit=3", f"{part}.data.uri=sample:summarization"])


def test_a_recipe_of_ones_own_may_hold_out_another_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("adapter: a\nsteps: 1\nreward_model: {data: {uri: a.jsonl}, eval_data: {uri: b.jsonl}}\n")
    spec = load_train_recipe(str(path), ["reward_model.data.uri=c.jsonl"]).reward_model
    assert spec is not None
    assert spec.eval_data is not None
    assert (Path(spec.data.uri).name, Path(spec.eval_data.uri).name) == ("c.jsonl", "b.jsonl")


def test_a_file_is_read_relative_to_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text('adapter: a\nsteps: 1\nsft: {data: {uri: "hub:a/b"}, eval_data: {uri: ../x.jsonl}}\n')
    spec = load_train_recipe("mine.yaml")
    assert spec.sft is not None
    assert spec.sft.data.uri == "hub:a/b"
    assert spec.sft.eval_data is not None
    assert spec.sft.eval_data.uri == str(tmp_path / "../x.jsonl")
    Path("list.yaml").write_text("- 1\n")
    with pytest.raises(InvalidArgumentError, match="is not a mapping"):
        load_train_recipe("list.yaml")
