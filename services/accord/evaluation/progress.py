"""How an evaluation tells its watchers where it is, through the run's events. `accord.training` has its own, which evaluation may not use."""

from __future__ import annotations

import time
from collections.abc import Callable

from accord.rundir import RunDirectory, RunEvent

_PAUSE_SECONDS = 1.0


def go_on() -> None:
    """The check of a run that nobody stops."""


class Progress:
    """Appends phases and fractions to a run's events, and asks between units of work whether to stop.

    Args:
        directory: the run's.
        check: raises what ends the run; called before each unit of work.
    """

    def __init__(self, directory: RunDirectory, check: Callable[[], None] = go_on) -> None:
        self._directory = directory
        self._check = check
        self._told = 0.0
        self._total = 0

    def phase(self, name: str, total: int = 0) -> None:
        """The evaluation does this now, in so many units; asks whether to stop."""
        self._check()
        self._told, self._total = 0.0, total
        self._directory.append_event(RunEvent("state", time.time(), phase=name))

    def done(self, units: int) -> None:
        """So many units of the phase are done; told at most once a second, and at the end of the phase. Asks whether to stop."""
        self._check()
        now = time.monotonic()
        if now - self._told < _PAUSE_SECONDS and units < self._total:
            return
        self._told = now
        values = {"phase_done": float(units), "phase_total": float(self._total), "phase_fraction": units / max(self._total, 1)}
        self._directory.append_event(RunEvent("metrics", time.time(), values=values))

    def message(self, text: str) -> None:
        """A line for people."""
        self._directory.append_event(RunEvent("message", time.time(), text=text))
