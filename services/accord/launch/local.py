"""Runs as processes of this machine: one process a run, in a session of its own, so that it survives the server that started it.

`process.json` in the run's directory says which process it is: pid and start time together, since a pid alone is used again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from accord.errors import DataLossError, UnavailableError
from accord.launch.launcher import Observation
from accord.rundir import RunDirectory, write_atomically

DEFAULT_COMMAND = (sys.executable, "-m", "accord.training", "--config")
_PROCESS_FILE = "process.json"
_SAME_START_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    started: float
    attempt: int


class LocalLauncher:
    """Starts runs as `command run.yaml`.

    Args:
        command: the program and its arguments; the path of run.yaml is appended.
        threads: OMP_NUM_THREADS of the runs.
        nice: niceness of the runs, so that services keep answering.
    """

    def __init__(self, command: Sequence[str] = DEFAULT_COMMAND, *, threads: int, nice: int = 0) -> None:
        self._command = tuple(command)
        self._threads = threads
        self._nice = nice
        self._children: dict[Path, subprocess.Popen[bytes]] = {}

    def start(self, directory: Path, attempt: int) -> None:
        """Starts the run's process; see `Launcher.start`."""
        run = RunDirectory(directory)
        environment = {**os.environ, "OMP_NUM_THREADS": str(self._threads), "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
        try:
            with run.log.open("ab") as log:
                child = subprocess.Popen(
                    [*self._command, str(directory / "run.yaml")],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=directory,
                    env=environment,
                    start_new_session=True,
                )
        except OSError as error:
            raise UnavailableError(f"the run's process cannot be started: {error}") from error
        if self._nice:
            psutil.Process(child.pid).nice(self._nice)
        self._children[directory] = child
        _write(directory, psutil.Process(child.pid), attempt)

    def observe(self, directory: Path) -> Observation:
        """Looks at the process; see `Launcher.observe`."""
        child = self._children.get(directory)
        if child is not None:
            code = child.poll()
            if code is None:
                return Observation("running")
            return Observation("ended", code)
        known = _read(directory) or _adopt(directory)
        if known is None:
            return Observation("unknown")
        return Observation("running") if _find(known) is not None else Observation("ended")

    def forget(self, directory: Path) -> None:
        """Removes process.json; see `Launcher.forget`."""
        self._children.pop(directory, None)
        (directory / _PROCESS_FILE).unlink(missing_ok=True)

    def stop(self, directory: Path, *, force: bool) -> None:
        """Sends SIGTERM, or SIGKILL, to the process group; see `Launcher.stop`."""
        known = _read(directory) or _adopt(directory)
        if known is None or _find(known) is None:
            return
        try:
            os.killpg(known.pid, signal.SIGKILL if force else signal.SIGTERM)
        except ProcessLookupError:
            return


def _read(directory: Path) -> _Process | None:
    try:
        facts = json.loads((directory / _PROCESS_FILE).read_text())
        return _Process(int(facts["pid"]), float(facts["started"]), int(facts["attempt"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataLossError(f"{directory / _PROCESS_FILE} does not say which process the run is: {error}") from error


def _write(directory: Path, process: psutil.Process, attempt: int) -> None:
    write_atomically(directory / _PROCESS_FILE, json.dumps({"pid": process.pid, "started": process.create_time(), "attempt": attempt}))


def _adopt(directory: Path) -> _Process | None:
    """The process of a server that was killed between starting it and writing process.json, which is written now; None where there is none.

    Without it the run would be started a second time in the same directory.
    """
    argument = str(directory / "run.yaml")
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[-1] == argument:
            with contextlib.suppress(psutil.NoSuchProcess):
                _write(directory, process, 0)
                return _read(directory)
    return None


def _find(known: _Process) -> psutil.Process | None:
    """The process itself, None where it has gone, is a zombie, or its pid is another's now."""
    try:
        process = psutil.Process(known.pid)
        if abs(process.create_time() - known.started) > _SAME_START_SECONDS or process.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.NoSuchProcess:
        return None
    return process
