"""A stop, or a gradient that is no number, in the middle of a step with rollouts: what was half done is thrown away exactly, or done to its end.
And a stop while nothing is learnt, in an evaluation or before the first step: it is heeded before the next pass, and costs no step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.training.ranked import on_ranks
from tests.unit.training.surroundings import (
    ALONE,
    TIMINGS,
    VersionSource,
    even_share,
    make_context,
    make_rollout_run,
    other_prompts,
    planted_pairs,
    write_rows,
)

from accord.training import context as context_module
from accord.training.__main__ import build
from accord.training.context import RunContext, RunStopped
from accord.training.distribution import World
from accord.training.loop import train
from accord.training.reference import FOLDER
from accord.training.stopping import BrokenGradientError

STEPS, STEP, BATCH, MINIBATCH = 4, 2, 4, 2
PARTS: dict[str, dict[str, Any]] = {
    "ppo": {
        "epochs": 2, "normalize_scores": True, "kl_controller": "adaptive", "kl_target": 0.01, "kl_horizon": 40, "max_staleness": 1,
        "ptx_coefficient": 0.5,
    },
    "grpo": {"epochs": 2, "group_size": 2},
    "rloo": {"epochs": 1, "group_size": 2},
}  # fmt: skip


def made(root: Path, model: Path, kind: str, name: str, world: World = ALONE, **values: Any) -> tuple[RunContext, Any]:
    """A run whose rollouts come from a model of their own; a pass holds one rollout, a step has two minibatches."""
    data = write_rows(root / "rows.jsonl", planted_pairs())
    part = {"data": data, "minibatch_size": MINIBATCH, **PARTS[kind]}
    if kind == "ppo":
        part["ptx_data"] = write_rows(root / "text.jsonl", [{"text": "a word and more " + "x" * n} for n in range(6)])
    given = {
        "steps": STEPS, "batch_size": BATCH, "micro_batch_size": 1, "max_response_tokens": 6, "adapter": name, "optimizer": {"learning_rate": 2e-3},
        **values, kind: part,
    }  # fmt: skip
    context, algorithm, _ = make_rollout_run(root, model, given, name=name, world=world)
    algorithm._source = VersionSource(context, even_share)
    return context, algorithm


class Passes:
    """Counts the policy's and the reference's passes of one step, and does something in the first, second, ... of a kind."""

    def __init__(self, algorithm: Any, kind: str, number: int, act: Any) -> None:
        self.counts, self.behind = {"reading": 0, "learning": 0}, 0
        inner = algorithm._model._token_rows

        def counted(rollouts: Any, adapter: str | None, **named: Any) -> Any:
            if algorithm._step == STEP:
                self.behind += self.counts[kind] >= number
                self.counts["learning" if torch.is_grad_enabled() else "reading"] += 1
                if self.counts[kind] == number and not self.behind:
                    act()
            return inner(rollouts, adapter, **named)

        algorithm._model._token_rows = counted


def files(context: RunContext, kind: str) -> list[bytes]:
    """What the run came to, in its last checkpoint."""
    names = ["adapter/adapter_model.safetensors", "optimizer.safetensors"]
    if kind == "ppo":
        names += ["value/adapter_model.safetensors", "value/head.safetensors", "behaviour/adapter_model.safetensors"]
    return [(context.directory.checkpoints / f"{STEPS:08d}" / name).read_bytes() for name in names]


def state(context: RunContext) -> Any:
    from accord.checkpoint import read_checkpoint

    return read_checkpoint(context.directory.checkpoints / f"{STEPS:08d}", spec=context.spec.learning_values).state["algorithm"]


@pytest.mark.parametrize("kind", list(PARTS))
def test_a_stop_is_heeded_before_anything_is_learnt_and_resumes_to_the_same_bits(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    """In the second pass of the reference, and in the last one before the first update."""
    straight, algorithm = made(tmp_path, tiny_folder, kind, "straight")
    train(straight, algorithm)
    for name, number in (("reading", 2), ("learning", MINIBATCH)):
        context, algorithm = made(tmp_path, tiny_folder, kind, name)
        passes = Passes(algorithm, name, number, context.stop.set)
        with pytest.raises(RunStopped):
            train(context, algorithm)
        assert (passes.counts[name], passes.behind) == (number, 0), "no pass is made behind the stop"
        assert [path.name for path in context.directory.checkpoints.iterdir()] == [f"{STEP:08d}"]
        again, algorithm = made(tmp_path, tiny_folder, kind, name)
        train(again, algorithm)
        assert files(again, kind) == files(straight, kind)
        assert state(again) == state(straight)


@pytest.mark.parametrize("kind", list(PARTS))
def test_a_stop_behind_the_first_update_waits_for_the_end_of_the_step(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    context, algorithm = made(tmp_path, tiny_folder, kind, "late")
    passes = Passes(algorithm, "learning", MINIBATCH + 1, context.stop.set)
    with pytest.raises(RunStopped):
        train(context, algorithm)
    assert passes.counts["learning"] == BATCH * PARTS[kind]["epochs"]
    assert [path.name for path in context.directory.checkpoints.iterdir()] == [f"{STEP + 1:08d}"]


def test_a_gradient_that_is_no_number_before_anything_is_learnt_leaves_a_checkpoint(tmp_path: Path, tiny_folder: Path) -> None:
    """Of the last finished step, from which a run goes on as if nothing had been."""
    straight, algorithm = made(tmp_path, tiny_folder, "ppo", "straight")
    train(straight, algorithm)
    context, algorithm = made(tmp_path, tiny_folder, "ppo", "broken")
    penalised = algorithm._penalised
    algorithm._penalised = lambda scores, rollouts: penalised(scores, rollouts) * (torch.nan if algorithm._step == STEP else 1)
    with pytest.raises(BrokenGradientError, match="the gradient's norm is nan"):
        train(context, algorithm)
    assert [path.name for path in context.directory.checkpoints.iterdir()] == [f"{STEP:08d}"]
    again, algorithm = made(tmp_path, tiny_folder, "ppo", "broken")
    train(again, algorithm)
    assert files(again, "ppo") == files(straight, "ppo")
    assert state(again) == state(straight)


def _stopped(world: World, root: Path, model: Path) -> str:
    """The second of two processes alone hears of a stop, in its first pass that learns."""
    context, algorithm = made(root, model, "rloo", "both", world, distribution={"processes": 2})
    Passes(algorithm, "learning", 1, context.stop.set if world.rank else lambda: None)
    try:
        train(context, algorithm)
    except RunStopped:
        return "stopped"
    return "it went on"


@pytest.mark.training
def test_two_processes_agree_on_a_stop_before_the_first_update(tmp_path: Path, tiny_folder: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", planted_pairs())
    assert on_ranks(tmp_path, 2, _stopped, tmp_path, tiny_folder) == ["stopped"] * 2
    assert [path.name for path in (tmp_path / "both" / "checkpoints").iterdir()] == [f"{STEP:08d}"]


HELD_OUT = 9
PASSES = {"sft": "_logprobs", "dpo": "sums", "reward_model": "_scores"}
"""What makes a pass over the model."""


def evaluated(root: Path, model: Path, kind: str, name: str, world: World = ALONE, **values: Any) -> tuple[RunContext, Any]:
    """A run that evaluates before its first step, after two and at its end, a row or pair in a pass."""
    data, held_out = write_rows(root / "rows.jsonl", planted_pairs()), other_prompts(root)
    given = {"steps": STEPS, "batch_size": BATCH, "micro_batch_size": 1, "eval_every_steps": STEP, "adapter": name, **values}
    context = make_context(root, model, {**given, kind: {"data": data, "eval_data": {**held_out, "limit": HELD_OUT}}}, name=name, world=world)
    context.stop = world._stop if world.size > 1 else context.stop
    return context, build(context)


def counted(algorithm: Any, kind: str, number: int, act: Any, *, reference: bool = False) -> list[int]:
    """Does something in the first, second, ... pass of the evaluations, or of the reference; numbers of all that were made."""
    made: list[int] = []
    owner = algorithm._loss if kind == "dpo" else algorithm
    inner = getattr(owner, PASSES[kind])

    def passing(rows: Any, *adapter: str | None) -> Any:
        if not torch.is_grad_enabled() and (adapter == (None,)) == reference:
            made.append(len(made) + 1)
            if made[-1] == number:
                act()
        return inner(rows, *adapter)

    setattr(owner, PASSES[kind], passing)
    return made


def came_to(context: RunContext, version: str) -> Any:
    """What a run published, but its name."""
    folder, manifest = context.store.fetch(version), context.store.manifest(version)
    facts = {name: value for name, value in manifest.facts.items() if name not in {"spec_digest"}}
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}, facts, manifest.step


@pytest.mark.parametrize(
    ("kind", "number", "step"),
    [(kind, number, step) for kind in PASSES for number, step in ((2, 0), (HELD_OUT + 2, STEP), (2 * HELD_OUT + 2, STEPS))]
    + [("reward_model", 3 * HELD_OUT + 2, STEPS)],
)
def test_a_stop_in_an_evaluation_is_heeded_before_its_next_pass(tmp_path: Path, tiny_folder: Path, kind: str, number: int, step: int) -> None:
    """In the one before the first step, which has nothing to keep; the one after a step, which is kept; the last one, also in a reward model's
    statistics behind it."""
    straight, algorithm = evaluated(tmp_path, tiny_folder, kind, "straight")
    expected = train(straight, algorithm)
    context, algorithm = evaluated(tmp_path, tiny_folder, kind, "stopped")
    made = counted(algorithm, kind, number, context.stop.set)
    with pytest.raises(RunStopped):
        train(context, algorithm)
    assert made[-1] == number, "no pass is made behind the stop"
    assert [path.name for path in context.directory.checkpoints.glob("*")] == ([f"{step:08d}"] if step else [])
    again, algorithm = evaluated(tmp_path, tiny_folder, kind, "stopped")
    result = train(again, algorithm)
    assert came_to(again, result.adapter_version) == came_to(straight, expected.adapter_version)
    metrics = [{name: value for name, value in each.metrics.items() if name not in TIMINGS} for each in (result, expected)]
    assert metrics[0] == metrics[1]


def _evaluating(world: World, root: Path, model: Path, kind: str, name: str, stops: bool) -> Any:
    """Two processes agree every two passes of each; the second alone hears of a stop, in its first pass of the evaluation after two steps."""
    context_module._ROUNDS = 2  # type: ignore[misc]
    context, algorithm = evaluated(root, model, kind, name, world, distribution={"processes": 2})
    own = HELD_OUT // 2
    made = counted(algorithm, kind, own + 1 if stops and world.rank else -1, context.stop.set)
    try:
        return train(context, algorithm).adapter_version
    except RunStopped:
        return len(made) - own - (0 if world.rank else HELD_OUT % 2)


@pytest.mark.training
@pytest.mark.parametrize("kind", list(PASSES))
def test_two_processes_agree_on_a_stop_in_an_evaluation(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    """Whose passes do not come out even."""
    evaluated(tmp_path, tiny_folder, kind, "alone")  # writes the data
    straight = on_ranks(tmp_path, 2, _evaluating, tmp_path, tiny_folder, kind, "straight", False)
    assert on_ranks(tmp_path, 2, _evaluating, tmp_path, tiny_folder, kind, "stopped", True) == [2, 2], "both end the passes that they agreed on"
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == [f"{STEP:08d}"]
    again = on_ranks(tmp_path, 2, _evaluating, tmp_path, tiny_folder, kind, "stopped", False)
    context, _ = evaluated(tmp_path, tiny_folder, kind, "alone")
    assert came_to(context, again[0]) == came_to(context, straight[0])


def _preparing(world: World, root: Path, model: Path, stops: bool) -> Any:
    """Reference passes until a stop, of which the second process alone hears, in its first one."""
    context_module._ROUNDS = 2  # type: ignore[misc]
    context, algorithm = evaluated(root, model, "dpo", "run", world, distribution={"processes": 2})
    made = counted(algorithm, "dpo", 1 if stops and world.rank else -1, context.stop.set, reference=True)
    try:
        algorithm.setup()
    except RunStopped:
        return "stopped", len(made)
    return "went on", len(made)


@pytest.mark.training
def test_two_processes_agree_on_a_stop_before_the_first_step_and_keep_the_reference_so_far(tmp_path: Path, tiny_folder: Path) -> None:
    evaluated(tmp_path, tiny_folder, "dpo", "alone")
    assert on_ranks(tmp_path, 2, _preparing, tmp_path, tiny_folder, True) == [("stopped", 2)] * 2
    (kept,) = (tmp_path / FOLDER).glob("*/*.jsonl")
    assert len(kept.read_text().splitlines()) == 4, "those of both processes"
    went = on_ranks(tmp_path, 2, _preparing, tmp_path, tiny_folder, False)
    assert sum(passes for _, passes in went) == len(planted_pairs()) + HELD_OUT - 4
    assert {how for how, _ in went} == {"went on"}
