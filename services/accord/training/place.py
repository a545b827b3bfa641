"""Which of a run's processes this one is: told by the run's own launcher on the command line, or by torchrun in the environment.

What does not belong here: what they say to each other (`accord.training.distribution`), and torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from accord.errors import InvalidArgumentError
from accord.rundir import RunDirectory, write_atomically

_FAILURE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Place:
    """One process among `size`, counted from 0; `local_rank` and `local_size` count those of its machine.

    `rendezvous` is the file over which processes of one machine find each other; empty where the environment says it (MASTER_ADDR,
    MASTER_PORT) or there is one process alone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    rendezvous: str = ""
    joined: bool = False

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes events, checkpoints and results."""
        return self.rank == 0


ALONE = Place()


def place_in_environment(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place that torchrun gave to this process; None where it gave none.

    Raises:
        InvalidArgumentError: a variable is missing, no number or out of range; it is named.
    """
    if "RANK" not in environment:
        return None
    defaults = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    numbers = {name: _number(name, {**defaults, **environment}) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    if not numbers["RANK"] < numbers["WORLD_SIZE"]:
        raise InvalidArgumentError(f"RANK {numbers['RANK']} must be below WORLD_SIZE {numbers['WORLD_SIZE']}", field="RANK")
    if not (environment.get("MASTER_ADDR") and environment.get("MASTER_PORT")):
        raise InvalidArgumentError("RANK is set without MASTER_ADDR and MASTER_PORT: start it with torchrun, or without RANK", field="MASTER_ADDR")
    return Place(numbers["RANK"], numbers["WORLD_SIZE"], numbers["LOCAL_RANK"], numbers["LOCAL_WORLD_SIZE"], joined=True)


def tell_failure(directory: RunDirectory, rank: int, message: str) -> None:
    """Writes down why a process that is not the first one failed, for those that see it gone."""
    write_atomically(_failure(directory, rank), json.dumps({"message": message, "time": time.time()}))


def told_failure(directory: RunDirectory, size: int, *, since: float = 0.0, wait_seconds: float = _FAILURE_SECONDS) -> str:
    """What another process said when it failed, `process 1 of 2: ...`; empty where none has said anything in that time.

    What was said before `since`, a Unix time, is of an earlier attempt: the run's own launcher clears that away, torchrun does not.
    """
    give_up = time.monotonic() + wait_seconds
    while True:
        for rank in range(1, size):
            with contextlib.suppress(OSError, ValueError, KeyError):
                said = json.loads(_failure(directory, rank).read_text())
                if said.get("time", 0.0) >= since:
                    return f"process {rank} of {size}: {said['message']}"
        if time.monotonic() >= give_up:
            return ""
        time.sleep(0.05)


def clear_failures(directory: RunDirectory) -> None:
    """Forgets what processes of an earlier attempt said."""
    for path in directory.path.glob("failure-*.json"):
        path.unlink(missing_ok=True)


def ended_by(code: int) -> str:
    """How a process ended, in words: `ended with code 1`, `was ended by SIGKILL`."""
    return f"ended with code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


def _failure(directory: RunDirectory, rank: int) -> Path:
    return directory.path / f"failure-{rank}.json"


def _number(name: str, environment: Mapping[str, str]) -> int:
    given = environment.get(name, "")
    lowest = 1 if name.endswith("WORLD_SIZE") else 0
    if not given.isdecimal() or int(given) < lowest:
        raise InvalidArgumentError(f"{name} must be a whole number of at least {lowest}, not {given!r}", field=name)
    return int(given)
