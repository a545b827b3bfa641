"""Runs as processes of this machine: one process a run, in a session of its own, so that it survives the server that started it.

`process.json` in the run's directory says which process it is. What does not belong here: what one process is and how it is started
(`accord.launch.processes`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from accord.errors import DataLossError, NotFoundError
from accord.launch.launcher import NotYetError, Observation
from accord.launch.processes import ProcessId, identify, is_alive, start_process
from accord.rundir import RunDirectory, RunFile, read_run_file, write_atomically

DEFAULT_COMMAND = (sys.executable, "-m", "accord.training", "--config")
_PROCESS_FILE = "process.json"
_ASK_AGAIN_SECONDS = 10.0  # a plan may have to read the run's data
Room = Callable[[RunFile, int], tuple[int, str]]


class LocalLauncher:
    """Starts runs as `command run.yaml`.

    Args:
        command: the program and its arguments; the path of run.yaml is appended.
        threads: OMP_NUM_THREADS of the runs.
        nice: niceness of the runs, so that services keep answering.
        room: says of a run, beside others that may still take so many bytes, its own peak in bytes and why it has no room now (empty where it has);
            None starts all.
    """

    def __init__(self, command: Sequence[str] = DEFAULT_COMMAND, *, threads: int, nice: int = 0, room: Room | None = None) -> None:
        self._command = tuple(command)
        self._threads = threads
        self._nice = nice
        self._room = room
        self._children: dict[Path, subprocess.Popen[bytes]] = {}
        self._peaks: dict[Path, int] = {}
        self._refused: dict[Path, tuple[float, str]] = {}

    def start(self, directory: Path, attempt: int) -> None:
        """Starts the run's process; see `Launcher.start`."""
        self._find_room(directory)
        child = start_process(self._line(directory), log=RunDirectory(directory).log, folder=directory, threads=self._threads)
        self._children[directory] = child
        if self._nice:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(child.pid).nice(self._nice)
        process = identify(child.pid, zombie_too=True)  # it is not waited for before `observe`, so that it is there even when it has ended
        assert process is not None
        _write(directory, process, attempt)

    def observe(self, directory: Path) -> Observation:
        """Looks at the process; see `Launcher.observe`."""
        child = self._children.get(directory)
        if child is not None:
            code = child.poll()
            if code is None:
                return Observation("running")
            return Observation("ended", code)
        known = _read(directory) or self._adopt(directory)
        if known is None:
            return Observation("unknown")
        return Observation("running" if is_alive(known) else "ended")

    def forget(self, directory: Path) -> None:
        """Removes process.json; see `Launcher.forget`."""
        self._children.pop(directory, None)
        self._peaks.pop(directory, None)
        (directory / _PROCESS_FILE).unlink(missing_ok=True)

    def stop(self, directory: Path, *, force: bool) -> None:
        """Sends SIGTERM, or SIGKILL, to the process group; see `Launcher.stop`."""
        child = self._children.get(directory)
        known = None if child is None else identify(child.pid)  # before process.json, which a full disk may have kept from being written
        known = known or _read(directory) or self._adopt(directory)
        if known is None or not is_alive(known):
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(known.pid, signal.SIGKILL if force else signal.SIGTERM)

    def _adopt(self, directory: Path) -> ProcessId | None:
        """The process of a server that was killed between starting it and writing process.json, which is written now; None where there is none.

        Without it the run would be started a second time in the same directory. Who reads or edits the run's run.yaml is not taken for it.
        """
        command = self._line(directory)
        for process in psutil.process_iter(["cmdline"]):
            if _is_started_as(process.info["cmdline"] or (), command):
                known = identify(process.pid)
                if known is not None:
                    _write(directory, known, 0)
                    return known
        return None

    def _line(self, directory: Path) -> list[str]:
        return [*self._command, str(directory / "run.yaml")]

    def log(self, directory: Path) -> bytes:
        """What the process has printed; see `Launcher.log`."""
        try:
            return RunDirectory(directory).log.read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"{directory.name} has no log.txt: its process has not begun", field="file") from None

    def _find_room(self, directory: Path) -> None:
        """Looks whether the machine has memory for a run beside those in progress: asked when it was created, several would be promised the same.

        Raises:
            NotYetError: it has not. While this goes on the words stay, so that those who watch the run hear them once.
        """
        if self._room is None:
            return
        asked, words = self._refused.get(directory, (-math.inf, ""))
        waited = time.monotonic() - asked
        if waited > _ASK_AGAIN_SECONDS:
            peak, refusal = self._room(read_run_file(directory / "run.yaml"), self._promised())
            if not refusal:
                self._peaks[directory] = peak
                self._refused.pop(directory, None)
                return
            words = words if waited < 2 * _ASK_AGAIN_SECONDS else f"memory: {refusal}"
            self._refused[directory] = (time.monotonic(), words)
        raise NotYetError(words)

    def _promised(self) -> int:
        """Bytes by which the runs in progress are still below their peaks; of those that an earlier server started the peak is not known."""
        running = ((self._peaks.get(directory, 0), child.pid) for directory, child in self._children.items() if child.poll() is None)
        return sum(max(0, peak - _resident(pid)) for peak, pid in running)

    def fault(self) -> str | None:
        """None: this machine is always there."""
        return None

    def close(self) -> None:
        """Nothing is held."""


def _resident(pid: int) -> int:
    """Resident bytes of a process and its children."""
    found = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                found += each.memory_info().rss
    return found


def _read(directory: Path) -> ProcessId | None:
    try:
        facts = json.loads((directory / _PROCESS_FILE).read_text())
        return ProcessId(int(facts["pid"]), str(facts["mark"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataLossError(f"{directory / _PROCESS_FILE} does not say which process the run is: {error}") from error


def _write(directory: Path, process: ProcessId, attempt: int) -> None:
    write_atomically(directory / _PROCESS_FILE, json.dumps({"pid": process.pid, "mark": process.mark, "attempt": attempt}))


def _is_started_as(given: Sequence[str], command: Sequence[str]) -> bool:
    """Whether a command line is this command's; where that is a script, its interpreter and its whole path stand there instead of its name.

    A command that puts another program into its place (`nice python ...`) is not known again; the lock in the run's folder keeps it single.
    """
    tail = given[-len(command) :]
    return len(tail) == len(command) and Path(tail[0]).name == Path(command[0]).name and list(tail[1:]) == list(command[1:])
