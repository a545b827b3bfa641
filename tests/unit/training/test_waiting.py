"""Waiting for a service: says what it waits for, gives up on time, stops when it is told to; on a clock of the test's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from accord.errors import (
    AccordError,
    CancelledError,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from accord.rundir import RunDirectory
from accord.training import waiting
from accord.training.context import EventLog, RunStopped, StopSignal
from accord.training.waiting import Errand, ServiceAwayError, accompany, with_patience

SERVICE = "reward service at 127.0.0.1:7"


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.at: list[tuple[float, Callable[[], None]]] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds <= 0.2, "a stop must be seen soon"
        self.now += max(seconds, 0.001)
        for when, act in self.at:
            if self.now >= when:
                act()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(waiting, "time", made)
    return made


def surroundings(folder: Path, wait_seconds: float = 60.0) -> Any:
    return SimpleNamespace(run=SimpleNamespace(wait_seconds=wait_seconds), events=EventLog(RunDirectory(folder)), stop=StopSignal())


class Service:
    """Away until a moment, then back; each call while it is away costs `error`."""

    def __init__(self, clock: Clock, back_at: float, error: AccordError, *, call_seconds: float = 0.0) -> None:
        self._clock, self._back_at, self._error, self._seconds = clock, clock.now + back_at, error, call_seconds
        self.calls: list[float] = []

    def __call__(self) -> str:
        self.calls.append(self._clock.now)
        if self._clock.now < self._back_at:
            self._clock.now += self._seconds
            raise self._error
        return "answer"


def said(context: Any) -> list[tuple[str, str]]:
    return [(event.phase or event.text, event.waiting_on) for event in context.events._directory.events()]


def test_a_service_that_is_there_is_just_called(tmp_path: Path, clock: Clock) -> None:
    context = surroundings(tmp_path)
    assert with_patience(context, "rollouts", SERVICE, lambda: 7) == 7
    assert said(context) == []


@pytest.mark.parametrize("error", [UnavailableError("gone"), ResourceExhaustedError("full"), DeadlineExceededError("late"), CancelledError("cut")])
def test_it_waits_says_for_what_and_goes_on(tmp_path: Path, clock: Clock, error: AccordError) -> None:
    context, service = surroundings(tmp_path), Service(clock, 6.0, error)
    assert with_patience(context, "rollouts", SERVICE, service) == "answer"
    gaps = [round(later - earlier, 1) for earlier, later in zip(service.calls, service.calls[1:], strict=False)]
    assert gaps == [0.5, 1.0, 2.0, 4.0], "each pause twice the last"
    events = said(context)
    assert events[0] == ("rollouts", f"{SERVICE}: {error.code}: {error}")
    assert events[-2] == ("rollouts", ""), "the state says no longer that it waits"
    assert events[-1][0].startswith(f"{SERVICE} is back after 7")


@pytest.mark.parametrize("wait_seconds", [1.0, 5.0, 60.0])
def test_it_gives_up_on_time_and_says_why(tmp_path: Path, clock: Clock, wait_seconds: float) -> None:
    context, started = surroundings(tmp_path, wait_seconds), clock.now
    service = Service(clock, 1e9, UnavailableError("connection refused"))
    with pytest.raises(
        UnavailableError, match=rf"{SERVICE} gave no answer that can be used for \d+ s \(wait_seconds {wait_seconds:g}\).*connection refused"
    ):
        with_patience(context, "rollouts", SERVICE, service)
    assert wait_seconds <= clock.now - started < wait_seconds + 0.5
    assert max(later - earlier for earlier, later in zip(service.calls, service.calls[1:], strict=False)) <= 10.3


def test_a_server_that_asks_for_an_hour_does_not_get_it(tmp_path: Path, clock: Clock) -> None:
    context, started = surroundings(tmp_path, 20.0), clock.now
    with pytest.raises(UnavailableError):
        with_patience(context, "rollouts", SERVICE, Service(clock, 1e9, ResourceExhaustedError("full", retry_after_seconds=3600)))
    assert clock.now - started < 21


def test_a_server_that_asks_for_three_seconds_gets_them(tmp_path: Path, clock: Clock) -> None:
    service = Service(clock, 2.0, ResourceExhaustedError("full", retry_after_seconds=3))
    with_patience(surroundings(tmp_path), "rollouts", SERVICE, service)
    assert len(service.calls) == 2
    assert service.calls[1] - service.calls[0] == pytest.approx(3, abs=0.3)


def test_time_inside_calls_counts(tmp_path: Path, clock: Clock) -> None:
    service = Service(clock, 1e9, DeadlineExceededError("late"), call_seconds=50)
    with pytest.raises(UnavailableError):
        with_patience(surroundings(tmp_path, 60.0), "rollouts", SERVICE, service)
    assert len(service.calls) == 2


@pytest.mark.parametrize("error", [InvalidArgumentError("no"), NotFoundError("no")])
def test_what_a_retry_cannot_help_is_raised_at_once(tmp_path: Path, clock: Clock, error: AccordError) -> None:
    context, service = surroundings(tmp_path), Service(clock, 1e9, error)
    with pytest.raises(type(error)):
        with_patience(context, "rollouts", SERVICE, service)
    assert len(service.calls) == 1
    assert said(context) == []


def test_a_stop_while_it_waits_is_heeded(tmp_path: Path, clock: Clock) -> None:
    context, started = surroundings(tmp_path, 600.0), clock.now
    clock.at.append((clock.now + 5, context.stop.set))
    with pytest.raises(RunStopped):
        with_patience(context, "rollouts", SERVICE, Service(clock, 1e9, UnavailableError("gone")))
    assert clock.now - started < 6


def test_a_call_that_gets_further_is_given_the_whole_limit_again(tmp_path: Path, clock: Clock) -> None:
    """A service that comes and goes: each call keeps something, so that it ends, however long it takes in all."""
    kept: list[float] = []

    def call() -> str:
        clock.now += 20
        if len(kept) < 10:
            kept.append(clock.now)
            raise UnavailableError("gone")
        return "answer"

    started = clock.now
    context = surroundings(tmp_path, 30.0)
    assert with_patience(context, "rollouts", SERVICE, call, progressed_at=lambda: kept[-1] if kept else 0.0) == "answer"
    assert clock.now - started > 200


def test_a_long_call_that_is_cut_off_is_tried_again(tmp_path: Path, clock: Clock) -> None:
    """An hour of good work is not an hour of waiting."""
    service = Service(clock, 3600.0, UnavailableError("cut off"), call_seconds=3600.0)
    assert with_patience(surroundings(tmp_path, 60.0), "rollouts", SERVICE, service) == "answer"


class Silence:
    """A call that says something now and then and ends when it is abandoned, or after `ends_after` looks of whoever waits."""

    def __init__(self, clock: Clock, monkeypatch: pytest.MonkeyPatch, *, speaks_every: float = 1e9) -> None:
        self.over, self._clock, self._speaks_every = threading.Event(), clock, speaks_every
        self.errand = Errand(SERVICE, lambda _: self._wait())
        join = Errand.join

        def pass_time(errand: Errand, timeout: float | None = None) -> None:
            for when, act in clock.at:
                if clock.now >= when:
                    act()
            if (clock.now + 1) // self._speaks_every > clock.now // self._speaks_every:
                errand.heard()
            clock.now += 1
            join(errand, 5.0 if self.over.is_set() else 0.001)

        monkeypatch.setattr(Errand, "join", pass_time)

    def _wait(self) -> None:
        assert self.over.wait(60)

    def accompany(self, context: Any) -> None:
        accompany(context, "rollouts", [self.errand], self.over.set)


@pytest.fixture
def silence(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Silence]]:
    made: list[Silence] = []

    def make(**options: Any) -> Silence:
        made.append(Silence(clock, monkeypatch, **options))
        return made[-1]

    yield make
    for each in made:
        each.over.set()


def test_a_silence_is_said_and_a_long_one_ends_the_run(tmp_path: Path, clock: Clock, silence: Callable[..., Silence]) -> None:
    context, call, started = surroundings(tmp_path, 100.0), silence(), clock.now
    with pytest.raises(ServiceAwayError, match=rf"{SERVICE} gave no answer .*wait_seconds 100.*the call is open, and nothing comes"):
        call.accompany(context)
    assert 100 <= clock.now - started < 105
    assert call.errand.abandoned
    assert not call.errand.is_alive(), "the call was ended, not left behind"
    waits = [waiting_on for _, waiting_on in said(context)]
    assert waits[0] == f"{SERVICE}: nothing heard for 10 s"
    assert len(waits) == 4, "said at twice the time each time, not at every look"


def test_a_slow_service_that_speaks_is_not_given_up(tmp_path: Path, clock: Clock, silence: Callable[..., Silence]) -> None:
    context, call, started = surroundings(tmp_path, 30.0), silence(speaks_every=20), clock.now
    clock.at.append((clock.now + 200, call.over.set))
    call.accompany(context)
    assert clock.now - started > 200
    states = [waiting_on for _, waiting_on in said(context)]
    assert states[:2] == [f"{SERVICE}: nothing heard for 10 s", ""], "when it speaks again the state says no longer that it waits"


def test_a_stop_is_heard_while_a_call_is_open(tmp_path: Path, clock: Clock, silence: Callable[..., Silence]) -> None:
    context, call = surroundings(tmp_path, 600.0), silence()
    clock.at.append((clock.now + 3, context.stop.set))
    with pytest.raises(RunStopped):
        call.accompany(context)
    assert call.errand.abandoned


def test_the_error_of_an_errand_names_its_service(tmp_path: Path, clock: Clock) -> None:
    context = surroundings(tmp_path)
    failed = [False]

    def fail(errand: Errand) -> None:
        if not failed[0]:
            failed[0] = True
            raise UnavailableError("gone")

    def call() -> None:
        accompany(context, "rollouts", [Errand("policy service at x", lambda _: None), Errand(SERVICE, fail)], lambda: None)

    with_patience(context, "rollouts", "one of them", call)
    assert said(context)[0] == ("rollouts", f"{SERVICE}: UNAVAILABLE: gone")


def test_what_is_no_error_of_a_service_is_raised_as_it_is(tmp_path: Path, clock: Clock) -> None:
    def fail(_: Errand) -> None:
        raise KeyError("a defect")

    with pytest.raises(KeyError, match="a defect"):
        accompany(surroundings(tmp_path), "rollouts", [Errand(SERVICE, fail)], lambda: None)
