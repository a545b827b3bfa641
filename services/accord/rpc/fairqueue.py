"""The queue of a service that admits work between its steps: classes of priority, turns between callers, and a limit on the wait.

What does not belong here: bounds and deadlines (`accord.rpc.boundedqueue`), what fits beside what is already in compute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Literal

from prometheus_client import Counter

from accord.errors import ResourceExhaustedError
from accord.rpc.boundedqueue import BoundedQueue
from accord.rpc.workitem import PayloadT, ResultT, WorkItem, WorkRequest

Verdict = Literal["take", "skip", "stop"]
Refusal = Callable[[Sequence[WorkRequest[PayloadT]], Collection[WorkItem[PayloadT, ResultT]]], str | None]
_OVERDUE = Counter("accord_queue_overdue_total", "Items that waited longer than the queue allows", ["queue"])


class FairQueue(BoundedQueue[PayloadT, ResultT]):
    """Lower priority numbers first; within a class the caller that has been given least; within a caller first in, first out.

    An item rises one class for each `aging_seconds` that it waits, so that no class starves.

    Args:
        max_items, max_cost, name, retry_after_seconds: as `BoundedQueue`.
        max_caller_cost: most summed cost that one caller may have waiting.
        max_wait_seconds: an item that waits longer fails with ResourceExhaustedError.
        aging_seconds: see above.
        refuses: says why requests may not wait beside those that wait already, or None; called with the lock held, as `admit`'s `decide` is.
    """

    def __init__(
        self,
        *,
        max_items: int,
        max_cost: int,
        name: str,
        max_caller_cost: int,
        max_wait_seconds: float,
        aging_seconds: float,
        retry_after_seconds: float = 1.0,
        refuses: Refusal[PayloadT, ResultT] | None = None,
    ) -> None:
        super().__init__(max_items=max_items, max_cost=max_cost, name=name, retry_after_seconds=retry_after_seconds)
        self._max_caller_cost = max_caller_cost
        self._max_wait_seconds = max_wait_seconds
        self._aging_seconds = aging_seconds
        self._refuses = refuses
        self._changed = False  # since the last `admit`
        self._lines: dict[tuple[int, str], dict[int, WorkItem[PayloadT, ResultT]]] = {}
        self._caller_cost: dict[str, int] = {}
        self._given: dict[str, int] = {}

    def admit(self, decide: Callable[[WorkItem[PayloadT, ResultT]], Verdict]) -> list[WorkItem[PayloadT, ResultT]]:
        """Offers the waiting items in order: "take" removes one, "skip" leaves it, "stop" ends. For the compute thread; never blocks.

        Work that has expired or waited too long is failed first, and never offered.
        """
        with self._condition:
            self._changed = False
            self._drop_expired()
            self._drop_overdue()
            taken: list[WorkItem[PayloadT, ResultT]] = []
            lines = [iter(list(line.values())) for line in self._lines.values()]
            heads = [(item, line) for line in lines if (item := next(line, None)) is not None]
            while heads:
                item, line = best = min(heads, key=lambda head: self._rank(head[0]))
                verdict = decide(item)
                if verdict == "stop":
                    break
                if verdict == "take":
                    self._given[item.caller] += item.cost
                    taken += self._take([item])
                heads.remove(best)
                if (following := next(line, None)) is not None:
                    heads.append((following, line))
            return taken

    def wait(self, timeout_seconds: float) -> None:
        """Returns when something has come since the last `admit`, or `wake` was called, or the queue is closed, or the time is over.

        What was skipped waits for something else: for who calls `wake`.
        """
        with self._condition:
            if not self._changed and self._closed is None:
                self._condition.wait(timeout_seconds)

    def wake(self) -> None:
        """Makes `wait` return."""
        with self._condition:
            self._changed = True
            self._condition.notify_all()

    # With the lock held.

    def _admit(self, requests: Sequence[WorkRequest[PayloadT]]) -> None:
        if self._refuses is not None and (reason := self._refuses(requests, self._waiting.values())) is not None:
            raise ResourceExhaustedError(f"{self.name}: {reason}", retry_after_seconds=self._retry_after(sum(each.cost for each in requests)))
        cost: dict[str, int] = {}
        for request in requests:
            cost[request.caller] = cost.get(request.caller, 0) + request.cost
        for caller, more in cost.items():
            waiting = self._caller_cost.get(caller, 0)
            if waiting and waiting + more > self._max_caller_cost:
                raise ResourceExhaustedError(
                    f"{self.name}: caller {caller or '(unnamed)'} has a cost of {waiting} waiting and asks for {more}; "
                    f"at most {self._max_caller_cost} is allowed to one caller",
                    retry_after_seconds=self._retry_after(waiting + more - self._max_caller_cost),
                )

    def _entered(self, item: WorkItem[PayloadT, ResultT]) -> None:
        self._changed = True
        if item.caller not in self._caller_cost:
            # Who was away does not come back with credit: it starts level with the least served of those who wait.
            level = min((self._given[caller] for caller in self._caller_cost), default=0)
            self._given[item.caller] = max(self._given.get(item.caller, 0), level)
        self._caller_cost[item.caller] = self._caller_cost.get(item.caller, 0) + item.cost
        self._lines.setdefault((item.priority, item.caller), {})[item.sequence] = item

    def _left(self, item: WorkItem[PayloadT, ResultT]) -> None:
        line = self._lines[item.priority, item.caller]
        del line[item.sequence]
        if not line:
            del self._lines[item.priority, item.caller]
        self._caller_cost[item.caller] -= item.cost
        if not self._caller_cost[item.caller]:
            del self._caller_cost[item.caller]
            if not self._caller_cost:
                self._given.clear()

    def _rank(self, item: WorkItem[PayloadT, ResultT]) -> tuple[int, int, int]:
        raised = max(0, item.priority - int((time.monotonic() - item.submitted) / self._aging_seconds))
        return raised, self._given.get(item.caller, 0), item.sequence

    def _drop_overdue(self) -> None:
        oldest = time.monotonic() - self._max_wait_seconds
        for item in [item for item in self._waiting.values() if item.submitted < oldest]:
            _OVERDUE.labels(self.name).inc()
            item.fail(
                ResourceExhaustedError(
                    f"waited longer than {self._max_wait_seconds:g} s in the queue of {self.name}, before compute",
                    retry_after_seconds=self._retry_after(item.cost),
                )
            )
