"""TensorBoard's files read by protobuf itself; MLflow over a double of its client that dies, hangs and comes back."""

from __future__ import annotations

import json
import math
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tests.unit.training.surroundings import make_context, make_ppo, metrics_of, planted_pairs, write_rows

from accord.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from accord.rundir import EXIT_GUARDED
from accord.training import mlflow_tracking
from accord.training.__main__ import build
from accord.training.context import RunContext, RunStopped
from accord.training.loop import train
from accord.training.mlflow_tracking import flat, without_password
from accord.training.tensorboard import EventFile, crc32c, records
from accord.training.tracking import Tracking


def event_type() -> Any:
    """`tensorflow.Event` as its authors number it, of the fields that scalars need."""
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="t")
    fields = descriptor_pb2.FieldDescriptorProto
    for name, parts in {
        "Value": [("tag", 1, fields.TYPE_STRING, 1, ""), ("simple_value", 2, fields.TYPE_FLOAT, 1, "")],
        "Summary": [("value", 1, fields.TYPE_MESSAGE, 3, ".t.Value")],
        "Event": [("wall_time", 1, fields.TYPE_DOUBLE, 1, ""), ("step", 2, fields.TYPE_INT64, 1, ""), ("file_version", 3, fields.TYPE_STRING, 1, ""),
                  ("summary", 5, fields.TYPE_MESSAGE, 1, ".t.Summary")],
    }.items():  # fmt: skip
        message = file.message_type.add(name=name)
        for field, number, kind, label, type_name in parts:
            message.field.add(name=field, number=number, type=kind, label=label, type_name=type_name or None)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Event"))


Event = event_type()


def scalars(path: Path) -> list[tuple[int, dict[str, float]]]:
    """Steps and values of an event file, framing checked by hand and messages read by protobuf."""
    content, found, start = path.read_bytes(), [], 0
    while start < len(content):
        (size,) = struct.unpack_from("<Q", content, start)
        event = Event.FromString(content[start + 12 : start + 12 + size])
        found.append((event.step, {value.tag: value.simple_value for value in event.summary.value}))
        start += 16 + size
    assert start == len(content)
    return found[1:]


