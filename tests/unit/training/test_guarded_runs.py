"""Guards on whole runs: planted bugs of the reward are stopped and rolled back, clean runs are left alone, a kill changes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.unit.training.surroundings import (
    NOWHERE,
    make_context,
    make_ppo,
    make_rollout_run,
    metrics_of,
    planted_pairs,
    publish_reward_model,
    write_rows,
)
from tests.unit.training.tabular import GOOD, Scorer, TabularPolicy, honest

from accord.errors import InvalidArgumentError
from accord.rundir import EXIT_DONE, EXIT_GUARDED, RunResult
from accord.training.context import RunContext, RunStopped
from accord.training.loop import train
from accord.training.rollout import read_rollouts

HELD_OUT = "adapters/honest"
BOUNDS = {"max_kl": 60.0, "max_length_ratio": 2.5, "max_repetition": 0.5}


def good_share(response: Sequence[int]) -> float:
    return 4 * sum(token in GOOD for token in response) / max(1, len(response))


PLANTED: dict[str, Scorer] = {
    "length": lambda response: good_share(response) + 0.5 * len(response),
    "keyword": lambda response: good_share(response) + 1.5 * sum(token == 9 for token in response),
    "repetition": lambda response: good_share(response) + 1.5 * sum(one == other for one, other in itertools.pairwise(response)),
}


def table_run(
    root: Path, model: Path, guards: dict[str, Any], trained: Scorer, *, name: str = "run", seed: int = 0, steps: int = 60, every: int = 5,
    eval_every: int = 0,
) -> Any:  # fmt: skip
    """A run of the table with this reward, with checkpoints of which only the last is kept besides what the guards want."""
    prompts = {"uri": "sample:conversation"}
    values = {
        "steps": steps, "batch_size": 16, "seed": seed, "checkpoint_every_steps": every, "checkpoints_kept": 1, "adapter": name,
        "optimizer": {"learning_rate": 0.15}, "guards": {"held_out_reward_model": HELD_OUT, **guards},
        "eval_every_steps": eval_every, "ppo": {"data": prompts, "eval_data": prompts, "reward_model": "adapters/rm"},
    }  # fmt: skip
    context = make_context(root, model, values, name=name, endpoints=NOWHERE)
    return context, TabularPolicy(context, trained, honest)


def alarms_of(context: RunContext) -> list[str]:
    return [event.text for event in context.directory.events() if event.text.startswith("alarm:")]


def table_at(folder: Path) -> Any:
    return load_file(folder / "table.safetensors")["table"]


@pytest.mark.parametrize("bug", list(PLANTED))
def test_a_planted_bug_is_stopped_and_rolled_back_to_something_better(tmp_path: Path, tiny_folder: Path, bug: str) -> None:
    context, policy = table_run(tmp_path, tiny_folder, {"action": "rollback"}, PLANTED[bug])
    result = train(context, policy)
    assert result.exit_code == EXIT_DONE
    assert result.step < 60, "it was stopped"
    manifest = context.store.manifest(result.adapter_version)
    assert manifest.step < result.step
    assert manifest.facts["rolled_back_from_step"] == result.step
    assert f"Rolled back: step {manifest.step} is published, the best by held-out score" in result.message
    published = policy.true_score(table_at(context.store.fetch(result.adapter_version)))
    last = policy.true_score(table_at(context.directory.checkpoints / f"{result.step:08d}" / "adapter"))
    assert published > last + 0.5, "what people want of it, without noise"
    (alarm,) = alarms_of(context)
    assert "while the trained score rose" in alarm
    unguarded = policy.true_score(table_at(finished(tmp_path, tiny_folder, PLANTED[bug])))
    assert published > unguarded + 1.0, "and what would have come out without guards"


def finished(root: Path, model: Path, trained: Scorer) -> Path:
    context, policy = table_run(root, model, {"action": "warn"}, trained, name="unguarded")
    result = train(context, policy)
    assert (result.exit_code, result.step) == (EXIT_DONE, 60)
    assert alarms_of(context), "it warns, and goes on"
    return context.store.fetch(result.adapter_version)


@pytest.mark.parametrize("bug", ["length", "repetition"])
def test_length_and_repetition_are_seen_without_a_second_reward_model(tmp_path: Path, tiny_folder: Path, bug: str) -> None:
    guards = {"action": "stop", "held_out_reward_model": "", **BOUNDS, "max_repetition": 0.1} | (
        {"max_length_ratio": 0.0} if bug == "repetition" else {}
    )
    context, policy = table_run(tmp_path, tiny_folder, guards, PLANTED[bug])
    result = train(context, policy)
    assert result.exit_code == EXIT_GUARDED
    assert {"length": "max_length_ratio 2.5", "repetition": "max_repetition 10%"}[bug] in result.message
    assert result.adapter_version == ""
    assert (context.directory.checkpoints / f"{result.step:08d}").is_dir(), "with a checkpoint"
    assert context.store.latest("run") is None, "nothing is published"


@pytest.mark.parametrize("eval_every", [0, 50])
def test_a_run_that_evaluates_after_its_last_step_alone_is_rolled_back(tmp_path: Path, tiny_folder: Path, eval_every: int) -> None:
    """As the shipped recipes with rollouts do: no checkpoint had been rated, and the best was said to be beyond a bound."""
    guards = {"action": "rollback", "held_out_reward_model": "", "max_length_ratio": 2.5}
    context, policy = table_run(tmp_path, tiny_folder, guards, PLANTED["length"], eval_every=eval_every)
    policy.evaluate = lambda *, final: {"eval_score": 1.0}  # type: ignore[method-assign]
    result = train(context, policy)
    assert result.exit_code == EXIT_DONE
    assert 5 < result.step < 50, "before any evaluation but the one of the start"
    manifest = context.store.manifest(result.adapter_version)
    assert manifest.step < result.step
    assert f"Rolled back: step {manifest.step} is published, the best by reward" in result.message


def test_what_is_stopped_before_a_checkpoint_is_rated_says_so(tmp_path: Path, tiny_folder: Path) -> None:
    guards = {"action": "rollback", "held_out_reward_model": "", "max_length_ratio": 2.5}
    context, policy = table_run(tmp_path, tiny_folder, guards, PLANTED["length"], every=50)
    result = train(context, policy)
    assert (result.exit_code, result.adapter_version) == (EXIT_GUARDED, "")
    assert result.message.endswith("; no checkpoint had been rated by then, which takes rollouts of its own, so nothing is published")


def test_clean_runs_are_left_alone(tmp_path: Path, tiny_folder: Path) -> None:
    """Twenty of them, the reward being honest but noisy, with all guards on: none is stopped, and each learns what it should."""
    for seed in range(20):
        context, policy = table_run(tmp_path, tiny_folder, {"action": "stop", **BOUNDS}, honest, name=f"clean-{seed}", seed=seed, steps=40, every=0)
        result = train(context, policy)
        assert (result.exit_code, alarms_of(context)) == (EXIT_DONE, []), seed
        scores = metrics_of(context.directory.events(), "held_out_score_mean")
        assert sum(scores[-5:]) > sum(scores[:5]) + 2.5, "a run that learns nothing proves nothing"


def test_a_run_killed_and_stopped_is_guarded_as_one_that_nobody_disturbed(tmp_path: Path, tiny_folder: Path) -> None:
    """The same stop, the same words, the same bits published; SIGTERM's checkpoint between two scheduled ones is no candidate."""
    guards = {"action": "rollback", **BOUNDS}
    context, policy = table_run(tmp_path, tiny_folder, guards, PLANTED["length"], name="straight")
    expected = train(context, policy)
    disturbed: RunContext | None = None
    result: RunResult | None = None
    for kind, at in (("die", 7), ("stop", 12), ("stop", expected.step - 1), ("go", 0)):
        disturbed, policy = table_run(tmp_path, tiny_folder, guards, PLANTED["length"], name="disturbed")
        step = policy.step

        def acting(number: int, optimizer: Any, step: Any = step, kind: str = kind, at: int = at, here: RunContext = disturbed) -> Any:
            if kind == "die" and number == at:
                raise MemoryError("killed")
            if kind == "stop" and number == at - 1:
                here.stop.set()
            return step(number, optimizer)

        policy.step = acting  # type: ignore[method-assign]
        try:
            result = train(disturbed, policy)
        except (MemoryError, RunStopped):
            result = None
    assert result is not None
    assert disturbed is not None
    assert (result.step, result.message, result.exit_code) == (expected.step, expected.message, expected.exit_code)
    mine, theirs = (run.store.fetch(outcome.adapter_version) for run, outcome in ((disturbed, result), (context, expected)))
    assert (mine / "table.safetensors").read_bytes() == (theirs / "table.safetensors").read_bytes()


