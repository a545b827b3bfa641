"""A run as several processes of this machine: they start together, hear SIGTERM together, and end together.

torchrun can start a run as well. This is what a run does by itself, because torchrun's agent kills its workers 30 seconds after a SIGTERM,
whatever they are writing, turns their exit codes into 1, and has its store listen on every interface. The processes here find each other
over a file and talk over the loopback device. What does not belong here: torch, which this process never imports.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from accord.rundir import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, RunDirectory, RunFile, RunResult
from accord.training.place import clear_failures, ended_by, told_failure

COMMAND = (sys.executable, "-m", "accord.training")
GRACE_SECONDS = 15.0
_POLL_SECONDS = 0.05


class Ranks:
    """The processes of one run, each `python -m accord.training --config RUN.yaml ... --rank R --rendezvous FILE`.

    Args:
        config: the run file.
        directory: the run's folder.
        run: what it says.
        command: the program, to which these arguments are appended.
        grace_seconds: how long the others may take to end by themselves once one has failed.
    """

    def __init__(
        self, config: Path, directory: RunDirectory, run: RunFile, *, command: Sequence[str] = COMMAND, grace_seconds: float = GRACE_SECONDS
    ) -> None:  # fmt: skip
        self._config = config
        self._command = command
        self._grace_seconds = grace_seconds
        self._size = run.spec.distribution.processes
        self._threads = threads_each(run.threads, self._size)
        self._directory = directory
        self._started = time.time()
        self._children: list[subprocess.Popen[bytes]] = []
        self._stopping = threading.Event()

    def run(self) -> int:
        """Runs to the end and returns the exit code: the processes' own, or that of a failure where one of them died."""
        clear_failures(self._directory)
        before = signal.signal(signal.SIGTERM, self._on_signal)
        with tempfile.TemporaryDirectory(prefix="accord-run-") as folder:
            try:
                self._children = [self._start(rank, Path(folder) / "rendezvous") for rank in range(self._size)]
                failed = self._watch()
            finally:
                self._signal(signal.SIGKILL)
                signal.signal(signal.SIGTERM, before)
        if failed is None:
            return max(child.returncode for child in self._children)
        return self._report(failed)

    def _start(self, rank: int, rendezvous: Path) -> subprocess.Popen[bytes]:
        command = [*self._command, "--config", str(self._config), "--directory", str(self._directory.path)]
        command += ["--rank", str(rank), "--rendezvous", str(rendezvous)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self._threads)}
        return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)  # its end of stdin tells it when this process is gone

    def _watch(self) -> int | None:
        """Waits until all have ended; returns which one failed first, None where none did."""
        failed, deadline, told = None, 0.0, False
        while any(child.poll() is None for child in self._children):
            if self._stopping.is_set() and not told:
                told = True
                self._signal(signal.SIGTERM)
            if failed is None:
                failed, deadline = self._failed(), time.monotonic() + self._grace_seconds
            elif time.monotonic() > deadline:
                self._signal(signal.SIGKILL)
                return failed
            time.sleep(_POLL_SECONDS)
        return self._failed()

    def _failed(self) -> int | None:
        """A process that died, before one that ended with an error: those may only have seen the other gone."""
        codes = [(child.poll() or EXIT_DONE, rank) for rank, child in enumerate(self._children)]
        bad = sorted((code, rank) for code, rank in codes if code not in (EXIT_DONE, EXIT_STOPPED))
        return bad[0][1] if bad else None

    def _report(self, failed: int) -> int:
        """Says how the run ended where its first process could not, or knows less: that a peer was gone, not why."""
        code = self._children[failed].returncode
        if self._stopping.is_set() and code == -signal.SIGTERM:  # before it could hear one
            return EXIT_STOPPED
        known = self._directory.result()
        if known is not None and known.time < self._started:  # of an earlier attempt
            known = None
        if known is None or code < 0:
            said = told_failure(self._directory, self._size, wait_seconds=0.0)
            reason = f"process {failed} of {self._size} {ended_by(code)}" if code < 0 or not said else said
            message = f"{reason}; the others were ended with it, and a resumed run goes on from its last checkpoint"
            known = RunResult(max(code, EXIT_FAILED), message, known.step if known else self._directory.progress().step)
            self._directory.write_result(known)
            sys.stderr.write(f"error: {message}\n")
        return known.exit_code

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping.set()

    def _signal(self, number: signal.Signals) -> None:
        for child in self._children:
            if child.poll() is None:
                child.send_signal(number)
        if number is signal.SIGKILL:
            for child in self._children:
                child.wait()


def threads_each(threads: int, processes: int) -> int:
    """Threads of one of several processes on a machine: an equal share of the run's, at least 1."""
    return max(1, threads // processes)


def end_with_parent() -> None:
    """Ends this process at once when the one that started it is gone: nobody is left who would end it with the others."""

    def wait() -> None:
        while os.read(0, 1):  # nothing is ever written
            pass
        os._exit(EXIT_FAILED)

    threading.Thread(target=wait, name="parent", daemon=True).start()
