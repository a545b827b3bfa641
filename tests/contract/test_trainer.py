"""The trainer server in a process of its own: runs that are created once, watched, cancelled and resumed, and that outlive it however it ends."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from safetensors.numpy import load_file
from tests.contract import tiny
from tests.contract.entries import TRAINER
from tests.contract.fake_run import BROKEN, DEAF, HOLD, LAST_WORDS, PLAIN
from tests.contract.harness import ServerProcess, eventually

from accord.api.trainer.v1 import trainer_pb2 as pb
from accord.api.trainer.v1 import trainer_pb2_grpc as rpc
from accord.client.trainer import Run, RunEvent, TrainerClient
from accord.errors import (
    AccordError,
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from accord.launch.launcher import Observation
from accord.launch.local import LocalLauncher
from accord.rpc.channels import ChannelConfig
from accord.rpc.stubs import guard_stub
from accord.rundir import EXIT_STOPPED, RunDirectory
from accord.runspec import RunSpec, parse_spec
from accord.trainer.config import TrainerConfig
from accord.trainer.registry import Registry
from accord.trainer.supervisor import Supervisor

FAKE = (sys.executable, "-m", "tests.contract.fake_run")
PARENT = f"adapters/{tiny.POLICIES[0]}"  # of rank 4


def spec(steps: int = 3, seed: int = PLAIN, **fields: Any) -> RunSpec:
    data = {"uri": str(tiny.small_dataset())}
    values = {
        "adapter": "fake",
        "steps": steps,
        "seed": seed,
        "checkpoint_every_steps": 1,
        "batch_size": 4,
        "checkpoints_kept": 1000,
        "sft": {"data": data},
    }
    return parse_spec(values | fields)


class Trainer:
    """A trainer whose runs are fakes, and everything that it leaves behind; a second one on the same folder is the same trainer restarted."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.folder = folder
        self.config = {**TRAINER.config(folder), "command": list(FAKE), "max_running": 4, **config}
        self.server = ServerProcess(TRAINER.module, self.config, folder)
        self.client: TrainerClient

    def __enter__(self) -> Trainer:
        self.server.__enter__()
        self.client = TrainerClient(ChannelConfig(address=self.server.address, attempts=1))
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.kill()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        self.server.signal(number)
        self.server.wait(20)

    def until(self, name: str, *states: str, seconds: float = 30) -> Run:
        """The run once it is in one of the states."""
        run: Run = eventually(lambda: (found := self.client.get_run(name)).state in states and found, timeout_seconds=seconds)
        return run

    def until_step(self, name: str, step: int) -> Run:
        run: Run = eventually(lambda: (found := self.client.get_run(name)).step >= step and found, timeout_seconds=30)
        return run

    def finish(self, run: Run) -> None:
        """Lets a run that holds do its last step."""
        (Path(run.directory) / "finish").touch()


def process_of(run: Run) -> int:
    return int(json.loads((Path(run.directory) / "process.json").read_text())["pid"])


def lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def steps_of(run: Run) -> list[int]:
    return [event.step for event in RunDirectory(run.directory).events() if event.kind == "metrics"]


def end_runs(folder: Path) -> None:
    """Runs outlive servers, so tests must end those that they leave."""
    for file in folder.rglob("process.json"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(json.loads(file.read_text())["pid"]), signal.SIGKILL)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    folder = tmp_path_factory.mktemp("trainer")
    with Trainer(folder) as started:
        yield started
    end_runs(folder)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Trainer]]:
    """A function that starts a trainer of the test's own; called again, the same one restarted."""
    yield lambda **config: Trainer(tmp_path, **config)
    end_runs(tmp_path)


def names(trainer: Trainer) -> list[str]:
    return [run.name for run in trainer.client.list_runs()]


def refused(call: Callable[[], object]) -> AccordError:
    with pytest.raises(AccordError) as caught:
        call()
    return caught.value


# Creating


def test_a_request_id_makes_one_run_however_often_it_is_sent(trainer: Trainer) -> None:
    first = trainer.client.create_run(spec(), "once")
    again = trainer.client.create_run(spec(), "once")
    assert again.name == first.name
    ended = trainer.until(first.name, "succeeded")
    assert trainer.client.create_run(spec(), "once") == ended
    assert [run.name for run in trainer.client.list_runs()].count(first.name) == 1
    assert ended.attempts == 1
    error = refused(lambda: trainer.client.create_run(spec(steps=4), "once"))
    assert (type(error), error.field) == (AlreadyExistsError, "request_id")
    assert "'once'" in error.message
    assert trainer.client.get_run(first.name).spec.steps == 3
    assert trainer.client.create_run(spec(), "twice").name != first.name


