"""Whether a call may begin, and how the calls in progress end when the server stops.

What does not belong here: queues of one service (`accord.rpc.workqueue`); this counts calls, whatever they cost.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from accord.errors import DeadlineExceededError, ResourceExhaustedError, UnavailableError
from accord.rpc.calls import Method

_RETRY_AFTER_SECONDS = 1.0


class Admission:
    """Counts calls in progress and refuses new ones while the server starts, is full, or drains. Lives on one event loop.

    Args:
        max_concurrent_calls: calls in progress before ResourceExhaustedError; those of exempt services (health, reflection) do not count.
    """

    def __init__(self, max_concurrent_calls: int) -> None:
        self._max = max_concurrent_calls
        self._refusal: str | None = "the service is starting"
        self._ending = False
        self._in_progress = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._long_lived: set[Slot] = set()

    @property
    def in_progress(self) -> int:
        """Calls that a drain waits for: neither exempt nor long-lived."""
        return self._in_progress

    def open(self) -> None:
        """Lets calls begin."""
        self._refusal = None

    def refuse(self, reason: str) -> None:
        """Refuses calls from now on with UnavailableError(reason) and RetryInfo."""
        self._refusal = reason

    def end_long_lived(self) -> None:
        """Ends the long-lived streams, and those that begin later, with UnavailableError: their clients resume on another replica."""
        self._ending = True
        for slot in tuple(self._long_lived):
            slot.end()

    async def idle(self) -> None:
        """Returns once no call that a drain waits for is in progress."""
        await self._idle.wait()

    @contextlib.contextmanager
    def admit(self, method: Method) -> Iterator[Slot]:
        """The place of one call; leaving it frees the place.

        Raises:
            UnavailableError: the server starts or drains.
            ResourceExhaustedError: too many calls are in progress.
        """
        if not method.exempt:
            self._check()
        slot = Slot(self)
        if method.long_lived:
            self._long_lived.add(slot)
        counted = not (method.exempt or method.long_lived)
        self._count(counted)
        try:
            yield slot
        finally:
            self._long_lived.discard(slot)
            self._count(-counted)

    @property
    def ending(self) -> bool:
        """Whether `end_long_lived` was called."""
        return self._ending

    def _check(self) -> None:
        if self._refusal is not None:
            raise UnavailableError(self._refusal, retry_after_seconds=_RETRY_AFTER_SECONDS)
        calls = self._in_progress + len(self._long_lived)
        if calls >= self._max:
            raise ResourceExhaustedError(
                f"{calls} calls are in progress; this server takes {self._max} at once", retry_after_seconds=_RETRY_AFTER_SECONDS
            )

    def _count(self, change: int) -> None:
        self._in_progress += change
        if self._in_progress:
            self._idle.clear()
        else:
            self._idle.set()


class Slot:
    """The place of one admitted call."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._timeout: asyncio.Timeout | None = None

    def end(self) -> None:
        """Makes the call's work end at once with UnavailableError."""
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time())

    @contextlib.asynccontextmanager
    async def limit(self, seconds: float | None) -> AsyncIterator[None]:
        """Cancels the work inside after `seconds` (None for never).

        Raises:
            DeadlineExceededError: the time is over.
            UnavailableError: `end` was called.
        """
        try:
            async with asyncio.timeout(seconds) as self._timeout:
                yield
        except TimeoutError:
            if self._timeout is None or not self._timeout.expired():
                raise  # the work's own TimeoutError
            if self._admission.ending:
                raise UnavailableError("the service is stopping", retry_after_seconds=_RETRY_AFTER_SECONDS) from None
            raise DeadlineExceededError("the deadline of the call passed before the work was done") from None
