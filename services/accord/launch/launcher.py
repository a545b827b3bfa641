"""What the trainer needs of whatever starts runs: processes of this machine (`local`), or Kubernetes Jobs (`jobs`).

What does not belong here: the registry and states (`accord.trainer`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from accord.errors import UnavailableError

ProcessState = Literal["waiting", "running", "ended", "unknown"]


@dataclass(frozen=True, slots=True)
class Observation:
    """What a launcher sees of a run: whether it goes on, and where known how it ended.

    `waiting`: nothing of it runs that writes into its folder, and `message` says what it waits for; `unknown`: it was never started, or nothing is
    left of it. `exit_code` is negative for a signal, as in subprocess; None where it cannot be known (the process was somebody else's child, a
    container never began). `message` is for people, and may be empty. `stuck`: without a change from outside it will wait for ever.
    """

    state: ProcessState
    exit_code: int | None = None
    message: str = ""
    stuck: bool = False


class NotYetError(UnavailableError):
    """A run cannot be started now; asking again later can help."""


class Launcher(Protocol):
    """Starts, observes and stops the process (or Job) of a run. A run outlives whoever launched it."""

    def start(self, directory: Path, attempt: int) -> None:
        """Starts the run in a directory that holds its run.yaml. Starting the same attempt twice starts it once.

        Raises:
            NotYetError: it cannot be started now.
            AccordError: it cannot be started; the message says why.
        """
        ...

    def observe(self, directory: Path) -> Observation:
        """Says what goes on; `unknown` where it was never started.

        Raises:
            UnavailableError: it cannot be seen now, which says nothing about the run.
        """
        ...

    def forget(self, directory: Path) -> None:
        """Forgets an earlier attempt, which has ended: `observe` says `unknown` until the next start.

        Raises:
            NotYetError: something of it is still there, and might still write into the directory.
        """
        ...

    def stop(self, directory: Path, *, force: bool) -> None:
        """Asks the run to checkpoint and stop; with `force` ends it at once. No error where it has ended.

        Raises:
            UnavailableError: it cannot be asked now.
        """
        ...

    def log(self, directory: Path) -> bytes:
        """What the run has printed so far.

        Raises:
            NotFoundError: nothing of it has begun.
            UnavailableError: it cannot be read now.
        """
        ...

    def fault(self) -> str | None:
        """Why runs can be neither started nor seen at present, or None."""
        ...

    def close(self) -> None:
        """Lets go of connections; runs go on."""
        ...
