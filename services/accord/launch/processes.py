"""Processes of this machine that outlive whoever started them: starting, finding again, stopping.

A pid alone is used again; with the time of its start and the boot it is one process for ever. What does not belong here: which processes
a workspace has (`accord.workspace.workspace`), and runs (`accord.launch.local`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from accord.errors import UnavailableError

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_POLL_SECONDS = 0.05
_LOG_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process: its pid and a mark that no other process with that pid has."""

    pid: int
    mark: str


def identify(pid: int, *, zombie_too: bool = False) -> ProcessId | None:
    """The identity of a living process, None where there is none; a zombie has ended, and counts with `zombie_too` alone.

    On Linux the mark is boot and start tick, which a change of the clock leaves alone; elsewhere the start time.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE and not zombie_too:
            return None
        started = f"{process.create_time():.1f}"
    except psutil.NoSuchProcess:
        return None
    try:
        ticks = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        return ProcessId(pid, f"{_BOOT_ID.read_text(encoding='utf-8').strip()}:{ticks}")
    except (OSError, IndexError):
        return ProcessId(pid, started)


def is_alive(process: ProcessId | None) -> bool:
    """Whether exactly this process still runs."""
    return process is not None and identify(process.pid) == process


def start_process(command: Sequence[str], *, log: Path, folder: Path, threads: int) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own, its output appended to `log`.

    Raises:
        UnavailableError: it cannot be started, or its log not be written.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        with log.open("ab") as output:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, env=environment, start_new_session=True
            )
    except OSError as error:
        raise UnavailableError(f"{Path(command[0]).name} cannot be started: {error.strerror}: {error.filename}") from error


def open_log(log: Path) -> int:
    """The byte at which a new process begins in a log; a large log is put aside first, one old one is kept."""
    try:
        size = log.stat().st_size
    except FileNotFoundError:
        return 0
    if size <= _LOG_BYTES:
        return size
    log.replace(log.with_suffix(".log.old"))
    return 0


def module_command(module: str) -> tuple[str, ...]:
    """How this Python runs a module; its working folder is not searched for modules."""
    return (sys.executable, "-P", "-m", module)


def stop_processes(processes: Sequence[ProcessId], *, timeout_seconds: float) -> None:
    """Sends SIGTERM to all and waits until they have ended; SIGKILL to the session of those that outlast the timeout."""
    left = [process for process in processes if is_alive(process)]
    _signal(left, signal.SIGTERM)
    deadline, killed = time.monotonic() + timeout_seconds, False
    while left := [process for process in left if is_alive(process)]:
        if not killed and time.monotonic() >= deadline:
            killed = True
            _signal(left, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def last_lines(log: Path, *, offset: int = 0, lines: int = 5, most_bytes: int = 8192) -> list[str]:
    """The last lines of a log that are behind a byte offset, without empty ones."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(min(offset, size), size - most_bytes))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


def _signal(processes: Sequence[ProcessId], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            if number is signal.SIGKILL:
                os.killpg(process.pid, number)  # the leader of a session of its own: its children too
            else:
                os.kill(process.pid, number)
