"""Training runs as processes of their own, for tests that kill them: start, watch the event file, signal, compare what was published.

A run is started as the launcher starts it, `python -m accord.training`, or forked from the nursery of these tests, seconds earlier.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.nursery import Process, environment_of_processes, shared_nursery

from accord.artefacts.store import ArtefactStore
from accord.rundir import Endpoints, RunDirectory, RunEvent, RunFile, RunResult
from accord.runspec import parse_spec

PATIENCE_SECONDS = 90.0
TIMINGS = ("seconds", "seconds_rollout", "seconds_score", "seconds_train", "seconds_evaluate", "seconds_checkpoint", "tokens_per_second")


class TrainingRun:
    """A run directory and the process that works on it; `start` again resumes the run.

    Args:
        root: below which the run's folder and the artefact store lie.
        name: of the run.
        spec: the specification; its adapter is named like the run.
        forked: from the nursery; else `python -m accord.training` is started.
    """

    def __init__(
        self, root: Path, name: str, model: Path, spec: Mapping[str, Any], *, endpoints: Endpoints | None = None, wait_seconds: float = 60.0,
        forked: bool = True,
    ) -> None:  # fmt: skip
        self.directory = RunDirectory(root / name)
        self.store = ArtefactStore(str(root / "artefacts"))
        self.directory.write_run_file(
            RunFile(
                name=f"runs/{name}", artefacts=str(root / "artefacts"), base_model=str(model), threads=1, endpoints=endpoints or Endpoints(),
                wait_seconds=wait_seconds, spec=parse_spec({**spec, "adapter": name}),
            )
        )  # fmt: skip
        self._forked = forked
        self._process: Process | None = None
        self._offset = 0

    def start(self) -> TrainingRun:
        """Starts the process; the events of earlier ones are behind us."""
        self.directory.clear_result()
        self._offset = self.directory.events_path.stat().st_size if self.directory.events_path.exists() else 0
        config = self.directory.path / "run.yaml"
        if self._forked:
            self._process = shared_nursery().start("accord.training", ["--config", str(config)], self.directory.log)
            return self
        with self.directory.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "accord.training", "--config", str(config)], stdout=log, stderr=log,
                env=environment_of_processes({}),
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
