"""Waiting for a service that is away: calls are tried again with backoff and jitter while that can help, for a limited time.

What does not belong here: what is called.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from accord.errors import AccordError, DeadlineExceededError, UnavailableError

T = TypeVar("T")
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 15.0
_LONGEST_SLEEP_SECONDS = 0.5


class Patience:
    """Makes calls succeed where time heals.

    Args:
        wait_seconds: how long one call may go on failing.
        say: takes what is waited for, and an empty text once it came.
        check: called before each wait; raises where there is no point in waiting.
    """

    def __init__(self, wait_seconds: float, say: Callable[[str], None], check: Callable[[], None]) -> None:
        self._wait_seconds = wait_seconds
        self._say = say
        self._check = check

    async def of(self, call: Callable[[], Awaitable[T]]) -> T:
        """The call's result, tried again while that can help, never before the time that the service asks for (`retry_after_seconds`).

        A pause is drawn from its upper half, so that many callers do not come back at once.

        Raises:
            UnavailableError: what is needed stayed away for `wait_seconds`.
            AccordError: an error that a retry cannot help.
        """
        first_failure: float | None = None
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                result = await call()
            except AccordError as error:
                if not (error.retryable or isinstance(error, DeadlineExceededError)):
                    raise
                now = time.monotonic()
                first_failure = now if first_failure is None else first_failure
                if now - first_failure >= self._wait_seconds:
                    raise UnavailableError(f"waited {now - first_failure:.0f} s; last reason: {error}") from error
                self._check()
                self._say(f"waiting: {error}")
                asked = (error.retry_after_seconds or 0.0) * random.uniform(1.0, 1.1)
                await self._wait(min(max(pause * random.uniform(0.5, 1.0), asked), first_failure + self._wait_seconds - now))
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            else:
                self._say("")
                return result

    async def _wait(self, seconds: float) -> None:
        """Sleeps in short pieces, so that whoever waits for minutes hears at once that there is no point in it any more."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _LONGEST_SLEEP_SECONDS))
            self._check()
