"""Rollouts: responses sampled by the policy service, scored by the reward service while others are still being sampled.

They are on disk before they are used, and read from there when a run is resumed, so that each is sampled, paid for and used once. What does
not belong here: what is learned from them (`accord.training.ppo`, `groups`).
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accord.client.reward import RewardModel
from accord.errors import AccordError, InternalError
from accord.training.context import RunContext
from accord.training.examples import EncodedPrompt
from accord.training.judge_scores import JudgeScorer, OneJudge
from accord.training.local_scores import LocalScores
from accord.training.rollout_files import kept_rows, put_aside, read_rows, write_rows
from accord.training.sampler import Draw, SampleBatch, Sampler
from accord.training.scorers import Response, RewardScorer, Score, Scorer
from accord.training.services import check_endpoints
from accord.training.stopping import OtherPolicyError
from accord.training.waiting import Errand, accompany, with_patience

_TRAINED, _HELD_OUT = "trained", "held_out"


@dataclass(frozen=True, slots=True)
class Rollout:
    """One response with its score.

    `sampler_logprobs` are the policy service's, nats a token at the sampling temperature; `ended` says that the model ended the turn;
    `member_scores` are those of each reward model, of which `score` is made; `held_out_score` is that of a reward model which the policy is not
    trained on (`guards.held_out_reward_model`), None where there is none. `judge` says who has rated it where a judge gives the rewards: names and
    digests of judge and rubric, empty where a rule gave the lowest rating (`accord.training.judge_scores`).
    """

    id: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    score: float
    ended: bool
    seed: int
    adapter_version: str
    member_scores: tuple[float, ...] = ()
    held_out_score: float | None = None
    judge: Mapping[str, str] = field(default_factory=dict)


class RolloutSource:
    """Samples and scores through the services.

    Args:
        context: of the run; its endpoints name the services, or `local` for reward models on the run's own base.
        trained: what gives the rewards: versions of reward models and how their scores become one, or a judge.
        held_out: version that scores besides, for the guards alone; empty for none.

    Raises:
        InvalidArgumentError: the run has no address of a service.
    """

    def __init__(self, context: RunContext, trained: RewardModel | OneJudge, *, held_out: str = "") -> None:
        self._models: dict[str, RewardModel | OneJudge] = {_TRAINED: trained} | ({_HELD_OUT: RewardModel((held_out,))} if held_out else {})
        asked = {"feedback" if isinstance(model, OneJudge) else "reward" for model in self._models.values()}
        check_endpoints(context, "policy", *sorted(asked))
        self._context = context
        self._score_seconds: list[float] = []  # of each batch; sources beside this one append to the same list
        self._local = LocalScores(context) if "reward" in asked and context.run.endpoints.local_scores else None
        self._open()

    @property
    def score_seconds(self) -> float:
        """Time spent waiting for scores when all responses were there already, in all, by the sources beside this one too."""
        return math.fsum(self._score_seconds)

    def check_services(self) -> None:
        """Compares the services' base model with this process's, and asks a judge's service for the rubric; waits for services that are away.

        Raises:
            FailedPreconditionError: they hold another model, tokenizer or template; both digests are named.
            InvalidArgumentError: the feedback service does not know the rubric.
        """
        self._sampler.check_service()
        for scorer in self._scorers.values():
            with_patience(self._context, "rollouts", scorer.service, scorer.check_service)

    def collect(self, prompts: Sequence[EncodedPrompt], draw: Draw, version: str) -> list[Rollout]:
        """One rollout for each prompt under a policy version, in the order of the prompts; waits for services that are away.

        What has come stays when a service goes away, and only the rest is asked for again: nothing is lost, and a service that comes and goes
        is got through.
        """
        batch = _Batch(prompts, draw, version, tuple(self._scorers))
        phase = ""  # whatever the run is in: the next batch is sampled while it learns from this one
        services = " or ".join(dict.fromkeys([self._sampler.service, *(scorer.service for scorer in self._scorers.values())]))
        with_patience(self._context, phase, services, lambda: self._attempt(batch, phase), progressed_at=lambda: batch.progressed_at)
        self._score_seconds.append(time.monotonic() - batch.sampled_at)
        return batch.rollouts()

    def close(self) -> None:
        """Closes the channels."""
        self._sampler.close()
        for scorer in self._scorers.values():
            scorer.close()

    def beside(self) -> RolloutSource:
        """Another source with calls of its own, for another thread: ending the calls of one does not end the other's."""
        other = copy(self)
        other._open()
        return other

    def _open(self) -> None:
        self._sampler = Sampler(self._context)
        self._scorers = {name: self._scorer(model) for name, model in self._models.items()}

    def _scorer(self, model: RewardModel | OneJudge) -> Scorer:
        if isinstance(model, OneJudge):
            return JudgeScorer(self._context, model)
        return RewardScorer(self._context, model, self._local)

    def _abandon(self) -> None:
        """Ends all calls, from whichever thread."""
        self.close()
        self._open()

    def _attempt(self, batch: _Batch, phase: str) -> None:
        """Asks for what a batch lacks; samples are scored while others are still being sampled, by each scorer in a stream of its own."""
        waiting: dict[str, queue.Queue[int | None]] = {name: queue.Queue() for name in self._scorers}
        for name, places in waiting.items():
            for place in batch.unscored(name):
                places.put(place)

        def hand_over(place: int | None) -> None:
            for places in waiting.values():
                places.put(place)

        policy = self._sampler.errand(batch, hand_over, lambda: hand_over(None))
        rewards = [self._score_errand(batch, name, iter(places.get, None)) for name, places in waiting.items()]
        accompany(self._context, phase, [policy, *rewards], self._abandon)

    def _score_errand(self, batch: _Batch, name: str, places: Iterator[int]) -> Errand:
        scorer = self._scorers[name]

        def score(errand: Errand) -> None:
            """Scores samples as they come. One that gets no number does not hold up the others, and is asked for again."""
            unusable: AccordError | None = None
            for found in scorer.scores(batch.groups(places, scorer.together)):
                if errand.abandoned:
                    return
                errand.heard()
                if isinstance(found, AccordError):
                    unusable = found
                else:
                    batch.keep_score(name, found)
            if unusable is not None:
                raise unusable
            if missing := len(batch.unscored(name)):
                raise InternalError(f"the {scorer.service} left {missing} of {len(batch.samples)} responses without a score")

        return Errand(scorer.service, score, lambda: scorer.owes(bool(batch.unscored(name))))


