"""A bounded queue between the asyncio handlers and the one compute thread of a service, whatever the order in which its items are taken.

Handlers `submit` on the event loop and await `WorkItem.result()` (or iterate `WorkItem.values()`). Work that nobody waits for any more
(cancelled, or past its deadline) is dropped here and never reaches compute. What does not belong here: the order (`accord.rpc.workqueue`,
`accord.rpc.fairqueue`), the thread (`accord.rpc.worker`), and anything that knows what a payload is.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Hashable, Sequence
from typing import Generic

from prometheus_client import Counter, Gauge, Histogram

from accord.errors import DeadlineExceededError, InvalidArgumentError, ResourceExhaustedError, UnavailableError
from accord.rpc.workitem import PayloadT, ResultT, WorkItem, WorkRequest

_DEPTH = Gauge("accord_queue_depth", "Items that wait for compute", ["queue"])
_COST = Gauge("accord_queue_cost", "Summed cost of the items that wait for compute", ["queue"])
_WAIT = Histogram("accord_queue_wait_seconds", "Time from submit to compute", ["queue"])
_EXPIRED = Counter("accord_queue_expired_before_compute_total", "Items whose deadline passed in the queue", ["queue"])
_CANCELLED = Counter("accord_queue_cancelled_before_compute_total", "Items whose caller left while they were in the queue", ["queue"])

_THROUGHPUT_WINDOW_SECONDS = 30.0
_RETRY_AFTER_CEILING_SECONDS = 60.0


class BoundedQueue(Generic[PayloadT, ResultT]):
    """Items that wait, bounded by their number and by summed cost; a subclass says in which order they leave.

    Args:
        max_items: most items that may wait.
        max_cost: most summed cost that may wait.
        name: label of the metrics and of messages.
        retry_after_seconds: least wait that a refused caller is told; the estimate from recent throughput may be longer.
    """

    def __init__(self, *, max_items: int, max_cost: int, name: str, retry_after_seconds: float = 1.0) -> None:
        if max_items < 1 or max_cost < 1:
            raise ValueError(f"max_items is {max_items} and max_cost {max_cost}; both must be at least 1")
        self.max_items = max_items
        self.max_cost = max_cost
        self.name = name
        self._retry_after_seconds = retry_after_seconds
        self._condition = threading.Condition()
        self._waiting: dict[int, WorkItem[PayloadT, ResultT]] = {}
        self._sequence = 0
        self._cost = 0
        self._closed: str | None = None
        self._throughput = _Throughput()
        self._wait_histogram = _WAIT.labels(name)
        self._gauge_depth, self._gauge_cost = _DEPTH.labels(name), _COST.labels(name)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed is not None

    def submit(self, payload: PayloadT, *, cost: int = 1, key: Hashable = None, deadline: float | None = None) -> WorkItem[PayloadT, ResultT]:
        """The accepted item; to be called on the loop that awaits the result. Arguments as in `WorkRequest`; raises as `submit_all`."""
        return self.submit_all([WorkRequest(payload, cost, key, deadline)])[0]

    def submit_all(self, requests: Sequence[WorkRequest[PayloadT]]) -> list[WorkItem[PayloadT, ResultT]]:
        """The accepted items in the order of `requests`: all of them or none.

        Raises:
            InvalidArgumentError: the requests could never fit, however empty the queue.
            ResourceExhaustedError: the queue is full; carries when to try again.
            UnavailableError: the queue is closed.
        """
        cost = sum(request.cost for request in requests)
        self._check_fits(len(requests), cost, min((request.cost for request in requests), default=1))
        with self._condition:
            if self._closed is not None:
                raise UnavailableError(self._closed, retry_after_seconds=self._retry_after_seconds)
            if not self._has_room(len(requests), cost):
                self._drop_expired()
            if not self._has_room(len(requests), cost):
                raise self._full(len(requests), cost)
            self._admit(requests)
            items = [self._add(WorkItem(request, self._item_done)) for request in requests]
            self._publish()
            self._condition.notify_all()
        return items

    def close(self, reason: str = "the service is stopping") -> None:
        """Wakes the compute thread, fails what still waits with UnavailableError, and refuses what comes later. A second call does nothing."""
        with self._condition:
            if self._closed is not None:
                return
            self._closed = f"{self.name}: {reason}"
            rest = list(self._waiting.values())
            self._condition.notify_all()
        for item in rest:
            item.fail(UnavailableError(f"{self.name}: {reason}", retry_after_seconds=self._retry_after_seconds))

    # What a subclass adds; all are called with the lock held.

    def _admit(self, requests: Sequence[WorkRequest[PayloadT]]) -> None:
        """Raises an AccordError where these requests may not wait although there is room."""

    def _entered(self, item: WorkItem[PayloadT, ResultT]) -> None:
        """An item has begun to wait."""

    def _left(self, item: WorkItem[PayloadT, ResultT]) -> None:
        """An item waits no longer, for whichever reason."""

    # Everything below runs with the lock held, except `_item_done`, which takes it.

    def _check_fits(self, count: int, cost: int, least: int) -> None:
        if least < 1:
            raise InvalidArgumentError(f"an item's cost is {least}; at least 1 is allowed")
        if count > self.max_items:
            raise InvalidArgumentError(f"{count} items at once; {self.name} holds at most {self.max_items}")
        if cost > self.max_cost:
            raise InvalidArgumentError(f"a cost of {cost} at once; {self.name} holds at most {self.max_cost}")

    def _has_room(self, count: int, cost: int) -> bool:
        return len(self._waiting) + count <= self.max_items and self._cost + cost <= self.max_cost

    def _full(self, count: int, cost: int) -> ResourceExhaustedError:
        depth = len(self._waiting)
        overflow = max(1, self._cost + cost - self.max_cost, (self._cost * (depth + count - self.max_items)) // max(1, depth))
        return ResourceExhaustedError(
            f"{self.name} is full: {depth} of {self.max_items} items, cost {self._cost} of {self.max_cost}",
            retry_after_seconds=self._retry_after(overflow),
        )

    def _retry_after(self, overflow: int) -> float:
        estimate = self._throughput.seconds_for(overflow)
        return min(max(self._retry_after_seconds, estimate), max(_RETRY_AFTER_CEILING_SECONDS, self._retry_after_seconds))

    def _add(self, item: WorkItem[PayloadT, ResultT]) -> WorkItem[PayloadT, ResultT]:
        item.sequence = self._sequence
        self._sequence += 1
        self._waiting[item.sequence] = item
        self._cost += item.cost
        self._entered(item)
        return item

    def _remove(self, item: WorkItem[PayloadT, ResultT]) -> bool:
        if self._waiting.pop(item.sequence, None) is None:
            return False
        self._cost -= item.cost
        self._left(item)
        return True

    def _publish(self) -> None:
        self._gauge_depth.set(len(self._waiting))
        self._gauge_cost.set(self._cost)

    def _item_done(self, item: WorkItem[PayloadT, ResultT]) -> None:
        """Called once by each item, from whichever thread completed, failed or cancelled it."""
        with self._condition:
            if not self._remove(item):
                if not item.cancelled:
                    self._throughput.record(item.cost)
                return
            self._publish()
        if item.cancelled:
            _CANCELLED.labels(self.name).inc()

    def _drop_expired(self) -> None:
        for item in [item for item in self._waiting.values() if item.expired]:
            _EXPIRED.labels(self.name).inc()
            waited = time.monotonic() - item.submitted
            item.fail(DeadlineExceededError(f"the deadline passed after {waited:.3g} s in the queue of {self.name}, before compute"))

    def _take(self, batch: list[WorkItem[PayloadT, ResultT]]) -> list[WorkItem[PayloadT, ResultT]]:
        now = time.monotonic()
        for item in batch:
            self._remove(item)
            self._wait_histogram.observe(now - item.submitted)
        self._publish()
        return batch


class _Throughput:
    """Cost completed a second over the last half minute; not thread-safe."""

    def __init__(self) -> None:
        self._completed: deque[tuple[float, int]] = deque()
        self._total = 0

    def record(self, cost: int) -> None:
        now = time.monotonic()
        self._completed.append((now, cost))
        self._total += cost
        self._forget(now)

    def seconds_for(self, cost: int) -> float:
        """How long `cost` takes at the recent speed; 0 where nothing was completed recently."""
        now = time.monotonic()
        self._forget(now)
        if not self._completed:
            return 0.0
        elapsed = max(now - self._completed[0][0], 0.1)
        return cost * elapsed / max(self._total, 1)

    def _forget(self, now: float) -> None:
        """An idle hour is no slow one: what was completed before it says nothing of the speed."""
        while self._completed and self._completed[0][0] < now - _THROUGHPUT_WINDOW_SECONDS:
            self._total -= self._completed.popleft()[1]
