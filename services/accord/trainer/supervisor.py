"""Keeps the registry true: starts queued runs, looks at running ones, and says how they ended.

One look (`tick`) reads processes and run directories only; killing the server between two looks loses nothing. What does not belong here:
protobuf, and what a run does.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from accord.errors import (
    AccordError,
    AlreadyExistsError,
    FailedPreconditionError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from accord.launch.launcher import Launcher, NotYetError, Observation
from accord.rundir import EXIT_DONE, EXIT_STOPPED, PHASE_PENDING, RunDirectory, RunEvent, RunFile, RunProgress
from accord.runspec import RunSpec
from accord.trainer.config import TrainerConfig
from accord.trainer.registry import ACTIVE, Registry, RunRecord

_log = structlog.get_logger(__name__)

_UNREADABLE_SECONDS = 60.0


class Supervisor:
    """Moves runs through their states.

    Args:
        registry: of the runs.
        launcher: starts and stops their processes.
        config: of the trainer.
    """

    def __init__(self, registry: Registry, launcher: Launcher, config: TrainerConfig) -> None:
        self._registry = registry
        self._launcher = launcher
        self._config = config
        self._unreadable_since: dict[str, float] = {}
        self._known: dict[str, RunProgress] = {}  # of runs that have not ended
        self._starts_runs = True
        self._lock = threading.Lock()  # a look and a caller's wish take turns, or a run cancelled in between would start

    def tick(self) -> None:
        """One look at everything that is not ended. A run whose files cannot be read for a minute is FAILED; the others go on."""
        with self._lock:
            self._tick()

    def _tick(self) -> None:
        active = self._registry.find(ACTIVE)
        for record in active:
            try:
                self._look(record)
            except (UnavailableError, PermissionDeniedError, UnauthenticatedError) as error:
                _log.warning("run_not_seen", run=record.name, reason=str(error))  # says nothing about the run; `Launcher.fault` makes it known
            except (AccordError, OSError) as error:
                self._unreadable(record, error)
            else:
                self._unreadable_since.pop(record.name, None)
        active = self._registry.find(ACTIVE)
        running, before = len(active), active[0].name if active else ""
        for record in reversed(self._registry.find(("QUEUED",)) if self._starts_runs else ()):
            if running < self._config.max_running:
                self._start(record)
                running += 1
            else:
                self._say_turn(record, before)
            before = record.name

    def cancel(self, name: str) -> RunRecord:
        """Asks a run to stop; a queued one is cancelled at once, with what a start that failed half-way has left; an ended one stays as it is.

        Raises:
            NotFoundError: there is no such run.
            AccordError: the run's Job cannot be reached, or must not be deleted; the run goes on, or stays queued.
        """
        with self._lock:
            record = self._registry.get(name)
            if record.ended or record.state == "CANCELLING":
                return record
            if record.state == "QUEUED":
                if _may_have_left_something(record):
                    self._launcher.stop(Path(record.directory), force=True)
                return self._end(record, "CANCELLED", "cancelled before it started", None)
            before = record.state
            record = self._registry.update(record, state="CANCELLING", cancel_time=time.time())
            try:
                self._launcher.stop(Path(record.directory), force=False)
            except AccordError:
                self._registry.update(record, state=before, cancel_time=None)  # it was not asked, and the caller is told
                raise
            return record

    def stop_all(self) -> None:
        """Asks every run in progress to checkpoint and stop, and starts none any more; what is queued stays so for the next server."""
        with self._lock:
            self._starts_runs = False
            for record in self._registry.find([state for state in ACTIVE if state != "CANCELLING"]):
                try:
                    self._launcher.stop(Path(record.directory), force=False)
                except (AccordError, OSError) as error:
                    _log.warning("run_not_asked_to_stop", run=record.name, reason=str(error))

    def has_ended_all(self) -> bool:
        """Looks at the runs, and says whether none is in progress any more."""
        self.tick()
        return not self._registry.find(ACTIVE, limit=1)

    def resume(self, name: str, change: Callable[[RunSpec], RunSpec] | None = None) -> RunRecord:
        """Queues an ended, unsuccessful run again; it goes on from its newest whole checkpoint.

        Args:
            name: of the run.
            change: gives the specification that it goes on with, or raises; None keeps its own.

        Raises:
            NotFoundError: there is no such run.
            FailedPreconditionError: it has not ended, or has succeeded.
        """
        with self._lock:
            record = self._registry.get(name)
            if record.state not in ("FAILED", "CANCELLED"):
                raise FailedPreconditionError(f"{name} is {record.state}; only a FAILED or CANCELLED run can be resumed", field="name")
            if change is not None:
                record = self._registry.respecify(record, change(record.spec))
            return self._registry.update(record, state="QUEUED", message="", cancel_time=None)

    def log(self, record: RunRecord) -> bytes:
        """What a run has printed so far.

        Raises:
            NotFoundError: nothing of it has begun.
            UnavailableError: it cannot be read now.
        """
        return self._launcher.log(Path(record.directory))

    def prepare(self, record: RunRecord) -> None:
        """Writes the run file of a run that is new."""
        config, spec = self._config, record.spec
        RunDirectory(record.directory).write_run_file(
            RunFile(
                name=record.name,
                artefacts=config.artefacts,
                base_model=spec.base_model or config.base_model,
                threads=spec.threads or config.threads,
                endpoints=config.endpoints,
                wait_seconds=config.wait_seconds,
                spec=spec,
            )
        )

    def _start(self, record: RunRecord) -> None:
        directory, queued = RunDirectory(record.directory), record
        try:
            self.prepare(record)
            # Before the registry says STARTING: a server killed after that must not take an earlier attempt's end for this one's.
            self._launcher.forget(directory.path)
            directory.clear_result()
            record = self._registry.update(
                record, state="STARTING", attempts=record.attempts + 1, start_time=time.time(), end_time=None, exit_code=None, message=""
            )
            self._launcher.start(directory.path, record.attempts)
        except NotYetError as error:
            self._say_waiting(queued, directory, str(error))
            self._registry.update(record, state="QUEUED", attempts=queued.attempts, message=str(error))
        except (AccordError, OSError) as error:
            self._not_started(record, directory, error, attempts=queued.attempts)

    def _not_started(self, record: RunRecord, directory: RunDirectory, error: AccordError | OSError, *, attempts: int) -> None:
        """Ends a run that cannot be started, once what its start has left of it is gone: nobody looks after an ended run's Job."""
        try:
            if _may_have_left_something(record) and not isinstance(error, AlreadyExistsError):  # what has its name is another one's
                self._clear_away(record, directory)
        except (AccordError, OSError) as hindrance:
            _log.warning("not_cleared_away", run=record.name, reason=str(hindrance))
            self._registry.update(record, state="QUEUED", attempts=attempts, message=f"it could not be started: {error}; then: {hindrance}")
            return
        self._end(record, "FAILED", f"it could not be started: {error}", None)

    def _look(self, record: RunRecord) -> None:
        directory = RunDirectory(record.directory)
        seen = self._launcher.observe(directory.path)
        if seen.state == "running":
            self._running(record, directory, seen)
        elif seen.state == "waiting":
            self._waiting(record, directory, seen)
        elif seen.state == "ended":
            self._ended(record, directory, seen)
        else:
            self._gone(record, directory)

    def _unreadable(self, record: RunRecord, error: AccordError | OSError) -> None:
        """Fails a run whose files stay unreadable, once its process or Job is ended, which nobody would look after; a disk may be away a moment."""
        _log.error("run_unreadable", run=record.name, reason=str(error))
        message = f"its directory cannot be read: {error}"
        if time.monotonic() - self._unreadable_since.setdefault(record.name, time.monotonic()) < _UNREADABLE_SECONDS:
            self._registry.update(record, message=message)
            return
        try:
            self._clear_away(record, RunDirectory(record.directory))
        except UnavailableError as hindrance:  # the next look tries again
            self._registry.update(record, message=f"{message}; it cannot be ended now: {hindrance}")
            return
        except (AccordError, OSError) as hindrance:
            message = f"{message}; what it started may go on: {hindrance}"
        del self._unreadable_since[record.name]
        self._end(record, "FAILED", message, None)

    def _gone(self, record: RunRecord, directory: RunDirectory) -> None:
        """Nothing is left of the run, or it never began: what its folder says counts."""
        result = directory.result()
        if result is not None:
            self._ended(record, directory, Observation("ended", result.exit_code))
        elif record.state == "CANCELLING" and self._phase(record, directory) in ("", PHASE_PENDING):
            self._end(record, "CANCELLED", "cancelled before it started", None)
        elif record.state == "CANCELLING":
            self._vanished(record, directory, Observation("ended"))
        elif record.state != "STARTING":
            directory.append_event(RunEvent("message", time.time(), text="nothing is left of its process; it starts again"))
            self._registry.update(record, state="QUEUED")
        elif time.time() - (record.start_time or 0) >= 10:  # else the server was killed between its note and the start; wait a little
            self._registry.update(record, state="QUEUED")

    def _waiting(self, record: RunRecord, directory: RunDirectory, seen: Observation) -> None:
        """Nothing of the run writes into its folder now, so that the trainer may."""
        if record.state == "CANCELLING":
            self._stop_when_overdue(record, directory)
        elif record.message != seen.message or record.state != "STARTING":
            self._say_waiting(record, directory, seen.message)
            self._registry.update(record, state="STARTING", message=seen.message)

    def _say_waiting(self, record: RunRecord, directory: RunDirectory, what: str) -> None:
        """Lets those who watch the run know what it waits for, once."""
        if record.message != what:
            step = self._progress(record, directory).step
            directory.append_event(RunEvent("state", time.time(), step, phase=PHASE_PENDING, waiting_on=what))
            directory.append_event(RunEvent("message", time.time(), step, text=f"waits for {what}"))

    def _say_turn(self, record: RunRecord, before: str) -> None:
        """Says in a queued run's message why it does not start; its folder may hold a pod that still ends, and is not written to."""
        runs = f"{self._config.max_running} run{'' if self._config.max_running == 1 else 's'}"
        message = f"waits for its turn: {runs} at once (max_running), {before} is before it"
        if record.message != message:
            self._registry.update(record, message=message)

    def _running(self, record: RunRecord, directory: RunDirectory, seen: Observation) -> None:
        if record.state == "CANCELLING":
            self._stop_when_overdue(record, directory)
            return
        phase = self._phase(record, directory)
        state = "STARTING" if phase in ("", PHASE_PENDING) else "CHECKPOINTING" if phase == "checkpoint" else "RUNNING"
        if (state, seen.message) != (record.state, record.message):
            self._registry.update(record, state=state, message=seen.message)

    def _phase(self, record: RunRecord, directory: RunDirectory) -> str:
        """The phase that a run reported last in this attempt, however long ago; empty before its first report."""
        progress = self._progress(record, directory)
        return progress.phase if progress.phase_time >= (record.start_time or 0.0) else ""

    def _progress(self, record: RunRecord, directory: RunDirectory) -> RunProgress:
        """What all of a run's events say; only those are read that have come since the last look."""
        known = self._known.get(record.name) or RunProgress()
        progress = self._known[record.name] = directory.progress(known)
        return progress

    def _stop_when_overdue(self, record: RunRecord, directory: RunDirectory) -> None:
        if time.time() - (record.cancel_time or 0) > self._config.stop_grace_seconds:
            self._launcher.stop(directory.path, force=True)

    def _ended(self, record: RunRecord, directory: RunDirectory, seen: Observation) -> None:
        self._clear_away(record, directory)
        result = directory.result()
        if result is None:
            self._vanished(record, directory, seen)
        elif result.exit_code == EXIT_DONE:
            self._end(record, "SUCCEEDED", result.message, result.exit_code)
        elif result.exit_code == EXIT_STOPPED and record.state == "CANCELLING":
            self._end(record, "CANCELLED", result.message, result.exit_code)
        else:
            self._end(record, "FAILED", f"{result.message}{f' ({seen.message})' if seen.message else ''}", result.exit_code)

    def _clear_away(self, record: RunRecord, directory: RunDirectory) -> None:
        """Ends with the run what would try again, or wait for ever: a Job without a policy of failures, a pod that cannot start."""
        try:
            self._launcher.stop(directory.path, force=True)
        except PermissionDeniedError as error:
            _log.error("not_cleared_away", run=record.name, reason=str(error))

    def _vanished(self, record: RunRecord, directory: RunDirectory, seen: Observation) -> None:
        if record.state == "CANCELLING":
            forced = time.time() - (record.cancel_time or 0) > self._config.stop_grace_seconds
            how = f"it had not stopped {self._config.stop_grace_seconds:g} s after it was asked to, and was killed" if forced else "it stopped"
            self._end(record, "CANCELLED", f"{how} without a checkpoint of its last step", seen.exit_code)
            return
        how = seen.message or f"its process {describe_exit(seen.exit_code)}"
        self._end(record, "FAILED", f"{how}{last_log_line(directory.log)}", seen.exit_code)

    def _end(self, record: RunRecord, state: str, message: str, exit_code: int | None) -> RunRecord:
        _log.info("run_ended", run=record.name, state=state, exit_code=exit_code)
        self._known.pop(record.name, None)
        return self._registry.update(record, state=state, message=message, end_time=time.time(), exit_code=exit_code)


def _may_have_left_something(record: RunRecord) -> bool:
    """Whether a start was ever tried: one whose answer was lost, or that failed after it, has made a Job all the same."""
    return record.start_time is not None


def describe_exit(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "has gone, and nothing says how"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = "; the kernel's out-of-memory killer is a common cause" if -code == signal.SIGKILL else ""
        return f"was killed by {name}{hint}"
    return f"ended with code {code} and no result"


def last_log_line(path: Path) -> str:
    """The last line that a run printed, to be appended to a message."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    except FileNotFoundError:
        return ""
    return f"; its last words: {lines[-1][:300]}" if lines else ""
