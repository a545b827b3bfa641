"""Typed client of TrainerService (blocking: its callers are commands and the study)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from google.protobuf.timestamp_pb2 import Timestamp

from accord.api.trainer.v1 import trainer_pb2 as pb
from accord.api.trainer.v1 import trainer_pb2_grpc as rpc
from accord.client.connection import Target, connect
from accord.errors import DeadlineExceededError, FailedPreconditionError, UnavailableError
from accord.rpc.stubs import guard_stub
from accord.runspec import RunSpec, spec_from_proto, spec_to_proto

RunState = Literal["unspecified", "queued", "starting", "running", "checkpointing", "succeeded", "failed", "cancelling", "cancelled"]
RUN_STATES: dict[RunState, pb.RunState] = {
    "unspecified": pb.RUN_STATE_UNSPECIFIED,
    "queued": pb.RUN_STATE_QUEUED,
    "starting": pb.RUN_STATE_STARTING,
    "running": pb.RUN_STATE_RUNNING,
    "checkpointing": pb.RUN_STATE_CHECKPOINTING,
    "succeeded": pb.RUN_STATE_SUCCEEDED,
    "failed": pb.RUN_STATE_FAILED,
    "cancelling": pb.RUN_STATE_CANCELLING,
    "cancelled": pb.RUN_STATE_CANCELLED,
}
RunFileName = Literal["evaluation.json", "evaluation_rows.jsonl", "log.txt"]
_WATCH_SECONDS = 3600.0  # of one stream
_PART_BYTES = 24 * 2**20  # of rows in a call, as the contract has it
_STATE_NAMES = {number: name for name, number in RUN_STATES.items()}


@dataclass(frozen=True, slots=True)
class Run:
    """A run; times are Unix seconds, None where it has not happened."""

    name: str
    spec: RunSpec
    state: RunState
    phase: str
    waiting_on: str
    message: str
    step: int
    total_steps: int
    metrics: Mapping[str, float]
    create_time: float | None
    start_time: float | None
    end_time: float | None
    adapter_version: str
    attempts: int
    directory: str
    heartbeat_time: float | None
    exit_code: int | None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.state in ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One event of a run; one of run, metrics, message and idle_seconds is set."""

    resume_token: str
    time: float | None
    run: Run | None = None
    step: int = 0
    metrics: Mapping[str, float] | None = None
    message: str = ""
    idle_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """Memory of one role with its arithmetic."""

    role: str
    bytes: int
    arithmetic: str


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run would need; times are of the whole run and of one step, None where the machine has not been measured."""

    memory: tuple[MemoryItem, ...]
    peak_memory_bytes: int
    available_memory_bytes: int
    fits: bool
    rows: int
    notes: tuple[str, ...]
    manifest: str
    estimated_seconds: float | None
    step_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint of a run."""

    name: str
    step: int
    digest: str
    size_bytes: int
    whole: bool


def _seconds(message: pb.Run | pb.WatchRunResponse, name: str) -> float | None:
    if not message.HasField(name):  # type: ignore[arg-type]
        return None
    stamp: Timestamp = getattr(message, name)
    return stamp.seconds + stamp.nanos / 1e9


def _run(wire: pb.Run) -> Run:
    return Run(
        wire.name,
        spec_from_proto(wire.spec),
        _STATE_NAMES[wire.state],
        wire.phase,
        wire.waiting_on,
        wire.message,
        wire.step,
        wire.total_steps,
        dict(wire.metrics),
        _seconds(wire, "create_time"),
        _seconds(wire, "start_time"),
        _seconds(wire, "end_time"),
        wire.adapter_version,
        wire.attempts,
        wire.directory,
        _seconds(wire, "heartbeat_time"),
        wire.exit_code if wire.HasField("exit_code") else None,
    )


def _event(wire: pb.WatchRunResponse) -> RunEvent:
    form, token, when = wire.WhichOneof("event"), wire.resume_token, _seconds(wire, "time")
    if form == "run":
        return RunEvent(token, when, run=_run(wire.run))
    if form == "metrics":
        return RunEvent(token, when, step=wire.metrics.step, metrics=dict(wire.metrics.values))
    if form == "message":
        return RunEvent(token, when, message=wire.message)
    return RunEvent(token, when, idle_seconds=wire.heartbeat.idle_seconds)


def _plan(wire: pb.RunPlan) -> RunPlan:
    whole, step = (
        duration.seconds + duration.nanos / 1e9 if wire.HasField(name) else None
        for name, duration in (("estimated_duration", wire.estimated_duration), ("step_duration", wire.step_duration))
    )
    return RunPlan(
        tuple(MemoryItem(item.role, item.bytes, item.arithmetic) for item in wire.memory),
        wire.peak_memory_bytes,
        wire.available_memory_bytes,
        wire.fits,
        wire.rows,
        tuple(wire.notes),
        wire.manifest,
        whole,
        step,
    )


def _end_of_part(rows: bytes, start: int) -> int:
    """Where a part that begins at `start` and fits into a call ends: behind a whole line."""
    end = start + _PART_BYTES
    return len(rows) if end >= len(rows) else rows.rfind(b"\n", start, end) + 1 or end


