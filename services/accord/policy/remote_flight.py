"""One item on its way to another server: its requests, and what it is answered with.

What does not belong here: who is sent when (`accord.policy.remote`), how one sample ends (`remote_row`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Gauge, Histogram

from accord.errors import UnavailableError
from accord.models.encoding import PromptEncoder
from accord.policy.backend import GeneratedSample, GenerationRequest, LogprobsRequest, aborted_samples
from accord.policy.engine import AdapterCommand, AdapterFacts, Item, Payload, Result
from accord.policy.remote_row import RemoteRow
from accord.policy.remote_server import Ask, RemoteServer, sample_seed
from accord.policy.text_stream import TextStream

_IN_FLIGHT = Gauge("accord_policy_remote_requests", "Requests that another server answers now")
_SECONDS = Histogram(
    "accord_policy_remote_request_seconds", "Time of one request to another server", ["server"], buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
)


@dataclass(eq=False, slots=True)
class Flight:
    """An item whose requests are on their way, under an adapter by our name and the server's; `facts` are those of one that is being unloaded."""

    item: Item
    version: str
    adapter: str
    requests: int
    facts: AdapterFacts | None = None
    rows: list[RemoteRow] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    recalled: bool = False

    @property
    def unfinished(self) -> int:
        """Samples that have not ended; 0 for what generates none."""
        if not isinstance(self.item.payload, GenerationRequest):
            return 0
        return self.item.payload.n - sum(row.finish is not None for row in self.rows)

    def abort(self) -> None:
        """Answers a generation with what has come of it, and cancels its requests."""
        request = self.item.payload
        assert isinstance(request, GenerationRequest)
        for row in self.rows:
            if (chunk := row.abort()) is not None:
                self.item.emit(chunk)
        self.item.complete(tuple(row.sample() for row in self.rows) or aborted_samples(request))
        self.recall()

    def recall(self) -> None:
        """Cancels it, once: a second time would disturb its clearing up."""
        if self.task is not None and not self.recalled:
            self.recalled = True
            self.task.cancel()


class Forwarder:
    """Sends what items ask.

    Args:
        server: who computes.
        encoder: decodes what comes back.
        eos_token_ids: what ends a response.
        max_concurrency: requests in flight at once.
    """

    def __init__(self, server: RemoteServer, encoder: PromptEncoder, eos_token_ids: Sequence[int], max_concurrency: int) -> None:
        self._server = server
        self._encoder = encoder
        self._eos = frozenset(eos_token_ids)
        self._places = asyncio.Semaphore(max_concurrency)

    async def answer(self, flight: Flight) -> Result:
        """The result of a flight that generates or scores; cancelling it closes its requests."""
        payload, adapter = flight.item.payload, flight.adapter
        assert not isinstance(payload, AdapterCommand)
        if isinstance(payload, LogprobsRequest):
            return await _together([self._score(payload.prompt_ids, response, adapter) for response in payload.responses])
        return await self._generate(flight, payload, adapter)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        async with self._places:
            with _IN_FLIGHT.track_inprogress(), _SECONDS.labels(self._server.name).time():
                yield

    async def _generate(self, flight: Flight, request: GenerationRequest, adapter: str) -> tuple[GeneratedSample, ...]:
        stop = request.sampling.stop
        flight.rows = [RemoteRow(request, index, TextStream(self._encoder.decode, stop), self._eos) for index in range(request.n)]
        await _together([self._sample(flight.item, row, request, adapter) for row in flight.rows])
        return tuple(row.sample() for row in flight.rows)

    async def _sample(self, item: Item, row: RemoteRow, request: GenerationRequest, adapter: str) -> None:
        sampling = request.sampling
        ask = Ask(request.prompt_ids, sampling, sample_seed(sampling.seed, row.index), adapter, request.stream)
        async with self._place(), aclosing(self._server.generate(ask)) as pieces:
            async for piece in pieces:
                if (chunk := row.take(piece)) is not None:
                    item.emit(chunk)
                if row.finish is not None and piece.finish is None:
                    break  # the server would go on; where it has ended too, its stream is read to the end, so that the connection can be used again
        if row.finish is None:
            raise UnavailableError(f"the {self._server.name} server ended a response without a reason; see its log", retry_after_seconds=1.0)
        if self._server.rescored(sampling):
            row.logprobs = await self._score(request.prompt_ids, tuple(row.token_ids), adapter)

    async def _score(self, prompt_ids: tuple[int, ...], response: tuple[int, ...], adapter: str) -> list[float]:
        async with self._place():
            return await self._server.logprobs(prompt_ids, response, adapter)


def requests_of(payload: Payload, most: int) -> int:
    """How many requests a payload puts in flight; a scoring's many responses take turns."""
    if isinstance(payload, GenerationRequest):
        return payload.n
    return min(len(payload.responses), most) if isinstance(payload, LogprobsRequest) else 0


async def _together(work: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """The results in order; the first failure ends the others before it is raised."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
