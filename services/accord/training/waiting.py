"""Waiting for a service that is away, slow or silent: with backoff, saying what is waited for, and not for ever.

What does not belong here: the calls themselves (`accord.training.rollout`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from accord.errors import AccordError, CancelledError, DeadlineExceededError, UnavailableError
from accord.training.stopping import SERVICE

if TYPE_CHECKING:
    from accord.training.context import RunContext

T = TypeVar("T")
_FIRST_SECONDS = 0.5
_LONGEST_SECONDS = 10.0
_QUIET_SECONDS = 10.0
_ABANDON_SECONDS = 5.0
_CUT_OFF = (DeadlineExceededError, CancelledError)  # a server at the end of its drain, or a proxy, cancels; what this run ends is not looked at


class ServiceAwayError(UnavailableError):
    """A service stayed away for the run's `wait_seconds`; it is not asked again by this process."""


def with_patience(context: RunContext, phase: str, service: str, call: Callable[[], T], *, progressed_at: Callable[[], float] = lambda: 0.0) -> T:
    """What the call returns, tried again while its error says that a retry can help, for at most the run's `wait_seconds`.

    The run's state names the service and the reason meanwhile. The call must be safe to repeat. The limit counts from when the call last got
    further, and one failure never uses it up: a call that worked for an hour and was then cut off is tried again.

    Args:
        context: of the run.
        phase: of the run meanwhile; empty for the one that it is in.
        service: what is called; an error of an `Errand` names its own.
        call: the call.
        progressed_at: when the call last kept something, on the monotonic clock, for calls that go on where they failed.

    Raises:
        RunStopped: the run was asked to stop while it waited.
        ServiceAwayError: the service stayed away for too long.
        AccordError: an error that a retry cannot help.
    """
    started = since = time.monotonic()
    pause, failures = _FIRST_SECONDS, 0
    while True:
        try:
            result = call()
        except ServiceAwayError:
            raise
        except AccordError as error:
            if not (error.retryable or isinstance(error, _CUT_OFF)):
                raise
            named = error.metadata.get(SERVICE, service)
            if progressed_at() > since:
                since, pause, failures = progressed_at(), _FIRST_SECONDS, 0
            failures += 1
            passed = time.monotonic() - since
            if passed >= context.run.wait_seconds and failures > 1:
                raise _away(context, named, passed, error) from error
            _say(context, phase, f"{named}: {error.code}: {error}"[:500])
            _sleep(context, min(max(pause, error.retry_after_seconds or 0.0), max(0.0, context.run.wait_seconds - passed)))
            pause = min(pause * 2, _LONGEST_SECONDS)
            continue
        if failures:
            _say(context, phase)
            context.events.message(f"{named} is back after {time.monotonic() - started:.1f} s")
        return result


def store_in_words(context: RunContext) -> str:
    """The artefact store, for `with_patience`: behind a URL it can be away too, and what is published twice is there once."""
    return f"artefact store at {context.store.uri}"


class Errand(threading.Thread):
    """A call to a service in a thread of its own, so that the run hears a stop and sees a silence while it lasts.

    Args:
        service: what is called, in words.
        work: the call; it is given the errand and calls `heard` whenever the service says something.
        awaited: whether the service owes an answer now.
    """

    def __init__(self, service: str, work: Callable[[Errand], None], awaited: Callable[[], bool] = lambda: True) -> None:
        super().__init__(name=service, daemon=True)  # a call that nothing can end must not keep the process
        self.service = service
        self.error: Exception | None = None
        self.abandoned = False
        self._work = work
        self._awaited = awaited
        self._heard_at = time.monotonic()

    def heard(self) -> None:
        """The service said something."""
        self._heard_at = time.monotonic()

    def quiet_seconds(self) -> float:
        """How long an answer has been owed."""
        if not (self.is_alive() and self._awaited()):
            self.heard()
        return time.monotonic() - self._heard_at

    def run(self) -> None:
        """Does the work and keeps its error, which `accompany` raises."""
        try:
            self._work(self)
        except AccordError as error:
            error.metadata[SERVICE] = self.service
            self.error = error
        except Exception as error:  # noqa: BLE001 - raised by `accompany`
            self.error = error


def accompany(context: RunContext, phase: str, errands: Sequence[Errand], abandon: Callable[[], None]) -> None:
    """Starts errands and waits for all of them; the run's state says which service is silent.

    Args:
        context: of the run.
        phase: of the run meanwhile; empty for the one that it is in.
        errands: calls that go on at the same time.
        abandon: ends the calls, where this function raises before they have ended.

    Raises:
        RunStopped: the run was asked to stop.
        ServiceAwayError: nothing was heard of a service for `wait_seconds`.
        Exception: the error of the first errand that has one.
    """
    for errand in errands:
        errand.start()
    try:
        _watch(context, phase, errands)
    except Exception:
        for errand in errands:
            errand.abandoned = True
        abandon()
        for errand in errands:
            errand.join(_ABANDON_SECONDS)
        raise
    for errand in errands:
        if errand.error is not None:
            raise errand.error


def _watch(context: RunContext, phase: str, errands: Sequence[Errand]) -> None:
    said = 0.0
    while running := [errand for errand in errands if errand.is_alive()]:
        context.stop.check()
        quietest = max(running, key=Errand.quiet_seconds)
        quiet = quietest.quiet_seconds()
        if quiet >= context.run.wait_seconds:
            raise _away(context, quietest.service, quiet, DeadlineExceededError("the call is open, and nothing comes"))
        if quiet >= max(_QUIET_SECONDS, 2 * said):
            _say(context, phase, f"{quietest.service}: nothing heard for {quiet:.0f} s")
            said = quiet
        elif said and quiet < _QUIET_SECONDS:
            _say(context, phase)
            said = 0.0
        running[0].join(0.1)
    if said:
        _say(context, phase)


def _say(context: RunContext, phase: str, waiting_on: str = "") -> None:
    context.events.state(phase or context.events.phase, waiting_on)


def _away(context: RunContext, service: str, seconds: float, reason: AccordError) -> ServiceAwayError:
    return ServiceAwayError(
        f"{service} gave no answer that can be used for {seconds:.0f} s (wait_seconds {context.run.wait_seconds:g}); last reason: {reason}"
    )


def _sleep(context: RunContext, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        context.stop.check()
        time.sleep(min(0.2, max(0.0, until - time.monotonic())))
