"""A run that learns nothing: `python -m tests.contract.fake_run RUN.yaml` keeps the promises of accord.training (events, checkpoints, result, SIGTERM,
exit codes) in milliseconds a step. What it does besides is in the specification's seed."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from accord.checkpoint import latest_checkpoint, write_checkpoint
from accord.rundir import EXIT_DONE, EXIT_STOPPED, RunDirectory, RunEvent, RunResult, read_run_file

PLAIN, HOLD, DEAF, BROKEN = 0, 1, 2, 3
"""Runs through; waits before its last step until `finish` is in its folder; also ignores SIGTERM; ends with code 7 at its second step."""
STEP_SECONDS, MOST_SECONDS = 0.015, 90.0
LAST_WORDS = "the learning rate has caught fire"


class FakeRun:
    """One process of the run."""

    def __init__(self, path: Path) -> None:
        self.run = read_run_file(path)
        self.directory = RunDirectory(path.parent)
        self.give_up = time.monotonic() + MOST_SECONDS
        self.stopped = False
        self.step = self.directory.progress().step
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self.stopped = self.run.spec.seed != DEAF

    def state(self, phase: str, waiting_on: str = "") -> None:
        self.directory.append_event(RunEvent("state", time.time(), self.step, phase=phase, waiting_on=waiting_on))

    def checkpoint(self, step: int) -> None:
        self.state("checkpoint")

        def fill(folder: Path) -> None:
            (folder / "adapter").mkdir()
            (folder / "adapter" / "adapter_config.json").write_text("{}")
            (folder / "adapter" / "adapter_model.safetensors").write_bytes(step.to_bytes(8, "little"))

        publish = {"kind": "policy", "base_model_digest": "ab" * 32, "tokenizer_digest": "cd" * 32, "data_digest": "ef" * 32, "facts": {"fake": True}}
        write_checkpoint(self.directory.checkpoints, step, fill, spec=self.run.spec.learning_values, state={}, publish=publish)
        self.state("train")

    def work(self) -> RunResult:
        spec = self.run.spec
        found = latest_checkpoint(self.directory.checkpoints, spec=spec.learning_values, report=print)
        self.step = found.step if found is not None else 0
        self.directory.append_event(RunEvent("message", time.time(), text=f"begins after step {self.step}"))
        self.state("train")
        while self.step < spec.steps:
            if self.stopped:
                self.checkpoint(self.step)
                return RunResult(EXIT_STOPPED, f"stopped on request after step {self.step}, with a checkpoint", self.step)
            if spec.seed == BROKEN and self.step == 1:
                sys.stderr.write(LAST_WORDS + "\n")
                os._exit(7)
            if self.step == spec.steps - 1 and self._held():
                time.sleep(STEP_SECONDS)
                continue
            time.sleep(STEP_SECONDS)
            self.step += 1
            self.directory.append_event(RunEvent("metrics", time.time(), self.step, values={"loss": 1 / self.step, "pid": os.getpid()}))
            if spec.checkpoint_every_steps and self.step % spec.checkpoint_every_steps == 0:
                self.checkpoint(self.step)
        return RunResult(EXIT_DONE, f"{self.step} steps done", self.step, adapter_version="adapters/fake/versions/1", metrics={"loss": 1 / self.step})

    def _held(self) -> bool:
        if time.monotonic() > self.give_up:
            raise SystemExit("nobody let this run finish")
        return self.run.spec.seed in (HOLD, DEAF) and not (self.directory.path / "finish").exists()


def main() -> int:
    fake = FakeRun(Path(sys.argv[1]))
    result = fake.work()
    fake.directory.write_result(result)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
