"""What a label job may spend, and how fast: pairs wait for their turn, or learn that there is none.

What does not belong here: what happens to a job at its limit (`accord.feedback.jobs`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from accord.client.feedback import LabelLimits
from accord.errors import FailedPreconditionError

_LONGEST_SLEEP_SECONDS = 0.5


class LimitReachedError(FailedPreconditionError):
    """The job may not spend more."""


@dataclass(frozen=True, slots=True)
class Spending:
    """Money and tokens."""

    cost: float = 0.0
    tokens: int = 0


class Budget:
    """Lets a pair begin only where it stays under both limits even if every pair in work takes as much as the dearest so far.

    What a pair takes is known of those that have ended, so no more are in work than have ended: the first goes alone, and it takes a few turns until
    all that may work at once do. A limit is overrun by no more than the surplus of pairs in work that are dearer than any before them. Lives on one
    event loop.

    Args:
        limits: what may be spent, by the pair; read anew each time.
        spent: what the job has spent so far.
    """

    def __init__(self, limits: Callable[[], LabelLimits], spent: Callable[[], Spending]) -> None:
        self._limits = limits
        self._spent = spent
        self._dearest: Spending | None = None
        self._in_work = self._done = 0
        self._ended = asyncio.Event()

    @contextlib.asynccontextmanager
    async def pair(self) -> AsyncIterator[Callable[[Spending], None]]:
        """Room for one pair; the block is given a function that takes what the pair has cost.

        Raises:
            LimitReachedError: there is no room, and none will be freed.
        """
        while (problem := self._problem()) is not None:
            if not self._in_work:
                raise LimitReachedError(problem)
            self._ended.clear()
            await self._ended.wait()
        self._in_work += 1
        try:
            yield self._learn
        finally:
            self._in_work -= 1
            self._ended.set()

    def _learn(self, pair: Spending) -> None:
        self._done += 1
        known = self._dearest or Spending()
        self._dearest = Spending(max(known.cost, pair.cost), max(known.tokens, pair.tokens))

    def _problem(self) -> str | None:
        """Why one more pair cannot begin now."""
        limits, spent, dearest = self._limits(), self._spent(), self._dearest or Spending()
        for name, limit, so_far, most in (
            ("max_cost", limits.max_cost, spent.cost, dearest.cost),
            ("max_tokens", limits.max_tokens, spent.tokens, dearest.tokens),
        ):
            if not limit:
                continue
            if so_far >= limit:
                return f"{name} {limit:.10g} is reached: {so_far:.10g} spent"
            if so_far + (self._in_work + 1) * most > limit:
                return f"{name} {limit:.10g} leaves no room for another pair: {so_far:.10g} spent, and a pair took up to {most:.10g}"
            if self._in_work and self._in_work >= self._done:
                return f"{name} {limit:.10g}: too few pairs have ended to know what more would take"
        return None


class Pace:
    """A token bucket that holds one pair: judgements are asked for at no more than `per_second`, evenly. Lives on one event loop.

    Args:
        per_second: the rate; 0 is no limit. Read anew while a pair waits, so that another rate holds at once.
        check: called while a pair waits; raises where it should not go on waiting.
        clock: monotonic seconds.
    """

    def __init__(self, per_second: Callable[[], float], check: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._check = check
        self._clock = clock
        self._turn = asyncio.Lock()  # wakes those who wait in the order in which they came
        self._last = clock()
        self._taken = 0

    async def take(self, judgements: int) -> None:
        """Waits for the turn of that many judgements, first come, first served."""
        if not judgements or not self._per_second():
            return
        async with self._turn:
            came = self._clock()
            while (left := self._left()) > 0:
                self._check()
                await asyncio.sleep(min(left, _LONGEST_SLEEP_SECONDS))
            self._last, self._taken = max(came, self._clock() + left), judgements  # its turn, however late it woke

    def _left(self) -> float:
        """Seconds until the judgements of the last turn have had their time; negative afterwards."""
        rate = self._per_second()
        return self._last + self._taken / rate - self._clock() if rate else 0.0