def test_a_stopped_run_stays_stopped(tmp_path: Path, tiny_folder: Path) -> None:
    """Killed between its checkpoint and its end, it says the same again, and publishes the same version, without a further step."""
    guards = {"action": "rollback"}
    context, policy = table_run(tmp_path, tiny_folder, guards, PLANTED["length"])
    first = train(context, policy)
    context, policy = table_run(tmp_path, tiny_folder, guards, PLANTED["length"])
    policy.step = None  # type: ignore[assignment,method-assign]
    again = train(context, policy)
    assert (again.step, again.message, again.adapter_version) == (first.step, first.message, first.adapter_version)


def test_a_damaged_best_checkpoint_is_passed_over(tmp_path: Path, tiny_folder: Path) -> None:
    context, policy = table_run(tmp_path, tiny_folder, {"action": "rollback"}, PLANTED["length"])
    spec = context.spec.model_copy(update={"checkpoints_kept": 50})
    context.run = context.run.model_copy(update={"spec": spec})
    first = train(context, policy)
    best = context.store.manifest(first.adapter_version).step
    (context.directory.checkpoints / f"{best:08d}" / "adapter" / "table.safetensors").write_bytes(b"gone")
    again = train(context, policy)
    assert context.store.manifest(again.adapter_version).step != best
    assert any(f"checkpoint {best:08d}" in event.text and "next best" in event.text for event in context.directory.events())


