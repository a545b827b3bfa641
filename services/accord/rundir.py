"""The folder of a run: what the launcher writes for it, and what it writes for whoever watches.

    run.yaml         what to do (RunFile), written once by the trainer
    run.lock         locked by the process of the run, so that no second one writes here
    process.json     pid, start ticks and attempt of its process (local launcher)
    events.jsonl     what happened (RunEvent), appended by the run, and by the trainer while the run has no process
    result.json      how it ended (RunResult), written last and at once
    log.txt          what its process printed (of a Job's pods: what each had printed at its end)
    checkpoints/     {step:08d}/ with manifest.json, see accord.checkpoint
    rollouts/        what was sampled and scored, before it was used
    tensorboard/     TensorBoard's event file, where it was asked for
    versions.json    which versions the adapters that it names stood for when it began
    mlflow.json      which MLflow run is this one's, where it was asked for

The truth about a run is this folder and its process, never a server's memory. Torch stays out of here: the trainer reads what training writes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from accord.errors import DataLossError, NotFoundError
from accord.rpc.channels import ChannelTls, LoadBalancing
from accord.rpc.config import load_config
from accord.runspec import RunSpec
from accord.runspec_parts import Spec

EXIT_DONE, EXIT_FAILED, EXIT_CONFIGURATION, EXIT_STOPPED, EXIT_AWAY, EXIT_GUARDED = 0, 1, 2, 3, 4, 5
LOCAL_SCORES = "local"  # in the place of the reward service's address
PHASE_PENDING = "pending"  # nothing of the run has a process yet, or any more: its launcher says what it waits for
EventKind = Literal["state", "metrics", "message", "heartbeat"]


class Endpoints(Spec):
    """Where a run reaches the services; an empty address means that the run must not need it."""

    policy: str = ""
    policy_balancing: LoadBalancing = Field("round_robin", description="how the replicas behind the policy address are chosen")
    reward: str = Field("", description="address of the reward service; local: the run scores by itself, on the base model that it has")
    feedback: str = ""
    tls: ChannelTls | None = Field(None, description="use TLS towards all of them; plain text where absent")

    @property
    def local_scores(self) -> bool:
        """Whether a run scores by itself."""
        return self.reward == LOCAL_SCORES


class RunFile(Spec):
    """Everything that a run's process is told."""

    name: str = Field(pattern=r"^runs/[a-z0-9][a-z0-9-]{0,99}$")
    artefacts: str = Field(min_length=1, description="URI of the artefact store")
    base_model: str = Field(min_length=1, description="embedded, a folder or a hub id")
    threads: int = Field(ge=1, description="torch threads")
    endpoints: Endpoints = Endpoints()
    wait_seconds: float = Field(600.0, gt=0, description="longest wait for a service before the run checkpoints and stops")
    spec: RunSpec

    def to_yaml(self) -> str:
        """The text of run.yaml."""
        values = self.model_dump(mode="json", exclude_none=True) | {"spec": self.spec.as_given}
        return yaml.safe_dump(values, sort_keys=False)


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One line of events.jsonl.

    `offset` is the byte after the line: a reader continues there. state events carry phase and waiting_on; metrics events carry step
    and values; message events carry text.
    """

    kind: EventKind
    time: float
    step: int = 0
    phase: str = ""
    waiting_on: str = ""
    text: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    offset: int = 0


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run's process ended."""

    exit_code: int
    message: str
    step: int
    adapter_version: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class RunProgress:
    """What the events up to a byte `offset` say of a run: the step that it is at, the latest value of each metric, and what it is doing.

    `time` is the last event's and `phase_time` that of the last state event, 0 where there is none.
    """

    offset: int = 0
    step: int = 0
    phase: str = ""
    waiting_on: str = ""
    time: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    phase_time: float = 0.0


