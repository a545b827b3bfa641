"""The queue whose batches hold one key: for services that compute batch after batch.

What does not belong here: bounds and deadlines (`accord.rpc.boundedqueue`), the thread itself (`accord.rpc.worker`).
"""

from __future__ import annotations

import time
from collections.abc import Hashable

from accord.rpc.boundedqueue import BoundedQueue
from accord.rpc.workitem import PayloadT, ResultT, WorkItem, WorkRequest

__all__ = ["WorkItem", "WorkQueue", "WorkRequest"]


class WorkQueue(BoundedQueue[PayloadT, ResultT]):
    """First in, first out, in batches of one key. Arguments as `BoundedQueue`."""

    def __init__(self, *, max_items: int, max_cost: int, name: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(max_items=max_items, max_cost=max_cost, name=name, retry_after_seconds=retry_after_seconds)
        self._by_key: dict[Hashable, dict[int, WorkItem[PayloadT, ResultT]]] = {}

    def take_batch(
        self, *, max_cost: int, max_items: int, linger_seconds: float = 0.0, timeout_seconds: float | None = None
    ) -> list[WorkItem[PayloadT, ResultT]]:
        """The next batch: items of the key that has waited longest, in order, none abandoned. Blocks: for the compute thread.

        Args:
            max_cost: most summed cost; the first item is taken even if it alone exceeds this.
            max_items: most items.
            linger_seconds: how long after the oldest item's submission to wait for a fuller batch.
            timeout_seconds: how long to wait for a first item; 0 never waits, None waits until one comes.

        Returns:
            An empty list when the queue is closed, or nothing came in time.
        """
        give_up = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        with self._condition:
            while self._closed is None:
                self._drop_expired()
                batch, full = self._head(max_cost, max_items)
                until = batch[0].submitted + linger_seconds if batch else give_up
                wait = None if until is None else until - time.monotonic()
                if full or (wait is not None and wait <= 0):
                    return self._take(batch)
                self._condition.wait(wait)
        return []

    # With the lock held.

    def _entered(self, item: WorkItem[PayloadT, ResultT]) -> None:
        self._by_key.setdefault(item.key, {})[item.sequence] = item

    def _left(self, item: WorkItem[PayloadT, ResultT]) -> None:
        same_key = self._by_key[item.key]
        del same_key[item.sequence]
        if not same_key:
            del self._by_key[item.key]

    def _head(self, max_cost: int, max_items: int) -> tuple[list[WorkItem[PayloadT, ResultT]], bool]:
        """The items that a batch taken now would hold, and whether it can grow no further."""
        if not self._by_key:
            return [], False
        oldest = min(self._by_key.values(), key=lambda same_key: next(iter(same_key)))
        batch: list[WorkItem[PayloadT, ResultT]] = []
        cost = 0
        for item in oldest.values():
            if batch and (cost + item.cost > max_cost or len(batch) >= max_items):
                return batch, True
            batch.append(item)
            cost += item.cost
        return batch, cost >= max_cost or len(batch) >= max_items
