"""PolicyService and PolicyAdminService over an engine: thin, every method the same shape."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import accord
from accord.api.common.v1 import common_pb2
from accord.api.policy.v1 import policy_pb2 as pb
from accord.api.policy.v1 import policy_pb2_grpc as rpc
from accord.errors import AccordError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from accord.policy.backend import Chunk, GeneratedSample, GenerationRequest, LogprobsRequest
from accord.policy.config import PolicyConfig
from accord.policy.convert import RequestReader, chunk_to_proto, info_to_proto, sample_to_proto, terms_of
from accord.policy.engine import AdapterFacts, Engine, Item, PauseMode, Terms
from accord.rpc.calls import CallContext
from accord.rpc.status import item_status
from accord.serving.fields import naming
from accord.serving.holder import Holder
from accord.serving.reader import check_digests, digests_to_wire

Slot = tuple[GenerationRequest | LogprobsRequest | None, AccordError | None]
Slots = list[Slot]
Request = pb.GenerateRequest | pb.GenerateStreamRequest | pb.ComputeLogprobsRequest
_PAUSE: dict[int, PauseMode] = {pb.PAUSE_MODE_ABORT: "abort", pb.PAUSE_MODE_WAIT: "wait", pb.PAUSE_MODE_KEEP: "keep"}
_VERSION_POLL_SECONDS, _ANSWER_SECONDS = 0.1, 0.2
_SHORT_BYTES = 4096


class Served:
    """What the servicers need once the model is loaded."""

    def __init__(self, engine: Engine, reader: RequestReader, config: PolicyConfig) -> None:
        self.engine = engine
        self.reader = reader
        self.config = config


class PolicyServicer(rpc.PolicyServiceServicer):
    """Generate, GenerateStream, ComputeLogprobs and GetModelInfo."""

    def __init__(self, holder: Holder[Served]) -> None:
        self._holder = holder

    async def Generate(self, request: pb.GenerateRequest, context: CallContext) -> pb.GenerateResponse:
        served, terms = await self._prepare(request, context)
        started = time.monotonic()
        slots = await _in_thread_if_long(request, partial(_read_all, served, request, stream=False))
        results = await _compute(served.engine, slots, terms)
        reply = pb.GenerateResponse(adapter_version=terms.version, digests=digests_to_wire(terms.digests))
        for item, (accepted, error), samples in zip(request.items, slots, results, strict=True):
            reply.items.append(_generate_result(item.item_id, accepted, error, samples))
        reply.usage.CopyFrom(_usage(slots, started, sum(len(s.token_ids) for done in results if done for s in done)))
        return reply

    async def GenerateStream(self, request: pb.GenerateStreamRequest, context: CallContext) -> AsyncIterator[pb.GenerateStreamResponse]:
        served, terms = await self._prepare(request, context)
        slots = await _in_thread_if_long(request, partial(_read_all, served, request, stream=True))
        for index, (_, error) in enumerate(slots):
            if error is not None:
                yield pb.GenerateStreamResponse(item_index=index, error=item_status(error))
        accepted = [(index, work) for index, (work, _) in enumerate(slots) if work is not None]
        if not accepted:
            return
        items = served.engine.submit([work for _, work in accepted], terms)
        merged: asyncio.Queue[pb.GenerateStreamResponse | AccordError | None] = asyncio.Queue(maxsize=1024)
        tasks = [asyncio.create_task(_follow(index, work, item, terms.version, merged)) for (index, work), item in zip(accepted, items, strict=True)]
        try:
            open_items = len(tasks)
            while open_items:
                event = await merged.get()
                if event is None:
                    open_items -= 1
                elif isinstance(event, AccordError):
                    raise event
                else:
                    yield event
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            served.engine.release(terms.version)

    async def ComputeLogprobs(self, request: pb.ComputeLogprobsRequest, context: CallContext) -> pb.ComputeLogprobsResponse:
        served, terms = await self._prepare(request, context)
        started = time.monotonic()
        slots = await _in_thread_if_long(request, partial(_read_all_logprobs, served, request))
        results = await _compute(served.engine, slots, terms)
        reply = pb.ComputeLogprobsResponse(adapter_version=terms.version, digests=digests_to_wire(terms.digests))
        for item, (accepted, error), rows in zip(request.items, slots, results, strict=True):
            reply.items.append(_logprobs_result(item.item_id, accepted, error, rows))
        scored = sum(len(response) for work, _ in slots if isinstance(work, LogprobsRequest) for response in work.responses)
        reply.usage.CopyFrom(_usage(slots, started, scored))
        return reply

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: CallContext) -> pb.GetModelInfoResponse:
        served = self._holder.get()
        return info_to_proto(served.engine.info, max_queue_items=served.config.max_queue_items, server_version=accord.__version__)

    async def _prepare(self, request: Request, context: CallContext) -> tuple[Served, Terms]:
        served = self._holder.get()
        digests = served.engine.info.digests
        check_digests(request.expected_digests, digests)
        wanted = request.min_policy_version if request.HasField("min_policy_version") else 0
        version = await _resolve(served.engine, request.adapter, wanted, context)
        return served, terms_of(request.origin, version, context.deadline, context.peer(), digests)


class PolicyAdminServicer(rpc.PolicyAdminServiceServicer):
    """Adapters and pausing."""

    def __init__(self, holder: Holder[Served]) -> None:
        self._holder = holder

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: CallContext) -> pb.LoadAdapterResponse:
        engine = self._holder.get().engine
        with naming("name"):
            version = await asyncio.to_thread(engine.resolve, request.name)
            facts = await engine.command(version, load=True, deadline=context.deadline)
        return pb.LoadAdapterResponse(adapter=_adapter(engine, version, facts))

    async def UnloadAdapter(self, request: pb.UnloadAdapterRequest, context: CallContext) -> pb.UnloadAdapterResponse:
        await self._holder.get().engine.command(request.name, load=False, deadline=context.deadline)
        return pb.UnloadAdapterResponse()

    async def ListAdapters(self, request: pb.ListAdaptersRequest, context: CallContext) -> pb.ListAdaptersResponse:
        engine = self._holder.get().engine
        loaded = engine.adapters()
        size = request.page_size if request.HasField("page_size") else 1000
        names = [name for name in sorted(loaded) if name > _page_start(request.page_token)]
        page, rest = names[:size], names[size:]
        return pb.ListAdaptersResponse(
            adapters=[_adapter(engine, name, loaded[name]) for name in page],
            next_page_token=page[-1].encode().hex() if rest else "",
        )

    async def PauseGeneration(self, request: pb.PauseGenerationRequest, context: CallContext) -> pb.PauseGenerationResponse:
        engine = self._holder.get().engine
        aborted = await engine.pause(_PAUSE[request.mode], timeout_seconds=context.time_remaining() or 60.0)
        return pb.PauseGenerationResponse(aborted_samples=aborted)

    async def ResumeGeneration(self, request: pb.ResumeGenerationRequest, context: CallContext) -> pb.ResumeGenerationResponse:
        self._holder.get().engine.resume()
        return pb.ResumeGenerationResponse()

    async def UpdateWeights(self, request: pb.UpdateWeightsRequest, context: CallContext) -> pb.UpdateWeightsResponse:
        engine = self._holder.get().engine
        await engine.update_weights(request.uri, request.base_model_digest, deadline=context.deadline)
        return pb.UpdateWeightsResponse(digests=digests_to_wire(engine.info.digests))


async def _resolve(engine: Engine, adapter: str, wanted: int, context: CallContext) -> str:
    """The version that answers; waits until the adapter's newest is at least `wanted`."""
    if wanted and (not adapter or "/versions/" in adapter):
        raise InvalidArgumentError("only the name of an adapter without a version can be waited for", field="min_policy_version")
    while True:
        newest = ""
        try:
            newest = await asyncio.to_thread(engine.resolve, adapter) if adapter else ""
        except NotFoundError:
            if not wanted:
                raise
        if not wanted or (newest and int(newest.rsplit("/", 1)[-1]) >= wanted):
            return newest
        left = context.time_remaining()
        if left is not None and left < _ANSWER_SECONDS + _VERSION_POLL_SECONDS:
            raise FailedPreconditionError(
                f"{adapter} has no version {wanted} or newer within the deadline; its newest is {newest or 'none'}", field="min_policy_version"
            )
        await asyncio.sleep(_VERSION_POLL_SECONDS)