def test_validating_creates_nothing(trainer: Trainer) -> None:
    before = names(trainer)
    checked = trainer.client.create_run(spec(), "only-checked", validate_only=True)
    assert (checked.name, checked.total_steps, checked.state) == ("", 3, "unspecified")
    error = refused(lambda: trainer.client.create_run(spec(parent_adapter="adapters/nobody"), "only-checked", validate_only=True))
    assert (type(error), error.field) == (NotFoundError, "spec.parent_adapter")
    error = refused(lambda: trainer.client.create_run(spec(distribution={"strategy": "fsdp"}), "only-checked", validate_only=True))
    assert (type(error), error.field) == (InvalidArgumentError, "spec.distribution.processes")
    assert "must be at least 2 where the run has one node" in error.message
    assert names(trainer) == before
    assert trainer.client.create_run(spec(steps=5), "only-checked").total_steps == 5


def test_a_run_that_samples_more_than_its_services_read_or_give_is_refused(trainer: Trainer) -> None:
    """Prompts of 30 tokens, responses of 9 and an end are the 40 that the reward model reads."""
    ppo = {"data": {"uri": str(tiny.small_dataset())}, "reward_model": f"adapters/{tiny.SHORT_REWARD_MODEL}"}
    values = {"adapter": "fake", "steps": 1, "batch_size": 4, "max_prompt_tokens": 30, "ppo": ppo}

    def create(tokens: int) -> Run:
        return trainer.client.create_run(parse_spec({**values, "max_response_tokens": tokens}), "long", validate_only=True)

    assert create(9).total_steps == 1
    for tokens, field, words in ((10, "spec.ppo.reward_model", "reads at most 40 tokens"), (8193, "spec.max_response_tokens", "at most 8192")):
        error = refused(lambda tokens=tokens: create(tokens))
        assert (type(error), error.field) == (InvalidArgumentError, field)
        assert words in error.message


def test_a_run_tells_what_it_is_and_how_it_went(trainer: Trainer) -> None:
    asked = spec(steps=4)
    created = trainer.client.create_run(asked, "told")
    assert created.name.startswith("runs/fake-sft-")
    run = trainer.until(created.name, "succeeded")
    assert run.spec == asked
    assert (run.step, run.total_steps, run.attempts, run.exit_code) == (4, 4, 1, 0)
    assert (run.message, run.adapter_version, run.metrics["loss"]) == ("4 steps done", "adapters/fake/versions/1", 0.25)
    assert run.create_time is not None
    assert run.start_time is not None
    assert run.end_time is not None
    assert run.create_time <= run.start_time < run.end_time
    assert run.ended
    error = refused(lambda: trainer.client.get_run("runs/nobody"))
    assert (type(error), error.field) == (NotFoundError, "name")


# Listing


def test_a_list_comes_in_pages_newest_first_whatever_is_created_meanwhile(trainer: Trainer) -> None:
    names = [trainer.client.create_run(spec(steps=1), f"listed-{number}").name for number in range(5)]
    with trainer.server.channel() as channel:
        stub = guard_stub(rpc.TrainerServiceStub(channel), 20)
        seen: list[str] = []
        token = ""
        for page in itertools.count():
            reply = stub.ListRuns(pb.ListRunsRequest(page_size=2, page_token=token))
            assert len(reply.runs) <= 2
            seen += [run.name for run in reply.runs]
            token = reply.next_page_token
            if not token or page > 100:
                break
            trainer.client.create_run(spec(steps=1), f"listed-meanwhile-{page}")
        error = refused(lambda: stub.ListRuns(pb.ListRunsRequest(page_token="bm90IG1pbmU=")))
    assert (type(error), error.field) == (InvalidArgumentError, "page_token")
    assert seen[:5] == names[::-1]
    assert len(seen) == len(set(seen))
    assert not [name for name in seen if "meanwhile" in name]
    everything = [run.name for run in trainer.client.list_runs()]
    assert everything[-len(seen) :] == seen


