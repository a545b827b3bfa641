"""Rollouts: responses sampled by the policy service, scored by the reward service while others are still being sampled.

They are on disk before they are used, and read from there when a run is resumed, so that each is sampled, paid for and used once. What does
not belong here: what is learned from them (`accord.training.ppo`, `groups`).
"""

from __future__ import annotations

import hashlib
import json
import math
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from accord.client.messages import TokenIds
from accord.client.policy import MOST_ITEMS, GenerateItem, Origin, PolicyClient, Sampling, StreamEvent
from accord.client.policy import Sample as WireSample
from accord.client.reward import RewardModel
from accord.errors import AccordError, DataLossError, InternalError, UnavailableError
from accord.rundir import write_atomically
from accord.training.context import RunContext
from accord.training.distribution import World
from accord.training.examples import EncodedPrompt
from accord.training.judge_scores import JudgeScorer, OneJudge
from accord.training.local_scores import LocalScores
from accord.training.scorers import Response, RewardScorer, Score, Scorer
from accord.training.services import CALL_SECONDS, check_digests, check_endpoints, one_attempt
from accord.training.stopping import OtherPolicyError
from accord.training.waiting import Errand, accompany, with_patience

_TRAINED, _HELD_OUT = "trained", "held_out"
RowT = TypeVar("RowT")


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


@dataclass(frozen=True, slots=True)
class Draw:
    """How to sample: at most so many tokens, at this temperature (0 is greedy), each prompt with its own seed."""

    max_tokens: int
    temperature: float
    seeds: tuple[int, ...]


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


class SampleBatch:
    """Samples in the making: what has come so far, by the place of the prompt; when anything last came (`progressed_at`), and when a sample did."""

    def __init__(self, prompts: Sequence[EncodedPrompt], draw: Draw, version: str) -> None:
        self.prompts = prompts
        self.draw = draw
        self.version = version
        self.samples: dict[int, WireSample] = {}
        self.progressed_at = self.sampled_at = 0.0

    def keep_sample(self, index: int, sample: WireSample) -> None:
        """Takes the sample of a place."""
        self.samples[index] = sample
        self.progressed_at = self.sampled_at = time.monotonic()

    def unsampled(self) -> list[int]:
        """Places without a sample."""
        return [index for index in range(len(self.prompts)) if index not in self.samples]

    def item(self, index: int) -> GenerateItem:
        """What the policy service is asked for a place."""
        sampling = Sampling(max_tokens=self.draw.max_tokens, temperature=self.draw.temperature, seed=self.draw.seeds[index])
        return GenerateItem(TokenIds(self.prompts[index].prompt), sampling)


class Sampler:
    """The policy service, as the algorithms with rollouts ask it.

    Args:
        context: of the run; its endpoints name the service.
    """

    def __init__(self, context: RunContext) -> None:
        self._context = context
        endpoints = context.run.endpoints
        self._policy = PolicyClient(
            one_attempt(endpoints.policy, endpoints.policy_balancing, tls=endpoints.tls), origin=Origin("rollout", context.run.name)
        )

    @property
    def service(self) -> str:
        """The service in words."""
        return f"policy service at {self._context.run.endpoints.policy}"

    def check_service(self) -> None:
        """Compares the service's base model with this process's. Raises as `check_digests`; waits for a service that is away."""
        check_digests(self._context, "policy", with_patience(self._context, "rollouts", self.service, lambda: self._policy.model_info().digests))

    def errand(self, batch: SampleBatch, hand_over: Callable[[int], None], over: Callable[[], None]) -> Errand:
        """A call that samples what a batch lacks, hands over each place that has a sample now, and says when it is over, however it ends."""

        def sample(errand: Errand) -> None:
            try:
                self._sample(batch, errand, hand_over)
            finally:
                over()

        return Errand(self.service, sample)

    def close(self) -> None:
        """Closes the channel."""
        self._policy.close()

    def _sample(self, batch: SampleBatch, errand: Errand, hand_over: Callable[[int], None]) -> None:
        """Samples what is missing. One that cannot be used does not hold up the others, and is sampled again.

        An aborted response is none: its end is neither the model's nor the limit's.
        """
        unusable: AccordError | None = None
        for place, event in self._events(batch):
            if errand.abandoned:
                return
            errand.heard()
            if event.error is not None and not event.error.retryable:
                raise event.error
            if event.error is not None:
                unusable = event.error
            elif event.sample is not None and event.sample.finish_reason == "aborted":
                unusable = UnavailableError("the policy service was paused in the middle of a response", retry_after_seconds=1.0)
            elif event.sample is not None and not all(map(math.isfinite, event.sample.logprobs)):
                prompt = batch.prompts[place].id
                unusable = UnavailableError(f"{batch.version} gives tokens of its response to prompt {prompt} logprobs that are no numbers")
            elif event.sample is not None:
                batch.keep_sample(place, event.sample)
                hand_over(place)
        if unusable is not None:
            raise unusable
        if missing := len(batch.unsampled()):
            raise InternalError(f"the policy service left {missing} of {len(batch.prompts)} prompts without an answer")

    def _events(self, batch: SampleBatch) -> Iterator[tuple[int, StreamEvent]]:
        """What the service says of the places without a sample, in as many calls, one after the other, as its limit on items takes."""
        asked = batch.unsampled()
        for start in range(0, len(asked), MOST_ITEMS):
            part = asked[start : start + MOST_ITEMS]
            items = [batch.item(place) for place in part]
            for event in self._policy.generate_stream(items, adapter=batch.version, timeout_seconds=CALL_SECONDS):
                yield part[event.item_index], event


