"""A run of two processes as the launcher starts it: stopped, resumed; one of the two dies, or their parent; nothing hangs, nothing is left over."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.e2e.runs import TrainingRun
from tests.unit.training.ranked import on_ranks
from tests.unit.training.surroundings import make_context

from accord.launch.local import LocalLauncher
from accord.models.testing import tiny_model_folder
from accord.rundir import RunDirectory
from accord.training.distribution import World
from accord.training.ranks import GRACE_SECONDS

STEPS, EVERY = 30, 4
WORDS = ("alpha", "beta", "gamma", "delta", "omega", "kappa", "sigma", "theta", "lambda", "zeta", "iota", "tau")

SPEC: dict[str, Any] = {
    "steps": STEPS, "batch_size": 11, "micro_batch_size": 1, "checkpoint_every_steps": EVERY, "seed": 7, "max_prompt_tokens": 200,
    "max_response_tokens": 60, "lora": {"rank": 4}, "distribution": {"processes": 2, "strategy": "fsdp"}, "activation_checkpointing": True,
}  # fmt: skip

pytestmark = [pytest.mark.training, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    tiny_model_folder(folder / "model")
    rows = [{"prompt": f"say {word} " * 6, "chosen": word * (5 + n % 3), "rejected": word[::-1] * (4 + n % 4)} for n, word in enumerate(WORDS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run_of(root: Path, name: str) -> TrainingRun:
    return TrainingRun(root, name, root / "model", {**SPEC, "sft": {"data": {"uri": str(root / "rows.jsonl")}}})


class Launched:
    """A run under the local launcher; whatever is left of it is killed at the end."""

    def __init__(self, run: TrainingRun) -> None:
        self.run = run
        self.directory: RunDirectory = run.directory
        self.launcher = LocalLauncher(threads=1)

    def start(self) -> Launched:
        self.directory.clear_result()
        self.launcher.start(self.directory.path, 1)
        return self

    @property
    def pid(self) -> int:
        return int(json.loads((self.directory.path / "process.json").read_text())["pid"])

    def ranks(self) -> list[psutil.Process]:
        """Its processes by rank."""
        children = psutil.Process(self.pid).children()
        return sorted(children, key=lambda each: int(each.cmdline()[each.cmdline().index("--rank") + 1]))

    def until_step(self, step: int) -> None:
        give_up = time.monotonic() + 150
        while max((event.step for event in self.directory.events() if event.kind == "metrics"), default=0) < step:
            assert self.launcher.observe(self.directory.path).state == "running", self.directory.log.read_text()
            assert time.monotonic() < give_up, self.directory.log.read_text()
            time.sleep(0.02)

    def end(self, seconds: float = 150.0) -> int:
        give_up = time.monotonic() + seconds
        while (seen := self.launcher.observe(self.directory.path)).state == "running":
            assert time.monotonic() < give_up, self.directory.log.read_text()
            time.sleep(0.02)
        assert seen.exit_code is not None
        return seen.exit_code

    def close(self) -> None:
        self.launcher.stop(self.directory.path, force=True)


@pytest.fixture
def launched() -> Iterator[list[Launched]]:
    made: list[Launched] = []
    yield made
    for run in made:
        run.close()


def test_stopped_and_bereaved_it_publishes_the_bits_of_an_undisturbed_run(root: Path, launched: list[Launched]) -> None:
    """Sharded, with activations computed again: SIGTERM at the launcher's process, then one of two processes dies, then it runs to the end."""
    run = Launched(run_of(root, "disturbed"))
    launched.append(run.start())
    run.until_step(EVERY + 1)
    os.kill(run.pid, signal.SIGTERM)
    assert run.end() == 3, run.directory.log.read_text()
    result = run.directory.result()
    assert result is not None
    assert EVERY < result.step < STEPS
    assert (run.directory.checkpoints / f"{result.step:08d}" / "manifest.json").exists()
    run.start().until_step(result.step + 1)
    survivor, victim = run.ranks()
    victim.kill()
    killed = time.monotonic()
    assert run.end(GRACE_SECONDS + 30) == 1
    assert time.monotonic() - killed < GRACE_SECONDS + 20, "a busy machine; it takes a second"
    assert not survivor.is_running()
    lost = run.directory.result()
    assert lost is not None
    assert lost.message == "process 1 of 2 was ended by SIGKILL; the others were ended with it, and a resumed run goes on from its last checkpoint"
    run.start()
    straight = on_ranks(root, 2, _undisturbed, root)
    assert run.end() == 0, run.directory.log.read_text()
    assert run.run.published()["adapter_model.safetensors"] == straight[0]


def _undisturbed(world: World, root: Path) -> bytes:
    """The same run, not sharded, nothing computed twice: none of it changes a bit."""
    from accord.training.__main__ import build
    from accord.training.loop import train

    spec = {**SPEC, "sft": {"data": {"uri": str(root / "rows.jsonl")}}, "distribution": {"processes": 2}, "activation_checkpointing": False}
    context = make_context(root, root / "model", {**spec, "adapter": "straight"}, name="straight", world=world)
    version = train(context, build(context)).adapter_version
    return (context.store.fetch(version) / "adapter_model.safetensors").read_bytes()


def test_processes_go_with_the_one_that_started_them(root: Path, launched: list[Launched]) -> None:
    run = Launched(run_of(root, "orphans"))
    launched.append(run.start())
    give_up = time.monotonic() + 60
    while len(psutil.Process(run.pid).children()) < 2:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    time.sleep(1.0)
    children = psutil.Process(run.pid).children()
    os.kill(run.pid, signal.SIGKILL)  # the parent alone
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
