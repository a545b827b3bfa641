"""One piece of work on its way from an asyncio handler to the compute thread and back.

What does not belong here: the order in which items are taken (`accord.rpc.workqueue`), and anything that knows what a payload is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from accord.errors import AccordError

PayloadT = TypeVar("PayloadT")
ResultT = TypeVar("ResultT")

_END = object()


@dataclass(frozen=True)
class WorkRequest(Generic[PayloadT]):
    """What a handler asks of the compute thread.

    Args:
        payload: whatever the compute function understands.
        cost: size of the work in the queue's own unit (tokens, say), at least 1.
        key: only items of one key share a batch (an adapter version, say).
        deadline: `time.monotonic()` seconds after which nobody wants the result; None for never.
        priority: 0 goes first; only a `FairQueue` looks at it, and at `caller`.
        caller: who asks; callers of one priority take turns.
    """

    payload: PayloadT
    cost: int = 1
    key: Hashable = None
    deadline: float | None = None
    priority: int = 0
    caller: str = ""


class WorkItem(Generic[PayloadT, ResultT]):
    """One submitted request: the handler's end is bound to its event loop, the compute end may be used from any thread."""

    def __init__(self, request: WorkRequest[PayloadT], on_done: Callable[[WorkItem[PayloadT, ResultT]], None]) -> None:
        self.payload = request.payload
        self.cost = request.cost
        self.key = request.key
        self.deadline = request.deadline
        self.priority = request.priority
        self.caller = request.caller
        self.sequence = -1
        self.submitted = time.monotonic()
        self.cancelled = False
        self.done = False
        self._on_done = on_done
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[ResultT] = self._loop.create_future()
        self._future.add_done_callback(self._future_done)
        self._values: asyncio.Queue[object] = asyncio.Queue()

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for the result any more; a running batch looks at this between its steps and gives the slot up."""
        return self.cancelled or self.done or self.expired

    # The handler's end, on the event loop.

    async def result(self) -> ResultT:
        """What compute answered; cancelling the caller abandons the item.

        Raises:
            AccordError: what the compute function or the queue failed the item with.
        """
        return await self._future

    async def values(self) -> AsyncIterator[object]:
        """What compute emits, in order, until the item completes; then `result()` has the outcome. Leaving early abandons the item."""
        try:
            while (value := await self._values.get()) is not _END:
                yield value
            await self.result()
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Abandons the item; without effect once it is complete. Call it on the event loop."""
        if not self._future.done():
            self.cancelled = not self.done  # at once: the future's callback waits for the loop's next turn, and passes would be computed meanwhile
            self._future.cancel()

    # The compute end, from any thread.

    def emit(self, value: object) -> None:
        """Hands one value to `values()`; dropped once the item is complete or its caller has gone."""
        if not (self.cancelled or self.done):
            self._call_on_loop(self._values.put_nowait, value)

    def complete(self, result: ResultT) -> None:
        """Answers the item; only the first `complete` or `fail` counts."""
        if self._finish():
            self._call_on_loop(self._resolve, result, None)

    def fail(self, error: AccordError) -> None:
        """Fails the item with `error`; only the first `complete` or `fail` counts."""
        if self._finish():
            self._call_on_loop(self._resolve, None, error)

    def _finish(self) -> bool:
        if self.done:
            return False
        self.done = True
        self._on_done(self)
        return True

    def _resolve(self, result: ResultT, error: AccordError | None) -> None:
        self._values.put_nowait(_END)
        if self._future.done():
            return
        if error is None:
            self._future.set_result(result)
        else:
            self._future.set_exception(error)
            self._future.exception()  # marks it as seen: a sibling of a cancelled batch may have no reader left

    def _future_done(self, future: asyncio.Future[ResultT]) -> None:
        if future.cancelled() and not self.done:
            self.cancelled = True
            self._values.put_nowait(_END)
            self._on_done(self)

    def _call_on_loop(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed: the process is on its way out and nobody waits
            self.cancelled = True
