"""Waiting for a judge that is away: as long as it asks for, never longer than there is time, and no longer than there is a point."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest

from accord.errors import AccordError, ResourceExhaustedError, UnavailableError
from accord.feedback.patience import Patience


class Clock:
    """Sleeps without waiting."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(asyncio, "sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds


async def calls_at(clock: Clock, patience: Patience, errors: list[AccordError]) -> list[float]:
    """When a call is made that fails with these errors and then succeeds."""
    times: list[float] = []

    async def call() -> None:
        times.append(clock.now)
        if errors:
            raise errors.pop(0)

    await patience.of(call)
    return times


@pytest.mark.parametrize("seconds", [60.0, 600.0])
async def test_what_the_judge_asks_for_is_waited_for(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    clock = Clock(monkeypatch)
    patience = Patience(3600.0, lambda words: None, lambda: None)
    times = await calls_at(clock, patience, [ResourceExhaustedError("429", retry_after_seconds=seconds) for _ in range(3)])
    pauses = [later - sooner for sooner, later in pairwise(times)]
    assert all(seconds <= pause <= 1.11 * seconds for pause in pauses)


async def test_without_a_wish_pauses_double_up_to_a_quarter_of_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    times = await calls_at(clock, Patience(3600.0, lambda words: None, lambda: None), [UnavailableError("away") for _ in range(9)])
    pauses = [later - sooner for sooner, later in pairwise(times)]
    for place, pause in enumerate(pauses):
        longest = min(0.25 * 2**place, 15.0)
        assert longest / 2 <= pause <= longest + 1e-9


async def test_nobody_waits_beyond_the_time_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    said: list[str] = []
    errors: list[AccordError] = [ResourceExhaustedError("come back in an hour", retry_after_seconds=3600.0) for _ in range(9)]
    with pytest.raises(UnavailableError, match=r"waited 100 s; last reason: .*come back in an hour"):
        await calls_at(clock, Patience(100.0, said.append, lambda: None), errors)
    assert (clock.now, len(errors)) == (pytest.approx(100.0), 7)  # a try at the end of it, and no other in between
    assert all("come back in an hour" in words for words in said)


async def test_whoever_waits_long_hears_that_the_server_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception): ...

    clock = Clock(monkeypatch)

    def check() -> None:
        if clock.now > 5.0:
            raise Stop

    with pytest.raises(Stop):
        await calls_at(clock, Patience(3600.0, lambda words: None, check), [ResourceExhaustedError("429", retry_after_seconds=600.0)])
    assert clock.now < 6.0