class _Batch(SampleBatch):
    """Rollouts in the making: what has been sampled and, by each scorer, scored so far, by the place of the prompt."""

    def __init__(self, prompts: Sequence[EncodedPrompt], draw: Draw, version: str, scorers: Sequence[str]) -> None:
        super().__init__(prompts, draw, version)
        self.scores: dict[str, dict[int, Score]] = {scorer: {} for scorer in scorers}

    def keep_score(self, scorer: str, score: Score) -> None:
        self.scores[scorer][score.place] = score
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


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows at once, the sha256 of their lines behind them: a reader sees all of them or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(path, text + json.dumps({"sha256": _digest(text)}) + "\n")


def read_rollouts(path: Path) -> list[Rollout] | None:
    """Rollouts as they were written, None where there are none. Raises as `read_rows`."""
    return read_rows(path, _rollout)


def read_rows(path: Path, parse: Callable[[Mapping[str, Any]], RowT]) -> list[RowT] | None:
    """Rows as they were written, None where there are none.

    Raises:
        DataLossError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        *lines, last = path.read_text().splitlines(keepends=True)
        if json.loads(last)["sha256"] != _digest("".join(lines)):
            raise ValueError("its lines do not match their sha256")
        return [parse(json.loads(line)) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise DataLossError(f"rollout file {path.name} is damaged: {error}") from error


def kept_rollouts(path: Path, report: Callable[[str], None]) -> list[Rollout] | None:
    """The rollouts of a file, as `kept_rows`."""
    return kept_rows(path, _rollout, report)


def kept_rows(path: Path, parse: Callable[[Mapping[str, Any]], RowT], report: Callable[[str], None]) -> list[RowT] | None:
    """As `read_rows`; a damaged file is reported, put aside and counts as none: seeds decide what is sampled, so nothing is lost with it."""
    try:
        return read_rows(path, parse)
    except DataLossError as error:
        report(f"{error}; they are sampled again")
        path.replace(path.with_suffix(".damaged"))
        return None


def put_aside(folder: Path, first: int, world: World) -> None:
    """Lets the rollouts of a step, and of later ones, be sampled anew when they are asked for next: what sampled them was not what it should be."""

    def rename() -> None:
        for path in folder.glob("*.jsonl"):
            if path.stem.isdecimal() and int(path.stem) >= first:
                path.replace(path.with_suffix(".refused"))

    world.from_first(rename)


def check_sampler_gap(context: RunContext, step: int, gap: float, bound: float) -> None:
    """Refuses a batch where the policy service's logprobs are further than `bound` from this process's, nats a token, or one is NaN; says so.

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
    put_aside(context.directory.rollouts, step, context.world)
    raise OtherPolicyError(reason, field="endpoints.policy")


def _rollout(row: Mapping[str, Any]) -> Rollout:
    return Rollout(
        row["id"], tuple(row["prompt_ids"]), tuple(row["response_ids"]), tuple(row["sampler_logprobs"]), row["score"],
        row["ended"], row["seed"], row["adapter_version"], tuple(row["member_scores"]), row["held_out_score"],
        row.get("judge", {}),
    )  # fmt: skip


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
