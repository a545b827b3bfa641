"""Training runs as processes of their own, for tests that kill them: start, watch the event file, signal, compare what was published.

A run is started as the launcher starts it, `python -m accord.training`, or forked from a `Nursery`, a process that has imported torch
already: the same `main` with the same arguments in a process of its own, four seconds earlier.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from accord.artefacts.store import ArtefactStore
from accord.rundir import Endpoints, RunDirectory, RunEvent, RunFile, RunResult
from accord.runspec import parse_spec

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 90.0
WARM = (
    *(f"accord.training.{name}" for name in ("loop", "sft", "reward_model", "dpo", "ppo", "groups", "online_dpo")),
    "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto", "peft.tuners.lora", "accord.artefacts.store",
)  # fmt: skip
TIMINGS = ("seconds", "seconds_rollout", "seconds_score", "seconds_train", "seconds_evaluate", "seconds_checkpoint", "tokens_per_second")


class Process(Protocol):
    """What a test does with a process."""

    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int) -> None: ...


class Nursery:
    """A process that has imported what a training run needs, and forks one for each run."""

    def __enter__(self) -> Nursery:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env={**os.environ, "PYTHONPATH": str(ROOT / "services"), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # it kills its children and ends
        self._process.wait(30)

    def start(self, config: Path, log: Path) -> Child:
        """A run's process."""
        exit_file = log.with_name(f"exit-{time.monotonic_ns()}")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(config), str(log), str(exit_file)]) + "\n")
        return Child(int(self._process.stdout.readline()), exit_file)


class Child:
    """A forked run; its exit code is in a file that the nursery writes."""

    def __init__(self, pid: int, exit_file: Path) -> None:
        self.pid = pid
        self._exit_file = exit_file
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code once it has ended."""
        if self.returncode is None and self._exit_file.exists():
            self.returncode = int(self._exit_file.read_text())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code."""
        give_up = time.monotonic() + (timeout or 1e9)
        while (code := self.poll()) is None:
            if time.monotonic() > give_up:
                raise subprocess.TimeoutExpired("run", timeout or 0.0)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Signals it while it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


