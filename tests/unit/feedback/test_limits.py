"""Budgets and pace of label jobs: what begins, what waits, and what is never overrun."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from accord.client.feedback import LabelLimits
from accord.feedback.limits import Budget, LimitReachedError, Pace, Spending


class Spender:
    """Pairs that take what they are told to, through a budget, many at once."""

    def __init__(self, limits: LabelLimits) -> None:
        self.total = Spending()
        self.together = self.most_together = self.ended = 0
        self.too_many = False
        self.budget = Budget(lambda: limits, lambda: self.total)

    async def pair(self, takes: Spending) -> None:
        async with self.budget.pair() as learn:
            self.together += 1
            self.most_together = max(self.most_together, self.together)
            self.too_many = self.too_many or self.together > max(1, self.ended)
            await asyncio.sleep(0)
            self.total = Spending(self.total.cost + takes.cost, self.total.tokens + takes.tokens)
            learn(takes)
            self.together -= 1
            self.ended += 1

    async def pairs(self, each: list[Spending]) -> int:
        """How many ended well."""
        results = await asyncio.gather(*(self.pair(takes) for takes in each), return_exceptions=True)
        assert all(result is None or isinstance(result, LimitReachedError) for result in results)
        return sum(result is None for result in results)


class TestBudget:
    @pytest.mark.parametrize(("limit", "expected"), [(1000, 10), (999, 9), (99, 1), (50, 1)])
    async def test_equal_pairs_fill_the_limit_and_never_overrun_it(self, limit: int, expected: int) -> None:
        spender = Spender(LabelLimits(max_tokens=limit))
        assert await spender.pairs([Spending(0.0, 100)] * 30) == expected
        assert spender.total.tokens == expected * 100

    async def test_the_overrun_is_at_most_the_surplus_over_the_dearest_so_far(self) -> None:
        for seed in range(50):
            draw = random.Random(seed)
            takes = [Spending(draw.uniform(0.01, 0.1), 0) for _ in range(200)]
            spender = Spender(LabelLimits(max_cost=2.0))
            await spender.pairs(takes)
            assert 2.0 - 0.1 <= spender.total.cost <= 2.0 + 0.1

    async def test_the_first_goes_alone_and_no_more_are_in_work_than_have_ended(self) -> None:
        spender = Spender(LabelLimits(max_tokens=10_000))
        assert await spender.pairs([Spending(0.0, 1)] * 60) == 60
        assert not spender.too_many
        assert 10 < spender.most_together <= 30

    async def test_without_a_limit_nothing_waits(self) -> None:
        spender = Spender(LabelLimits())
        assert await spender.pairs([Spending(9.0, 10**9)] * 5) == 5
        assert spender.most_together == 5

    async def test_the_message_names_the_limit_and_the_spending(self) -> None:
        spender = Spender(LabelLimits(max_cost=1.0))
        await spender.pair(Spending(0.7, 5))
        with pytest.raises(LimitReachedError, match=r"max_cost 1 leaves no room for another pair: 0\.7 spent, and a pair took up to 0\.7"):
            await spender.pair(Spending(0.7, 5))


class TestPace:
    async def test_turns_are_even_in_the_order_of_coming(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now, turns = 0.0, []

        async def sleep(seconds: float) -> None:
            nonlocal now
            now += seconds

        monkeypatch.setattr(asyncio, "sleep", sleep)
        pace = Pace(lambda: 4.0, lambda: None, clock=lambda: now)
        for _ in range(6):
            await pace.take(2)
            turns.append(now)
        assert turns == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.5])

    async def test_a_pause_is_not_made_up_for(self) -> None:
        now = 0.0
        pace = Pace(lambda: 1.0, lambda: None, clock=lambda: now)
        await pace.take(1)
        now = 100.0
        await pace.take(1)
        waiting = asyncio.create_task(pace.take(1))
        await asyncio.sleep(0)
        assert not waiting.done()
        now = 101.0
        await asyncio.wait_for(waiting, 5)

    async def test_another_rate_holds_at_once_for_those_who_wait_too(self) -> None:
        rate = 0.001
        pace = Pace(lambda: rate, lambda: None)
        await pace.take(2)
        waiting = [asyncio.create_task(pace.take(2)) for _ in range(20)]
        await asyncio.sleep(0.02)
        rate = 100.0
        began = time.monotonic()
        await asyncio.wait_for(asyncio.gather(*waiting), 10)  # under the first rate the last would wait for eleven hours
        assert time.monotonic() - began >= 18 * 2 / 100  # and the second one is kept

    async def test_whoever_waits_hears_that_the_server_stops(self) -> None:
        class Stop(Exception): ...

        def stop() -> None:
            raise Stop

        pace = Pace(lambda: 0.001, stop)
        await pace.take(1)
        with pytest.raises(Stop):
            await pace.take(1)

    async def test_no_rate_is_no_wait(self) -> None:
        pace = Pace(lambda: 0.0, lambda: None)
        async with asyncio.timeout(1):
            for _ in range(1000):
                await pace.take(50)
