"""Conversion of `accord.client.policy_messages` to and from the wire.

What does not belong here: forms that several services share (`accord.client.messages`) and calls (`accord.client.policy`).
"""

from __future__ import annotations

from collections.abc import Sequence

from accord.api.policy.v1 import policy_pb2 as pb
from accord.client.messages import (
    ModelDigests,
    digests_from_proto,
    digests_to_proto,
    encodable,
    error_or_none,
    prompt_to_proto,
    response_to_proto,
    set_numbers,
    usage_from_proto,
)
from accord.client.policy_messages import (
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

_FINISH: dict[int, FinishReason] = {
    pb.FINISH_REASON_UNSPECIFIED: "unspecified",
    pb.FINISH_REASON_EOS: "eos",
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_ABORTED: "aborted",
}
_PRIORITY: dict[Priority, pb.Priority] = {
    "interactive": pb.PRIORITY_INTERACTIVE,
    "rollout": pb.PRIORITY_ROLLOUT,
    "labelling": pb.PRIORITY_LABELLING,
}
_SAMPLING_NUMBERS = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "top_logprobs")
PAUSE_MODES: dict[PauseMode, pb.PauseMode] = {"abort": pb.PAUSE_MODE_ABORT, "wait": pb.PAUSE_MODE_WAIT, "keep": pb.PAUSE_MODE_KEEP}


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


def generate_request(
    items: Sequence[GenerateItem], adapter: str, digests: ModelDigests | None, origin: Origin, version: int | None
) -> pb.GenerateRequest:
    """Returns the request of a Generate call."""
    request = pb.GenerateRequest(items=_items_to_proto(items), adapter=adapter, expected_digests=digests_to_proto(digests), origin=_origin(origin))
    set_numbers(request, {"min_policy_version": version}, "")
    return request


def stream_request(items: Sequence[GenerateItem], adapter: str, origin: Origin) -> pb.GenerateStreamRequest:
    """Returns the request of a GenerateStream call."""
    return pb.GenerateStreamRequest(items=_items_to_proto(items), adapter=adapter, origin=_origin(origin))


def _sample(wire: pb.Sample) -> Sample:
    top = tuple(tuple(zip(place.token_ids, place.logprobs, strict=True)) for place in wire.top_logprobs)
    return Sample(wire.index, wire.text, tuple(wire.token_ids.ids), tuple(wire.logprobs), _FINISH[wire.finish_reason], wire.seed, top)


def generation_from_proto(wire: pb.GenerateResponse) -> Generation:
    """Returns the answers of a Generate reply."""
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


def event_from_proto(wire: pb.GenerateStreamResponse) -> StreamEvent:
    """Returns one event of a stream."""
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


def logprobs_request(
    items: Sequence[LogprobsItem], adapter: str, temperature: float, append_eos: bool, digests: ModelDigests | None, origin: Origin
) -> pb.ComputeLogprobsRequest:
    """Returns the request of a ComputeLogprobs call."""
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


def logprobs_from_proto(wire: pb.ComputeLogprobsResponse) -> Logprobs:
    """Returns the logprobs of a ComputeLogprobs reply."""
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


def model_info_from_proto(wire: pb.GetModelInfoResponse) -> ModelInfo:
    """Returns what a replica says that it serves."""
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


def adapter_info_from_proto(wire: pb.AdapterInfo) -> AdapterInfo:
    """Returns what a replica says of an adapter version."""
    return AdapterInfo(wire.name, wire.digest, wire.size_bytes, wire.in_use)