class RunDirectory:
    """Reads and writes the files of one run."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def log(self) -> Path:
        """What the process printed."""
        return self.path / "log.txt"

    @property
    def lock(self) -> Path:
        """The file that the run's process holds locked."""
        return self.path / "run.lock"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def rollouts(self) -> Path:
        """The folder of rollouts."""
        return self.path / "rollouts"

    @property
    def events_path(self) -> Path:
        """The event file."""
        return self.path / "events.jsonl"

    def write_run_file(self, run: RunFile) -> None:
        """Writes run.yaml; at once, so that a reader sees all of it or nothing."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "run.yaml", run.to_yaml())

    def append_event(self, event: RunEvent) -> None:
        """Appends one line; a line is written by one call, so that a kill leaves at most one broken last line."""
        row: dict[str, Any] = {"kind": event.kind, "time": event.time or time.time(), "step": event.step}
        for name in ("phase", "waiting_on", "text"):
            if getattr(event, name):
                row[name] = getattr(event, name)
        if event.values:
            row["values"] = dict(event.values)
        line = (json.dumps(row) + "\n").encode()
        with self.events_path.open("ab") as file:
            if file.tell() and not self._ends_with_newline():
                line = b"\n" + line  # a killed writer left half a line; it must not swallow this one
            file.write(line)

    def _ends_with_newline(self) -> bool:
        with self.events_path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def events(self, offset: int = 0) -> Iterator[RunEvent]:
        """Yields whole events from a byte offset on; a line that is still being written, or that a kill cut short, is not yielded."""
        if not self.events_path.exists():
            return
        with self.events_path.open("rb") as file:
            file.seek(offset)
            for line in file:
                offset += len(line)
                if not line.endswith(b"\n"):
                    return
                event = _event(line, offset)
                if event is not None:
                    yield event

    def progress(self, known: RunProgress = RunProgress()) -> RunProgress:
        """What all events say, reading only those behind `known`."""
        if known.offset and (not self.events_path.exists() or self.events_path.stat().st_size < known.offset):
            known = RunProgress()  # not the file that was read
        metrics = dict(known.metrics)
        for event in self.events(known.offset):
            step, phase, waiting_on, phase_time = known.step, known.phase, known.waiting_on, known.phase_time
            if event.kind == "metrics":
                step = event.step
                metrics.update(event.values)
            elif event.kind == "state":  # after a kill the step is the checkpoint's
                step, phase, waiting_on, phase_time = event.step, event.phase, event.waiting_on, event.time
            known = RunProgress(event.offset, step, phase, waiting_on, event.time, metrics, phase_time)
        return known

    def versions(self) -> dict[str, str]:
        """The versions that names of adapters stand for in this run, by name.

        Raises:
            DataLossError: the file is there and cannot be read.
        """
        path = self.path / "versions.json"
        try:
            return {str(name): str(version) for name, version in json.loads(path.read_text()).items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError) as error:
            raise DataLossError(f"{path} does not say which versions the run began with: {error}") from error

    def keep_version(self, name: str, version: str) -> None:
        """Lets a name of an adapter stand for this version for the rest of the run."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "versions.json", json.dumps(self.versions() | {name: version}, indent=1, sort_keys=True))

    def write_result(self, result: RunResult) -> None:
        """Writes result.json at once."""
        row = {
            "exit_code": result.exit_code,
            "message": result.message,
            "step": result.step,
            "adapter_version": result.adapter_version,
            "metrics": dict(result.metrics),
            "time": result.time or time.time(),
        }
        write_atomically(self.path / "result.json", json.dumps(row, indent=1))

    def result(self) -> RunResult | None:
        """Returns how the run ended; None while it has not, or when it was killed before it could say.

        Raises:
            DataLossError: the file is there and cannot be read.
        """
        path = self.path / "result.json"
        try:
            row = json.loads(path.read_text())
            return RunResult(**row)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise DataLossError(f"{path} is not a run result: {error}") from error

    def clear_result(self) -> None:
        """Forgets how an earlier attempt ended, before a new one starts."""
        (self.path / "result.json").unlink(missing_ok=True)


def read_run_file(path: Path | str) -> RunFile:
    """Returns the run file at a path.

    Raises:
        NotFoundError: there is no such file.
        InvalidArgumentError: it is not YAML, or a field is unknown, missing or out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"there is no run file {path}", field="config")
    return load_config(path, RunFile)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file's text so that a reader, or a kill, sees the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # half of it on a full disk, which it would keep full


def _event(line: bytes, offset: int) -> RunEvent | None:
    try:
        row = json.loads(line)
        return RunEvent(
            row["kind"],
            row["time"],
            row.get("step", 0),
            row.get("phase", ""),
            row.get("waiting_on", ""),
            row.get("text", ""),
            row.get("values", {}),
            offset,
        )
    except (ValueError, KeyError, TypeError):
        return None  # half a line of a killed writer, ended by the next writer's newline