class TrainerClient:
    """A blocking client of one trainer service; use it as a context manager."""

    def __init__(self, target: Target) -> None:
        self._channel, default_timeout = connect(target)
        self._stub = guard_stub(rpc.TrainerServiceStub(self._channel), default_timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def plan_run(self, spec: RunSpec, *, timeout_seconds: float | None = None) -> RunPlan:
        """Says what a run would need and whether it fits."""
        request = pb.PlanRunRequest(spec=spec_to_proto(spec))
        return _plan(self._stub.PlanRun(request, timeout=timeout_seconds).plan)

    def create_run(self, spec: RunSpec, request_id: str, *, validate_only: bool = False, timeout_seconds: float | None = None) -> Run:
        """Creates a run; the same request id and specification return the first one."""
        request = pb.CreateRunRequest(request_id=request_id, spec=spec_to_proto(spec), validate_only=validate_only)
        return _run(self._stub.CreateRun(request, timeout=timeout_seconds).run)

    def get_run(self, name: str, *, timeout_seconds: float | None = None) -> Run:
        """Returns a run."""
        return _run(self._stub.GetRun(pb.GetRunRequest(name=name), timeout=timeout_seconds).run)

    def list_runs(self, *, states: Sequence[RunState] = (), limit: int = 0, timeout_seconds: float | None = None) -> tuple[Run, ...]:
        """Returns runs, newest first; all of them where `limit` is 0."""
        found: list[Run] = []
        token = ""
        while True:
            request = pb.ListRunsRequest(page_token=token, states=[RUN_STATES[state] for state in states])
            page = self._stub.ListRuns(request, timeout=timeout_seconds)
            found += [_run(run) for run in page.runs]
            token = page.next_page_token
            if not token or (limit and len(found) >= limit):
                return tuple(found[:limit] if limit else found)

    def watch_run(self, name: str, *, resume_token: str = "", timeout_seconds: float | None = None) -> Iterator[RunEvent]:
        """Yields events until the run ends; goes on after a break of the connection while the timeout lasts (None: for as long as it takes).

        Raises:
            UnavailableError: the trainer stayed away for 60 seconds.
            DeadlineExceededError: the timeout has passed.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        token, failures = resume_token, 0
        while True:
            left = _WATCH_SECONDS if deadline is None else deadline - time.monotonic()
            try:
                request = pb.WatchRunRequest(name=name, resume_token=token)
                for wire in self._stub.WatchRun(request, timeout=left):
                    failures, token = 0, wire.resume_token or token
                    event = _event(wire)
                    yield event
                    if event.run is not None and event.run.ended:
                        return
                return
            except DeadlineExceededError:
                if deadline is not None:
                    raise  # without one, this stream was long enough and the next goes on at its token
            except UnavailableError:
                failures += 1
                if failures > 30:
                    raise
                time.sleep(2.0)

    def cancel_run(self, name: str, *, timeout_seconds: float | None = None) -> Run:
        """Asks a run to checkpoint and stop."""
        return _run(self._stub.CancelRun(pb.CancelRunRequest(name=name), timeout=timeout_seconds).run)

    def resume_run(self, name: str, *, processes: int | None = None, timeout_seconds: float | None = None) -> Run:
        """Starts an ended, unsuccessful run again from its last whole checkpoint.

        Args:
            name: `runs/{run}`.
            processes: as many a node from here on, from 1 to 1024; None keeps the run's own. Results are equal to rounding then, not bit for bit.
            timeout_seconds: of the call.
        """
        return _run(self._stub.ResumeRun(pb.ResumeRunRequest(name=name, processes=processes), timeout=timeout_seconds).run)

    def list_checkpoints(self, run: str, *, timeout_seconds: float | None = None) -> tuple[Checkpoint, ...]:
        """Returns a run's checkpoints, newest first."""
        wire = self._stub.ListCheckpoints(pb.ListCheckpointsRequest(run=run), timeout=timeout_seconds)
        return tuple(Checkpoint(item.name, item.step, item.digest, item.size_bytes, item.whole) for item in wire.checkpoints)

    def promote_checkpoint(self, checkpoint: str, *, adapter: str = "", timeout_seconds: float | None = None) -> str:
        """Publishes a checkpoint's adapter; returns the new version's name."""
        request = pb.PromoteCheckpointRequest(checkpoint=checkpoint, adapter=adapter)
        return str(self._stub.PromoteCheckpoint(request, timeout=timeout_seconds).adapter_version)

    def upload_rows(self, rows: bytes, *, timeout_seconds: float | None = None) -> str:
        """Keeps JSON Lines where runs can read them and returns the URI for a run's specification; the same rows have the same.

        Rows of more than 24 MiB go in several calls, of which each has the timeout.

        Raises:
            InvalidArgumentError: there are none.
            FailedPreconditionError: the trainer is of an earlier version, which takes 24 MiB in all.
        """
        uri, start = "", 0
        while True:
            end = _end_of_part(rows, start)
            reply = self._stub.UploadRows(pb.UploadRowsRequest(rows=rows[start:end], after=uri), timeout=timeout_seconds)
            if start and reply.size_bytes != end:
                raise FailedPreconditionError(
                    f"the rows have {len(rows)} bytes, and this trainer is of an earlier version, which takes at most {_PART_BYTES}; update it",
                    field="rows",
                )
            uri, start = str(reply.uri), end
            if start == len(rows):
                return uri

    def read_run_file(self, run: str, file: RunFileName, *, timeout_seconds: float | None = None) -> bytes:
        """Returns a file that a run has written; of one that still grows, what it held at the last part. The timeout is that of one part.

        Raises:
            NotFoundError: there is no such run, or it has not written the file.
        """
        content = b""
        while True:
            request = pb.ReadRunFileRequest(run=run, file=file, offset=len(content))
            part: pb.ReadRunFileResponse = self._stub.ReadRunFile(request, timeout=timeout_seconds)
            content += part.content
            if len(content) >= part.size_bytes or not part.content:
                return content
