"""PPO and RLOO whose reward is a judge's expected rating, through real policy and feedback servers: killed, or the judge away, they end in the same bits."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.contract.harness import ServerProcess
from tests.e2e.rollout_world import assert_same_curve
from tests.e2e.runs import TrainingRun, kill_between_checkpoints
from tests.unit.training.surroundings import planted_pairs, write_rows

from accord.client.feedback import FeedbackClient, Judge, Rating
from accord.data.readers import read_prompts
from accord.models.base import load_base_model
from accord.models.testing import tiny_model_folder
from accord.prompts import load_rubric
from accord.rpc.channels import ChannelConfig
from accord.rundir import Endpoints
from accord.training.rollout import Rollout, read_rollouts

STEPS, EVERY = 7, 3
pytestmark = [pytest.mark.training, pytest.mark.timeout(240)]
RUBRIC = "conversation/helpful-rating/1"


@dataclass
class World:
    """Policy and feedback server; there is no reward service."""

    root: Path
    model: Path
    policy: ServerProcess
    feedback: ServerProcess
    data: dict[str, Any]

    def start_feedback(self, listen: str = "127.0.0.1:0") -> ServerProcess:
        """A feedback server over the ledger, whose judge is the policy service's base model."""
        config = {"ledger": str(self.root / "ledger.sqlite"), "jobs": str(self.root / "jobs"), "policy": self.policy.address}
        return ServerProcess("accord.feedback", {**config, "server": {"listen": listen}}, self.root).__enter__()

    def run(self, algorithm: str, name: str, **more: Any) -> TrainingRun:
        """A run, not yet started."""
        part = {"data": self.data, "eval_data": {**self.data, "limit": 3}, "judge_reward": {"task": "conversation", "rubric": RUBRIC}, "epochs": 2}
        part |= {"group_size": 2} if algorithm == "rloo" else {}
        spec = {
            "steps": STEPS, "batch_size": 4, "micro_batch_size": 2, "checkpoint_every_steps": EVERY, "max_prompt_tokens": 120,
            "max_response_tokens": 10, "lora": {"rank": 4}, "seed": 5, "optimizer": {"learning_rate": 2e-3}, algorithm: part,
        }  # fmt: skip
        endpoints = Endpoints(policy=self.policy.address, feedback=self.feedback.address)
        return TrainingRun(self.root, f"{algorithm}-{name}", self.model, spec, endpoints=endpoints, **more)

    def judged(self) -> int:
        """Ratings in the ledger."""
        with contextlib.closing(sqlite3.connect(self.root / "ledger.sqlite")) as ledger:
            return int(ledger.execute("SELECT count(*) FROM judgements").fetchone()[0])

    def bought(self) -> float:
        """Ratings for which this feedback server asked the judge."""
        return self.feedback.metric("accord_feedback_judgements_total", source="judge")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("rated")
    model = tiny_model_folder(root / "model")
    shape = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**shape, "max_position_embeddings": 4096}))  # a rubric is long in bytes
    config = {"base_model": str(model), "artefacts": str(root / "artefacts"), "threads": 1, "server": {"listen": "127.0.0.1:0"}}
    with ServerProcess("accord.policy", config, root) as policy:
        made = World(root, model, policy, None, write_rows(root / "rows.jsonl", planted_pairs()))  # type: ignore[arg-type]
        made.feedback = made.start_feedback()
        yield made
        made.feedback.kill()


def rollouts_of(run: TrainingRun) -> list[Rollout]:
    found = [read_rollouts(run.directory.rollouts / f"{step:08d}.jsonl") for step in range(STEPS)]
    return [each for rollouts in found for each in rollouts or ()]