class TrainingRun:
    """A run directory and the process that works on it; `start` again resumes the run.

    Args:
        root: below which the run's folder and the artefact store lie.
        name: of the run.
        spec: the specification; its adapter is named like the run.
        nursery: forks the process; None starts `python -m accord.training`.
    """

    def __init__(
        self, root: Path, name: str, model: Path, spec: Mapping[str, Any], *, endpoints: Endpoints | None = None, wait_seconds: float = 60.0,
        nursery: Nursery | None = None,
    ) -> None:  # fmt: skip
        self.directory = RunDirectory(root / name)
        self.store = ArtefactStore(str(root / "artefacts"))
        self.directory.write_run_file(
            RunFile(
                name=f"runs/{name}", artefacts=str(root / "artefacts"), base_model=str(model), threads=1, endpoints=endpoints or Endpoints(),
                wait_seconds=wait_seconds, spec=parse_spec({**spec, "adapter": name}),
            )
        )  # fmt: skip
        self._nursery = nursery
        self._process: Process | None = None
        self._offset = 0

    def start(self) -> TrainingRun:
        """Starts the process; the events of earlier ones are behind us."""
        self.directory.clear_result()
        self._offset = self.directory.events_path.stat().st_size if self.directory.events_path.exists() else 0
        config = self.directory.path / "run.yaml"
        if self._nursery is not None:
            self._process = self._nursery.start(config, self.directory.log)
            return self
        with self.directory.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "accord.training", "--config", str(config)], stdout=log, stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT / "services"), "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        return self

    def events(self) -> list[RunEvent]:
        """What this process has said so far."""
        return list(self.directory.events(self._offset))

    def last_step(self) -> int:
        """The last step whose metrics this process has written."""
        return max((event.step for event in self.events() if event.kind == "metrics"), default=0)

    def until(self, happened: Callable[[], Any]) -> Any:
        """Waits for something while the process runs; fails with its log where it ends before or takes too long."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not (value := happened()):
            assert self._process is not None
            assert self._process.poll() is None, f"ended with {self._process.returncode}:\n{self.directory.log.read_text()}"
            assert time.monotonic() < give_up, f"nothing of the kind in {PATIENCE_SECONDS} s:\n{self.directory.log.read_text()}"
            time.sleep(0.004)
        return value

    def send(self, number: signal.Signals) -> int:
        """Signals the process and returns its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """The exit code."""
        assert self._process is not None
        try:
            return self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.close()
            raise AssertionError(f"still running after {PATIENCE_SECONDS} s:\n{self.directory.log.read_text()}") from None

    def finish(self) -> RunResult:
        """Waits for a good end and returns the result."""
        assert self.wait() == 0, self.directory.log.read_text()
        result = self.directory.result()
        assert result is not None
        return result

    def close(self) -> None:
        """Kills what still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)

    def published(self) -> dict[str, bytes]:
        """The files of the newest version, its manifest left out: that names the run."""
        version = self.store.latest(self.directory.path.name)
        assert version is not None
        return {path.name: path.read_bytes() for path in self.store.fetch(version).iterdir() if path.name != "manifest.json"}

    def curve(self) -> dict[int, dict[str, float]]:
        """Metrics by step, timings left out; of a step that was done twice, the later ones."""
        found: dict[int, dict[str, float]] = {}
        for event in self.directory.events():
            if event.kind == "metrics":
                found.setdefault(event.step, {}).update({name: value for name, value in event.values.items() if name not in TIMINGS})
        return found


def kill_between_checkpoints(run: TrainingRun, *, after_step: int, before_step: int) -> bool:
    """SIGKILL once a step is done; whether it came before the next checkpoint's step, as it should."""
    run.until(lambda: run.last_step() >= after_step)
    assert run.send(signal.SIGKILL) == -signal.SIGKILL
    assert run.directory.result() is None, "a killed process writes no result"
    return run.last_step() < before_step


def stop_and_resume(run: TrainingRun, *, after_step: int, steps: int) -> None:
    """SIGTERM once a step is done: exit code 3 behind a checkpoint of the last finished step."""
    run.until(lambda: run.last_step() >= after_step)
    assert run.send(signal.SIGTERM) == 3, run.directory.log.read_text()
    result = run.directory.result()
    assert result is not None
    assert result.exit_code == 3
    assert after_step <= result.step < steps, "the stop came too late to show anything"
    assert (run.directory.checkpoints / f"{result.step:08d}" / "manifest.json").exists()
    assert f"after step {result.step}, with a checkpoint" in result.message


def _serve() -> None:
    """The nursery's process: lines of [run file, log, exit file] on stdin, process ids on stdout, until stdin ends."""
    from accord.training.__main__ import main

    for module in WARM:
        importlib.import_module(module)

    children: dict[int, str] = {}
    while True:
        if select.select([sys.stdin], [], [], 0.01)[0]:
            line = sys.stdin.readline()
            if not line:
                break
            config, log, exit_file = json.loads(line)
            pid = os.fork()
            if pid == 0:
                _run(main, config, log)
            children[pid] = exit_file
            sys.stdout.write(f"{pid}\n")
            sys.stdout.flush()
        for pid in list(children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                written = Path(children.pop(pid))
                temporary = written.with_suffix(".part")
                temporary.write_text(str(os.waitstatus_to_exitcode(status)))
                temporary.rename(written)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _run(main: Callable[[list[str]], int], config: str, log: str) -> None:
    """The child: its own log, nothing on stdin, and the exit code that `python -m` would have."""
    code = 1
    try:
        with open(log, "ab") as out, open(os.devnull, "rb") as nothing:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            os.dup2(nothing.fileno(), 0)
        code = main(["--config", config])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
