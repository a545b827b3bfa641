"""Being asked to stop, and heeding it where nothing is half done.

What does not belong here: agreeing on a stop among several processes (`accord.training.distribution`).
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

from accord.errors import AccordError, FailedPreconditionError, InternalError, UnavailableError

SERVICE = "service"
"""Key of an error's metadata: the service whose error it is."""


class RunStopped(Exception):
    """The run was asked to stop; raised only where the state of the last finished step is whole."""


class OtherPolicyError(FailedPreconditionError):
    """The policy service computes another policy than the run; raised in all processes, before anything is learned from what it sampled."""


class BrokenGradientError(InternalError):
    """A gradient is no number; raised in all processes. `nothing_learnt` says that it is the first one of its step, and weights are as before it."""

    def __init__(self, message: str, *, nothing_learnt: bool) -> None:
        super().__init__(message)
        self.nothing_learnt = nothing_learnt


def keeps_state(error: Exception) -> bool:
    """Whether the state of the last finished step is whole: services are asked before anything is learned from what they say."""
    if isinstance(error, BrokenGradientError):
        return error.nothing_learnt
    if isinstance(error, RunStopped | UnavailableError | OtherPolicyError):
        return True
    return isinstance(error, AccordError) and SERVICE in error.metadata


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
