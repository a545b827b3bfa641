"""Typed clients of PolicyService and PolicyAdminService, sync and async.

Both raise `accord.errors.AccordError` subclasses; a bad item of a batch is an `error` in its result. What does not belong here: retries
and deadlines (`accord.rpc.channels`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from accord.api.policy.v1 import policy_pb2 as pb
from accord.api.policy.v1 import policy_pb2_grpc as rpc
from accord.client.connection import Target, connect, connect_async
from accord.client.messages import (
    ModelDigests,
    PromptForm,
    ResponseForm,
    Usage,
    digests_from_proto,
    digests_to_proto,
    encodable,
    error_or_none,
    prompt_to_proto,
    response_to_proto,
    set_numbers,
    usage_from_proto,
)
from accord.errors import AccordError
from accord.rpc.stubs import guard_stub

FinishReason = Literal["unspecified", "eos", "stop", "length", "aborted"]
_FINISH: dict[int, FinishReason] = {
    pb.FINISH_REASON_UNSPECIFIED: "unspecified",
    pb.FINISH_REASON_EOS: "eos",
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_ABORTED: "aborted",
}
PauseMode = Literal["abort", "wait", "keep"]
Priority = Literal["interactive", "rollout", "labelling"]
_PRIORITY: dict[Priority, pb.Priority] = {
    "interactive": pb.PRIORITY_INTERACTIVE,
    "rollout": pb.PRIORITY_ROLLOUT,
    "labelling": pb.PRIORITY_LABELLING,
}
_SAMPLING_NUMBERS = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "top_logprobs")
_PAUSE: dict[PauseMode, pb.PauseMode] = {"abort": pb.PAUSE_MODE_ABORT, "wait": pb.PAUSE_MODE_WAIT, "keep": pb.PAUSE_MODE_KEEP}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample; what is None takes the service's default (see policy.proto)."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    ignore_eos: bool | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose work a call is: it decides whose turn it is while others wait. Without a caller, the connection is one."""

    priority: Priority = "interactive"
    caller: str = ""


@dataclass(frozen=True, slots=True)
class GenerateItem:
    """One prompt to answer n times."""

    prompt: PromptForm
    sampling: Sampling = Sampling()
    n: int = 1
    item_id: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One response; `logprobs` are nats per sampled token, `token_ids` include the end-of-turn token when it was sampled.

    `top_logprobs` are, for each sampled token where they were asked for, the likeliest tokens with their logprobs, likeliest first.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    seed: int
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """What came of one item: samples, or an error."""

    item_id: str
    error: AccordError | None
    samples: tuple[Sample, ...]
    prompt_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """The answers to a batch, in the order of its items."""

    results: tuple[GenerateResult, ...]
    adapter_version: str
    digests: ModelDigests
    usage: Usage


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event of a stream: more text, a complete sample, or an item's error."""

    item_index: int
    sample_index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    sample: Sample | None = None
    error: AccordError | None = None
    adapter_version: str = ""


@dataclass(frozen=True, slots=True)
class LogprobsItem:
    """One prompt and the responses to compute logprobs of."""

    prompt: PromptForm
    responses: tuple[ResponseForm, ...]
    item_id: str = ""


@dataclass(frozen=True, slots=True)
class ResponseLogprobs:
    """Logprobs of one response in nats, one for each token."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    sequence_logprob: float


@dataclass(frozen=True, slots=True)
class LogprobsResult:
    """What came of one item: logprobs of each response, or an error."""

    item_id: str
    error: AccordError | None
    responses: tuple[ResponseLogprobs, ...]
    prompt_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Logprobs:
    """The logprobs of a batch, in the order of its items."""

    results: tuple[LogprobsResult, ...]
    adapter_version: str
    digests: ModelDigests
    usage: Usage


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a policy replica serves."""

    base_model: str
    digests: ModelDigests
    context_tokens: int
    vocabulary_size: int
    eos_token_ids: tuple[int, ...]
    backend: str
    max_queue_items: int
    parameters: int
    server_version: str


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """An adapter version that a replica holds."""

    name: str
    digest: str
    size_bytes: int
    in_use: int