def test_a_list_can_be_of_some_states(trainer: Trainer) -> None:
    held = trainer.client.create_run(spec(seed=HOLD), "of-some-state")
    trainer.until_step(held.name, 2)
    trainer.until(held.name, "running")  # steps are read from the run's folder, the state at the next look of the supervisor
    running = trainer.client.list_runs(states=("running", "checkpointing"))
    assert held.name in [run.name for run in running]
    assert {run.state for run in running} <= {"running", "checkpointing"}
    assert held.name not in [run.name for run in trainer.client.list_runs(states=("succeeded", "failed"))]
    trainer.finish(held)
    trainer.until(held.name, "succeeded")
    assert held.name in [run.name for run in trainer.client.list_runs(states=("succeeded",), limit=1)]


# Watching


def test_a_watch_tells_every_step_and_ends_with_the_run(trainer: Trainer) -> None:
    name = trainer.client.create_run(spec(steps=8), "watched").name
    events = list(trainer.client.watch_run(name, timeout_seconds=30))
    assert [event.step for event in events if event.metrics is not None] == list(range(1, 9))
    assert [event.metrics["loss"] for event in events if event.metrics is not None] == [1 / step for step in range(1, 9)]
    assert "begins after step 0" in [event.message for event in events]
    phases = {event.run.phase for event in events if event.run is not None}
    assert {"train", "checkpoint"} <= phases
    assert events[-1].run is not None
    assert events[-1].run.state == "succeeded"
    late = list(trainer.client.watch_run(name, timeout_seconds=30))
    assert [event.step for event in late if event.metrics is not None] == list(range(1, 9))


def test_a_resume_token_goes_on_behind_its_event(trainer: Trainer) -> None:
    name = trainer.client.create_run(spec(steps=6), "watched-again").name
    seen: list[RunEvent] = []
    for event in trainer.client.watch_run(name, timeout_seconds=30):
        seen.append(event)
        if event.step == 2 and event.metrics is not None:
            break
    rest = list(trainer.client.watch_run(name, resume_token=seen[-1].resume_token, timeout_seconds=30))
    assert [event.step for event in [*seen, *rest] if event.metrics is not None] == list(range(1, 7))
    error = refused(lambda: list(trainer.client.watch_run(name, resume_token="not mine")))
    assert (type(error), error.field) == (InvalidArgumentError, "resume_token")
    error = refused(lambda: list(trainer.client.watch_run("runs/nobody")))
    assert (type(error), error.field) == (NotFoundError, "name")


def test_a_watch_outlives_the_servers_deadlines_and_says_that_the_run_is_quiet(start: Callable[..., Trainer]) -> None:
    with start(server={"default_deadline_seconds": 2.0, "max_deadline_seconds": 2.0}) as trainer, trainer.server.channel() as channel:
        run = trainer.client.create_run(spec(seed=HOLD), "quiet")
        stream = rpc.TrainerServiceStub(channel).WatchRun(pb.WatchRunRequest(name=run.name))
        beat = next(event for event in stream if event.WhichOneof("event") == "heartbeat")
        assert beat.heartbeat.idle_seconds > 4
        trainer.finish(run)
        assert list(stream)[-1].run.state == pb.RUN_STATE_SUCCEEDED


def test_who_follows_a_queued_run_is_told_whose_turn_it_is(start: Callable[..., Trainer]) -> None:
    with start(max_running=1) as trainer:
        holding = trainer.client.create_run(spec(seed=HOLD), "holds")
        trainer.until(holding.name, "running")
        queued = trainer.client.create_run(spec(seed=HOLD, adapter="next"), "queued")
        stream = trainer.client.watch_run(queued.name, timeout_seconds=30)
        told = next(event.run for event in stream if event.run is not None and event.run.waiting_on)
        assert (told.state, told.waiting_on) == ("queued", f"its turn: 1 run at once (max_running), {holding.name} is before it")
        trainer.finish(holding)
        begun = next(event.run for event in stream if event.run is not None and event.run.state == "running")
        assert begun.waiting_on == ""
        trainer.finish(queued)


# Cancelling and resuming


