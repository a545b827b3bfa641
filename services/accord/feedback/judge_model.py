"""The model behind the judges: who it is, and calls to its PolicyService whose errors say which judge failed and why.

What does not belong here: what is asked (`accord.feedback.judges`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from accord.client.messages import ModelDigests
from accord.client.policy import AsyncPolicyClient, GenerateItem, Generation, Logprobs, LogprobsItem, ModelInfo, Origin, PolicyClient
from accord.errors import (
    AccordError,
    CancelledError,
    DeadlineExceededError,
    FailedPreconditionError,
    ResourceExhaustedError,
    UnavailableError,
    UnimplementedError,
)
from accord.feedback.metrics import CALLS, count_tokens
from accord.feedback.records import Answer, JudgeIdentity
from accord.rpc.channels import ChannelConfig

_IDENTITY_SECONDS = 10.0
_IDENTIFY_TIMEOUT_SECONDS = 30.0
_RETRY_AFTER_SECONDS = 1.0


class JudgeChangedError(FailedPreconditionError):
    """The judge is another one than it was when the question was asked.

    Where the other one has answered all the same, and been paid, `judge` and `answer` say who and what.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        metadata: Mapping[str, str] | None = None,
        judge: JudgeIdentity | None = None,
        answer: Answer | None = None,
    ) -> None:
        super().__init__(message, field=field, metadata=metadata)
        self.judge = judge
        self.answer = answer


class PolicyCalls(Protocol):
    """What a judge needs of a PolicyService; `accord.client.policy` has the meaning of each."""

    async def generate(
        self, items: Sequence[GenerateItem], *, adapter: str, expected_digests: ModelDigests | None, timeout_seconds: float | None
    ) -> Generation: ...

    async def compute_logprobs(
        self, items: Sequence[LogprobsItem], *, adapter: str, expected_digests: ModelDigests | None, timeout_seconds: float | None
    ) -> Logprobs: ...

    async def model_info(self, *, timeout_seconds: float | None) -> ModelInfo: ...

    async def adapter_version(self, name: str, *, timeout_seconds: float) -> tuple[str, str]:
        """The version that an adapter's name means now, and its digest; the version is verified and loaded."""
        ...

    async def close(self) -> None: ...


