"""Being asked to stop, and heeding it where nothing is half done.

What does not belong here: agreeing on a stop among several processes (`accord.training.distribution`).
"""

from __future__ import annotations

import signal
import threading
from types import FrameType


class RunStopped(Exception):
    """The run was asked to stop; raised only where the state of the last finished step is whole."""


class StopSignal:
    """Whether SIGTERM has come.

    `held` says that this process must not heed it by itself: it is one of several, and they stop together where they agree on it.
    """

    def __init__(self) -> None:
        self._flag = threading.Event()
        self.held = False

    def install(self) -> None:
        """Takes SIGTERM over; call it in the main thread."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._flag.set()

    def set(self) -> None:
        """Asks to stop, as SIGTERM does."""
        self._flag.set()

    @property
    def is_set(self) -> bool:
        """Whether the run is asked to stop."""
        return self._flag.is_set()

    def check(self) -> None:
        """Raises RunStopped where the run is asked to stop and may heed it; call it where nothing is half done."""
        if self._flag.is_set() and not self.held:
            raise RunStopped
