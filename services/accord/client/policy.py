"""Typed clients of PolicyService and PolicyAdminService, sync and async.

Both raise `accord.errors.AccordError` subclasses; a bad item of a batch is an `error` in its result. Where the target's `load_balancing` is
least_loaded or prefix, this client chooses the replica (`accord.client.replicas`). What does not belong here: retries and deadlines
(`accord.rpc.channels`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from accord.api.policy.v1 import policy_pb2 as pb
from accord.api.policy.v1 import policy_pb2_grpc as rpc
from accord.client.connection import Target, channel_config, connect, connect_async
from accord.client.messages import ModelDigests, digests_from_proto
from accord.client.policy_messages import (
    MOST_ITEMS,
    MOST_TOKENS,
    AdapterInfo,
    FinishReason,
    GenerateItem,
    GenerateResult,
    Generation,
    Logprobs,
    LogprobsItem,
    LogprobsResult,
    ModelInfo,
    Origin,
    PauseMode,
    Priority,
    ResponseLogprobs,
    Sample,
    Sampling,
    StreamEvent,
)
from accord.client.policy_wire import (
    PAUSE_MODES,
    adapter_info_from_proto,
    event_from_proto,
    generate_request,
    generation_from_proto,
    logprobs_from_proto,
    logprobs_request,
    model_info_from_proto,
    sampling_to_proto,
    stream_request,
)
from accord.client.replicas import AsyncReplicas, Replicas, chooses_replicas
from accord.rpc.channels import ChannelConfig
from accord.rpc.stubs import guard_stub

__all__ = [
    "MOST_ITEMS",
    "MOST_TOKENS",
    "AdapterInfo",
    "AsyncPolicyClient",
    "FinishReason",
    "GenerateItem",
    "GenerateResult",
    "Generation",
    "Logprobs",
    "LogprobsItem",
    "LogprobsResult",
    "ModelInfo",
    "Origin",
    "PauseMode",
    "PolicyClient",
    "Priority",
    "ResponseLogprobs",
    "Sample",
    "Sampling",
    "StreamEvent",
    "sampling_to_proto",
]

_INTERACTIVE = Origin()


class PolicyClient:
    """A blocking client of one policy service; use it as a context manager."""

    def __init__(self, target: Target, *, origin: Origin = _INTERACTIVE) -> None:
        self._origin = origin
        self._stub, self._admin, self._close = _open(channel_config(target))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channels."""
        self._close()

    def generate(
        self,
        items: Sequence[GenerateItem],
        *,
        adapter: str = "",
        expected_digests: ModelDigests | None = None,
        min_policy_version: int | None = None,
        timeout_seconds: float | None = None,
    ) -> Generation:
        """Returns the samples of each item; see PolicyService.Generate for the errors."""
        request = generate_request(items, adapter, expected_digests, self._origin, min_policy_version)
        return generation_from_proto(self._stub.Generate(request, timeout=timeout_seconds))

    def generate_stream(self, items: Sequence[GenerateItem], *, adapter: str = "", timeout_seconds: float | None = None) -> Iterator[StreamEvent]:
        """Yields text as it is decoded; see PolicyService.GenerateStream."""
        request = stream_request(items, adapter, self._origin)
        for wire in self._stub.GenerateStream(request, timeout=timeout_seconds):
            yield event_from_proto(wire)

    def compute_logprobs(
        self,
        items: Sequence[LogprobsItem],
        *,
        adapter: str = "",
        temperature: float = 1.0,
        append_eos: bool = False,
        expected_digests: ModelDigests | None = None,
        timeout_seconds: float | None = None,
    ) -> Logprobs:
        """Returns the logprobs of given responses; see PolicyService.ComputeLogprobs."""
        request = logprobs_request(items, adapter, temperature, append_eos, expected_digests, self._origin)
        return logprobs_from_proto(self._stub.ComputeLogprobs(request, timeout=timeout_seconds))

    def model_info(self, *, timeout_seconds: float | None = None) -> ModelInfo:
        """Returns what is served."""
        return model_info_from_proto(self._stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=timeout_seconds))

    def load_adapter(self, name: str, *, timeout_seconds: float | None = None) -> AdapterInfo:
        """Loads and verifies an adapter version ahead of its first use."""
        request = pb.LoadAdapterRequest(name=name)
        return adapter_info_from_proto(self._admin.LoadAdapter(request, timeout=timeout_seconds).adapter)

    def unload_adapter(self, name: str, *, timeout_seconds: float | None = None) -> None:
        """Forgets an adapter version."""
        self._admin.UnloadAdapter(pb.UnloadAdapterRequest(name=name), timeout=timeout_seconds)

    def list_adapters(self, *, timeout_seconds: float | None = None) -> tuple[AdapterInfo, ...]:
        """Returns every loaded adapter version, by name."""
        found: list[AdapterInfo] = []
        token = ""
        while True:
            request = pb.ListAdaptersRequest(page_token=token)
            page = self._admin.ListAdapters(request, timeout=timeout_seconds)
            found += [adapter_info_from_proto(item) for item in page.adapters]
            token = page.next_page_token
            if not token:
                return tuple(found)

    def pause(self, mode: PauseMode, *, timeout_seconds: float | None = None) -> int:
        """Stops generation between two decode steps; returns how many samples were aborted."""
        request = pb.PauseGenerationRequest(mode=PAUSE_MODES[mode])
        return int(self._admin.PauseGeneration(request, timeout=timeout_seconds).aborted_samples)

    def resume(self, *, timeout_seconds: float | None = None) -> None:
        """Lets generation go on."""
        self._admin.ResumeGeneration(pb.ResumeGenerationRequest(), timeout=timeout_seconds)

    def update_weights(self, uri: str, base_model_digest: str, *, timeout_seconds: float | None = None) -> ModelDigests:
        """Replaces the base model's weights; see PolicyAdminService.UpdateWeights. Returns what is served afterwards."""
        request = pb.UpdateWeightsRequest(uri=uri, base_model_digest=base_model_digest)
        return digests_from_proto(self._admin.UpdateWeights(request, timeout=timeout_seconds).digests)


