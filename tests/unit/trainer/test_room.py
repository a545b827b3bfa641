"""Memory that runs of this machine can have: limits of a container count, and two runs are not promised the same bytes."""

from __future__ import annotations

import errno
import functools
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.launch.orders import run_file

from accord.launch import local, memory
from accord.launch.launcher import Observation
from accord.launch.local import LocalLauncher
from accord.launch.processes import ProcessId
from accord.models.testing import tiny_model_folder
from accord.rundir import RunDirectory
from accord.runspec import RunSpec, parse_spec
from accord.trainer import planner, supervisor
from accord.trainer.config import TrainerConfig
from accord.trainer.model_folder import find_model_folder
from accord.trainer.planner import available_bytes, plan_memory, room_for
from accord.trainer.registry import Registry
from accord.trainer.supervisor import Supervisor

SPEC = parse_spec({"adapter": "a", "steps": 2, "max_response_tokens": 60, "sft": {"data": {"uri": "sample:summarization"}}})


@pytest.fixture
def config(tmp_path: Path) -> TrainerConfig:
    model = tiny_model_folder(tmp_path / "model")
    return TrainerConfig(
        runs=str(tmp_path / "runs"), database=f"sqlite:///{tmp_path}/registry.sqlite", artefacts=str(tmp_path / "artefacts"), base_model=str(model),
        max_running=2, stop_grace_seconds=0.0,
    )  # fmt: skip