class _Batch(SampleBatch):
    """Rollouts in the making: what has been sampled and, by each scorer, scored so far, by the place of the prompt."""

    def __init__(self, prompts: Sequence[EncodedPrompt], draw: Draw, version: str, scorers: Sequence[str]) -> None:
        super().__init__(prompts, draw, version)
        self.scores: dict[str, dict[int, Score]] = {scorer: {} for scorer in scorers}

    def keep_score(self, scorer: str, score: Score) -> None:
        """Takes the score of a place; the first one stays."""
        self.scores[scorer].setdefault(score.place, score)
        self.progressed_at = time.monotonic()

    def unscored(self, scorer: str) -> list[int]:
        """Those that are sampled and have no score of a scorer."""
        return [index for index in sorted(self.samples.copy()) if index not in self.scores[scorer]]

    def response(self, index: int) -> Response:
        """What is to be scored at a place."""
        return Response(index, self.prompts[index], self.samples[index])

    def groups(self, places: Iterable[int], size: int) -> Iterator[list[Response]]:
        """Responses by `size` neighbouring places, each group when all of it has been sampled and one of its places comes."""
        given: set[int] = set()
        for place in places:
            first = place - place % size
            group = range(first, min(first + size, len(self.prompts)))
            if first not in given and all(each in self.samples for each in group):
                given.add(first)
                yield [self.response(each) for each in group]

    def rollouts(self) -> list[Rollout]:
        """In the order of the prompts."""
        scores, held_out = self.scores[_TRAINED], self.scores.get(_HELD_OUT)
        return [
            Rollout(
                prompt.id, prompt.prompt, self.samples[index].token_ids, self.samples[index].logprobs, scores[index].score,
                self.samples[index].finish_reason == "eos", self.draw.seeds[index], self.version, scores[index].members,
                None if held_out is None else held_out[index].score, scores[index].judge,
            )
            for index, prompt in enumerate(self.prompts)
        ]  # fmt: skip


def write_rollouts(path: Path, rollouts: Sequence[Rollout]) -> None:
    """Writes rollouts as `write_rows`."""
    write_rows(path, [asdict(rollout) for rollout in rollouts])


def read_rollouts(path: Path) -> list[Rollout] | None:
    """Rollouts as they were written, None where there are none. Raises as `read_rows`."""
    return read_rows(path, _rollout)


def kept_rollouts(path: Path, report: Callable[[str], None]) -> list[Rollout] | None:
    """The rollouts of a file, as `kept_rows`."""
    return kept_rows(path, _rollout, report)


def check_sampler_gap(context: RunContext, step: int, gap: float, bound: float, *, abandon: Callable[[], None] = lambda: None) -> None:
    """Refuses a batch where the policy service's logprobs are further than `bound` from this process's, nats a token, or one is NaN; says so.

    `abandon` keeps a later batch, which the same service is still sampling, from being written once those that are there are put aside.

    Raises:
        OtherPolicyError: they do not compute the same policy; the rollouts of the step, and of later ones, are sampled anew when it is resumed.
    """
    if gap <= bound:
        return
    reason = (
        f"logprobs of the policy service and of this run differ by up to {gap:.3g} nats a token; {bound:g} are allowed: they do not compute the "
        "same policy (precision, adapter or temperature)"
    )
    context.events.message(f"alarm: {reason}; the run stops before it learns from them, and samples them anew when it is resumed")
    abandon()
    put_aside(context.directory.rollouts, step, context.world)
    raise OtherPolicyError(reason, field="endpoints.policy")


def _rollout(row: Mapping[str, Any]) -> Rollout:
    return Rollout(
        row["id"], tuple(row["prompt_ids"]), tuple(row["response_ids"]), tuple(row["sampler_logprobs"]), row["score"],
        row["ended"], row["seed"], row["adapter_version"], tuple(row["member_scores"]), row["held_out_score"],
        row.get("judge", {}),
    )  # fmt: skip
