"""Typed clients of RewardService, sync and async."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from accord.api.reward.v1 import reward_pb2 as pb
from accord.api.reward.v1 import reward_pb2_grpc as rpc
from accord.client.connection import Target, connect, connect_async
from accord.client.messages import (
    ModelDigests,
    PromptForm,
    ResponseForm,
    Usage,
    digests_from_proto,
    digests_to_proto,
    error_or_none,
    prompt_to_proto,
    response_to_proto,
    usage_from_proto,
)
from accord.errors import AccordError
from accord.rpc.stubs import guard_stub


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """One response to score."""

    prompt: PromptForm
    response: ResponseForm
    item_id: str = ""


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """A score, or an error; `member_scores` are those of the ensemble's members."""

    item_id: str
    error: AccordError | None
    score: float
    member_scores: tuple[float, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of a batch, in the order of its items."""

    results: tuple[ScoreResult, ...]
    reward_model_versions: tuple[str, ...]
    digests: ModelDigests
    usage: Usage


@dataclass(frozen=True, slots=True)
class ComparePair:
    """Two responses to one prompt."""

    prompt: PromptForm
    response_a: ResponseForm
    response_b: ResponseForm
    item_id: str = ""


@dataclass(frozen=True, slots=True)
class CompareResult:
    """Probability that A is better with both scores, or an error."""

    item_id: str
    error: AccordError | None
    probability_a: float
    score_a: float
    score_b: float


@dataclass(frozen=True, slots=True)
class Comparisons:
    """The comparisons of a batch, in the order of its pairs."""

    results: tuple[CompareResult, ...]
    reward_model_versions: tuple[str, ...]
    digests: ModelDigests
    usage: Usage


@dataclass(frozen=True, slots=True)
class RewardModelInfo:
    """A reward model described; `held_out_accuracy` is None where it was not measured."""

    reward_model: str
    digest: str
    digests: ModelDigests
    score_mean: float
    score_std: float
    max_tokens: int
    training_data_digest: str
    held_out_accuracy: float | None
    server_version: str


@dataclass(frozen=True, slots=True)
class RewardModel:
    """One reward model, or an ensemble whose score is the members' mean minus `std_coefficient` standard deviations."""

    members: tuple[str, ...]
    std_coefficient: float = 0.0


def _selector(model: RewardModel | str) -> pb.RewardModelSelector:
    chosen = RewardModel((model,)) if isinstance(model, str) else model
    return pb.RewardModelSelector(members=chosen.members, std_coefficient=chosen.std_coefficient)


def _score_item(item: ScoreItem) -> pb.ScoreItem:
    return pb.ScoreItem(item_id=item.item_id, prompt=prompt_to_proto(item.prompt), response=response_to_proto(item.response))


def _score_request(items: Sequence[ScoreItem], model: RewardModel | str, digests: ModelDigests | None) -> pb.ScoreRequest:
    return pb.ScoreRequest(items=[_score_item(item) for item in items], reward_model=_selector(model), expected_digests=digests_to_proto(digests))


def _score_result(wire: pb.ScoreItemResult) -> ScoreResult:
    return ScoreResult(wire.item_id, error_or_none(wire.status), wire.score, tuple(wire.member_scores), wire.tokens)


def _scores(wire: pb.ScoreResponse) -> Scores:
    return Scores(
        tuple(_score_result(item) for item in wire.items),
        tuple(wire.reward_model_versions),
        digests_from_proto(wire.digests),
        usage_from_proto(wire.usage),
    )


def _compare_request(pairs: Sequence[ComparePair], model: RewardModel | str) -> pb.CompareRequest:
    wire = [
        pb.ComparePair(
            item_id=pair.item_id,
            prompt=prompt_to_proto(pair.prompt),
            response_a=response_to_proto(pair.response_a),
            response_b=response_to_proto(pair.response_b),
        )
        for pair in pairs
    ]
    return pb.CompareRequest(pairs=wire, reward_model=_selector(model))


def _comparisons(wire: pb.CompareResponse) -> Comparisons:
    results = tuple(CompareResult(pair.item_id, error_or_none(pair.status), pair.probability_a, pair.score_a, pair.score_b) for pair in wire.pairs)
    return Comparisons(results, tuple(wire.reward_model_versions), digests_from_proto(wire.digests), usage_from_proto(wire.usage))


def _info(wire: pb.GetRewardModelInfoResponse) -> RewardModelInfo:
    return RewardModelInfo(
        wire.reward_model,
        wire.digest,
        digests_from_proto(wire.digests),
        wire.score_mean,
        wire.score_std,
        wire.max_tokens,
        wire.training_data_digest,
        wire.held_out_accuracy if wire.HasField("held_out_accuracy") else None,
        wire.server_version,
    )


def _first_request(item: ScoreItem, model: RewardModel | str, digests: ModelDigests | None) -> pb.ScoreStreamRequest:
    return pb.ScoreStreamRequest(item=_score_item(item), reward_model=_selector(model), expected_digests=digests_to_proto(digests))


class RewardClient:
    """A blocking client of one reward service; use it as a context manager."""

    def __init__(self, target: Target) -> None:
        self._channel, default_timeout = connect(target)
        self._stub = guard_stub(rpc.RewardServiceStub(self._channel), default_timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def score(
        self,
        items: Sequence[ScoreItem],
        reward_model: RewardModel | str,
        *,
        expected_digests: ModelDigests | None = None,
        timeout_seconds: float | None = None,
    ) -> Scores:
        """Returns the score of each item; see RewardService.Score for the errors."""
        request = _score_request(items, reward_model, expected_digests)
        return _scores(self._stub.Score(request, timeout=timeout_seconds))

    def score_stream(
        self, items: Iterable[ScoreItem], reward_model: RewardModel | str, *, timeout_seconds: float | None = None
    ) -> Iterator[ScoreResult]:
        """Yields scores as they come, out of order, while `items` is still being read (from a thread of grpc's)."""
        requests = (_first_request(item, reward_model, None) for item in items)
        for wire in self._stub.ScoreStream(requests, timeout=timeout_seconds):
            yield _score_result(wire.result)

    def compare(self, pairs: Sequence[ComparePair], reward_model: RewardModel | str, *, timeout_seconds: float | None = None) -> Comparisons:
        """Returns the probability that A is better, for each pair."""
        request = _compare_request(pairs, reward_model)
        return _comparisons(self._stub.Compare(request, timeout=timeout_seconds))

    def reward_model_info(self, reward_model: str = "", *, timeout_seconds: float | None = None) -> RewardModelInfo:
        """Describes one reward model, or with an empty name only the server."""
        request = pb.GetRewardModelInfoRequest(reward_model=reward_model)
        return _info(self._stub.GetRewardModelInfo(request, timeout=timeout_seconds))


class AsyncRewardClient:
    """As RewardClient, for asyncio."""

    def __init__(self, target: Target) -> None:
        self._channel, default_timeout = connect_async(target)
        self._stub = guard_stub(rpc.RewardServiceStub(self._channel), default_timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    async def score(
        self,
        items: Sequence[ScoreItem],
        reward_model: RewardModel | str,
        *,
        expected_digests: ModelDigests | None = None,
        timeout_seconds: float | None = None,
    ) -> Scores:
        """Returns the score of each item."""
        request = _score_request(items, reward_model, expected_digests)
        return _scores(await self._stub.Score(request, timeout=timeout_seconds))

    async def score_stream(
        self, items: AsyncIterable[ScoreItem], reward_model: RewardModel | str, *, timeout_seconds: float | None = None
    ) -> AsyncIterator[ScoreResult]:
        """Yields scores as they come, out of order."""

        async def requests() -> AsyncIterator[pb.ScoreStreamRequest]:
            async for item in items:
                yield _first_request(item, reward_model, None)

        async for wire in self._stub.ScoreStream(requests(), timeout=timeout_seconds):
            yield _score_result(wire.result)

    async def compare(self, pairs: Sequence[ComparePair], reward_model: RewardModel | str, *, timeout_seconds: float | None = None) -> Comparisons:
        """Returns the probability that A is better, for each pair."""
        request = _compare_request(pairs, reward_model)
        return _comparisons(await self._stub.Compare(request, timeout=timeout_seconds))

    async def reward_model_info(self, reward_model: str = "", *, timeout_seconds: float | None = None) -> RewardModelInfo:
        """Describes one reward model, or with an empty name only the server."""
        request = pb.GetRewardModelInfoRequest(reward_model=reward_model)
        return _info(await self._stub.GetRewardModelInfo(request, timeout=timeout_seconds))