class RemotePolicy(AsyncPolicyClient):
    """A PolicyService at an address. Implements `PolicyCalls`."""

    def __init__(self, config: ChannelConfig) -> None:
        super().__init__(config, origin=Origin("labelling", "feedback"))
        self._config = config
        self._threads = ThreadPoolExecutor(2, "adapters")  # its own: a slow judge must not hold up the threads that write the ledger

    async def adapter_version(self, name: str, *, timeout_seconds: float) -> tuple[str, str]:
        """Loads an adapter ahead of its use, to learn its version and digest."""

        def load() -> tuple[str, str]:
            # One replica says what the version is; the others load it when they are asked for it.
            with PolicyClient(self._config.model_copy(update={"load_balancing": "round_robin"})) as client:
                info = client.load_adapter(name, timeout_seconds=timeout_seconds)
            return info.name, info.digest

        return await asyncio.get_running_loop().run_in_executor(self._threads, load)

    async def close(self) -> None:
        """Closes the channel."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        await super().close()


class JudgeModel:
    """Asks one PolicyService and knows who answers.

    Args:
        policy: the service.
        address: of the service, for messages.
        timeout_seconds: deadline of one call; a caller that leaves ends it sooner.
        name: of the judge in the configuration.
    """

    def __init__(self, policy: PolicyCalls, address: str, *, timeout_seconds: float, name: str = "default") -> None:
        self._policy = policy
        self._name = name
        self._timeout_seconds = timeout_seconds
        self.address = address
        self._info: ModelInfo | None = None
        self._info_time = 0.0
        self._adapters: dict[tuple[str, ModelDigests], tuple[str, str]] = {}
        self._looking = asyncio.Lock()

    async def identify(self, adapter: str) -> JudgeIdentity:
        """Who would answer now under an adapter (empty for the bare base model).

        What is known of the service is looked at again after some seconds. While the service is away the last knowledge stands, so that the
        ledger can go on answering; a change shows in the next call that computes.

        Raises:
            UnavailableError, NotFoundError, InvalidArgumentError, FailedPreconditionError, DataLossError: as the service says.
        """
        info = await self._model_info()
        if not adapter:
            return JudgeIdentity(info.base_model, info.digests, configured=self._name, context_tokens=info.context_tokens)
        version, digest = self._adapters.get((adapter, info.digests), ("", ""))
        if not version:
            try:
                version, digest = await self._policy.adapter_version(adapter, timeout_seconds=self._seconds(_IDENTIFY_TIMEOUT_SECONDS))
            except AccordError as error:
                raise self._translated(error) from error
            self._adapters[version, info.digests] = (version, digest)
        return JudgeIdentity(info.base_model, info.digests, version, digest, configured=self._name, context_tokens=info.context_tokens)

    async def generate(self, items: Sequence[GenerateItem], judge: JudgeIdentity) -> Generation:
        """As `AsyncPolicyClient.generate`, by exactly this judge.

        Raises:
            JudgeChangedError: the service holds another model by now.
            AccordError: as `identify`, ResourceExhaustedError and DeadlineExceededError besides.
        """
        CALLS.labels(self._name, "Generate").inc()
        try:
            found = await self._policy.generate(
                items, adapter=judge.adapter_version, expected_digests=judge.digests, timeout_seconds=self._timeout_seconds
            )
        except AccordError as error:
            raise self._translated(error) from error
        self._check_whole(len(found.results), len(items), "results for", "items")
        for result, item in zip(found.results, items, strict=True):
            if result.error is None:
                self._check_whole(len(result.samples), item.n, "texts for", "samples")
        read = sum(len(result.prompt_token_ids) for result in found.results)
        count_tokens(self._name, read, sum(len(sample.token_ids) for result in found.results for sample in result.samples))
        return found

    async def compute_logprobs(self, items: Sequence[LogprobsItem], judge: JudgeIdentity) -> Logprobs:
        """As `AsyncPolicyClient.compute_logprobs`, by exactly this judge. Raises as `generate`."""
        CALLS.labels(self._name, "ComputeLogprobs").inc()
        try:
            found = await self._policy.compute_logprobs(
                items, adapter=judge.adapter_version, expected_digests=judge.digests, timeout_seconds=self._timeout_seconds
            )
        except AccordError as error:
            raise self._translated(error) from error
        self._check_whole(len(found.results), len(items), "results for", "items")
        for result, item in zip(found.results, items, strict=True):
            if result.error is None:
                self._check_whole(len(result.responses), len(item.responses), "logprobs for", "responses")
            for response in result.responses:
                self._check_whole(len(response.logprobs), len(response.token_ids), "logprobs for", "tokens")
        read = sum(len(result.prompt_token_ids) for result in found.results)
        count_tokens(self._name, read, sum(len(response.token_ids) for result in found.results for response in result.responses))
        return found

    async def close(self) -> None:
        """Closes the channel."""
        await self._policy.close()

    async def _model_info(self) -> ModelInfo:
        async with self._looking:
            if self._info is not None and time.monotonic() - self._info_time < _IDENTITY_SECONDS:
                return self._info
            try:
                self._info = await self._policy.model_info(timeout_seconds=self._seconds(_IDENTIFY_TIMEOUT_SECONDS))
            except AccordError as error:
                if self._info is None or not isinstance(error, UnavailableError | DeadlineExceededError | ResourceExhaustedError):
                    raise self._translated(error) from error
            self._info_time = time.monotonic()
            return self._info

    def _check_whole(self, found: int, asked: int, what: str, of: str) -> None:
        """Raises FailedPreconditionError where the service has not answered each of what it was asked: whose answer is missing, nobody knows."""
        if found != asked:
            raise FailedPreconditionError(f"the judge at {self.address} gave {found} {what} {asked} {of}", field="judge")

    def _seconds(self, most: float) -> float:
        return min(most, self._timeout_seconds)

    def _translated(self, error: AccordError) -> AccordError:
        """The error as a caller of this service should see it: which judge, what is wrong, and whether to come back."""
        where = f"the judge at {self.address}"
        facts = {**error.metadata, "address": self.address}
        pause = error.retry_after_seconds or _RETRY_AFTER_SECONDS
        if isinstance(error, UnavailableError | CancelledError):
            return UnavailableError(f"{where} cannot be reached: {error.message}", retry_after_seconds=pause, metadata=facts)
        if isinstance(error, ResourceExhaustedError):
            return ResourceExhaustedError(f"{where} is full: {error.message}", retry_after_seconds=pause, metadata=facts)
        if isinstance(error, DeadlineExceededError):
            return DeadlineExceededError(f"{where} did not answer within {self._timeout_seconds:g} s", metadata=facts)
        if isinstance(error, UnimplementedError):
            return FailedPreconditionError(f"{where} cannot judge in this way: {error.message}", field="judge.kind", metadata=facts)
        if (error.field or "").startswith("expected_digests"):
            self._info = None
            return JudgeChangedError(f"{where} has changed: {error.message}", field="judge", metadata=facts)
        field = "judge.adapter" if error.field in ("adapter", "name", "version") else None
        return type(error)(f"{where}: {error.message}", field=field, metadata=facts)
