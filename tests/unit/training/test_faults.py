"""Whole PPO runs whose services go away, are slow, come and go, give no numbers: they end with the curve and the bits of a run without faults.

The services are of this process and the clock is the test's; real servers that die are in tests/e2e.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.unit.training.surroundings import NOWHERE, TIMINGS, LocalSource, even_share, make_context, planted_pairs, publish_reward_model, write_rows

from accord.artefacts.store import ArtefactStore
from accord.client.policy import GenerateItem, Sample, StreamEvent
from accord.client.reward import ScoreItem, ScoreResult
from accord.errors import InternalError, ResourceExhaustedError, UnavailableError
from accord.rundir import EXIT_AWAY, EXIT_DONE, EXIT_FAILED, RunEvent
from accord.training import __main__ as entry
from accord.training import rollout, sampler, scorers, waiting
from accord.training.context import RunContext, StopSignal
from accord.training.examples import EncodedPrompt
from accord.training.rollout import read_rollouts
from accord.training.sampler import Draw

pytestmark = pytest.mark.training

STEPS = 4


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.001)


class Faults:
    """What is wrong with a service, and when; this one has none. `before` is called ahead of each answer, `score` and `sample` may change one."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.answers = 0

    def before(self, place: int) -> None:
        """At the `place`-th answer of a call."""
        self.answers += 1

    def score(self, value: float) -> float:
        return value

    def sample(self, sample: Sample) -> Sample:
        return sample


class Away(Faults):
    """Gone at its fifth answer, back after so many seconds."""

    seconds, error = 1.0, UnavailableError("connection refused")

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.back_at = 0.0

    def before(self, place: int) -> None:
        super().before(place)
        if self.answers == 5:
            self.back_at = self.clock.now + self.seconds
        if self.clock.now < self.back_at:
            raise self.error


class AwayTen(Away):
    seconds = 10.0


class AwaySixty(Away):
    seconds = 60.0


class Full(Away):
    """Refuses for half a minute, and says when to come again."""

    seconds, error = 30.0, ResourceExhaustedError("the queue is full", retry_after_seconds=7.0)


class Flapping(Faults):
    """Dies after every single answer."""

    def before(self, place: int) -> None:
        super().before(place)
        if place:
            raise UnavailableError("socket closed")


class Slow(Faults):
    """Twenty seconds an answer: with the longest wait of 100 s, no batch would ever be done if that counted against it."""

    def before(self, place: int) -> None:
        super().before(place)
        self.clock.now += 20


class NotNumbers(Faults):
    """Every third score is none."""

    def score(self, value: float) -> float:
        return math.nan if self.answers % 3 == 0 else value


class Policy:
    """Samples as `LocalSource` does, one answer after the other."""

    def __init__(self, context: RunContext, faults: Faults) -> None:
        self._context, self._faults = context, faults

    def model_info(self) -> Any:
        return SimpleNamespace(digests=self._context.base.digests)

    def generate_stream(self, items: Sequence[GenerateItem], *, adapter: str, timeout_seconds: float) -> Iterator[StreamEvent]:
        for place, item in enumerate(items):
            self._faults.before(place)
            prompt = EncodedPrompt("", tuple(item.prompt.ids))  # type: ignore[union-attr]
            seed = item.sampling.seed or 0
            draw = Draw(item.sampling.max_tokens, item.sampling.temperature or 0.0, (seed,))
            (found,) = LocalSource(self._context, even_share).collect([prompt], draw, adapter)
            reason = "eos" if found.ended else "length"
            sample = Sample(0, "", found.response_ids, found.sampler_logprobs, reason, seed)
            yield StreamEvent(place, 0, sample=self._faults.sample(sample))

    def close(self) -> None: ...


class Reward:
    """Scores with `even_share`."""

    def __init__(self, context: RunContext, faults: Faults) -> None:
        self._context, self._faults = context, faults
        self.scored: list[tuple[int, ...]] = []

    def reward_model_info(self, name: str) -> Any:
        return SimpleNamespace(digests=self._context.base.digests)

    def score_stream(self, items: Iterable[ScoreItem], model: str, *, timeout_seconds: float) -> Iterator[ScoreResult]:
        for place, item in enumerate(items):
            self._faults.before(place)
            score = self._faults.score(even_share(item.response.ids))  # type: ignore[union-attr]
            yield ScoreResult(item.item_id, None, score, (score,), 3)

    def close(self) -> None: ...