def sampling_to_proto(sampling: Sampling, field: str = "sampling") -> pb.SamplingParams:
    """Returns the wire form; None leaves a field unset.

    Raises:
        InvalidArgumentError: a number that the wire cannot carry, such as a seed of 2^64.
    """
    numbers = {name: getattr(sampling, name) for name in _SAMPLING_NUMBERS}
    with encodable(f"{field}.stop"):
        wire = pb.SamplingParams(stop=sampling.stop, stop_token_ids=sampling.stop_token_ids, ignore_eos=sampling.ignore_eos)
    set_numbers(wire, numbers, field)
    return wire


def _items_to_proto(items: Sequence[GenerateItem]) -> list[pb.GenerateItem]:
    found = []
    for index, item in enumerate(items):
        sampling = sampling_to_proto(item.sampling, f"items[{index}].sampling")
        wire = pb.GenerateItem(item_id=item.item_id, prompt=prompt_to_proto(item.prompt), sampling=sampling)
        set_numbers(wire, {"n": item.n}, f"items[{index}]")
        found.append(wire)
    return found


def _origin(origin: Origin) -> pb.Origin:
    return pb.Origin(priority=_PRIORITY[origin.priority], caller=origin.caller)


def _generate_request(
    items: Sequence[GenerateItem], adapter: str, digests: ModelDigests | None, origin: Origin, version: int | None
) -> pb.GenerateRequest:
    request = pb.GenerateRequest(items=_items_to_proto(items), adapter=adapter, expected_digests=digests_to_proto(digests), origin=_origin(origin))
    set_numbers(request, {"min_policy_version": version}, "")
    return request


def _stream_request(items: Sequence[GenerateItem], adapter: str, origin: Origin) -> pb.GenerateStreamRequest:
    return pb.GenerateStreamRequest(items=_items_to_proto(items), adapter=adapter, origin=_origin(origin))


def _sample(wire: pb.Sample) -> Sample:
    top = tuple(tuple(zip(place.token_ids, place.logprobs, strict=True)) for place in wire.top_logprobs)
    return Sample(wire.index, wire.text, tuple(wire.token_ids.ids), tuple(wire.logprobs), _FINISH[wire.finish_reason], wire.seed, top)


def _generation(wire: pb.GenerateResponse) -> Generation:
    results = tuple(
        GenerateResult(
            item.item_id,
            error_or_none(item.status),
            tuple(_sample(sample) for sample in item.samples),
            tuple(item.prompt_token_ids.ids),
        )
        for item in wire.items
    )
    return Generation(results, wire.adapter_version, digests_from_proto(wire.digests), usage_from_proto(wire.usage))


def _event(wire: pb.GenerateStreamResponse) -> StreamEvent:
    form = wire.WhichOneof("event")
    if form == "chunk":
        return StreamEvent(wire.item_index, wire.sample_index, text=wire.chunk.text, token_ids=tuple(wire.chunk.token_ids.ids))
    if form == "complete":
        return StreamEvent(
            wire.item_index,
            wire.sample_index,
            sample=_sample(wire.complete.sample),
            adapter_version=wire.complete.adapter_version,
        )
    return StreamEvent(wire.item_index, wire.sample_index, error=error_or_none(wire.error))


def _logprobs_request(
    items: Sequence[LogprobsItem], adapter: str, temperature: float, append_eos: bool, digests: ModelDigests | None, origin: Origin
) -> pb.ComputeLogprobsRequest:
    return pb.ComputeLogprobsRequest(
        items=[
            pb.LogprobsItem(
                item_id=item.item_id,
                prompt=prompt_to_proto(item.prompt),
                responses=[response_to_proto(response) for response in item.responses],
            )
            for item in items
        ],
        adapter=adapter,
        temperature=temperature,
        append_eos=append_eos,
        expected_digests=digests_to_proto(digests),
        origin=_origin(origin),
    )


def _response_logprobs(wire: pb.ResponseLogprobs) -> ResponseLogprobs:
    return ResponseLogprobs(tuple(wire.token_ids.ids), tuple(wire.logprobs), wire.sequence_logprob)