async def _in_thread_if_long(request: Request, read: Callable[[], Slots]) -> Slots:
    """Tokenizing megabytes takes seconds, a short prompt less than the way to a thread and back while another one computes."""
    return read() if request.ByteSize() <= _SHORT_BYTES else await asyncio.to_thread(read)


def _read_all(served: Served, request: pb.GenerateRequest | pb.GenerateStreamRequest, *, stream: bool) -> Slots:
    """Each item's request or error."""
    read = partial(served.reader.generation, stream=stream)
    return [_slot(served.engine, partial(read, item), f"items[{index}]") for index, item in enumerate(request.items)]


def _read_all_logprobs(served: Served, request: pb.ComputeLogprobsRequest) -> Slots:
    """As `_read_all`. The temperature is the call's, and so is an error in it."""
    temperature = served.reader.temperature(request.temperature if request.HasField("temperature") else 1.0, "temperature")
    read = partial(served.reader.logprobs, temperature=temperature, append_eos=request.append_eos)
    return [_slot(served.engine, partial(read, item), f"items[{index}]") for index, item in enumerate(request.items)]


def _slot(engine: Engine, read: Callable[[str], GenerationRequest | LogprobsRequest], field: str) -> Slot:
    try:
        found = read(field)
        engine.check(found, field)
        return found, None
    except AccordError as error:
        return None, error


