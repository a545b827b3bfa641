"""RewardService over an engine: scores, streams of scores, comparisons, and what a reward model says of itself.

Scores leave centred and scaled as the model's manifest says; a comparison undoes the scale, since Bradley-Terry training makes raw
differences log-odds.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import accord
from accord.api.common.v1 import common_pb2
from accord.api.reward.v1 import reward_pb2 as pb
from accord.api.reward.v1 import reward_pb2_grpc as rpc
from accord.client.messages import ModelDigests
from accord.errors import AccordError, InvalidArgumentError, OutOfRangeError
from accord.reward.config import RewardConfig
from accord.reward.engine import RewardEngine, RewardModelFacts, ScoreRequest
from accord.rpc.calls import CallContext
from accord.rpc.status import item_status
from accord.rpc.streams import answer_stream
from accord.serving.fields import naming
from accord.serving.holder import Holder
from accord.serving.reader import SequenceReader, check_digests, digests_to_wire


@dataclass(frozen=True)
class Served:
    """What the servicer needs once the model is loaded."""

    engine: RewardEngine
    reader: SequenceReader
    config: RewardConfig
    digests: ModelDigests


@dataclass(frozen=True)
class Ensemble:
    """The reward models that score together: their mean minus `std_coefficient` population standard deviations."""

    members: tuple[RewardModelFacts, ...]
    std_coefficient: float

    @property
    def versions(self) -> list[str]:
        """The members' versions."""
        return [member.version for member in self.members]

    def combine(self, scores: Sequence[float]) -> float:
        """Returns the ensemble's score of the members' scores."""
        mean = sum(scores) / len(scores)
        variance = sum((score - mean) ** 2 for score in scores) / len(scores)
        return mean - self.std_coefficient * math.sqrt(variance)

    def check_length(self, tokens: int, field: str) -> None:
        """Raises OutOfRangeError where a sequence is longer than one of the members has learned to read."""
        for member in self.members:
            if member.head.max_tokens and tokens > member.head.max_tokens:
                raise OutOfRangeError(
                    f"prompt and response have {tokens} tokens; {member.version} reads at most {member.head.max_tokens}", field=field
                )


class RewardServicer(rpc.RewardServiceServicer):
    """Score, ScoreStream, Compare and GetRewardModelInfo."""

    def __init__(self, holder: Holder[Served]) -> None:
        self._holder = holder

    async def Score(self, request: pb.ScoreRequest, context: CallContext) -> pb.ScoreResponse:
        served, ensemble = await self._prepare(request.reward_model, request.expected_digests)
        started = time.monotonic()
        reads = await asyncio.to_thread(_read_items, served, ensemble, request.items)
        scores = await _scores(served.engine, ensemble, [read for read in reads if isinstance(read, ScoreRequest)], context.deadline)
        reply = pb.ScoreResponse(reward_model_versions=ensemble.versions, digests=digests_to_wire(served.digests))
        rest = iter(scores)
        for item, read in zip(request.items, reads, strict=True):
            reply.items.append(_result(item.item_id, read, ensemble, next(rest) if isinstance(read, ScoreRequest) else ()))
        reply.usage.CopyFrom(_usage(reads, started))
        return reply

    async def ScoreStream(
        self, request_iterator: AsyncIterator[pb.ScoreStreamRequest], context: CallContext
    ) -> AsyncIterator[pb.ScoreStreamResponse]:
        stream = _Stream(self, request_iterator, context)
        async for response in stream.run():
            yield response

    async def Compare(self, request: pb.CompareRequest, context: CallContext) -> pb.CompareResponse:
        served, ensemble = await self._prepare(request.reward_model, request.expected_digests)
        started = time.monotonic()
        reads = await asyncio.to_thread(_read_pairs, served, ensemble, request.pairs)
        scores = await _scores(served.engine, ensemble, [read for read in reads if isinstance(read, ScoreRequest)], context.deadline)
        reply = pb.CompareResponse(reward_model_versions=ensemble.versions, digests=digests_to_wire(served.digests))
        rest = iter(scores)
        for index, pair in enumerate(request.pairs):
            both = [(read, next(rest) if isinstance(read, ScoreRequest) else ()) for read in reads[2 * index : 2 * index + 2]]
            reply.pairs.append(_comparison(pair.item_id, ensemble, both))
        reply.usage.CopyFrom(_usage(reads, started))
        return reply

    async def GetRewardModelInfo(self, request: pb.GetRewardModelInfoRequest, context: CallContext) -> pb.GetRewardModelInfoResponse:
        served = self._holder.get()
        reply = pb.GetRewardModelInfoResponse(digests=digests_to_wire(served.digests), server_version=accord.__version__)
        if request.reward_model:
            with naming("reward_model"):
                facts = await asyncio.to_thread(served.engine.describe, request.reward_model)
            reply.reward_model, reply.digest = facts.version, facts.digest
            reply.score_mean, reply.score_std, reply.max_tokens = facts.head.mean, facts.head.std, facts.head.max_tokens
            reply.training_data_digest = facts.head.training_data_digest
            if facts.head.held_out_accuracy is not None:
                reply.held_out_accuracy = facts.head.held_out_accuracy
        return reply

    async def _prepare(self, selector: pb.RewardModelSelector, expected: common_pb2.ModelDigests) -> tuple[Served, Ensemble]:
        served = self._holder.get()
        check_digests(expected, served.digests)
        members = []
        for index, name in enumerate(selector.members):
            with naming(f"reward_model.members[{index}]"):
                members.append(await asyncio.to_thread(served.engine.describe, name))
        return served, Ensemble(tuple(members), selector.std_coefficient)


