"""Pairs for online DPO: two responses of the policy to each prompt, labelled by the feedback service while others are still being sampled.

They are on disk, with their labels, before they are used, and read from there when a run is resumed. What does not belong here: what is learned
from them (`accord.training.online_dpo`).
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from accord.client.feedback import FeedbackClient, Judge, LabelPairItem, LabelResult
from accord.client.policy import Sample as WireSample
from accord.data.records import Prompt
from accord.errors import AccordError, InternalError, InvalidArgumentError, OutOfRangeError
from accord.runspec_parts import OnlineDpoSpec
from accord.training.context import RunContext
from accord.training.examples import EncodedPair, EncodedPrompt
from accord.training.sampler import Draw, SampleBatch, Sampler
from accord.training.services import CALL_SECONDS, check_endpoints, one_attempt
from accord.training.waiting import Errand, accompany, with_patience

SAME_RESPONSES = "both responses are the same"


@dataclass(frozen=True, slots=True)
class SampledResponse:
    """One response; `logprobs` are the policy service's, nats a token at the sampling temperature; `ended` says that the model ended the turn."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: bool
    seed: int


@dataclass(frozen=True, slots=True)
class SampledPair:
    """Two responses to a prompt with the judge's label.

    `preference` is P(the first is better); None where there is none, and `reason` says why.
    """

    id: str
    prompt_ids: tuple[int, ...]
    first: SampledResponse
    second: SampledResponse
    adapter_version: str
    preference: float | None
    reason: str = ""
    judge: str = ""
    judge_digest: str = ""
    judge_kind: str = ""
    rubric: str = ""

    @property
    def responses(self) -> tuple[SampledResponse, SampledResponse]:
        """Both."""
        return self.first, self.second

    def encoded(self, preference: float) -> EncodedPair:
        """As a pair to learn from."""
        return EncodedPair(self.id, self.id, self.prompt_ids, self.first.token_ids, self.second.token_ids, preference)

    def row(self) -> dict[str, Any]:
        """As a line of a file."""
        return asdict(self)


def pair_of(row: Mapping[str, Any]) -> SampledPair:
    """The pair in a line of a file. Raises KeyError or TypeError where it is none."""
    first, second = (
        SampledResponse(tuple(each["token_ids"]), tuple(each["logprobs"]), each["ended"], each["seed"]) for each in (row["first"], row["second"])
    )
    return SampledPair(**{**row, "prompt_ids": tuple(row["prompt_ids"]), "first": first, "second": second})