async def _compute(engine: Engine, slots: Slots, terms: Terms) -> list[Any]:
    """Results in the order of the slots; None where the item itself was bad. An error of the computation is the call's."""
    accepted = [work for work, _ in slots if work is not None]
    if not accepted:
        return [None] * len(slots)
    items = engine.submit(accepted, terms)
    try:
        done = iter(await asyncio.gather(*(item.result() for item in items)))
    finally:
        for item in items:
            item.cancel()
        engine.release(terms.version)
    return [None if work is None else next(done) for work, _ in slots]


async def _follow(
    index: int,
    work: GenerationRequest | LogprobsRequest,
    item: Item,
    version: str,
    merged: asyncio.Queue[pb.GenerateStreamResponse | AccordError | None],
) -> None:
    """Turns one item's chunks and its result into events, then says that it is over with None."""
    try:
        async for value in item.values():
            if isinstance(value, Chunk):
                event = pb.GenerateStreamResponse(item_index=index, sample_index=value.sample_index, chunk=chunk_to_proto(value))
                await merged.put(event)
        samples = await item.result()
        for sample in samples if isinstance(samples, tuple) else ():
            complete = pb.GenerateComplete(
                sample=sample_to_proto(sample),
                adapter_version=version,
                prompt_token_ids=common_pb2.TokenIds(ids=work.prompt_ids),
            )
            await merged.put(pb.GenerateStreamResponse(item_index=index, sample_index=sample.index, complete=complete))
        await merged.put(None)
    except AccordError as error:
        await merged.put(error)


def _generate_result(item_id: str, work: object, error: AccordError | None, samples: Sequence[GeneratedSample] | None) -> pb.GenerateItemResult:
    if error is not None or not isinstance(work, GenerationRequest):
        return pb.GenerateItemResult(item_id=item_id, status=item_status(error) if error else None)
    return pb.GenerateItemResult(
        item_id=item_id,
        samples=[sample_to_proto(sample) for sample in samples or ()],
        prompt_token_ids=common_pb2.TokenIds(ids=work.prompt_ids),
    )


def _logprobs_result(item_id: str, work: object, error: AccordError | None, rows: Sequence[Sequence[float]] | None) -> pb.LogprobsItemResult:
    if error is not None or not isinstance(work, LogprobsRequest):
        return pb.LogprobsItemResult(item_id=item_id, status=item_status(error) if error else None)
    responses = [
        pb.ResponseLogprobs(token_ids=common_pb2.TokenIds(ids=ids), logprobs=row, sequence_logprob=sum(row))
        for ids, row in zip(work.responses, rows or (), strict=True)
    ]
    return pb.LogprobsItemResult(item_id=item_id, responses=responses, prompt_token_ids=common_pb2.TokenIds(ids=work.prompt_ids))


def _usage(slots: Slots, started: float, response_tokens: int) -> common_pb2.Usage:
    prompts = sum(len(work.prompt_ids) for work, _ in slots if work is not None)
    return common_pb2.Usage(prompt_tokens=prompts, response_tokens=response_tokens, compute_seconds=time.monotonic() - started)


def _adapter(engine: Engine, name: str, facts: AdapterFacts) -> pb.AdapterInfo:
    return pb.AdapterInfo(name=name, digest=facts.digest, size_bytes=facts.size_bytes, in_use=engine.calls_with(name))


def _page_start(token: str) -> str:
    try:
        return bytes.fromhex(token).decode()
    except ValueError as error:
        raise InvalidArgumentError("the page token is not one that this service gave", field="page_token") from error