def test_a_cancelled_run_writes_a_checkpoint_and_goes_on_from_it_when_resumed(trainer: Trainer) -> None:
    asked = spec(steps=100, checkpoint_every_steps=0)
    name = trainer.client.create_run(asked, "cancelled").name
    trainer.until_step(name, 2)
    assert trainer.client.list_checkpoints(name) == ()
    assert trainer.client.cancel_run(name).state in ("cancelling", "cancelled")
    run = trainer.until(name, "cancelled")
    (checkpoint,) = trainer.client.list_checkpoints(name)
    assert (run.exit_code, run.step, checkpoint.whole) == (3, checkpoint.step, True)
    assert run.message == f"stopped on request after step {run.step}, with a checkpoint"
    assert 2 <= run.step < 100
    assert trainer.client.cancel_run(name) == run, "cancelling what has ended is no error"
    assert trainer.client.resume_run(name).state == "queued"
    error = refused(lambda: trainer.client.resume_run(name))
    assert type(error) is FailedPreconditionError
    done = trainer.until(name, "succeeded")
    assert (done.attempts, done.message) == (2, "100 steps done")
    assert steps_of(done) == list(range(1, 101)), "no step is done twice and none is left out"
    error = refused(lambda: trainer.client.resume_run(name))
    assert (type(error), error.field) == (FailedPreconditionError, "name")
    assert "SUCCEEDED; only a FAILED or CANCELLED run can be resumed" in error.message
    for call in (trainer.client.resume_run, trainer.client.cancel_run):
        error = refused(lambda call=call: call("runs/nobody"))
        assert (type(error), error.field) == (NotFoundError, "name")


def test_a_queue_is_worked_off_in_order_and_what_is_cancelled_in_it_never_starts(start: Callable[..., Trainer]) -> None:
    with start(max_running=1, max_queued=3) as trainer:
        first = trainer.client.create_run(spec(seed=HOLD), "first")
        trainer.until_step(first.name, 1)
        second, third, fourth = (trainer.client.create_run(spec(), name) for name in ("second", "third", "fourth"))
        error = refused(lambda: trainer.client.create_run(spec(), "fifth"))
        assert type(error) is ResourceExhaustedError
        assert (error.retry_after_seconds or 0) > 0
        assert "at most 3" in error.message
        assert trainer.client.create_run(spec(), "third").name == third.name, "what is known already is no new run"
        cancelled = trainer.client.cancel_run(third.name)
        assert (cancelled.state, cancelled.attempts, cancelled.message) == ("cancelled", 0, "cancelled before it started")
        assert trainer.client.get_run(second.name).state == "queued"
        trainer.finish(first)
        ended = [trainer.until(run.name, "succeeded") for run in (first, second, fourth)]
        starts = [run.start_time or 0 for run in ended]
        assert starts == sorted(starts)
        assert (ended[0].end_time or 0) <= starts[1]
        assert (ended[1].end_time or 0) <= starts[2]
        assert trainer.client.get_run(third.name) == cancelled


def test_a_run_that_does_not_stop_is_killed_after_its_grace(start: Callable[..., Trainer]) -> None:
    with start(stop_grace_seconds=0.5) as trainer:
        name = trainer.client.create_run(spec(seed=DEAF), "deaf").name
        pid = process_of(trainer.until_step(name, 2))
        began = time.monotonic()
        trainer.client.cancel_run(name)
        run = trainer.until(name, "cancelled", seconds=10)
        assert 0.4 < time.monotonic() - began < 5
        assert run.exit_code == -signal.SIGKILL
        assert "had not stopped 0.5 s after it was asked to, and was killed" in run.message
        assert not lives(pid)
        trainer.finish(run)
        assert trainer.client.resume_run(name).state == "queued"
        assert steps_of(trainer.until(name, "succeeded")) == [1, 2, 3]


# Processes that die


def test_a_killed_process_fails_its_run_in_a_sentence_and_resuming_goes_on_from_the_checkpoint(trainer: Trainer) -> None:
    name = trainer.client.create_run(spec(steps=5, seed=HOLD, checkpoint_every_steps=2), "killed").name
    run = trainer.until_step(name, 4)
    eventually(lambda: trainer.client.list_checkpoints(name)[0].step == 4)
    os.kill(process_of(run), signal.SIGKILL)
    failed = trainer.until(name, "failed")
    assert failed.exit_code == -signal.SIGKILL
    assert failed.message.startswith("its process was killed by SIGKILL")
    assert "out-of-memory" in failed.message
    trainer.finish(failed)
    trainer.client.resume_run(name)
    done = trainer.until(name, "succeeded")
    assert (done.attempts, done.message, done.exit_code) == (2, "5 steps done", 0)
    assert steps_of(done) == [1, 2, 3, 4, 5]
    assert [event.text for event in RunDirectory(done.directory).events() if event.text] == ["begins after step 0", "begins after step 4"]