def _logprobs(wire: pb.ComputeLogprobsResponse) -> Logprobs:
    results = tuple(
        LogprobsResult(
            item.item_id,
            error_or_none(item.status),
            tuple(_response_logprobs(response) for response in item.responses),
            tuple(item.prompt_token_ids.ids),
        )
        for item in wire.items
    )
    return Logprobs(results, wire.adapter_version, digests_from_proto(wire.digests), usage_from_proto(wire.usage))


def _model_info(wire: pb.GetModelInfoResponse) -> ModelInfo:
    return ModelInfo(
        wire.base_model,
        digests_from_proto(wire.digests),
        wire.context_tokens,
        wire.vocabulary_size,
        tuple(wire.eos_token_ids),
        wire.backend,
        wire.max_queue_items,
        wire.parameters,
        wire.server_version,
    )


def _adapter_info(wire: pb.AdapterInfo) -> AdapterInfo:
    return AdapterInfo(wire.name, wire.digest, wire.size_bytes, wire.in_use)


class PolicyClient:
    """A blocking client of one policy service; use it as a context manager."""

    def __init__(self, target: Target, *, origin: Origin = Origin()) -> None:
        self._origin = origin
        self._channel, default_timeout = connect(target)
        self._stub = guard_stub(rpc.PolicyServiceStub(self._channel), default_timeout)
        self._admin = guard_stub(rpc.PolicyAdminServiceStub(self._channel), default_timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

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
        request = _generate_request(items, adapter, expected_digests, self._origin, min_policy_version)
        return _generation(self._stub.Generate(request, timeout=timeout_seconds))

    def generate_stream(self, items: Sequence[GenerateItem], *, adapter: str = "", timeout_seconds: float | None = None) -> Iterator[StreamEvent]:
        """Yields text as it is decoded; see PolicyService.GenerateStream."""
        request = _stream_request(items, adapter, self._origin)
        for wire in self._stub.GenerateStream(request, timeout=timeout_seconds):
            yield _event(wire)

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
        request = _logprobs_request(items, adapter, temperature, append_eos, expected_digests, self._origin)
        return _logprobs(self._stub.ComputeLogprobs(request, timeout=timeout_seconds))

    def model_info(self, *, timeout_seconds: float | None = None) -> ModelInfo:
        """Returns what is served."""
        return _model_info(self._stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=timeout_seconds))

    def load_adapter(self, name: str, *, timeout_seconds: float | None = None) -> AdapterInfo:
        """Loads and verifies an adapter version ahead of its first use."""
        request = pb.LoadAdapterRequest(name=name)
        return _adapter_info(self._admin.LoadAdapter(request, timeout=timeout_seconds).adapter)

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
            found += [_adapter_info(item) for item in page.adapters]
            token = page.next_page_token
            if not token:
                return tuple(found)

    def pause(self, mode: PauseMode, *, timeout_seconds: float | None = None) -> int:
        """Stops generation between two decode steps; returns how many samples were aborted."""
        request = pb.PauseGenerationRequest(mode=_PAUSE[mode])
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

    def __init__(self, target: Target, *, origin: Origin = Origin()) -> None:
        self._origin = origin
        self._channel, default_timeout = connect_async(target)
        self._stub = guard_stub(rpc.PolicyServiceStub(self._channel), default_timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

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
        request = _generate_request(items, adapter, expected_digests, self._origin, min_policy_version)
        return _generation(await self._stub.Generate(request, timeout=timeout_seconds))

    async def generate_stream(
        self, items: Sequence[GenerateItem], *, adapter: str = "", timeout_seconds: float | None = None
    ) -> AsyncIterator[StreamEvent]:
        """Yields text as it is decoded."""
        request = _stream_request(items, adapter, self._origin)
        async for wire in self._stub.GenerateStream(request, timeout=timeout_seconds):
            yield _event(wire)

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
        request = _logprobs_request(items, adapter, temperature, append_eos, expected_digests, self._origin)
        return _logprobs(await self._stub.ComputeLogprobs(request, timeout=timeout_seconds))

    async def model_info(self, *, timeout_seconds: float | None = None) -> ModelInfo:
        """Returns what is served."""
        request = pb.GetModelInfoRequest()
        return _model_info(await self._stub.GetModelInfo(request, timeout=timeout_seconds))
