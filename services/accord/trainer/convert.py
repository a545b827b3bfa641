"""Between the registry's records, run directories and trainer.proto."""

from __future__ import annotations

import base64
import time
from pathlib import Path

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from accord.api.trainer.v1 import trainer_pb2 as pb
from accord.errors import InvalidArgumentError
from accord.rundir import PHASE_PENDING, RunDirectory, RunEvent, RunProgress
from accord.runspec import RunSpec, spec_from_proto, spec_to_proto
from accord.trainer.planner import Plan
from accord.trainer.registry import RunRecord

_PHASE_STATES = {"checkpoint": pb.RUN_STATE_CHECKPOINTING, PHASE_PENDING: pb.RUN_STATE_STARTING}


def read_spec(message: pb.RunSpec) -> RunSpec:
    """The specification of a request whose field is `spec`.

    Raises:
        InvalidArgumentError: a field breaks a rule; the error names it by its path in the request.
    """
    try:
        return spec_from_proto(message)
    except InvalidArgumentError as error:
        field = error.field if error.field in (None, "spec") else f"spec.{error.field}"
        raise InvalidArgumentError(error.message, field=field) from error


class RunReader:
    """Runs as messages, with what their directories say of them now; of the events only those are read that have come since the last time."""

    def __init__(self) -> None:
        self._known: dict[str, RunProgress] = {}  # a KiB or two a run

    def read(self, record: RunRecord) -> pb.Run:
        """The run as it is now; reads files."""
        run = _facts(record)
        run.state, run.message = getattr(pb, f"RUN_STATE_{record.state}"), record.message
        for name in ("start_time", "end_time"):
            value = getattr(record, name)
            if value is not None:
                getattr(run, name).CopyFrom(timestamp(value))
        if record.exit_code is not None:
            run.exit_code = record.exit_code
        self._add_progress(run, record)
        return run

    def _add_progress(self, run: pb.Run, record: RunRecord) -> None:
        directory = RunDirectory(record.directory)
        known = self._known.get(record.name) or RunProgress()
        progress = self._known[record.name] = directory.progress(known)
        run.step = progress.step
        run.metrics.update(progress.metrics)
        if not record.ended:
            turn = record.message.removeprefix("waits for ") if record.state == "QUEUED" else ""
            run.phase, run.waiting_on = progress.phase, turn or progress.waiting_on
        if progress.offset:
            run.heartbeat_time.CopyFrom(timestamp(progress.time))
        result = directory.result() if record.state == "SUCCEEDED" else None
        if result is not None:
            run.adapter_version, run.step = result.adapter_version, result.step
            run.metrics.update(result.metrics)


def _facts(record: RunRecord) -> pb.Run:
    """What does not change while a run goes on."""
    return pb.Run(
        name=record.name, spec=spec_to_proto(record.spec), total_steps=record.spec.steps, create_time=timestamp(record.create_time),
        attempts=record.attempts, directory=record.directory,
    )  # fmt: skip


def event_to_proto(event: RunEvent, record: RunRecord) -> pb.WatchRunResponse | None:
    """A line of events.jsonl as a message of the stream; None for what carries nothing for a watcher."""
    wire = pb.WatchRunResponse(resume_token=make_token(event.offset), time=timestamp(event.time))
    if event.kind == "metrics":
        wire.metrics.CopyFrom(pb.StepMetrics(step=event.step, values=dict(event.values)))
    elif event.kind == "message":
        wire.message = event.text
    elif event.kind == "state":
        run = _facts(record)  # as it was then: an ended state here would end the watch before the later events
        run.state = _PHASE_STATES.get(event.phase, pb.RUN_STATE_RUNNING)
        run.step, run.phase, run.waiting_on = event.step, event.phase, event.waiting_on
        wire.run.CopyFrom(run)
    else:
        return None
    return wire


def plan_to_proto(plan: Plan, manifest: str) -> pb.RunPlan:
    """The wire form of a plan."""
    return pb.RunPlan(
        memory=[pb.MemoryItem(role=item.role, bytes=item.bytes, arithmetic=item.arithmetic) for item in plan.memory],
        peak_memory_bytes=plan.peak_bytes,
        available_memory_bytes=plan.available_bytes,
        fits=plan.fits,
        rows=plan.rows,
        notes=plan.notes,
        manifest=manifest,
        estimated_duration=None if plan.seconds is None else duration(plan.seconds),
        step_duration=None if plan.step_seconds is None else duration(plan.step_seconds),
    )


def timestamp(seconds: float) -> Timestamp:
    """Unix seconds as a Timestamp."""
    whole = int(seconds)
    return Timestamp(seconds=whole, nanos=int((seconds - whole) * 1e9))


def duration(seconds: float) -> Duration:
    """Seconds as a Duration."""
    whole = int(seconds)
    return Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))


def make_token(number: int) -> str:
    """An opaque token that stands for a number."""
    return base64.urlsafe_b64encode(f"v1:{number}".encode()).decode()


def read_token(token: str, field: str) -> int:
    """The number of a token.

    Raises:
        InvalidArgumentError: it is not a token that this service gave.
    """
    try:
        version, _, number = base64.urlsafe_b64decode(token.encode()).decode().partition(":")
        if version != "v1" or not (number.isascii() and number.isdigit()) or int(number) >= 2**63:  # as databases and files count
            raise ValueError(token)
    except ValueError as error:
        raise InvalidArgumentError(f"{field} is not one that this service gave", field=field) from error
    return int(number)


def idle_seconds(record: RunRecord) -> float:
    """Seconds since the run wrote anything."""
    path = RunDirectory(record.directory).events_path
    return max(0.0, time.time() - (path.stat().st_mtime if path.exists() else record.create_time))


def run_path(runs: str, name: str) -> Path:
    """The directory of a run."""
    return Path(runs) / name.removeprefix("runs/")