def test_the_end_of_an_earlier_attempt_is_not_taken_for_that_of_a_later_one(trainer: Trainer) -> None:
    name = trainer.client.create_run(spec(seed=HOLD), "ended-before").name
    trainer.until_step(name, 2)
    trainer.client.cancel_run(name)
    assert "on request" in trainer.until(name, "cancelled").message
    trainer.client.resume_run(name)
    run = trainer.until(name, "running")
    os.kill(process_of(run), signal.SIGKILL)
    failed = trainer.until(name, "failed")
    assert failed.message.startswith("its process was killed by SIGKILL")
    assert (failed.exit_code, failed.attempts) == (-signal.SIGKILL, 2)


def test_a_process_that_ends_without_a_result_fails_its_run_with_its_last_words(trainer: Trainer) -> None:
    failed = trainer.until(trainer.client.create_run(spec(seed=BROKEN), "broken").name, "failed")
    assert failed.message == f"its process ended with code 7 and no result; its last words: {LAST_WORDS}"
    assert (failed.exit_code, failed.step) == (7, 1)


def test_a_command_that_is_not_there_fails_its_run_and_not_the_trainer(start: Callable[..., Trainer]) -> None:
    with start(command=["/no/such/program"]) as trainer:
        failed = trainer.until(trainer.client.create_run(spec(), "no-program").name, "failed")
        assert "cannot be started" in failed.message
        assert "/no/such/program" in failed.message
        assert trainer.client.get_run(failed.name).attempts == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_outlives_its_server_and_is_found_running_and_then_ended(start: Callable[..., Trainer], number: signal.Signals) -> None:
    with start() as trainer:
        name = trainer.client.create_run(spec(seed=HOLD), "outlives").name
        pid = process_of(trainer.until_step(name, 2))
        trainer.kill(number)
        assert lives(pid)
    with start() as trainer:
        run = trainer.client.get_run(name)
        assert (run.state, run.attempts, run.step) == ("running", 1, 2)
        assert process_of(run) == pid
        assert trainer.client.create_run(spec(seed=HOLD), "outlives").name == name
        trainer.finish(run)
        done = trainer.until(name, "succeeded")
        assert (done.attempts, done.message) == (1, "3 steps done")
        assert steps_of(done) == [1, 2, 3]


def test_a_server_whose_end_takes_its_runs_along_has_them_checkpoint_first(start: Callable[..., Trainer]) -> None:
    """As in a container. What waits is not started meanwhile, and the next server goes on with both."""
    with start(stop_runs=True, max_running=1) as trainer:
        running, queued = (trainer.client.create_run(spec(seed=HOLD), name).name for name in ("stopped", "waits"))
        pid = process_of(trainer.until_step(running, 2))
        assert trainer.server.stop() == 0
        assert not lives(pid)
    with start(max_running=2) as trainer:
        run = trainer.client.get_run(running)
        assert (run.state, run.exit_code, run.message) == ("failed", EXIT_STOPPED, "stopped on request after step 2, with a checkpoint")
        trainer.finish(trainer.until_step(queued, 2))
        assert trainer.client.get_run(queued).attempts == 1
        trainer.client.resume_run(running)
        trainer.finish(run)
        assert trainer.until(running, "succeeded").attempts == 2
        assert steps_of(run) == [1, 2, 3]
        trainer.until(queued, "succeeded")


def test_what_ends_while_the_server_is_away_is_found_as_it_ended(start: Callable[..., Trainer]) -> None:
    with start(max_running=2) as trainer:
        good, bad, waiting = (trainer.client.create_run(spec(seed=HOLD), name) for name in ("good", "bad", "waiting"))
        pid = process_of(trainer.until_step(bad.name, 2))
        trainer.until_step(good.name, 2)
        trainer.kill()
        trainer.finish(good)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: (Path(good.directory) / "result.json").exists() and not lives(pid))
    with start(max_running=2) as trainer:
        done = trainer.until(good.name, "succeeded", seconds=5)
        assert (done.attempts, done.step, done.adapter_version) == (1, 3, "adapters/fake/versions/1")
        failed = trainer.until(bad.name, "failed", seconds=5)
        assert failed.message == "its process has gone, and nothing says how"
        assert failed.exit_code is None
        trainer.finish(trainer.until_step(waiting.name, 2))
        assert trainer.until(waiting.name, "succeeded").attempts == 1
        trainer.finish(bad)
        trainer.client.resume_run(bad.name)
        assert steps_of(trainer.until(bad.name, "succeeded")) == [1, 2, 3]