@pytest.mark.parametrize("algorithm", ["ppo", "rloo"])
def test_killed_between_checkpoints_it_publishes_the_bits_of_an_undisturbed_run_and_buys_nothing_twice(world: World, algorithm: str) -> None:
    before = world.judged(), world.bought()
    for attempt in range(3):
        disturbed = world.run(algorithm, f"disturbed-{attempt}").start()
        if kill_between_checkpoints(disturbed, after_step=EVERY + 1, before_step=2 * EVERY):
            break
    else:
        raise AssertionError("three kills came too late")
    disturbed.start().finish()
    judged, bought = world.judged(), world.bought()
    assert judged > before[0]
    assert bought - before[1] <= judged - before[0], "each is in the ledger, and none was asked for that was there"
    straight = world.run(algorithm, "straight").start()
    straight.finish()
    assert (world.judged(), world.bought()) == (judged, bought), "an equal run asks nothing new"
    assert disturbed.published() == straight.published()
    assert_same_curve(disturbed, straight)
    rollouts = rollouts_of(straight)
    assert len(rollouts) == STEPS * 4
    assert [each.score for each in rollouts_of(disturbed)] == [each.score for each in rollouts]
    assert len({each.score for each in rollouts}) > len(rollouts) // 2
    assert all(-1 <= each.score <= 1 for each in rollouts)
    assert {step: metrics["unrated"] for step, metrics in straight.curve().items() if step} == {
        step + 1: sum(not each.judge for each in rollouts[4 * step : 4 * step + 4]) / 4 for step in range(STEPS)
    }
    _manifest_says_who_judged(world, straight, rollouts)
    _are_the_services_ratings(world, rollouts)


def _manifest_says_who_judged(world: World, run: TrainingRun, rollouts: list[Rollout]) -> None:
    said = [each.judge for each in rollouts if each.judge]
    assert said == [said[0]] * len(said)
    version = run.store.latest(run.directory.path.name)
    assert version is not None
    facts = run.store.manifest(version).facts
    assert {name: facts[name] for name in said[0]} == said[0]
    assert (said[0]["rubric"], said[0]["rubric_digest"]) == (RUBRIC, load_rubric(RUBRIC).digest)
    assert len(said[0]["judge_digest"]) == 64


def _are_the_services_ratings(world: World, rollouts: list[Rollout]) -> None:
    """The rewards are what the service answers whoever asks it for the same texts, and sum i P(i) on [-1, 1]."""
    encoder = load_base_model(str(world.model), threads=1).encoder
    prompts = {prompt.prompt_id: prompt for prompt in read_prompts(world.data["uri"], format="", split="train", limit=0, strict=False, seed=5).rows}
    rated = [each for each in rollouts if each.judge][:4]
    asked = [(prompts[each.id].messages, encoder.decode(each.response_ids)) for each in rated]
    with FeedbackClient(ChannelConfig(address=world.feedback.address)) as client:
        found = client.rate_responses(prompts[rated[0].id].task, asked, Judge("rating", rubric=RUBRIC), timeout_seconds=60).results
    for each, result in zip(rated, found, strict=True):
        assert isinstance(result, Rating)
        assert result.score == each.score
        assert each.score == pytest.approx((sum(place * share for place, share in enumerate(result.distribution, start=1)) - 5.5) / 4.5)


def test_a_judge_that_dies_is_waited_for_and_changes_nothing(world: World) -> None:
    run = world.run("rloo", "patient").start()
    run.until(lambda: run.last_step() >= 2)
    address = world.feedback.address
    world.feedback.kill()
    waiting = run.until(lambda: [event for event in run.events() if event.waiting_on])
    assert f"feedback service at {address}" in waiting[0].waiting_on
    assert "UNAVAILABLE" in waiting[0].waiting_on
    world.feedback = world.start_feedback(address)
    run.finish()
    assert any("is back after" in event.text for event in run.events())
    straight = world.run("rloo", "undisturbed").start()
    straight.finish()
    assert run.published() == straight.published()
    assert_same_curve(run, straight)


def test_a_judge_that_stays_away_ends_the_run_with_its_work_kept(world: World) -> None:
    """It gives up after wait_seconds, behind a checkpoint; started again with the service there, it goes on."""
    run = world.run("ppo", "impatient", wait_seconds=2.0).start()
    run.until(lambda: run.last_step() >= 1)
    address = world.feedback.address
    world.feedback.kill()
    assert run.wait() == 4, run.directory.log.read_text()
    result = run.directory.result()
    assert result is not None
    assert f"feedback service at {address}" in result.message
    assert "wait_seconds 2" in result.message
    assert 1 <= result.step < STEPS
    assert (run.directory.checkpoints / f"{result.step:08d}").is_dir()
    world.feedback = world.start_feedback(address)
    run.start().finish()
    straight = world.run("ppo", "unhurried").start()
    straight.finish()
    assert run.published() == straight.published()
