"""The state of a run that goes on for long: what it said last counts, however many events and hours ago that was."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.launch.orders import run_file

from accord.launch.launcher import Observation
from accord.rundir import RunDirectory, RunEvent
from accord.trainer.config import TrainerConfig
from accord.trainer.registry import Registry
from accord.trainer.supervisor import Supervisor

METRICS = {f"metric_{number}": number / 7 for number in range(16)}  # a line of 400 bytes, as of a run


class Machine:
    """Starts nothing, and shows of each run what the test says."""

    def __init__(self) -> None:
        self.seen = Observation("running")

    def start(self, directory: Path, attempt: int) -> None: ...
    def forget(self, directory: Path) -> None: ...
    def stop(self, directory: Path, *, force: bool) -> None: ...
    def close(self) -> None: ...

    def observe(self, directory: Path) -> Observation:
        return self.seen

    def log(self, directory: Path) -> bytes:
        return b""

    def fault(self) -> str | None:
        return None


class World:
    """A registry with one run that has started, and a supervisor that looks when it is told to."""

    def __init__(self, folder: Path) -> None:
        places = {"runs": str(folder / "runs"), "artefacts": str(folder / "artefacts"), "database": f"sqlite:///{folder}/registry.sqlite"}
        self.config = TrainerConfig.model_validate(places)
        self.registry, self.machine = Registry(self.config.database), Machine()
        self.directory = RunDirectory(folder / "runs" / "one")
        self.registry.create("runs/one", "request", run_file().spec, str(self.directory.path))
        self.restart()
        assert self.look() == "STARTING"

    def restart(self) -> None:
        self.supervisor = Supervisor(self.registry, self.machine, self.config)

    def look(self) -> str:
        self.supervisor.tick()
        return self.registry.get("runs/one").state

    def phase(self, phase: str) -> None:
        self.directory.append_event(RunEvent("state", time.time() + 0.001, phase=phase))

    def steps(self, first: int, last: int) -> None:
        """Steps with their metrics and heartbeats in between, as a run writes them."""
        with self.directory.events_path.open("a") as file:
            file.writelines(_line(step) for step in range(first, last + 1))


def _line(step: int) -> str:
    values = ", ".join(f'"{name}": {value!r}' for name, value in METRICS.items())
    now = time.time()
    return f'{{"kind": "metrics", "time": {now}, "step": {step}, "values": {{{values}}}}}\n{{"kind": "heartbeat", "time": {now}, "step": {step}}}\n'


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.registry.close()


def test_a_run_of_many_steps_stays_running_until_it_says_otherwise(world: World) -> None:
    world.phase("train")
    assert world.look() == "RUNNING"
    for first in range(1, 1000, 250):
        world.steps(first, first + 249)
        assert world.look() == "RUNNING"
    assert world.directory.events_path.stat().st_size > 2**18
    world.phase("checkpoint")
    assert world.look() == "CHECKPOINTING"


def test_a_trainer_that_comes_back_finds_the_phase_that_was_said_long_ago(world: World) -> None:
    world.phase("train")
    world.steps(1, 1000)
    world.restart()
    assert world.look() == "RUNNING"


def test_a_new_attempt_is_starting_whatever_the_one_before_it_said_last(world: World) -> None:
    world.phase("train")
    world.steps(1, 10)
    assert world.look() == "RUNNING"
    world.registry.update(world.registry.get("runs/one"), state="STARTING", start_time=time.time() + 60)
    assert world.look() == "STARTING"


def test_a_cancelled_run_of_many_steps_that_is_killed_was_not_cancelled_before_it_started(world: World) -> None:
    world.phase("train")
    world.steps(1, 1000)
    world.look()
    world.supervisor.cancel("runs/one")
    world.machine.seen = Observation("unknown")
    assert world.look() == "CANCELLED"
    assert world.registry.get("runs/one").message == "it stopped without a checkpoint of its last step"


def test_of_the_events_those_are_read_that_have_come_since_the_last_look(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.phase("train")
    world.steps(1, 100)
    world.look()
    asked: list[int] = []
    events = RunDirectory.events
    monkeypatch.setattr(RunDirectory, "events", lambda self, offset=0: (asked.append(offset), events(self, offset))[1])
    read = world.directory.events_path.stat().st_size
    world.steps(101, 110)
    world.look()
    assert asked == [read]