def test_the_limit_of_a_container_is_what_a_run_can_have(tmp_path: Path, config: TrainerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2 of control groups, in a container whose own group is the root of what it sees."""
    (tmp_path / "memory.max").write_text(f"{2**20}\n")
    (tmp_path / "memory.current").write_text(f"{2**19}\n")
    (tmp_path / "self").write_text("0::/\n")
    grouped = functools.partial(memory.cgroup_free_bytes, tmp_path, tmp_path / "self")
    monkeypatch.setattr(memory, "cgroup_free_bytes", grouped)
    assert available_bytes(config, SPEC) == 2**19
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(config, SPEC) > 2**19


class World:
    """A trainer without its server; runs are processes that sleep."""

    def __init__(self, config: TrainerConfig) -> None:
        self.registry, self.config = Registry(config.database), config
        self.launcher = LocalLauncher(("sh", "-c", "sleep 100", "run"), threads=1, room=room_for(config))
        self.supervisor = Supervisor(self.registry, self.launcher, config)
        self.folders: dict[str, Path] = {}

    def create(self, name: str, spec: RunSpec = SPEC) -> None:
        self.folders[name] = Path(self.config.runs) / name
        self.registry.create(f"runs/{name}", name, spec, str(self.folders[name]))

    def states(self) -> dict[str, str]:
        return {name: self.registry.get(f"runs/{name}").state for name in self.folders}

    def close(self) -> None:
        for folder in self.folders.values():
            self.launcher.stop(folder, force=True)
        self.registry.close()


@pytest.fixture
def world(config: TrainerConfig) -> Iterator[World]:
    made = World(config)
    yield made
    made.close()


def test_two_runs_are_not_promised_the_same_memory(world: World, config: TrainerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    peak = plan_memory(SPEC, find_model_folder(config, SPEC), 2**50).peak_bytes
    monkeypatch.setattr(planner, "available_bytes", lambda config, spec: round(1.5 * peak))
    monkeypatch.setattr(local, "_ASK_AGAIN_SECONDS", 0.0)
    for name in ("one", "two"):
        world.create(name)
    for _ in range(3):
        world.supervisor.tick()
    assert world.states() == {"one": "STARTING", "two": "QUEUED"}
    waiting = world.registry.get("runs/two")
    assert waiting.message.startswith("memory: the run needs about ")
    assert "MiB that runs in progress may still take: process 470 MiB (" in waiting.message
    assert waiting.attempts == 0
    world.supervisor.cancel("runs/one")
    for _ in range(200):
        time.sleep(0.05)
        world.supervisor.tick()
        if world.states()["two"] == "STARTING":
            break
    assert world.states() == {"one": "CANCELLED", "two": "STARTING"}
    assert world.registry.get("runs/two").attempts == 1


def test_what_a_run_waits_for_is_said_once_and_the_plan_made_seldom(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter(range(1, 100))
    monkeypatch.setattr(planner, "available_bytes", lambda config, spec: next(free))
    world.create("one")
    for _ in range(5):
        world.supervisor.tick()
    assert next(free) == 2, "asked once"
    said = [event.text for event in RunDirectory(world.folders["one"]).events() if event.kind == "message"]
    assert len(said) == 1
    assert said[0].startswith("waits for memory: the run needs about ")


def test_a_queued_run_says_whose_turn_it_is_and_writes_it_once(config: TrainerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(config.model_copy(update={"max_running": 1}))
    try:
        for name in ("one", "two", "three"):
            world.create(name)
        world.supervisor.tick()
        words = "waits for its turn: 1 run at once (max_running), runs/{} is before it"
        assert [world.registry.get(f"runs/{name}").message for name in world.folders] == ["", words.format("one"), words.format("two")]
        written: list[str] = []
        update = world.registry.update
        monkeypatch.setattr(world.registry, "update", lambda record, **values: written.append(record.name) or update(record, **values))
        for _ in range(3):
            world.supervisor.tick()
        assert set(written) <= {"runs/one"}, "it has been said"
        world.supervisor.cancel("runs/two")
        world.supervisor.tick()
        assert world.registry.get("runs/three").message == words.format("one")
        world.launcher.stop(world.folders["one"], force=True)
        for _ in range(200):
            time.sleep(0.05)
            world.supervisor.tick()
            if world.states()["three"] == "STARTING":
                break
        assert (world.states()["three"], world.registry.get("runs/three").message) == ("STARTING", "")
    finally:
        world.close()


def test_a_launcher_without_a_plan_starts_all(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.write_run_file(run_file())
    launcher = LocalLauncher(("sh", "-c", "sleep 100", "run"), threads=1)
    launcher.start(directory.path, 1)
    assert launcher.observe(directory.path).state == "running"
    launcher.stop(directory.path, force=True)


def test_a_process_that_cannot_be_written_down_is_not_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when process.json is to be written: the run ends, and so does its process."""

    def refuse(directory: Path, process: ProcessId, attempt: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local, "_write", refuse)
    world.launcher = LocalLauncher(("sh", "-c", "sleep 100", "run"), threads=1)
    world.supervisor = Supervisor(world.registry, world.launcher, world.config)
    world.create("one")
    world.supervisor.tick()
    found = world.registry.get("runs/one")
    assert (found.state, found.message) == ("FAILED", "it could not be started: [Errno 28] No space left on device")
    deadline = time.monotonic() + 10
    while (seen := world.launcher.observe(world.folders["one"])).state == "running" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert seen == Observation("ended", -signal.SIGKILL)


def test_a_run_whose_files_cannot_be_read_fails_after_a_minute_and_its_process_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not before: what cannot be read for a moment (a network's file system) is read again, and the run goes on."""
    observe, away = world.launcher.observe, OSError(errno.ESTALE, "Stale file handle")

    def refuse(directory: Path) -> Observation:
        raise away

    clock = [1000.0]
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: clock[0])
    world.create("one")
    world.supervisor.tick()
    monkeypatch.setattr(world.launcher, "observe", refuse)
    for seconds in (0.0, 59.0):
        clock[0] += seconds
        world.supervisor.tick()
        found = world.registry.get("runs/one")
        assert (found.state, found.message) == ("STARTING", "its directory cannot be read: [Errno 116] Stale file handle")
    monkeypatch.setattr(world.launcher, "observe", observe)
    world.supervisor.tick()
    assert (world.states(), world.registry.get("runs/one").message) == ({"one": "STARTING"}, "")
    monkeypatch.setattr(world.launcher, "observe", refuse)
    for seconds in (30.0, 59.0):
        clock[0] += seconds
        world.supervisor.tick()
        assert world.states() == {"one": "STARTING"}
    clock[0] += 1.0
    world.supervisor.tick()
    assert world.states() == {"one": "FAILED"}
    give_up = time.time() + 10
    while observe(world.folders["one"]).state != "ended":  # nobody looks after an ended run's process
        assert time.time() < give_up
        time.sleep(0.02)