class _Stream:
    """One ScoreStream: reads ahead as far as the configuration allows, answers in the order in which scores come."""

    def __init__(self, servicer: RewardServicer, requests: AsyncIterator[pb.ScoreStreamRequest], context: CallContext) -> None:
        self._servicer = servicer
        self._requests = requests
        self._context = context
        self._served: Served | None = None
        self._ensemble: Ensemble | None = None
        self._selector: pb.RewardModelSelector | None = None
        self._ids: set[str] = set()

    def run(self) -> AsyncIterator[pb.ScoreStreamResponse]:
        return answer_stream(self._requests, self._start, limit=self._servicer._holder.get().config.max_stream_items)

    async def _start(self, request: pb.ScoreStreamRequest) -> Coroutine[Any, Any, pb.ScoreStreamResponse]:
        if self._ensemble is None and not request.HasField("reward_model"):
            raise InvalidArgumentError("the first message of a stream must say which reward model scores", field="reward_model")
        if self._ensemble is None or (request.HasField("reward_model") and request.reward_model != self._selector):
            self._selector = request.reward_model
            self._served, self._ensemble = await self._servicer._prepare(request.reward_model, request.expected_digests)
        item = request.item
        if item.item_id in self._ids:
            raise InvalidArgumentError(f"item_id {item.item_id!r} came twice in this stream", field="item.item_id")
        self._ids.add(item.item_id)
        assert self._served is not None
        return self._answer(item, self._served, self._ensemble)

    async def _answer(self, item: pb.ScoreItem, served: Served, ensemble: Ensemble) -> pb.ScoreStreamResponse:
        read = await asyncio.to_thread(_read, served, ensemble, item.prompt, item.response, "item", "response")
        scores: tuple[float, ...] = ()
        if isinstance(read, ScoreRequest):
            scores = (await _scores(served.engine, ensemble, [read], self._context.deadline))[0]
        return pb.ScoreStreamResponse(result=_result(item.item_id, read, ensemble, scores), reward_model_versions=ensemble.versions)


def _read_items(served: Served, ensemble: Ensemble, items: Sequence[pb.ScoreItem]) -> list[ScoreRequest | AccordError]:
    """Each item as token ids, or its error. Tokenizing megabytes takes seconds: called in a thread."""
    return [_read(served, ensemble, item.prompt, item.response, f"items[{index}]", "response") for index, item in enumerate(items)]


def _read_pairs(served: Served, ensemble: Ensemble, pairs: Sequence[pb.ComparePair]) -> list[ScoreRequest | AccordError]:
    """As `_read_items`: A and B of each pair, one after the other."""
    return [
        _read(served, ensemble, pair.prompt, getattr(pair, name), f"pairs[{index}]", name)
        for index, pair in enumerate(pairs)
        for name in ("response_a", "response_b")
    ]


def _read(
    served: Served, ensemble: Ensemble, prompt: common_pb2.Prompt, response: common_pb2.Response, field: str, name: str
) -> ScoreRequest | AccordError:
    try:
        prompt_ids = served.reader.prompt(prompt, f"{field}.prompt", allow_empty=False)
        response_ids = served.reader.response(response, f"{field}.{name}", append_eos=True)
        request = ScoreRequest(tuple(prompt_ids), tuple(response_ids))
        ensemble.check_length(request.tokens, field)
        if request.tokens > served.engine.base.context_tokens:
            raise OutOfRangeError(
                f"prompt and response have {request.tokens} tokens; at most {served.engine.base.context_tokens} are allowed", field=field
            )
    except AccordError as error:
        return error
    return request


async def _scores(engine: RewardEngine, ensemble: Ensemble, requests: Sequence[ScoreRequest], deadline: float | None) -> list[tuple[float, ...]]:
    """The members' scores of each request."""
    if not requests:
        return []
    items = []
    try:
        for member in ensemble.members:
            items.append(engine.submit(requests, member.version, deadline))
        columns = []
        for index, column in enumerate(items):
            with naming(f"reward_model.members[{index}]"):
                columns.append(await asyncio.gather(*(item.result() for item in column)))
    finally:
        for column in items:
            for item in column:
                item.cancel()
    return list(zip(*columns, strict=True))


def _result(item_id: str, read: ScoreRequest | AccordError, ensemble: Ensemble, scores: Sequence[float]) -> pb.ScoreItemResult:
    if isinstance(read, AccordError):
        return pb.ScoreItemResult(item_id=item_id, status=item_status(read))
    return pb.ScoreItemResult(item_id=item_id, score=ensemble.combine(scores), member_scores=scores, tokens=read.tokens)


def _comparison(item_id: str, ensemble: Ensemble, both: Sequence[tuple[ScoreRequest | AccordError, Sequence[float]]]) -> pb.ComparePairResult:
    for read, _ in both:
        if isinstance(read, AccordError):
            return pb.ComparePairResult(item_id=item_id, status=item_status(read))
    score_a, score_b = (ensemble.combine(scores) for _, scores in both)
    raw_a, raw_b = (ensemble.combine([score * member.head.std for score, member in zip(scores, ensemble.members, strict=True)]) for _, scores in both)
    return pb.ComparePairResult(item_id=item_id, probability_a=_sigmoid(raw_a - raw_b), score_a=score_a, score_b=score_b)


def _sigmoid(value: float) -> float:
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-value))
    return 1.0 - 1.0 / (1.0 + math.exp(value))


def _usage(reads: Sequence[ScoreRequest | AccordError], started: float) -> common_pb2.Usage:
    good = [read for read in reads if isinstance(read, ScoreRequest)]
    return common_pb2.Usage(
        prompt_tokens=sum(len(read.prompt_ids) for read in good),
        response_tokens=sum(len(read.response_ids) for read in good),
        compute_seconds=time.monotonic() - started,
    )