class World:
    """Runs that use the services of this process."""

    def __init__(self, root: Path, model: Path, patch: pytest.MonkeyPatch) -> None:
        self._root, self._model, self._patch = root, model, patch
        self.clock = Clock()
        patch.setattr(waiting, "time", self.clock)
        for module in (rollout, sampler):
            patch.setattr(module, "time", self.clock)
        patch.setattr(StopSignal, "install", lambda self: None)
        patch.setattr(torch, "use_deterministic_algorithms", lambda mode: None)

    def context(self, name: str, *, wait_seconds: float = 100.0) -> RunContext:
        data = write_rows(self._root / "rows.jsonl", planted_pairs())
        values = {
            "steps": STEPS, "batch_size": 4, "max_response_tokens": 8, "checkpoint_every_steps": 3, "adapter": name, "eval_every_steps": 2,
            "optimizer": {"learning_rate": 1e-3},
            "ppo": {"reward_model": "adapters/rm", "data": data, "eval_data": {**data, "limit": 3}, "epochs": 2, "normalize_scores": True},
        }  # fmt: skip
        context = make_context(self._root, self._model, values, name=name, endpoints=NOWHERE)
        context.run = context.run.model_copy(update={"wait_seconds": wait_seconds})
        context.directory.write_run_file(context.run)
        if not context.store.adapters() or "adapters/rm" not in context.store.adapters():
            publish_reward_model(context)
        return context

    def main(self, context: RunContext, policy: Faults | None = None, reward: Faults | None = None) -> int:
        """The run as its process runs it, to its exit code."""
        build = entry.build

        def built(own: RunContext) -> Any:
            services = Policy(own, policy or Faults(self.clock)), Reward(own, reward or Faults(self.clock))
            self._patch.setattr(sampler, "PolicyClient", lambda target, **_: services[0])
            self._patch.setattr(scorers, "RewardClient", lambda target: services[1])
            return build(own)

        with self._patch.context() as patch:
            patch.setattr(entry, "build", built)
            return entry.main(["--config", str(context.directory.path / "run.yaml")])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture
def world(root: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(root, tiny_folder, monkeypatch)


@pytest.fixture
def context(world: World, request: pytest.FixtureRequest) -> RunContext:
    """A run of the test's own, not yet started."""
    return world.context(f"disturbed-{abs(hash(request.node.name)):x}")


def curve(context: RunContext) -> list[tuple[int, dict[str, float]]]:
    """Every metrics event, timings left out, and those that have nothing else."""
    events = [event for event in context.directory.events() if event.kind == "metrics" and not set(event.values) <= set(TIMINGS)]
    return [(event.step, {name: value for name, value in event.values.items() if name not in TIMINGS}) for event in events]


def weights(context: RunContext) -> dict[str, bytes]:
    """Policy, critic and optimizer of the last checkpoint."""
    folder = context.directory.checkpoints / f"{STEPS:08d}"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def waits(context: RunContext) -> list[RunEvent]:
    return [event for event in context.directory.events() if event.waiting_on]


def same_as_straight(world: World, context: RunContext) -> None:
    straight = world.context("straight")
    if straight.directory.result() is None:
        assert world.main(straight) == EXIT_DONE
    assert not waits(straight)
    assert curve(context) == curve(straight)
    assert len(weights(context)) == 4
    assert weights(context) == weights(straight)
    for step in range(STEPS):
        mine, other = (read_rollouts(each.directory.rollouts / f"{step:08d}.jsonl") for each in (context, straight))
        assert mine is not None
        assert other is not None
        assert [(each.id, each.response_ids, each.score) for each in mine] == [(each.id, each.response_ids, each.score) for each in other]


@pytest.mark.parametrize("service", ["policy", "reward"])
@pytest.mark.parametrize("faults", [Away, AwayTen, AwaySixty, Full, Flapping, Slow])
def test_a_service_that_goes_away_changes_nothing(world: World, context: RunContext, service: str, faults: Callable[[Clock], Faults]) -> None:
    assert world.main(context, **{service: faults(world.clock)}) == EXIT_DONE
    said = waits(context)
    if faults is not Slow:
        assert said
        assert all(f"{service} service at 127.0.0.1:1" in event.waiting_on for event in said)
    last = [event for event in context.directory.events() if event.kind == "state"][-1]
    assert not last.waiting_on
    same_as_straight(world, context)


def test_scores_that_are_no_numbers_change_nothing(world: World, context: RunContext) -> None:
    assert world.main(context, reward=NotNumbers(world.clock)) == EXIT_DONE
    assert "no score that is a number: adapters/rm/versions/1 gives nan" in waits(context)[0].waiting_on
    same_as_straight(world, context)


class Forever(Away):
    """Gone at its ninth answer, in the second step, until somebody mends it."""

    def before(self, place: int) -> None:
        self.answers += 1
        if self.answers >= 9:
            self.clock.now += 1
            raise UnavailableError("connection refused")


class NeverNumbers(Faults):
    def score(self, value: float) -> float:
        return math.nan if self.answers >= 9 else value


@pytest.mark.parametrize(
    ("service", "faults", "words"),
    [
        ("policy", Forever, "policy service at 127.0.0.1:1 gave no answer"),
        ("reward", Forever, "reward service at 127.0.0.1:1 gave no answer"),
        ("reward", NeverNumbers, "has no score that is a number: adapters/rm/versions/1 gives nan"),
    ],
)
def test_after_the_limit_it_checkpoints_and_stops_and_goes_on_later(
    world: World, context: RunContext, service: str, faults: Callable[[Clock], Faults], words: str
) -> None:
    started = world.clock.now
    assert world.main(context, **{service: faults(world.clock)}) == EXIT_AWAY
    assert 100 <= world.clock.now - started < 130
    result = context.directory.result()
    assert result is not None
    assert words in result.message
    assert "wait_seconds 100" in result.message
    assert [path.name for path in context.directory.checkpoints.iterdir()] == [f"{result.step:08d}"]
    assert result.step == 1
    assert world.main(context) == EXIT_DONE
    same_as_straight(world, context)


class Broken(Forever):
    """Has a defect from its ninth answer on."""

    def before(self, place: int) -> None:
        self.answers += 1
        if self.answers >= 9:
            raise InternalError("internal error, see server log")


@pytest.mark.parametrize("service", ["policy", "reward"])
def test_an_error_that_no_waiting_helps_ends_the_run_after_a_checkpoint(world: World, context: RunContext, service: str) -> None:
    """Scheduled checkpoints may be hours apart; what the service said has changed nothing yet."""
    assert world.main(context, **{service: Broken(world.clock)}) == EXIT_FAILED
    result = context.directory.result()
    assert result is not None
    assert "internal error, see server log" in result.message
    assert [path.name for path in context.directory.checkpoints.iterdir()] == ["00000001"]
    assert world.main(context) == EXIT_DONE
    same_as_straight(world, context)


class Empty(Faults):
    """Its tenth response, of the second step, has no token."""

    def sample(self, sample: Sample) -> Sample:
        return replace(sample, token_ids=(), logprobs=()) if self.answers == 10 else sample


def test_a_response_that_is_none_ends_the_run_before_it_is_on_disk(world: World, context: RunContext) -> None:
    """There it would end each process that takes the run up again."""
    assert world.main(context, policy=Empty(world.clock)) == EXIT_FAILED
    result = context.directory.result()
    assert result is not None
    assert "the policy service at 127.0.0.1:1 gives a response to prompt" in result.message
    assert "that cannot be one: it has no token" in result.message
    assert [path.name for path in context.directory.rollouts.iterdir()] == ["00000000.jsonl"]
    assert [path.name for path in context.directory.checkpoints.iterdir()] == ["00000001"]
    assert world.main(context) == EXIT_DONE
    same_as_straight(world, context)


def test_an_artefact_store_that_goes_away_changes_nothing(world: World, context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a URL it is a service like the others; versions of the policy go there at each step, and the last one at the end. It fails in every
    other call of each kind: what is published, what the run begins with, and how old the policy is that sampled."""
    asked: dict[str, list[str]] = {"publish": [], "manifest": []}

    def failing(kind: str) -> Callable[..., Any]:
        method = getattr(ArtefactStore, kind)

        def call(store: ArtefactStore, name: str, *arguments: Any, **named: Any) -> Any:
            asked[kind].append(name)
            if len(asked[kind]) % 2:
                raise UnavailableError("connection reset")
            return method(store, name, *arguments, **named)

        return call

    with monkeypatch.context() as patch:
        for kind in asked:
            patch.setattr(ArtefactStore, kind, failing(kind))
        assert world.main(context) == EXIT_DONE
    assert asked["publish"][-1] == context.spec.adapter
    sampled_by = {name for name in asked["manifest"] if name.startswith(f"adapters/{context.spec.adapter}-rollout/")}
    assert len(sampled_by) == STEPS
    assert {event.phase for event in waits(context)} >= {"rollouts", "publish"}
    assert all(event.waiting_on.startswith("artefact store at ") for event in waits(context))
    same_as_straight(world, context)