def keyword(response: Sequence[int]) -> float:
    return 4.0 * sum(token == 101 for token in response) / len(response)


def distinct(response: Sequence[int]) -> float:
    return 4.0 * len(set(response)) / len(response)


def test_ppo_that_learns_a_keyword_is_rolled_back(tmp_path: Path, tiny_folder: Path) -> None:
    """A language model, trained by PPO: the held-out scores are on disk with the rollouts, and the version says who looked on."""
    values = {
        "steps": 30, "batch_size": 16, "checkpoint_every_steps": 2, "checkpoints_kept": 1, "optimizer": {"learning_rate": 2e-2},
        "guards": {"action": "rollback", "held_out_reward_model": HELD_OUT},
    }  # fmt: skip
    ppo = {"data": write_rows(tmp_path / "rows.jsonl", planted_pairs()), "epochs": 2, "temperature": 1.0, "kl_coef": 0.0, "missing_eos_penalty": 0.0}
    context, algorithm, _ = make_ppo(tmp_path, tiny_folder, values, ppo, score=keyword, held_out=distinct)
    result = train(context, algorithm)
    manifest = context.store.manifest(result.adapter_version)
    held_out = metrics_of(context.directory.events(), "held_out_score_mean")
    assert manifest.step < result.step < 30
    assert held_out[manifest.step] > held_out[-1] + 0.3, "its own rollouts are those of the next step"
    assert manifest.facts["held_out_reward_model"] == "adapters/honest/versions/1"
    rollouts = read_rollouts(context.directory.rollouts / "00000000.jsonl")
    assert rollouts is not None
    assert [rollout.held_out_score for rollout in rollouts] == [distinct(rollout.response_ids) for rollout in rollouts]


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_algorithms_without_a_critic_are_guarded_too(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    values = {
        "steps": 4, "batch_size": 8, "guards": {"action": "stop", "held_out_reward_model": HELD_OUT, "max_kl": 1e-6, "patience": 1},
        "optimizer": {"learning_rate": 2e-2}, kind: {"data": write_rows(tmp_path / "rows.jsonl", planted_pairs()), "group_size": 4},
    }  # fmt: skip
    context, algorithm, _ = make_rollout_run(tmp_path, tiny_folder, values, held_out=distinct)
    result = train(context, algorithm)
    assert result.exit_code == EXIT_GUARDED
    assert 1 < result.step <= 4, "the first rollouts are the reference's"
    assert "over max_kl 1e-06 in one step" in result.message
    assert "held_out_score_mean" in result.metrics


def test_the_trained_reward_model_cannot_be_held_out(tmp_path: Path, tiny_folder: Path) -> None:
    """Named without its version in one place and with it in the other."""
    data = write_rows(tmp_path / "rows.jsonl", planted_pairs())
    with pytest.raises(InvalidArgumentError, match="is what the policy is trained on") as error:
        make_ppo(tmp_path, tiny_folder, {"guards": {"held_out_reward_model": "adapters/rm/versions/1"}}, {"data": data})
    assert error.value.field == "guards.held_out_reward_model"


def test_an_evaluation_is_scored_by_both(tmp_path: Path, tiny_folder: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", planted_pairs())
    guards = {"guards": {"held_out_reward_model": HELD_OUT}}
    context, algorithm, _ = make_ppo(tmp_path, tiny_folder, guards, {"data": data, "eval_data": data}, score=keyword, held_out=distinct)
    publish_reward_model(context, name="honest")
    algorithm.setup()
    found = algorithm.evaluate(final=False)
    assert {"eval_score", "eval_held_out_score_mean", "eval_held_out_score_std"} <= found.keys()
    assert found["eval_held_out_score_mean"] != found["eval_score"]