class AsyncPolicyClient:
    """As PolicyClient, for asyncio."""

    def __init__(self, target: Target, *, origin: Origin = _INTERACTIVE) -> None:
        self._origin = origin
        self._stub, self._close = _open_async(channel_config(target))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channels."""
        await self._close()

    async def generate(
        self,
        items: Sequence[GenerateItem],
        *,
        adapter: str = "",
        expected_digests: ModelDigests | None = None,
        min_policy_version: int | None = None,
        timeout_seconds: float | None = None,
    ) -> Generation:
        """Returns the samples of each item."""
        request = generate_request(items, adapter, expected_digests, self._origin, min_policy_version)
        return generation_from_proto(await self._stub.Generate(request, timeout=timeout_seconds))

    async def generate_stream(
        self, items: Sequence[GenerateItem], *, adapter: str = "", timeout_seconds: float | None = None
    ) -> AsyncIterator[StreamEvent]:
        """Yields text as it is decoded."""
        request = stream_request(items, adapter, self._origin)
        async for wire in self._stub.GenerateStream(request, timeout=timeout_seconds):
            yield event_from_proto(wire)

    async def compute_logprobs(
        self,
        items: Sequence[LogprobsItem],
        *,
        adapter: str = "",
        temperature: float = 1.0,
        append_eos: bool = False,
        expected_digests: ModelDigests | None = None,
        timeout_seconds: float | None = None,
    ) -> Logprobs:
        """Returns the logprobs of given responses."""
        request = logprobs_request(items, adapter, temperature, append_eos, expected_digests, self._origin)
        return logprobs_from_proto(await self._stub.ComputeLogprobs(request, timeout=timeout_seconds))

    async def model_info(self, *, timeout_seconds: float | None = None) -> ModelInfo:
        """Returns what is served."""
        request = pb.GetModelInfoRequest()
        return model_info_from_proto(await self._stub.GetModelInfo(request, timeout=timeout_seconds))


def _open(config: ChannelConfig) -> tuple[Any, Any, Callable[[], None]]:
    """The stubs of both services, and what closes them."""
    if chooses_replicas(config):
        replicas = Replicas(config)
        return replicas, replicas, replicas.close
    channel, default_timeout = connect(config)
    policy, admin = rpc.PolicyServiceStub(channel), rpc.PolicyAdminServiceStub(channel)
    return guard_stub(policy, default_timeout), guard_stub(admin, default_timeout), channel.close


def _open_async(config: ChannelConfig) -> tuple[Any, Callable[[], Awaitable[None]]]:
    if chooses_replicas(config):
        replicas = AsyncReplicas(config)
        return replicas, replicas.close
    channel, default_timeout = connect_async(config)
    return guard_stub(rpc.PolicyServiceStub(channel), default_timeout), channel.close