def test_a_run_that_an_earlier_server_started_can_be_cancelled(start: Callable[..., Trainer]) -> None:
    with start() as trainer:
        name = trainer.client.create_run(spec(seed=HOLD), "adopted").name
        trainer.until_step(name, 2)
        trainer.kill()
    with start() as trainer:
        trainer.client.cancel_run(name)
        run = trainer.until(name, "cancelled")
        assert (run.exit_code, run.message) == (3, "stopped on request after step 2, with a checkpoint")


class KilledWhileStarting(LocalLauncher):
    """The server dies between its note that a run starts and the start."""

    def start(self, directory: Path, attempt: int) -> None:
        raise KeyboardInterrupt


class KilledAfterStarting(LocalLauncher):
    """The server dies between the start and its note of which process it is."""

    def start(self, directory: Path, attempt: int) -> None:
        super().start(directory, attempt)
        (directory / "process.json").unlink()
        raise KeyboardInterrupt


class SlowToStart(LocalLauncher):
    """Takes a moment to start, and says when it began."""

    def __init__(self) -> None:
        super().__init__(FAKE, threads=1)
        self.begun = threading.Event()

    def start(self, directory: Path, attempt: int) -> None:
        self.begun.set()
        time.sleep(0.3)
        super().start(directory, attempt)


def supervise(folder: Path, launcher: LocalLauncher) -> tuple[Registry, Supervisor]:
    config = TrainerConfig.model_validate({**TRAINER.config(folder), "max_running": 4})
    registry = Registry(config.database)
    return registry, Supervisor(registry, launcher, config)


def test_a_server_killed_while_it_starts_a_run_again_does_not_take_the_old_end_for_the_new_one(start: Callable[..., Trainer], tmp_path: Path) -> None:
    with start() as trainer:
        name = trainer.client.create_run(spec(seed=HOLD), "started-half").name
        trainer.until_step(name, 2)
        trainer.client.cancel_run(name)
        trainer.until(name, "cancelled")
    registry, dying = supervise(tmp_path, KilledWhileStarting(FAKE, threads=1))
    dying.resume(name)
    with pytest.raises(KeyboardInterrupt):
        dying.tick()
    assert registry.get(name).state == "STARTING"
    registry.update(registry.get(name), start_time=time.time() - 60)
    registry.close()
    with start() as trainer:
        run = trainer.until(name, "running", "failed")
        assert (run.state, run.message) == ("running", "")
        trainer.finish(run)
        assert steps_of(trainer.until(name, "succeeded")) == [1, 2, 3]