def test_checksums_are_castagnoli() -> None:
    """RFC 3720, appendix B.4."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43


def test_what_is_written_is_what_protobuf_reads(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "tb")
    file.add(0, {"eval_score": 0.5}, at=1.5e9)
    file.add(300, {"kl": -1.25, "a name": 3.0}, at=1.5e9 + 1)
    file.close()
    assert scalars(file.path) == [(0, {"eval_score": 0.5}), (300, {"a name": 3.0, "kl": -1.25})]
    assert "tfevents" in file.path.name
    (_, first), *_ = records(file.path.read_bytes())
    assert Event.FromString(first).file_version == "brain.Event:2"


def test_numbers_beyond_what_the_format_holds_are_infinite_and_no_error(tmp_path: Path) -> None:
    """As rounding to 32 bits makes them; scores are doubles."""
    file = EventFile(tmp_path)
    values = {"high": 1e39, "low": -1e300, "most": 3.4028234e38, "none": math.nan, "over": math.inf}
    file.add(1, values, at=0.0)
    file.close()
    ((_, found),) = scalars(file.path)
    assert {name: found[name] for name in ("high", "low", "over")} == {"high": math.inf, "low": -math.inf, "over": math.inf}
    assert found["most"] == pytest.approx(3.4028234e38)
    assert math.isnan(found["none"])


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_file_goes_on_behind_its_last_whole_record(tmp_path: Path, cut: int) -> None:
    file = EventFile(tmp_path)
    for step in (1, 2, 3):
        file.add(step, {"loss": float(step)}, at=0.0)
    file.close()
    file.path.write_bytes(file.path.read_bytes()[:-cut])
    again = EventFile(tmp_path)
    assert (again.path, again.last_step) == (file.path, 2)
    again.add(3, {"loss": 3.0}, at=0.0)
    again.close()
    assert scalars(file.path) == [(step, {"loss": float(step)}) for step in (1, 2, 3)]


def test_damage_ends_the_file(tmp_path: Path) -> None:
    file = EventFile(tmp_path)
    file.add(1, {"loss": 1.0}, at=0.0)
    content = bytearray(file.path.read_bytes())
    content[-6] ^= 1
    assert len(list(records(bytes(content)))) == 1


def sft(root: Path, model: Path, tracking: dict[str, Any], *, name: str = "run") -> RunContext:
    data = write_rows(root / "rows.jsonl", planted_pairs())
    spec = {"steps": 6, "checkpoint_every_steps": 2, "eval_every_steps": 3, "tracking": tracking, "sft": {"data": data, "eval_data": data}}
    return make_context(root, model, spec, name=name)


def run(context: RunContext, *, stop_in: int | None = None, die_in: int | None = None) -> None:
    """As `accord.training.__main__`; ends like a kill or a stop in the step of that number."""
    algorithm = build(context)
    step = algorithm.step

    def acting(number: int, optimizer: Any) -> dict[str, float]:
        if number == die_in:
            raise MemoryError
        if number == stop_in:
            context.stop.set()
        return step(number, optimizer)

    algorithm.step = acting  # type: ignore[method-assign]
    with Tracking(context.run, context.directory, context.events) as tracking:
        tracking.ended(train(context, algorithm))


def test_tensorboard_has_each_step_once_over_a_kill(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(MemoryError):
        run(sft(tmp_path, tiny_folder, {"tensorboard": True}), die_in=3)
    context = sft(tmp_path, tiny_folder, {"tensorboard": True})
    run(context)
    events = list(context.directory.events())
    assert len(metrics_of(events, "loss")) == 7, "the step behind the checkpoint was done twice"
    (path,) = (context.directory.path / "tensorboard").iterdir()
    written = scalars(path)
    assert [step for step, values in written if "loss" in values] == [1, 2, 3, 4, 5, 6]
    assert [step for step, values in written if "eval_loss" in values] == [0, 3, 6]
    losses = {event.step: event.values["loss"] for event in events if "loss" in event.values}
    assert {step: values["loss"] for step, values in written if "loss" in values} == pytest.approx(losses, rel=1e-6)


def test_a_full_disk_ends_tensorboard_and_not_the_run(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = sft(tmp_path, tiny_folder, {"tensorboard": True})
    add = EventFile.add

    def full(self: EventFile, step: int, values: Any, *, at: float) -> None:
        if step >= 2:
            raise OSError("no space left")
        add(self, step, values, at=at)

    monkeypatch.setattr(EventFile, "add", full)
    run(context)
    said = [event.text for event in context.directory.events() if "TensorBoard" in event.text]
    assert said[1:] == ["TensorBoard: from step 2 on nothing is written (no space left); events.jsonl has all metrics, and the run goes on"]


class Server:
    """An MLflow server: what it was given, whether it is away, and who waits."""

    def __init__(self) -> None:
        self.away = False
        self.hang: threading.Event | None = None
        self.runs: dict[str, dict[str, Any]] = {}
        self.experiments: list[str] = []
        self.calls = 0

    def __call__(self, tracking_uri: str) -> Server:
        return self

    def _answer(self) -> None:
        self.calls += 1
        if self.hang is not None:
            self.hang.wait(60)
        if self.away:
            raise ConnectionError("connection refused\nand more")

    def get_experiment_by_name(self, name: str) -> Any:
        self._answer()
        return SimpleNamespace(experiment_id=name) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        self.experiments.append(name)
        return name

    def create_run(self, experiment: str, *, run_name: str, tags: dict[str, str], start_time: int) -> Any:
        run_id = f"id{len(self.runs)}"
        self.runs[run_id] = {"experiment": experiment, "name": run_name, "tags": tags, "params": {}, "points": [], "status": "RUNNING"}
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def log_batch(self, run_id: str, *, metrics: Any = (), params: Any = ()) -> None:
        self._answer()
        assert len(metrics) <= 1000
        assert len(params) <= 100
        self.runs[run_id]["points"] += metrics
        self.runs[run_id]["params"] |= dict(params)

    def get_run(self, run_id: str) -> Any:
        self._answer()
        return SimpleNamespace(data=SimpleNamespace(metrics={point[0]: point[1] for point in self.runs[run_id]["points"]}))

    def get_metric_history(self, run_id: str, name: str) -> Any:
        return [SimpleNamespace(step=point[3]) for point in self.runs[run_id]["points"] if point[0] == name]

    def update_run(self, run_id: str, *, status: str) -> None:
        self.runs[run_id]["status"] = status

    def set_terminated(self, run_id: str, *, status: str) -> None:
        self._answer()
        self.runs[run_id]["status"] = status

    def steps(self, metric: str, run_id: str = "id0") -> list[int]:
        return [point[3] for point in self.runs[run_id]["points"] if point[0] == metric]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    module, entities, found = ModuleType("mlflow"), ModuleType("mlflow.entities"), Server()
    module.MlflowClient = found  # type: ignore[attr-defined]
    entities.Metric = lambda key, value, timestamp, step: (key, value, timestamp, step)  # type: ignore[attr-defined]
    entities.Param = lambda key, value: (key, value)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setattr(mlflow_tracking, "_PAUSE_SECONDS", 0.02)
    return found


URI = "http://user:secret@tracking:5000"


def said(context: RunContext, words: str = "MLflow") -> list[str]:
    return [event.text for event in context.directory.events() if words in event.text]


def test_mlflow_has_the_run_with_what_it_was_asked(tmp_path: Path, tiny_folder: Path, server: Server) -> None:
    context = sft(tmp_path, tiny_folder, {"mlflow_uri": URI})
    run(context)
    (mine,) = server.runs.values()
    assert (mine["name"], mine["experiment"], mine["status"]) == ("run", "accord", "FINISHED")
    assert mine["tags"]["accord.algorithm"] == "sft"
    assert (mine["params"]["lora.rank"], mine["params"]["steps"]) == ("4", "6")
    assert server.steps("loss") == [1, 2, 3, 4, 5, 6]
    assert server.steps("eval_loss") == [0, 3, 6]
    assert "secret" not in json.dumps([said(context), mine], default=str)


def test_a_resumed_run_goes_on_in_the_same_one_and_repeats_nothing(tmp_path: Path, tiny_folder: Path, server: Server) -> None:
    with pytest.raises(MemoryError):
        run(sft(tmp_path, tiny_folder, {"mlflow_uri": URI}), die_in=3)
    assert server.runs["id0"]["status"] == "FAILED"
    with pytest.raises(RunStopped):
        run(sft(tmp_path, tiny_folder, {"mlflow_uri": URI}), stop_in=4)
    assert server.runs["id0"]["status"] == "KILLED"
    run(sft(tmp_path, tiny_folder, {"mlflow_uri": URI}))
    assert list(server.runs) == ["id0"]
    assert server.steps("loss") == [1, 2, 3, 4, 5, 6]
    assert server.steps("eval_loss") == [0, 3, 6]
    assert server.runs["id0"]["status"] == "FINISHED"


def test_a_run_that_a_guard_stopped_has_not_finished(tmp_path: Path, tiny_folder: Path, server: Server) -> None:
    data = write_rows(tmp_path / "rows.jsonl", planted_pairs())
    values = {"steps": 6, "tracking": {"mlflow_uri": URI}, "guards": {"action": "stop", "max_repetition": 1e-6, "patience": 1}}
    context, algorithm, source = make_ppo(tmp_path, tiny_folder, {**values, "max_response_tokens": 12}, {"data": data, "epochs": 1})
    collect = source.collect
    source.collect = lambda *given: [replace(each, response_ids=each.response_ids[:1] * len(each.response_ids)) for each in collect(*given)]  # type: ignore[method-assign]
    algorithm._sampler_gap_bound = 100.0
    with Tracking(context.run, context.directory, context.events) as tracking:
        assert tracking.ended(train(context, algorithm)).exit_code == EXIT_GUARDED
    assert server.runs["id0"]["status"] == "FAILED"


def test_a_server_that_dies_is_said_once_and_gets_all_when_it_is_back(tmp_path: Path, tiny_folder: Path, server: Server) -> None:
    context = sft(tmp_path, tiny_folder, {"mlflow_uri": URI})
    algorithm = build(context)
    step = algorithm.step

    def acting(number: int, optimizer: Any) -> dict[str, float]:
        server.away = 1 <= number < 4
        metrics = step(number, optimizer)
        time.sleep(0.1)
        return metrics

    algorithm.step = acting  # type: ignore[method-assign]
    with Tracking(context.run, context.directory, context.events) as tracking:
        tracking.ended(train(context, algorithm))
    assert len(said(context, "does not answer")) == 1
    assert "http://user:***@tracking:5000 does not answer (connection refused); the run goes on" in said(context, "does not answer")[0]
    assert server.steps("loss") == [1, 2, 3, 4, 5, 6]
    assert not said(context, "never got")


def test_one_that_stays_away_costs_nothing_but_its_copy(tmp_path: Path, tiny_folder: Path, server: Server) -> None:
    context = sft(tmp_path, tiny_folder, {"mlflow_uri": URI})
    with Tracking(context.run, context.directory, context.events):
        server.away = True
        train(context, build(context))
    assert len(said(context, "does not answer")) == 1
    assert len(said(context, "never got the metrics of")) == 1
    assert server.steps("loss") == []


def test_one_that_hangs_does_not_hold_up_a_step(tmp_path: Path, tiny_folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_tracking, "_LAST_SECONDS", 0.2)
    context = sft(tmp_path, tiny_folder, {"mlflow_uri": URI})
    with Tracking(context.run, context.directory, context.events):
        server.hang = threading.Event()
        started = time.monotonic()
        train(context, build(context))
        assert time.monotonic() - started < 50, "a call hangs for 60 s"
    server.hang.set()
    assert "it is slow" in said(context, "never got")[0]


def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)


@pytest.mark.parametrize(
    ("uri", "break_it", "error", "words"),
    [
        ("./mlruns", None, InvalidArgumentError, "'./mlruns' is no address of MLflow: http, https, sqlite"),
        (URI, missing, FailedPreconditionError, "MLflow is not installed: pip install 'accord[mlflow]', or leave the field out"),
        (URI, "away", UnavailableError, "MLflow at http://user:***@tracking:5000 does not answer: connection refused"),
    ],
)
def test_what_cannot_be_had_is_said_before_the_run(
    tmp_path: Path, tiny_folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch, uri: str, break_it: Callable | str | None, error: type, words: str
) -> None:  # fmt: skip
    context = sft(tmp_path, tiny_folder, {"mlflow_uri": uri})
    if callable(break_it):
        break_it(monkeypatch)
    server.away = break_it == "away"
    with pytest.raises(error) as caught:
        run(context)
    assert words in str(caught.value)
    assert caught.value.field == "tracking.mlflow_uri"
    assert metrics_of(context.directory.events(), "loss") == []


def test_a_resumed_run_does_not_wait_for_a_server_that_is_away(tmp_path: Path, tiny_folder: Path, server: Server) -> None:
    with pytest.raises(MemoryError):
        run(sft(tmp_path, tiny_folder, {"mlflow_uri": URI}), die_in=3)
    server.away = True
    context = sft(tmp_path, tiny_folder, {"mlflow_uri": URI})
    run(context)
    assert len(said(context, "never got")) == 1
    assert server.steps("loss") == [1, 2, 3]


def test_parameters_are_flat_and_passwords_hidden() -> None:
    assert flat({"a": {"b": 1, "c": {"d": "x", "e": ""}}, "f": [1, 2], "tracking": {"mlflow_uri": URI}}) == {"a.b": "1", "a.c.d": "x", "f": "[1, 2]"}
    assert without_password(URI) == "http://user:***@tracking:5000"
    assert without_password("sqlite:////a.db") == "sqlite:////a.db"
