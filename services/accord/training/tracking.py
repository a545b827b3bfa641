"""Where the metrics of a run go besides its event file: TensorBoard's files, an MLflow server or store.

Tracking is for people and never decides: what cannot be had is said before the run begins, what breaks later is said once, and the run goes on.
A resumed run does again what came after its last checkpoint; those steps are not tracked a second time. What does not belong here: the event file
(`accord.training.context`), and the formats (`tensorboard`, `mlflow_tracking` beside this file).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

from accord.rundir import EXIT_DONE, RunDirectory, RunFile, RunResult
from accord.training.context import EventLog, RunStopped
from accord.training.tensorboard import EventFile

TENSORBOARD_FOLDER = "tensorboard"
Status = Literal["FINISHED", "KILLED", "FAILED"]
"""How a run ended, in MLflow's words."""


class Tracker(Protocol):
    """Takes metrics somewhere."""

    @property
    def last_step(self) -> int:
        """The last step that it had when it was opened."""
        ...

    def add(self, step: int, values: Mapping[str, float], *, at: float) -> None:
        """Takes the metrics of a step, of this wall time in Unix seconds."""
        ...

    def close(self, status: Status) -> None:
        """Ends it; the run ended so."""
        ...


class Tracking:
    """Tracks the metrics of a run while the block runs, where its specification asks for it.

    Args:
        run: what the run is told.
        directory: of the run.
        events: whose metrics are tracked.

    Raises (on entering):
        FailedPreconditionError: a package is missing or the address is not one; the field and what to install are named.
        UnavailableError: the server does not answer.
    """

    def __init__(self, run: RunFile, directory: RunDirectory, events: EventLog) -> None:
        self._run = run
        self._directory = directory
        self._events = events
        self._trackers: list[Tracker] = []
        self._exit_code: int | None = None

    def ended(self, result: RunResult) -> RunResult:
        """Takes note of how the run ended, and returns it: one that a guard stopped returns, and has not finished."""
        self._exit_code = result.exit_code
        return result

    def __enter__(self) -> Self:
        spec = self._run.spec.tracking
        if spec.tensorboard:
            self._trackers.append(TensorBoardTracker(self._directory.path / TENSORBOARD_FOLDER, self._events.message))
        if spec.mlflow_uri:
            from accord.training.mlflow_tracking import open_mlflow

            self._trackers.append(open_mlflow(self._run, self._directory, self._events.message))
        if self._trackers:
            self._events.listener = self._add
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._events.listener = None
        done = kind is None and self._exit_code == EXIT_DONE
        status: Status = "FINISHED" if done else "KILLED" if kind is not None and issubclass(kind, RunStopped) else "FAILED"
        for tracker in self._trackers:
            tracker.close(status)

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        now = time.time()
        for tracker in self._trackers:
            if step > tracker.last_step:
                tracker.add(step, values, at=now)


class TensorBoardTracker:
    """Writes TensorBoard's event files into a folder; the first error is said, and ends it instead of the run."""

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self._file: EventFile | None = EventFile(folder)
        self._report = report
        self.last_step = self._file.last_step
        report(f"TensorBoard reads {folder}: pip install tensorboard; tensorboard --logdir {folder}")

    def add(self, step: int, values: Mapping[str, float], *, at: float) -> None:
        """Appends the metrics of a step."""
        if self._file is None:
            return
        try:
            self._file.add(step, values, at=at)
        except OSError as error:
            self._file = None
            self._report(f"TensorBoard: from step {step} on nothing is written ({error}); events.jsonl has all metrics, and the run goes on")

    def close(self, status: Status) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
