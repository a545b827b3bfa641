"""What a run begins with stays what it goes on with: versions behind names, data, base model; anything else is said, and by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.training.surroundings import make_context, make_ppo, planted_pairs, publish_reward_model, run_here, write_rows

from accord.data.readers import read_texts
from accord.errors import DataLossError, FailedPreconditionError
from accord.models.testing import tiny_model_folder
from accord.training.__main__ import build
from accord.training.context import RunContext, RunStopped
from accord.training.loop import train


def stopped_after(context: RunContext, steps: int, algorithm: Any = None) -> None:
    """Runs until so many steps are done, and stops with a checkpoint."""
    algorithm = algorithm or build(context)
    step = algorithm.step

    def stopping(at: int, optimizer: Any) -> dict[str, float]:
        metrics = step(at, optimizer)
        if at + 1 == steps:
            context.stop.set()
        return metrics

    algorithm.step = stopping
    with pytest.raises(RunStopped):
        train(context, algorithm)


def publish_start(root: Path, model: Path, seed: int) -> str:
    """A version of adapters/start, other weights by each seed."""
    spec = {"adapter": "start", "seed": seed, "steps": 1, "optimizer": {"learning_rate": 0.05}, "sft": {"data": {"uri": str(root / "rows.jsonl")}}}
    return run_here(root, model, spec, name=f"start-{seed}")[0].adapter_version


def test_what_is_published_meanwhile_is_not_taken_for_the_parent(tmp_path: Path, tiny_folder: Path) -> None:
    """The parent is DPO's reference too: another one would change the loss, and nothing would say so."""
    data = write_rows(tmp_path / "rows.jsonl", planted_pairs())
    first = publish_start(tmp_path, tiny_folder, 1)
    spec = {"steps": 4, "parent_adapter": "adapters/start", "dpo": {"data": data}}
    straight, _ = run_here(tmp_path, tiny_folder, spec, name="straight")
    stopped_after(make_context(tmp_path, tiny_folder, {**spec, "adapter": "b"}, name="stopped"), 2)
    second = publish_start(tmp_path, tiny_folder, 2)
    assert (first, second) == ("adapters/start/versions/1", "adapters/start/versions/2")
    again = make_context(tmp_path, tiny_folder, {**spec, "adapter": "b"}, name="stopped")
    version = train(again, build(again)).adapter_version
    assert again.store.manifest(version).parents == (first,)
    weights = [again.store.fetch(each) / "adapter_model.safetensors" for each in (version, straight.adapter_version)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    new, _ = run_here(tmp_path, tiny_folder, {**spec, "adapter": "c"}, name="new")
    assert again.store.manifest(new.adapter_version).parents == (second,), "a new run takes the newest"


def test_reward_models_stay_the_versions_that_the_run_began_with(tmp_path: Path, tiny_folder: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", planted_pairs())
    guards = {"guards": {"held_out_reward_model": "adapters/honest"}}
    for run, version, seed in (("run", 1, 9), ("run", 1, 11), ("other", 3, 13)):
        context, algorithm, _ = make_ppo(tmp_path, tiny_folder, guards, {"data": data}, name=run, held_out=len)
        assert algorithm._reward_versions == (f"adapters/rm/versions/{version}",)
        assert algorithm._held_out == f"adapters/honest/versions/{version}"
        for name in ("rm", "honest"):
            publish_reward_model(context, name=name, seed=seed)


def test_a_version_that_cannot_be_used_is_not_kept(tmp_path: Path, tiny_folder: Path) -> None:
    """The run can be resumed once a version is published that can."""
    write_rows(tmp_path / "rows.jsonl", planted_pairs())
    publish_start(tmp_path, tiny_model_folder(tmp_path / "other", seed=3), 1)
    context = make_context(tmp_path, tiny_folder, {"dpo": {"data": {"uri": "sample:summarization"}}})
    with pytest.raises(FailedPreconditionError, match="was trained on base model"):
        context.fetch_parent("adapters/start")
    assert context.directory.versions() == {}
    good = publish_start(tmp_path, tiny_folder, 2)
    assert context.fetch_parent("adapters/start") == good
    assert context.directory.versions() == {"adapters/start": good}
    (context.directory.path / "versions.json").write_text("{")
    with pytest.raises(DataLossError, match=r"versions\.json"):
        context.fetch_parent("adapters/start")


@pytest.mark.parametrize("kind", ["sft", "reward_model", "dpo"])
def test_data_that_changed_between_two_attempts_is_refused(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    rows = planted_pairs()
    data = write_rows(tmp_path / "rows.jsonl", rows)
    spec = {"steps": 4, kind: {"data": data}}
    stopped_after(make_context(tmp_path, tiny_folder, spec), 2)
    write_rows(tmp_path / "rows.jsonl", [*rows[:-1], {**rows[-1], "chosen": "something else"}])
    again = make_context(tmp_path, tiny_folder, spec)
    with pytest.raises(
        FailedPreconditionError, match=r"checkpoint 00000002 was learnt with data_digest \w+, and now it is \w+; bring the former back"
    ):
        train(again, build(again))
    write_rows(tmp_path / "rows.jsonl", rows)
    again = make_context(tmp_path, tiny_folder, spec)
    assert train(again, build(again)).step == 4


def test_texts_of_the_pretraining_term_that_changed_between_two_attempts_are_refused(tmp_path: Path, tiny_folder: Path) -> None:
    """They are learnt from as the prompts are. A checkpoint of a version that did not keep their digest resumes; a run without texts says nothing."""
    data = write_rows(tmp_path / "rows.jsonl", planted_pairs())
    texts = [{"text": f"one {word} and more"} for word in ("alpha", "beta", "gamma")]
    ptx = {"data": data, "ptx_coefficient": 0.5, "ptx_data": write_rows(tmp_path / "texts.jsonl", texts)}

    def made(ppo: dict[str, Any], name: str = "run") -> tuple[RunContext, Any]:
        return make_ppo(tmp_path, tiny_folder, {"steps": 3}, ppo, name=name)[:2]

    context, algorithm = made(ptx)
    stopped_after(context, 1, algorithm)
    write_rows(tmp_path / "texts.jsonl", [*texts[:-1], {"text": "something else"}])
    with pytest.raises(FailedPreconditionError, match=r"00000001 was learnt with ptx_data_digest \w+, and now it is \w+; bring the former") as error:
        train(*made(ptx))
    assert error.value.field == "ptx_data_digest"
    write_rows(tmp_path / "texts.jsonl", texts)
    context, algorithm = made(ptx)
    facts = context.store.manifest(train(context, algorithm).adapter_version).facts
    assert facts["ptx_data_digest"] == read_texts(str(tmp_path / "texts.jsonl")).report.digest
    _, algorithm = made({"data": data}, "plain")
    algorithm.setup()
    assert "ptx_data_digest" not in algorithm.publication()["facts"]
    older, algorithm = made(ptx, "older")
    publication = algorithm.publication

    def without() -> dict[str, Any]:
        found = publication()
        return {**found, "facts": {name: value for name, value in found["facts"].items() if name != "ptx_data_digest"}}

    algorithm.publication = without
    stopped_after(older, 1, algorithm)
    context, algorithm = made(ptx, "older")
    assert train(context, algorithm).step == 3


def test_another_base_model_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    """As where the trainer's configuration names another one meanwhile: the adapter would fit, and mean nothing."""
    spec = {"steps": 4, "sft": {"data": write_rows(tmp_path / "rows.jsonl", planted_pairs())}}
    stopped_after(make_context(tmp_path, tiny_folder, spec), 2)
    again = make_context(tmp_path, tiny_model_folder(tmp_path / "other", seed=3), spec)
    with pytest.raises(FailedPreconditionError, match="learnt with base_model_digest"):
        train(again, build(again))


def test_another_number_of_threads_is_said(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"steps": 4, "sft": {"data": write_rows(tmp_path / "rows.jsonl", planted_pairs())}}
    for threads, steps in ((1, 1), (1, 2), (2, 3)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        stopped_after(make_context(tmp_path, tiny_folder, spec), steps)
    said = [event.text for event in make_context(tmp_path, tiny_folder, spec).directory.events() if "the checkpoint is of" in event.text]
    assert len(said) == 1
    assert said[0].startswith("the checkpoint is of 1 threads, and 2 go on")


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_policy_does_not_start_from_a_reward_model(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    data = write_rows(tmp_path / "rows.jsonl", planted_pairs())
    context = make_context(tmp_path, tiny_folder, {"parent_adapter": "adapters/rm", kind: {"data": data}})
    publish_reward_model(context)
    with pytest.raises(FailedPreconditionError, match=r"adapters/rm/versions/1 is of kind reward") as error:
        train(context, build(context))
    assert error.value.field == "parent_adapter"


def test_a_reward_model_may_start_from_a_policy(tmp_path: Path, tiny_folder: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", planted_pairs())
    parent = publish_start(tmp_path, tiny_folder, 1)
    result, _ = run_here(tmp_path, tiny_folder, {"steps": 1, "parent_adapter": parent, "reward_model": {"data": data}})
    assert result.step == 1
