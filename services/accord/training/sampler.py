"""Sampling: what the algorithms with rollouts ask the policy service for, and what has come of it so far.

What does not belong here: scores (`accord.training.scorers`), rollouts (`accord.training.rollout`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from accord.client.messages import TokenIds
from accord.client.policy import MOST_ITEMS, GenerateItem, Origin, PolicyClient, Sample, Sampling, StreamEvent
from accord.errors import AccordError, InternalError, UnavailableError
from accord.training.context import RunContext
from accord.training.examples import EncodedPrompt
from accord.training.services import CALL_SECONDS, check_digests, one_attempt
from accord.training.waiting import Errand, with_patience


@dataclass(frozen=True, slots=True)
class Draw:
    """How to sample: at most so many tokens, at this temperature (0 is greedy), each prompt with its own seed."""

    max_tokens: int
    temperature: float
    seeds: tuple[int, ...]


class SampleBatch:
    """Samples in the making: what has come so far, by the place of the prompt; when anything last came (`progressed_at`), and when a sample did."""

    def __init__(self, prompts: Sequence[EncodedPrompt], draw: Draw, version: str) -> None:
        self.prompts = prompts
        self.draw = draw
        self.version = version
        self.samples: dict[int, Sample] = {}
        self.progressed_at = self.sampled_at = 0.0

    def keep_sample(self, index: int, sample: Sample) -> None:
        """Takes the sample of a place. The first one stays: it may have been scored."""
        if index in self.samples:
            return
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

        Raises:
            InternalError: the service answers what was not asked, nothing, or something that is no response; none of the batch is kept on disk.
        """
        unusable: AccordError | None = None
        for place, event in self._events(batch):
            if errand.abandoned:
                return
            errand.heard()
            if place in batch.samples:
                continue
            reason = self._unusable(event, batch, place)
            if reason is not None:
                unusable = reason
            elif event.sample is not None:
                batch.keep_sample(place, event.sample)
                hand_over(place)
        if unusable is not None:
            raise unusable
        if missing := len(batch.unsampled()):
            raise InternalError(f"the policy service left {missing} of {len(batch.prompts)} prompts without an answer")

    def _unusable(self, event: StreamEvent, batch: SampleBatch, place: int) -> AccordError | None:
        """Why what the service says of a place cannot be used, where asking again can help; raised where it cannot.

        An aborted response is none: its end is neither the model's nor the limit's.
        """
        sample, prompt = event.sample, batch.prompts[place].id
        if event.error is not None and not event.error.retryable:
            raise event.error
        if sample is None:
            return event.error
        if sample.finish_reason == "aborted":
            return UnavailableError("the policy service was paused in the middle of a response", retry_after_seconds=1.0)
        if flaw := self._flaw(sample, batch.draw):
            raise InternalError(f"the {self.service} gives a response to prompt {prompt} that cannot be one: {flaw}")
        if not all(map(math.isfinite, sample.logprobs)):
            return UnavailableError(f"{batch.version} gives tokens of its response to prompt {prompt} logprobs that are no numbers")
        return None

    def _flaw(self, sample: Sample, draw: Draw) -> str:
        """What makes a sample none, empty where all is well: on disk it would end every process that computes with it."""
        ids, rows = sample.token_ids, self._context.base.vocabulary_size
        if not ids:
            return "it has no token"
        if len(sample.logprobs) != len(ids):
            return f"it has {len(ids)} tokens and {len(sample.logprobs)} logprobs"
        if len(ids) > draw.max_tokens:
            return f"it has {len(ids)} tokens, and {draw.max_tokens} were asked for at most"
        return next((f"it has a token {each}, and the vocabulary has {rows}" for each in ids if not 0 <= each < rows), "")

    def _events(self, batch: SampleBatch) -> Iterator[tuple[int, StreamEvent]]:
        """What the service says of the places without a sample, in as many calls, one after the other, as its limit on items takes."""
        asked = batch.unsampled()
        for start in range(0, len(asked), MOST_ITEMS):
            part = asked[start : start + MOST_ITEMS]
            items = [batch.item(place) for place in part]
            for event in self._policy.generate_stream(items, adapter=batch.version, timeout_seconds=CALL_SECONDS):
                if not 0 <= event.item_index < len(part):
                    raise InternalError(f"the {self.service} answers item {event.item_index}, and {len(part)} were asked for")
                yield part[event.item_index], event
