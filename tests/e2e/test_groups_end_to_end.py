"""GRPO and RLOO with an ensemble of reward models through real servers: killed and stopped, they publish the bits of an undisturbed run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import pytest
from tests.e2e.rollout_world import World, assert_same_curve, rollout_world
from tests.e2e.runs import TrainingRun, kill_between_checkpoints, stop_and_resume

from accord.artefacts.store import ArtefactStore
from accord.client.messages import TokenIds
from accord.client.reward import RewardClient, ScoreItem
from accord.training.rollout import Rollout, read_rollouts

STEPS, EVERY, GROUP, STD = 8, 3, 3, 0.5
END_OF_TURN = 2  # of the tiny model
KINDS = ("grpo", "rloo")
pytestmark = [pytest.mark.training, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with rollout_world(tmp_path_factory.mktemp("groups"), reward_models=2) as made:
        yield made


def group_run(world: World, name: str, kind: str) -> TrainingRun:
    """A run, not yet started."""
    part: dict[str, Any] = {
        "data": world.data, "eval_data": {**world.data, "limit": 3}, "reward_model": world.reward_models[0],
        "more_reward_models": world.reward_models[1:], "ensemble_std_coefficient": STD, "group_size": GROUP, "epochs": 3, "minibatch_size": 3,
        "clip_range": 0.1,
    }  # fmt: skip
    spec = {
        "steps": STEPS, "batch_size": 6, "micro_batch_size": 2, "checkpoint_every_steps": EVERY, "max_prompt_tokens": 120, "max_response_tokens": 12,
        "lora": {"rank": 4}, "seed": 5, "parent_adapter": world.start, "optimizer": {"learning_rate": 3e-3}, kind: part,
    }  # fmt: skip
    return world.run(name, spec)


@pytest.fixture(scope="module")
def straight(world: World) -> Iterator[dict[str, TrainingRun]]:
    """A run of each kind that nobody disturbs."""
    runs = {kind: group_run(world, f"{kind}-straight", kind).start() for kind in KINDS}
    for run in runs.values():
        run.finish()
    yield runs
    for run in runs.values():
        run.close()


def rollouts_of(run: TrainingRun, step: int) -> list[Rollout]:
    found = read_rollouts(run.directory.rollouts / f"{step:08d}.jsonl")
    assert found is not None
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_stopped_it_publishes_the_bits_of_an_undisturbed_run(world: World, straight: dict[str, TrainingRun], kind: str) -> None:
    for attempt in range(3):
        run = group_run(world, f"{kind}-disturbed-{attempt}", kind).start()
        if kill_between_checkpoints(run, after_step=EVERY + 1, before_step=2 * EVERY):
            break
    else:
        raise AssertionError("three kills came too late")
    run.start()
    stop_and_resume(run, after_step=EVERY + 2, steps=STEPS)
    run.start().finish()
    assert run.published() == straight[kind].published()
    assert_same_curve(run, straight[kind])
    optimizers = [(each.directory.checkpoints / f"{STEPS:08d}" / "optimizer.safetensors").read_bytes() for each in (run, straight[kind])]
    assert optimizers[0] == optimizers[1]


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_over_the_wire_is_groups_scored_by_all_members(world: World, straight: dict[str, TrainingRun], kind: str) -> None:
    """The members' scores are those that each reward model gives alone, of cut ones with an end; the score is their mean less STD deviations."""
    rollouts = rollouts_of(straight[kind], 2)
    for group in (rollouts[:GROUP], rollouts[GROUP:]):
        assert len({rollout.id for rollout in group}) == 1
        assert len({rollout.seed for rollout in group}) == GROUP
    read = [each.response_ids if each.ended else (*each.response_ids, END_OF_TURN) for each in rollouts]
    items = [ScoreItem(TokenIds(each.prompt_ids), TokenIds(ids), str(index)) for index, (each, ids) in enumerate(zip(rollouts, read, strict=True))]
    with RewardClient(world.reward.address) as client:
        alone = [[result.score for result in client.score(items, version).results] for version in world.reward_models]
    for index, rollout in enumerate(rollouts):
        assert rollout.member_scores == pytest.approx([scores[index] for scores in alone], abs=1e-6)
        assert rollout.score == pytest.approx(statistics.fmean(rollout.member_scores) - STD * statistics.pstdev(rollout.member_scores))
        assert rollout.member_scores[0] != rollout.member_scores[1]
    spread = straight[kind].curve()[3]["score_std_between_models"]
    assert spread == pytest.approx(statistics.fmean(statistics.pstdev(rollout.member_scores) for rollout in rollouts), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_curve_and_the_lineage_say_what_happened(world: World, straight: dict[str, TrainingRun], kind: str) -> None:
    curve = straight[kind].curve()
    for step in range(1, STEPS + 1):
        assert curve[step]["first_ratio_mean"] == pytest.approx(1, abs=1e-5)
        assert curve[step]["first_clip_fraction"] == 0
        assert curve[step]["sampler_approx_kl"] < 1e-6
    assert curve[1]["kl"] == pytest.approx(0, abs=1e-5), "it starts as its reference"
    assert abs(curve[STEPS]["kl"]) > 1e-3, "and leaves it"
    assert {"eval_score", "eval_response_tokens"} <= curve[0].keys() & curve[STEPS].keys()
    result = straight[kind].directory.result()
    assert result is not None
    manifest = ArtefactStore(str(world.root / "artefacts")).manifest(result.adapter_version)
    assert list(manifest.parents) == [world.start, *world.reward_models]
    assert manifest.facts["algorithm"] == kind
    assert manifest.facts["group_size"] == GROUP
