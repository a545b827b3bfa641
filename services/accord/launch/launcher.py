"""What the trainer needs of whatever starts runs: local processes here, Kubernetes Jobs in a later piece of work.

What does not belong here: the registry and states (`accord.trainer`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

ProcessState = Literal["running", "ended", "unknown"]


@dataclass(frozen=True, slots=True)
class Observation:
    """What a launcher sees of a run: whether it goes on, and where known how it ended.

    `exit_code` is negative for a signal, as in subprocess; None where it cannot be known (the process was somebody else's child).
    """

    state: ProcessState
    exit_code: int | None = None


class Launcher(Protocol):
    """Starts, observes and stops the process (or Job) of a run. A run outlives whoever launched it."""

    def start(self, directory: Path, attempt: int) -> None:
        """Starts the run in a directory that holds its run.yaml.

        Raises:
            UnavailableError: it cannot be started; the message says why.
        """
        ...

    def observe(self, directory: Path) -> Observation:
        """Says what goes on; `unknown` where it was never started."""
        ...

    def forget(self, directory: Path) -> None:
        """Forgets the process of an earlier attempt, which has ended: `observe` says `unknown` until the next start."""
        ...

    def stop(self, directory: Path, *, force: bool) -> None:
        """Asks the run to checkpoint and stop; with `force` ends it at once. No error where it has ended."""
        ...