def test_a_server_killed_right_after_it_started_a_run_does_not_start_it_twice(
    start: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    registry, dying = supervise(tmp_path, KilledAfterStarting(FAKE, threads=1))
    record, _ = registry.create("runs/orphan", "orphan", spec(seed=HOLD), str(tmp_path / "runs" / "orphan"))
    with pytest.raises(KeyboardInterrupt):
        dying.tick()
    registry.update(registry.get(record.name), start_time=time.time() - 60)
    registry.close()
    with start() as trainer:
        trainer.until_step(record.name, 2)
        run = trainer.until(record.name, "running")  # the step is read from the folder, the state is the last tick's
        assert (run.step, run.attempts) == (2, 1)
        assert lives(process_of(run))
        trainer.finish(run)
        assert steps_of(trainer.until(record.name, "succeeded")) == [1, 2, 3]


def test_a_run_cancelled_while_it_starts_ends_cancelled(start: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    launcher = SlowToStart()
    registry, supervisor = supervise(tmp_path, launcher)
    record, _ = registry.create("runs/raced", "raced", spec(seed=HOLD), str(tmp_path / "runs" / "raced"))
    looking = threading.Thread(target=supervisor.tick)
    looking.start()
    assert launcher.begun.wait(5)
    assert supervisor.cancel(record.name).state == "CANCELLING"
    looking.join()

    def ended() -> bool:
        supervisor.tick()
        return registry.get(record.name).ended

    eventually(ended, timeout_seconds=20)
    assert registry.get(record.name).state == "CANCELLED"
    assert launcher.observe(Path(record.directory)) != Observation("running")
    registry.close()


def test_a_run_cancelled_before_a_killed_server_had_started_it_never_starts(tmp_path: Path) -> None:
    registry, dying = supervise(tmp_path, KilledWhileStarting(FAKE, threads=1))
    record, _ = registry.create("runs/never", "never", spec(), str(tmp_path / "runs" / "never"))
    with pytest.raises(KeyboardInterrupt):
        dying.tick()
    _, supervisor = supervise(tmp_path, LocalLauncher(FAKE, threads=1))
    assert supervisor.cancel(record.name).state == "CANCELLING"
    supervisor.tick()
    ended = registry.get(record.name)
    assert (ended.state, ended.message) == ("CANCELLED", "cancelled before it started")
    assert not (tmp_path / "runs" / "never" / "process.json").exists()
    registry.close()


# Plans


def test_a_plan_tells_memory_by_role_and_counts_rows(trainer: Trainer) -> None:
    plan = trainer.client.plan_run(spec())
    assert plan.rows == 8
    assert plan.fits
    assert {"base weights", "adapters", "activations", "gradients and Adam moments"} <= {item.role for item in plan.memory}
    assert sum(item.bytes for item in plan.memory) == plan.peak_memory_bytes
    weights = next(item.bytes for item in plan.memory if item.role == "base weights")
    assert weights == sum(tensor.nbytes for tensor in load_file(tiny.model_folder() / "model.safetensors").values())
    assert parse_spec(yaml.safe_load(plan.manifest)) == spec()
    assert trainer.client.plan_run(spec(sft={"data": {"uri": str(tiny.small_dataset()), "limit": 3}})).rows == 3
    assert plan.estimated_seconds is None or plan.estimated_seconds > 0  # None while the machine is being measured
    wider = trainer.client.plan_run(spec(micro_batch_size=2))
    activations = [next(item.bytes for item in each.memory if item.role == "activations") for each in (plan, wider)]
    assert activations[0] == 2 * activations[1]


def test_a_plan_counts_an_adapter_in_its_parents_form(trainer: Trainer) -> None:
    """Also where the specification says nothing of it; what it says, and is so, is no error."""
    found = {
        name: next(item.arithmetic for item in trainer.client.plan_run(spec(**fields)).memory if item.role == "adapters")
        for name, fields in {
            "alone": {}, "child": {"parent_adapter": PARENT}, "said": {"parent_adapter": PARENT, "lora": {"rank": 4, "last_layers": 0}},
        }.items()
    }  # fmt: skip
    assert "(rank 16)" in found["alone"]
    assert "(rank 4)" in found["child"]
    assert found["said"] == found["child"]


def test_what_cannot_fit_is_refused_with_the_arithmetic_and_creates_nothing(trainer: Trainer) -> None:
    huge = spec(batch_size=65536, max_prompt_tokens=131072, lora={"rank": 1024})
    plan = trainer.client.plan_run(huge)
    assert not plan.fits
    assert plan.peak_memory_bytes > plan.available_memory_bytes > 0
    before = names(trainer)
    for validate_only in (True, False):
        error = refused(lambda validate_only=validate_only: trainer.client.create_run(huge, "huge", validate_only=validate_only))
        assert (type(error), error.field) == (FailedPreconditionError, "spec")
        assert "activations" in error.message
        assert re.search(r"65536 rows x \d\d tokens", error.message)  # as long as the data's longest row, not as the limits
        assert error.message.endswith("lower micro_batch_size")
        assert int(error.metadata["peak_memory_bytes"]) == plan.peak_memory_bytes
    assert names(trainer) == before
    assert trainer.client.create_run(spec(batch_size=65536, max_prompt_tokens=131072, micro_batch_size=1), "small parts").name


# Checkpoints


def test_checkpoints_are_listed_newest_first_and_a_damaged_one_is_not_whole(trainer: Trainer) -> None:
    run = trainer.until(trainer.client.create_run(spec(steps=3), "checkpointed").name, "succeeded")
    found = trainer.client.list_checkpoints(run.name)
    assert [checkpoint.name for checkpoint in found] == [f"{run.name}/checkpoints/{step}" for step in (3, 2, 1)]
    assert [(checkpoint.step, checkpoint.whole) for checkpoint in found] == [(3, True), (2, True), (1, True)]
    assert len({checkpoint.digest for checkpoint in found}) == 3
    assert all(checkpoint.size_bytes == len("{}") + 8 for checkpoint in found)
    weights = Path(run.directory) / "checkpoints" / "00000002" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(b"\x01" + weights.read_bytes()[1:])
    assert [checkpoint.whole for checkpoint in trainer.client.list_checkpoints(run.name)] == [True, False, True]
    error = refused(lambda: trainer.client.promote_checkpoint(found[1].name))
    assert (type(error), error.field) == (DataLossError, "checkpoint")
    assert "adapter_model.safetensors does not match its digest" in error.message
    error = refused(lambda: trainer.client.list_checkpoints("runs/nobody"))
    assert type(error) is NotFoundError


def test_a_promoted_checkpoint_is_a_version_with_its_provenance(trainer: Trainer) -> None:
    run = trainer.until(trainer.client.create_run(spec(adapter="promoted"), "promoted").name, "succeeded")
    newest, _, oldest = trainer.client.list_checkpoints(run.name)
    version = trainer.client.promote_checkpoint(oldest.name)
    assert version == "adapters/promoted/versions/1"
    assert trainer.client.promote_checkpoint(oldest.name) == version, "the same checkpoint is the same version"
    assert trainer.client.promote_checkpoint(newest.name) == "adapters/promoted/versions/2"
    assert trainer.client.promote_checkpoint(newest.name, adapter="under-another-name") == "adapters/under-another-name/versions/1"
    manifest = tiny.store().manifest(version)
    assert (manifest.run, manifest.step, manifest.kind, manifest.base_model_digest) == (run.name, 1, "policy", "ab" * 32)
    assert (tiny.store().fetch(version) / "adapter_model.safetensors").read_bytes() == (1).to_bytes(8, "little")
    for name, error_class in (
        (f"{run.name}/checkpoints/9", NotFoundError),
        ("runs/nobody/checkpoints/1", NotFoundError),
        (f"{run.name}/checkpoints/../../x", InvalidArgumentError),
        ("adapters/promoted/versions/1", InvalidArgumentError),
    ):
        error = refused(lambda name=name: trainer.client.promote_checkpoint(name))
        assert (type(error), error.field) == (error_class, "checkpoint"), name


# A run that really trains


def test_a_real_run_is_cancelled_with_a_checkpoint_resumed_and_published(start: Callable[..., Trainer]) -> None:
    real = spec(steps=150, adapter="really-trained", checkpoint_every_steps=100, lora={"rank": 4}, optimizer={"learning_rate": 1e-3})
    with start(command=[]) as trainer:
        name = trainer.client.create_run(real, "real").name
        trainer.until(name, "running", seconds=60)
        trainer.until_step(name, 1)
        trainer.client.cancel_run(name)
        run = trainer.until(name, "cancelled", seconds=30)
        assert run.exit_code == 3
        assert 1 <= run.step < 150
        newest = trainer.client.list_checkpoints(name)[0]
        assert (newest.step, newest.whole) == (run.step, True)
        trainer.client.resume_run(name)
        done = trainer.until(name, "succeeded", seconds=90)
        assert (done.attempts, done.step) == (2, 150)
        assert steps_of(done)[-1] == 150
        assert sorted(set(steps_of(done))) == steps_of(done), "a step that was done is not done again"
        manifest = tiny.store().manifest(done.adapter_version)
        assert (manifest.run, manifest.step, manifest.kind) == (name, 150, "policy")
        losses = [event.values["loss"] for event in RunDirectory(done.directory).events() if "loss" in event.values]
        assert losses[-1] < losses[0] / 2
        assert trainer.client.promote_checkpoint(trainer.client.list_checkpoints(name)[0].name) == done.adapter_version


def test_a_real_run_goes_on_with_another_number_of_processes(start: Callable[..., Trainer]) -> None:
    """From one to two; what CreateRun would refuse is refused here, and changes nothing. The same request id is still the same run's."""
    real = spec(steps=40, batch_size=2, adapter="spread", checkpoint_every_steps=100, lora={"rank": 4})
    with start(command=[]) as trainer:
        name = trainer.client.create_run(real, "spread").name
        trainer.until_step(name, 1)
        trainer.client.cancel_run(name)
        stopped = trainer.until(name, "cancelled", seconds=30)
        assert stopped.step < 40
        error = refused(lambda: trainer.client.resume_run(name, processes=3))
        assert (type(error), error.field) == (InvalidArgumentError, "processes")
        assert "batch_size 2 must be at least distribution.processes 3" in str(error)
        error = refused(lambda: trainer.client.resume_run(name, processes=1025))
        assert (type(error), error.field) == (InvalidArgumentError, "processes")
        assert trainer.client.get_run(name).state == "cancelled"
        assert trainer.client.resume_run(name, processes=2).spec.distribution.processes == 2
        done = trainer.until(name, "succeeded", seconds=120)
        assert (done.attempts, done.step) == (2, 40)
        assert sorted(set(steps_of(done))) == steps_of(done)
        told = [event.text for event in RunDirectory(done.directory).events() if "the checkpoint is of 1 processes, and 2 go on" in event.text]
        assert len(told) == 1
        assert trainer.client.create_run(real, "spread").name == name