class PairSource:
    """Samples and labels through the services.

    Args:
        context: of the run; its endpoints name the services.
        spec: names the judge.

    Raises:
        InvalidArgumentError: the run has no address of a service.
    """

    def __init__(self, context: RunContext, spec: OnlineDpoSpec) -> None:
        check_endpoints(context, "policy", "feedback")
        self._context = context
        self._rubric = spec.rubric
        self._judge = Judge(spec.judge or "default", rubric=spec.rubric, adapter=spec.judge_adapter, both_orders=True)
        self._open()

    def check_services(self) -> None:
        """Compares the policy service's base model with this process's, and asks the feedback service for the rubric.

        Raises:
            FailedPreconditionError: as `check_digests`.
            InvalidArgumentError: the feedback service does not know the rubric; those it knows are named.
        """
        self._sampler.check_service()
        known = [rubric.id for rubric in with_patience(self._context, "rollouts", self._service, self._feedback.list_rubrics)]
        if self._rubric and self._rubric not in known:
            reason = f"the feedback service has no rubric {self._rubric}; it has {', '.join(known)}"
            raise InvalidArgumentError(reason, field="online_dpo.rubric")

    def collect(self, prompts: Sequence[EncodedPrompt], texts: Mapping[str, Prompt], draw: Draw, version: str) -> list[SampledPair]:
        """A pair for each prompt under a policy version, in the order of the prompts; waits for services that are away.

        What has come stays when a service goes away, and only the rest is asked for again.

        Args:
            prompts: each once.
            texts: the prompts in words, by id, for the judge.
            draw: with two seeds for each prompt, one after the other.
            version: of the policy.
        """
        batch = _PairBatch(prompts, texts, draw, version)
        phase = self._context.events.phase or "rollouts"
        with_patience(
            self._context, phase, "policy service or feedback service", lambda: self._attempt(batch, phase), progressed_at=lambda: batch.progressed_at
        )
        return batch.pairs()

    def close(self) -> None:
        """Closes the channels."""
        self._sampler.close()
        self._feedback.close()

    @property
    def _service(self) -> str:
        return f"feedback service at {self._context.run.endpoints.feedback}"

    def _open(self) -> None:
        self._sampler = Sampler(self._context)
        self._feedback = FeedbackClient(one_attempt(self._context.run.endpoints.feedback, tls=self._context.run.endpoints.tls))

    def _abandon(self) -> None:
        """Ends all calls, from whichever thread."""
        self.close()
        self._open()

    def _attempt(self, batch: _PairBatch, phase: str) -> None:
        """Asks for what a batch lacks; pairs are labelled while others are still being sampled."""
        waiting: queue.Queue[int | None] = queue.Queue()
        for index in batch.unlabelled():
            waiting.put(index)

        def hand_over(place: int) -> None:
            if place // 2 in batch.unlabelled():
                waiting.put(place // 2)

        policy = self._sampler.errand(batch, hand_over, lambda: waiting.put(None))
        feedback = Errand(
            self._service, lambda errand: self._label(batch, errand, iter(waiting.get, None)), lambda: bool(batch.unlabelled())
        )  # fmt: skip
        accompany(self._context, phase, [policy, feedback], self._abandon)

    def _label(self, batch: _PairBatch, errand: Errand, indices: Iterator[int]) -> None:
        """Labels pairs as they come. One that gets no answer does not hold up the others, and is asked for again."""
        unusable: AccordError | None = None
        items = (batch.label_item(index, self._context.run.name) for index in indices)
        for result in self._feedback.label_stream(items, self._judge, timeout_seconds=CALL_SECONDS):
            if errand.abandoned:
                return
            errand.heard()
            if result.error is not None and result.error.retryable:
                unusable = result.error
            elif result.error is not None and not _about_the_pair(result.error):
                raise result.error
            else:
                batch.keep_label(result)
        if unusable is not None:
            raise unusable
        if missing := len(batch.unlabelled()):
            raise InternalError(f"the feedback service left {missing} of {len(batch.pair_prompts)} pairs without an answer")


def _about_the_pair(error: AccordError) -> bool:
    """Whether no judge could read the pair, as where a response holds a NUL character: it is left out like an abstention."""
    return isinstance(error, InvalidArgumentError | OutOfRangeError) and (error.field or "").startswith("pair")


class _PairBatch(SampleBatch):
    """Pairs in the making. Samples have the places 2 n and 2 n + 1 of pair n; labels have the pair's."""

    def __init__(self, prompts: Sequence[EncodedPrompt], texts: Mapping[str, Prompt], draw: Draw, version: str) -> None:
        super().__init__([prompt for prompt in prompts for _ in range(2)], draw, version)
        self.pair_prompts = prompts
        self._texts = texts
        self._labels: dict[int, LabelResult] = {}
        self._asked: dict[str, int] = {}

    def keep_label(self, result: LabelResult) -> None:
        """Takes what came of a pair; the first answer stays.

        Raises:
            InternalError: the pair was not asked for, or its preference is no probability: on disk it would end every process that learns from it.
        """
        if result.pair_id not in self._asked:
            raise InternalError(f"the feedback service answers pair {result.pair_id!r}, which it was not asked for")
        preference = None if result.label is None else result.label.preference
        if preference is not None and not 0 <= preference <= 1:
            raise InternalError(f"the feedback service gives pair {result.pair_id!r} a preference of {preference}, which is no probability")
        self._labels.setdefault(self._asked[result.pair_id], result)
        self.progressed_at = time.monotonic()

    def unlabelled(self) -> list[int]:
        """Pairs that are sampled, differ and have no label."""
        both = (index for index in range(len(self.pair_prompts)) if 2 * index in self.samples and 2 * index + 1 in self.samples)
        return [index for index in both if index not in self._labels and not self._same(index)]

    def label_item(self, index: int, run: str) -> LabelPairItem:
        """What the feedback service is asked of a pair; its id names run and seed, which no other pair of the run has."""
        first, second = self._two(index)
        prompt = self._texts[self.pair_prompts[index].id]
        pair_id = f"{run}/{first.seed}"
        self._asked[pair_id] = index
        return LabelPairItem(prompt.task, prompt.messages, first.text, second.text, pair_id)

    def pairs(self) -> list[SampledPair]:
        """In the order of the prompts."""
        return [self._pair(index, prompt) for index, prompt in enumerate(self.pair_prompts)]

    def _pair(self, index: int, prompt: EncodedPrompt) -> SampledPair:
        first, second = (SampledResponse(each.token_ids, each.logprobs, each.finish_reason == "eos", each.seed) for each in self._two(index))
        known = prompt.id, prompt.prompt, first, second, self.version
        if self._same(index):
            return SampledPair(*known, None, SAME_RESPONSES)
        result = self._labels[index]
        if result.label is None:
            return SampledPair(*known, None, str(result.error))
        label = result.label
        return SampledPair(
            *known, label.preference, label.abstention_reason, label.judge, label.judge_digest, label.kind, label.rubric
        )  # fmt: skip

    def _two(self, index: int) -> tuple[WireSample, WireSample]:
        return self.samples[2 * index], self.samples[2 * index + 1]

    def _same(self, index: int) -> bool:
        first, second = self._two(index)
        return first.token_ids == second.token_ids
