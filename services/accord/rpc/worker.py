"""The compute thread: takes batches from a `WorkQueue`, computes them, and keeps going when one fails.

What does not belong here: what is computed. A service passes a function; this module owns the thread, the errors and the stall clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic

import structlog

from accord.errors import AccordError, DeadlineExceededError, InternalError
from accord.rpc.logs import describe_exception
from accord.rpc.workitem import PayloadT, ResultT
from accord.rpc.workqueue import WorkItem, WorkQueue

_log = structlog.get_logger(__name__)

Compute = Callable[[list[WorkItem[PayloadT, ResultT]]], Sequence[ResultT] | None]


class Worker(Generic[PayloadT, ResultT]):
    """A running compute thread; make one with `run_worker`."""

    def __init__(
        self,
        queue: WorkQueue[PayloadT, ResultT],
        compute: Compute[PayloadT, ResultT],
        *,
        max_cost: int,
        max_items: int,
        linger_seconds: float,
    ) -> None:
        self._queue = queue
        self._compute = compute
        self._max_cost, self._max_items, self._linger_seconds = max_cost, max_items, linger_seconds
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"{queue.name}-compute", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def stalled_seconds(self) -> float:
        """Seconds since the batch in compute began or last called `beat`; 0 while idle."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def beat(self) -> None:
        """Tells the watchdog that the batch in compute makes progress; call it between steps, in the compute thread."""
        if self._busy_since is not None:
            self._busy_since = time.monotonic()

    def fault(self, stall_limit_seconds: float) -> str | None:
        """Why the thread cannot be counted on, or None: fits `Component.fault`."""
        if not self.alive and not self._queue.closed:
            return f"the compute thread of {self._queue.name} has died"
        if self.stalled_seconds > stall_limit_seconds:
            return f"{self._queue.name} has computed one step for {self.stalled_seconds:.0f} s; {stall_limit_seconds:g} s are allowed"
        return None

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> bool:
        """Closes the queue and waits for the batch in compute; whether the thread ended in time."""
        self._queue.close()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._queue.closed:
            batch = self._queue.take_batch(max_cost=self._max_cost, max_items=self._max_items, linger_seconds=self._linger_seconds)
            if batch:
                self._busy_since = time.monotonic()
                try:
                    self._compute_batch(batch)
                finally:
                    self._busy_since = None

    def _compute_batch(self, batch: list[WorkItem[PayloadT, ResultT]]) -> None:
        try:
            results = self._compute(batch)
            if results is not None and len(results) != len(batch):
                raise InternalError(f"compute answered {len(results)} results for {len(batch)} items")
        except AccordError as error:
            fail_all(batch, error)
        except Exception as error:  # noqa: BLE001 - the thread must outlive any defect of one batch
            private = b"\0".join(repr(item.payload).encode(errors="replace") for item in batch)
            _log.error("compute_failed", queue=self._queue.name, items=len(batch), **describe_exception(error, private))
            fail_all(batch, InternalError(f"compute failed in {self._queue.name}, see server log"))
        else:
            for item, result in zip(batch, results or (), strict=False):
                item.complete(result)
            self._settle(batch)

    def _settle(self, batch: Sequence[WorkItem[PayloadT, ResultT]]) -> None:
        """Fails what compute left unanswered: it may drop an item whose deadline has passed, and must answer every other."""
        for item in batch:
            if item.expired:
                item.fail(DeadlineExceededError(f"the deadline passed during compute in {self._queue.name}"))
            else:
                item.fail(InternalError(f"compute in {self._queue.name} ended without an answer to this item"))


def run_worker(
    queue: WorkQueue[PayloadT, ResultT],
    compute: Compute[PayloadT, ResultT],
    *,
    max_cost: int,
    max_items: int,
    linger_seconds: float = 0.0,
) -> Worker[PayloadT, ResultT]:
    """A started thread that computes batches of `queue` until it is closed.

    Args:
        compute: takes a batch and returns one result an item in order, or None when it has completed or failed each item itself (it
            may leave abandoned ones). An AccordError fails the batch as it is, anything else as an InternalError (and is logged); either
            way the thread goes on.
        max_cost: as in `WorkQueue.take_batch`, like `max_items` and `linger_seconds`.
    """
    worker = Worker(queue, compute, max_cost=max_cost, max_items=max_items, linger_seconds=linger_seconds)
    worker.start()
    return worker


def fail_all(batch: Sequence[WorkItem[PayloadT, ResultT]], error: AccordError) -> None:
    """Fails each item that is not complete yet."""
    for item in batch:
        item.fail(error)
