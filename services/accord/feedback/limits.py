"""What a label job may spend, and how fast: pairs wait for their turn, or learn that there is none.

What does not belong here: what happens to a job at its limit (`accord.feedback.jobs`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from accord.client.feedback import Label, LabelLimits
from accord.errors import FailedPreconditionError

_LONGEST_SLEEP_SECONDS = 0.5


class LimitReachedError(FailedPreconditionError):
    """The job may not spend more."""


@dataclass(frozen=True, slots=True)
class Spending:
    """Money and tokens."""

    cost: float = 0.0
    tokens: int = 0


def spent_on(label: Label) -> Spending:
    """What the judgements behind a label have cost, those left out that the ledger had."""
    paid = [judgement for judgement in label.judgements if not judgement.cached]
    return Spending(sum(item.cost for item in paid), sum(item.prompt_tokens + item.response_tokens for item in paid))


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
        per_second: the rate; 0 is no limit. Read anew each time.
        check: called while a pair waits; raises where it should not go on waiting.
        clock: monotonic seconds.
    """

    def __init__(self, per_second: Callable[[], float], check: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._check = check
        self._clock = clock
        self._free_at = clock()

    async def take(self, judgements: int) -> None:
        """Waits for the turn of that many judgements, first come, first served."""
        rate = self._per_second()
        if not rate or not judgements:
            return
        turn = max(self._clock(), self._free_at)
        self._free_at = turn + judgements / rate
        while (left := turn - self._clock()) > 0:
            self._check()
            await asyncio.sleep(min(left, _LONGEST_SLEEP_SECONDS))
