"""Waiting for a service that is away: with backoff, saying what is waited for, and not for ever.

What does not belong here: the calls themselves (`accord.training.rollout`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from accord.errors import AccordError, DeadlineExceededError, UnavailableError
from accord.training.context import RunContext

T = TypeVar("T")
_FIRST_SECONDS = 0.5
_LONGEST_SECONDS = 10.0


def with_patience(context: RunContext, phase: str, service: str, call: Callable[[], T]) -> T:
    """What the call returns, tried again while its error says that a retry can help, for at most the run's `wait_seconds`.

    The run's state names the service and the reason meanwhile. The call must be safe to repeat.

    Raises:
        RunStopped: the run was asked to stop while it waited.
        UnavailableError: the service stayed away for too long.
        AccordError: an error that a retry cannot help.
    """
    started, pause, waited = time.monotonic(), _FIRST_SECONDS, False
    while True:
        try:
            result = call()
        except AccordError as error:
            if not (error.retryable or isinstance(error, DeadlineExceededError)):
                raise
            passed = time.monotonic() - started
            if passed >= context.run.wait_seconds:
                raise UnavailableError(
                    f"{service} did not answer for {passed:.0f} s (wait_seconds {context.run.wait_seconds:g}); last reason: {error}"
                ) from error
            context.events.state(phase, f"{service}: {error.code}: {error}"[:500])
            waited = True
            _sleep(context, min(max(pause, error.retry_after_seconds or 0.0), context.run.wait_seconds - passed))
            pause = min(pause * 2, _LONGEST_SECONDS)
            continue
        if waited:
            context.events.state(phase)
            context.events.message(f"{service} is back after {time.monotonic() - started:.1f} s")
        return result


def _sleep(context: RunContext, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        context.stop.check()
        time.sleep(min(0.2, max(0.0, until - time.monotonic())))
