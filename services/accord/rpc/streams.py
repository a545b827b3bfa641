"""Answering a bidirectional stream out of order: reading ahead as far as is allowed, yielding answers as they come.

What does not belong here: what an answer is (the servicers).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


async def answer_stream(
    requests: AsyncIterator[RequestT], start: Callable[[RequestT], Awaitable[Coroutine[Any, Any, ResponseT]]], *, limit: int
) -> AsyncIterator[ResponseT]:
    """Yields the answer of each request as it is ready; at most `limit` are under way, the stream is not read beyond that.

    Args:
        requests: of the caller.
        start: checks a request, one at a time and in their order, and returns the coroutine that answers it; what either raises ends the
            stream.
        limit: most answers under way.
    """
    pending: set[asyncio.Task[ResponseT]] = set()
    reader: asyncio.Task[RequestT | None] | None = asyncio.create_task(_next(requests))
    try:
        while reader is not None or pending:
            reading: set[asyncio.Task[Any]] = {reader} if reader is not None and len(pending) < limit else set()
            done, _ = await asyncio.wait(reading | pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done & pending:
                pending.discard(task)
                yield task.result()
            if reader is not None and reader in done:
                request = reader.result()
                if request is None:
                    reader = None
                else:
                    pending.add(asyncio.create_task(await start(request)))
                    reader = asyncio.create_task(_next(requests))
    finally:
        for task in [*pending, *([reader] if reader is not None else [])]:
            task.cancel()


async def _next(requests: AsyncIterator[RequestT]) -> RequestT | None:
    """The next request, None at the end of the stream (StopAsyncIteration cannot leave a task)."""
    try:
        return await anext(requests)
    except StopAsyncIteration:
        return None
