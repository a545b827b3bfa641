"""Watching a run of many events: all of them, each once, and never all at hand at once."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.launch.orders import run_file

from accord.api.trainer.v1 import trainer_pb2 as pb
from accord.artefacts.store import ArtefactStore
from accord.errors import InvalidArgumentError
from accord.launch.local import LocalLauncher
from accord.rundir import RunDirectory, RunEvent
from accord.trainer.config import TrainerConfig
from accord.trainer.convert import make_token, read_token
from accord.trainer.registry import Registry
from accord.trainer.servicer import TrainerServicer
from accord.trainer.supervisor import Supervisor

STEPS = 5000


@pytest.fixture
def servicer(tmp_path: Path) -> Iterator[TrainerServicer]:
    """Of a trainer with an ended run of many steps, with a heartbeat after each."""
    places = {"runs": str(tmp_path / "runs"), "artefacts": str(tmp_path / "artefacts"), "database": f"sqlite:///{tmp_path}/registry.sqlite"}
    config = TrainerConfig.model_validate(places)
    registry = Registry(config.database)
    directory = RunDirectory(tmp_path / "runs" / "long")
    record, _ = registry.create("runs/long", "request", run_file().spec, str(directory.path))
    directory.path.mkdir(parents=True)
    now = time.time()
    with directory.events_path.open("w") as file:
        for step in range(1, STEPS + 1):
            file.write(f'{{"kind": "metrics", "time": {now}, "step": {step}, "values": {{"loss": 1.0}}}}\n')
            file.write(f'{{"kind": "heartbeat", "time": {now}, "step": {step}}}\n')
    registry.update(record, state="SUCCEEDED", end_time=now)
    yield TrainerServicer(registry, Supervisor(registry, LocalLauncher(threads=1), config), ArtefactStore(config.artefacts), config)
    registry.close()


def test_events_are_read_as_they_are_sent(servicer: TrainerServicer, monkeypatch: pytest.MonkeyPatch) -> None:
    events, read = RunDirectory.events, 0

    def counted(self: RunDirectory, offset: int = 0) -> Iterator[RunEvent]:
        nonlocal read
        for event in events(self, offset):
            read += 1
            yield event

    monkeypatch.setattr(RunDirectory, "events", counted)

    async def watch() -> None:
        steps, ahead, last = [], 0, pb.WatchRunResponse()
        async for last in servicer.WatchRun(pb.WatchRunRequest(name="runs/long"), None):  # type: ignore[arg-type]
            if last.HasField("metrics"):
                steps.append(last.metrics.step)
                ahead = max(ahead, read - 2 * len(steps))
        assert steps == list(range(1, STEPS + 1))
        assert ahead <= 1000
        assert last.run.state == pb.RUN_STATE_SUCCEEDED
        assert last.resume_token == make_token((Path(last.run.directory) / "events.jsonl").stat().st_size)

    asyncio.run(watch())


@pytest.mark.parametrize("number", [0, 1, 2**63 - 1])
def test_a_token_stands_for_its_number(number: int) -> None:
    assert read_token(make_token(number), "page_token") == number


@pytest.mark.parametrize("inside", ["v1:²", "v1:٣", "v1:-1", "v1:1_0", "v1:", "v2:1", f"v1:{2**63}", f"v1:{'9' * 5000}"])
def test_what_no_token_of_this_service_says_is_refused(inside: str) -> None:
    with pytest.raises(InvalidArgumentError, match="page_token is not one that this service gave") as caught:
        read_token(base64.urlsafe_b64encode(inside.encode()).decode(), "page_token")
    assert caught.value.field == "page_token"
