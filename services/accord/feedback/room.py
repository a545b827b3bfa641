"""How many pairs may be under way at once: calls are refused over that, streams and jobs wait.

What does not belong here: the order in which judgements are asked for (`accord.feedback.desk`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from accord.errors import InvalidArgumentError, ResourceExhaustedError

_RETRY_AFTER_SECONDS = 2.0


class Room:
    """Counts pairs under way. Lives on one event loop.

    Args:
        max_pairs: most of them.
    """

    def __init__(self, max_pairs: int) -> None:
        self._max = max_pairs
        self._used = 0
        self._freed = asyncio.Event()

    @contextlib.contextmanager
    def take(self, pairs: int) -> Iterator[None]:
        """Room for some pairs at once.

        Raises:
            InvalidArgumentError: there are more of them than there ever is room for.
            ResourceExhaustedError: there is no room now.
        """
        if pairs > self._max:
            raise InvalidArgumentError(f"{pairs} pairs were given; this server takes at most {self._max} at once", field="pairs")
        if self._used + pairs > self._max:
            raise ResourceExhaustedError(
                f"{self._used} pairs wait or are being judged; at most {self._max} may", retry_after_seconds=_RETRY_AFTER_SECONDS
            )
        with self._hold(pairs):
            yield

    @contextlib.asynccontextmanager
    async def wait(self) -> AsyncIterator[None]:
        """Room for one pair, waited for."""
        while self._used >= self._max:
            self._freed.clear()
            await self._freed.wait()
        with self._hold(1):
            yield

    @contextlib.contextmanager
    def _hold(self, pairs: int) -> Iterator[None]:
        self._used += pairs
        try:
            yield
        finally:
            self._used -= pairs
            self._freed.set()
