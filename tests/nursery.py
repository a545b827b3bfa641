"""Processes forked from one that has imported torch and the services already: what `python -m` starts, in a process of its own, seconds earlier.

Importing torch and transformers takes a service or a run longer than most tests take. What does not belong here: tests that watch a process begin.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[1]
_STARTED = tuple(f"accord.{name}.__main__" for name in ("policy", "reward", "feedback", "trainer", "training"))
_WARM = (
    "accord.artefacts.store", "accord.policy.convert", "accord.policy.inprocess", "accord.reward.engine", "accord.reward.servicer", "accord.serving.reader",
    *(f"accord.training.{name}" for name in ("loop", "sft", "reward_model", "dpo", "ppo", "groups", "online_dpo")),
    *(f"transformers.models.{name}" for name in ("llama.modeling_llama", "auto.modeling_auto", "auto.tokenization_auto")), "peft.tuners.lora",
)  # fmt: skip


class Process(Protocol):
    """What a test does with a process, forked or not."""

    pid: int

    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int) -> None: ...
    def kill(self) -> None: ...


class Nursery:
    """A process that has imported what services and runs need, and forks one for each `start`; whatever lives at its end is killed."""

    def __enter__(self) -> Nursery:
        self._one_at_a_time = threading.Lock()
        self._codes = tempfile.TemporaryDirectory(prefix="accord-nursery-")
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment_of_processes({}),
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # it kills its children and ends
        self._process.wait(30)
        self._codes.cleanup()

    def start(
        self, module: str, arguments: Sequence[str], log: Path, *, folder: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> Child:
        """`python -m module arguments`, or `python module arguments` of a script, in that folder (this one by default), its output appended to `log`.

        Args:
            environment: more variables; what torch reads when it is imported has been read.
        """
        code = Path(self._codes.name) / uuid.uuid4().hex
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = [module, list(arguments), str(log), str(folder or Path.cwd()), environment_of_processes(environment or {}), str(code)]
        with self._one_at_a_time:
            self._process.stdin.write(json.dumps(asked) + "\n")
            answer = self._process.stdout.readline()
        assert answer, "the nursery has ended; what it said is in the output of the tests"
        return Child(int(answer), code)


class Child:
    """A forked process; its exit code is in a file that the nursery writes."""

    def __init__(self, pid: int, code: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._code = code

    def poll(self) -> int | None:
        """The exit code once it has ended."""
        if self.returncode is None and self._code.exists():
            self.returncode = int(self._code.read_text())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; raises subprocess.TimeoutExpired like Popen's."""
        give_up = time.monotonic() + (1e9 if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > give_up:
                raise subprocess.TimeoutExpired("forked process", timeout or 0.0)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Signals it while it runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and its code is on the way here
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL while it runs."""
        self.send_signal(signal.SIGKILL)


_MAKING = threading.Lock()


def shared_nursery() -> Nursery:
    """The nursery of this process's tests, which ends with them."""
    with _MAKING:  # threads of a test may ask at once
        return _made()


@cache
def _made() -> Nursery:
    nursery = Nursery()
    atexit.register(nursery.__enter__().__exit__)
    return nursery


def environment_of_processes(more: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that tests start: it finds Accord and the tests, and computes with one thread unless `more` says otherwise."""
    path = os.pathsep.join([str(ROOT / "services"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def _serve() -> None:
    """The nursery's process: a line for each start on stdin, process ids on stdout, until stdin ends."""
    for module in (*_WARM, *_STARTED):
        importlib.import_module(module)
    for module in _STARTED:
        del sys.modules[module]  # a child runs it as `__main__`
    gc.collect()
    gc.freeze()  # a collection in a child would copy all pages

    children: dict[int, Path] = {}
    read = b""
    while True:
        if select.select([0], [], [], 0.01)[0]:
            chunk = os.read(0, 2**16)
            if not chunk:
                break
            *lines, read = (read + chunk).split(b"\n")
            for line in lines:
                *asked, code = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    _become(*asked)
                    return
                children[pid] = Path(code)
                os.write(1, f"{pid}\n".encode())
        for pid in list(children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _write(children.pop(pid), os.waitstatus_to_exitcode(status))
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _write(code_file: Path, code: int) -> None:
    temporary = code_file.with_suffix(".part")
    temporary.write_text(str(code))
    temporary.rename(code_file)


def _become(module: str, arguments: list[str], log: str, folder: str, environment: dict[str, str]) -> None:
    """The child: its own log, folder and environment, nothing on stdin; from here on what `python -m` does, to the end of the interpreter."""
    with open(log, "ab") as out, open(os.devnull, "rb") as nothing:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        os.dup2(nothing.fileno(), 0)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    if module.endswith(".py"):
        sys.path.insert(0, str(Path(module).parent))
        runpy.run_path(module, run_name="__main__")
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _serve()
