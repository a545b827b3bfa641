"""Results of steps on disk, by key: written at once, found again by a second call.

What does not belong here: doing the steps (`accord.study.actions`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.errors import DataLossError
from accord.rundir import write_atomically


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave: JSON values, how long it took in all calls, when it ended; `resumed` where an earlier call began it.

    How long a resumed step took is a lower bound: a call that was killed left no time, and a run goes on while no study waits for it.
    """

    name: str
    key: str
    values: Mapping[str, Any]
    seconds: float
    end_time: float
    resumed: bool = False


class StepStore:
    """The folder `study/` of a workspace."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "study"
        (self.folder / "steps").mkdir(parents=True, exist_ok=True)

    def read(self, name: str, key: str) -> StepResult | None:
        """The result of a step, None where it is not done.

        Raises:
            DataLossError: the file is there and cannot be read.
        """
        path = self._path(key)
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            return StepResult(name, key, row["values"], float(row["seconds"]), float(row["end_time"]), bool(row.get("resumed", False)))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise DataLossError(f"{path} is damaged ({type(error).__name__}); remove it and the step is done again") from error

    def write(self, name: str, key: str, values: Mapping[str, Any], seconds: float, *, resumed: bool = False) -> StepResult:
        """Keeps a result, and returns it as a later call reads it: in JSON a tuple is a list."""
        end_time = time.time()
        row = {"name": name, "values": dict(values), "seconds": seconds, "end_time": end_time} | ({"resumed": True} if resumed else {})
        text = json.dumps(row, indent=1)
        write_atomically(self._path(key), text)
        self._begun(key).unlink(missing_ok=True)
        return StepResult(name, key, json.loads(text)["values"], seconds, end_time, resumed)

    def spent(self, key: str) -> float | None:
        """Seconds that earlier calls spent on a step which they began and did not end; None where none began it.

        Raises:
            DataLossError: the file is there and cannot be read.
        """
        try:
            return float(self._begun(key).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataLossError(f"{self._begun(key)} is damaged; remove it: only how long the step took before is lost") from error

    def begin(self, key: str, seconds: float) -> None:
        """Notes that a step has begun, and what was spent on it so far."""
        write_atomically(self._begun(key), f"{seconds}\n")

    def files(self, key: str) -> Path:
        """A folder for the files of a step."""
        folder = self.folder / "files" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _begun(self, key: str) -> Path:
        return self.folder / "steps" / f"{key}.begun"

    def _path(self, key: str) -> Path:
        return self.folder / "steps" / f"{key}.json"
