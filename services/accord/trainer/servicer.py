"""TrainerService over the registry and the supervisor."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import yaml

from accord.api.trainer.v1 import trainer_pb2 as pb
from accord.api.trainer.v1 import trainer_pb2_grpc as rpc
from accord.artefacts.store import ArtefactStore
from accord.data.readers import check_source
from accord.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, ResourceExhaustedError
from accord.rpc.calls import CallContext
from accord.rundir import RunDirectory
from accord.runspec import RunSpec, parse_spec
from accord.serving.fields import naming
from accord.serving.parent_lora import CONFIG_FILE, check_lora, read_lora
from accord.serving.reward_models import by_field, resolve_held_out, resolve_reward_models
from accord.serving.run_limits import check_reach, check_sampled_tokens
from accord.trainer import checkpoints, files
from accord.trainer.calibration import Calibration
from accord.trainer.config import TrainerConfig
from accord.trainer.convert import (
    RunReader,
    event_to_proto,
    idle_seconds,
    make_token,
    plan_to_proto,
    read_spec,
    read_token,
    run_path,
    timestamp,
)
from accord.trainer.model_folder import check_memory_known, find_model_folder
from accord.trainer.planner import Plan, available_bytes, data_specs, is_on_gpu, make_plan, plan_memory
from accord.trainer.registry import Registry, RunRecord
from accord.trainer.shape import ModelShape
from accord.trainer.supervisor import Supervisor

_HEARTBEAT_SECONDS = 5.0
_DEFAULT_PAGE = 50
_EVENTS_AT_ONCE = 1000
_CALIBRATION_SECONDS = 0.8
T = TypeVar("T")
_SLUG = re.compile(r"[^a-z0-9]+")


class TrainerServicer(rpc.TrainerServiceServicer):
    """Every method of TrainerService; blocking work runs in threads."""

    def __init__(
        self, registry: Registry, supervisor: Supervisor, store: ArtefactStore, config: TrainerConfig, calibration: Calibration | None = None
    ) -> None:
        self._registry = registry
        self._supervisor = supervisor
        self._store = store
        self._config = config
        self._calibration = calibration or Calibration()
        self._lock = asyncio.Lock()
        self._runs = RunReader()

    async def PlanRun(self, request: pb.PlanRunRequest, context: CallContext) -> pb.PlanRunResponse:
        spec = read_spec(request.spec)
        await _thread(lambda: self._check(spec))
        plan = await _thread(lambda: self._plan(self._as_begun(spec)))
        manifest = yaml.safe_dump(spec.as_given, sort_keys=False)
        return pb.PlanRunResponse(plan=plan_to_proto(plan, manifest))

    async def CreateRun(self, request: pb.CreateRunRequest, context: CallContext) -> pb.CreateRunResponse:
        spec = read_spec(request.spec)
        async with self._lock:
            record = await _thread(lambda: self._create(request.request_id, spec, validate_only=request.validate_only))
        if record is None:
            return pb.CreateRunResponse(run=pb.Run(spec=request.spec, total_steps=spec.steps))
        return pb.CreateRunResponse(run=await _thread(lambda: self._runs.read(record)))

    async def GetRun(self, request: pb.GetRunRequest, context: CallContext) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=await _thread(lambda: self._runs.read(self._registry.get(request.name))))

    async def ListRuns(self, request: pb.ListRunsRequest, context: CallContext) -> pb.ListRunsResponse:
        size = request.page_size if request.HasField("page_size") else _DEFAULT_PAGE
        before = read_token(request.page_token, "page_token") if request.page_token else None
        states = [pb.RunState.Name(state).removeprefix("RUN_STATE_") for state in request.states]
        found = await _thread(lambda: self._registry.find(states, before=before, limit=size + 1))
        runs = await _thread(lambda: [self._runs.read(record) for record in found[:size]])
        return pb.ListRunsResponse(runs=runs, next_page_token=make_token(found[size - 1].sequence) if len(found) > size else "")

    async def WatchRun(self, request: pb.WatchRunRequest, context: CallContext) -> AsyncIterator[pb.WatchRunResponse]:
        offset = read_token(request.resume_token, "resume_token") if request.resume_token else 0
        record = await _thread(lambda: self._registry.get(request.name))
        sent: tuple[str, str] = ("", "")
        last_sent = 0.0
        while True:
            record = await _thread(lambda: self._registry.get(request.name))
            more = True
            while more:
                events, offset, more = await _thread(partial(_events, record, offset))
                for wire in events:
                    last_sent = time.monotonic()
                    yield wire
            now = record.state, record.message if record.state == "QUEUED" else ""  # a run's own events say the rest
            if now != sent:
                sent, last_sent = now, time.monotonic()
                run = await _thread(partial(self._runs.read, record))
                yield pb.WatchRunResponse(resume_token=make_token(offset), time=timestamp(time.time()), run=run)
            if record.ended:
                return
            if time.monotonic() - last_sent > _HEARTBEAT_SECONDS:
                last_sent = time.monotonic()
                beat = pb.Heartbeat(idle_seconds=idle_seconds(record))
                yield pb.WatchRunResponse(resume_token=make_token(offset), time=timestamp(time.time()), heartbeat=beat)
            await asyncio.sleep(self._config.poll_seconds)

    async def CancelRun(self, request: pb.CancelRunRequest, context: CallContext) -> pb.CancelRunResponse:
        record = await _thread(lambda: self._supervisor.cancel(request.name))
        return pb.CancelRunResponse(run=await _thread(lambda: self._runs.read(record)))

    async def ResumeRun(self, request: pb.ResumeRunRequest, context: CallContext) -> pb.ResumeRunResponse:
        change = partial(self._spread, processes=request.processes) if request.HasField("processes") else None
        record = await _thread(lambda: self._supervisor.resume(request.name, change))
        return pb.ResumeRunResponse(run=await _thread(lambda: self._runs.read(record)))

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: CallContext) -> pb.ListCheckpointsResponse:
        with naming("run"):
            found = await _thread(lambda: checkpoints.list_checkpoints(self._registry.get(request.run)))
        return pb.ListCheckpointsResponse(
            checkpoints=[
                pb.Checkpoint(name=info.name, step=info.step, digest=info.digest, size_bytes=info.size_bytes, whole=not info.problem)
                for info in found
            ]
        )

    async def PromoteCheckpoint(self, request: pb.PromoteCheckpointRequest, context: CallContext) -> pb.PromoteCheckpointResponse:
        with naming("checkpoint"):
            record = await _thread(lambda: self._registry.get(checkpoints.run_of(request.checkpoint)))
        info = await _thread(lambda: checkpoints.find_checkpoint(record, request.checkpoint))
        version = await _thread(lambda: checkpoints.promote(self._store, record, info, request.adapter))
        return pb.PromoteCheckpointResponse(adapter_version=version)

    async def UploadRows(self, request: pb.UploadRowsRequest, context: CallContext) -> pb.UploadRowsResponse:
        async with self._lock:
            path, size = await _thread(lambda: files.keep_rows(self._config.runs, request.rows, request.after))
        return pb.UploadRowsResponse(uri=str(path), size_bytes=size)

    async def ReadRunFile(self, request: pb.ReadRunFileRequest, context: CallContext) -> pb.ReadRunFileResponse:
        with naming("run"):
            record = await _thread(lambda: self._registry.get(request.run))
        if request.file == "log.txt":  # of a Job that runs it is still in the cluster
            content, size = await _thread(lambda: files.part_of_log(record, self._supervisor.log(record), request.offset))
        else:
            content, size = await _thread(lambda: files.read_part(record, request.file, request.offset))
        return pb.ReadRunFileResponse(content=content, size_bytes=size)

    def _create(self, request_id: str, spec: RunSpec, *, validate_only: bool) -> RunRecord | None:
        name = run_name(spec, request_id)
        known = next((record for record in self._registry.find() if record.request_id == request_id), None)
        if known is not None and not validate_only:
            return self._registry.create(name, request_id, spec, known.directory)[0]  # the same, or ALREADY_EXISTS
        self._check(spec)
        self._check_fits(spec)
        if validate_only:
            return None
        waiting = len(self._registry.find(("QUEUED",)))
        if waiting >= self._config.max_queued:
            raise ResourceExhaustedError(f"{waiting} runs wait; at most {self._config.max_queued} may", retry_after_seconds=60.0)
        directory = run_path(self._config.runs, name)
        return self._registry.create(name, request_id, spec, str(directory))[0]

    def _check_fits(self, spec: RunSpec) -> None:
        config, begun = self._config, self._as_begun(spec)
        check_memory_known(config, spec)
        plan = plan_memory(
            begun, find_model_folder(config, spec), available_bytes(config, spec), local_scores=config.endpoints.local_scores,
            on_gpu=is_on_gpu(config, spec),
        )  # fmt: skip
        if not plan.fits:
            room = config.kubernetes.room_in_words(spec.algorithm) if config.kubernetes is not None else ""
            raise FailedPreconditionError(plan.refusal(room=room), field="spec", metadata=_plan_facts(plan))

    def _spread(self, spec: RunSpec, processes: int) -> RunSpec:
        """The specification of a run that goes on with another number of processes; refuses what CreateRun would."""
        values = spec.as_given
        with naming("processes"):
            spread = parse_spec({**values, "distribution": {**values["distribution"], "processes": processes}})
            self._check_processes(spread)
            self._check_fits(spread)
        return spread

    def _check(self, spec: RunSpec) -> None:
        """Everything that can be known to be missing before a process starts."""
        self._check_processes(spec)
        judge = spec.online_dpo.judge_adapter if spec.online_dpo is not None else ""
        rating = spec.rollout_part.judge_reward if spec.rollout_part is not None else None
        adapters = {"parent_adapter": spec.parent_adapter, "online_dpo.judge_adapter": judge}
        adapters |= {f"{spec.algorithm}.judge_reward.adapter": rating.adapter} if rating is not None else {}
        for field, name in adapters.items():
            if name:
                with naming(f"spec.{field}"):
                    self._store.resolve(name)
        if spec.rollout_part is not None or spec.online_dpo is not None:
            check_sampled_tokens(spec, "spec.")
        if spec.rollout_part is not None:
            trained = resolve_reward_models(spec.rollout_part, f"spec.{spec.algorithm}", self._store.resolve)
            held_out = resolve_held_out(spec.guards, trained, "spec.guards", self._store.resolve)
            self._check_reach(spec, by_field(spec, trained, held_out))
        for field, data in data_specs(spec).items():
            with naming(f"spec.{field}.uri"):
                check_source(data.uri)
        if spec.evaluate is not None and not Path(spec.evaluate.uri).is_file():
            raise NotFoundError(f"there is no file {spec.evaluate.uri}", field="spec.evaluate.uri")

    def _check_processes(self, spec: RunSpec) -> None:
        jobs, processes = self._config.kubernetes, spec.distribution.processes
        if jobs is not None:
            jobs.check_processes(spec.algorithm, processes, spec.batch_size, prefix="spec.")
        if spec.distribution.strategy == "fsdp" and processes * (jobs.for_kind(spec.algorithm).nodes if jobs is not None else 1) == 1:
            raise InvalidArgumentError(
                "must be at least 2 where the run has one node: distribution.strategy fsdp spreads weights over processes",
                field="spec.distribution.processes",
            )

    def _check_reach(self, spec: RunSpec, scorers: Mapping[str, str]) -> None:
        folder = find_model_folder(self._config, spec)
        context = ModelShape.read(folder).context if folder is not None else 0
        check_reach(spec, scorers, lambda version: self._store.manifest(version).facts, context_tokens=context, prefix="spec.")

    def _as_begun(self, spec: RunSpec) -> RunSpec:
        """The specification with the form that its adapter will have: with a parent, the parent's.

        Raises:
            InvalidArgumentError: another form was given.
        """
        if not spec.parent_adapter:
            return spec
        with naming("spec.parent_adapter"):
            version = self._store.resolve(spec.parent_adapter)
            content = self._store.read_file(version, CONFIG_FILE)
        lora = read_lora(content)
        if lora is None:
            return spec
        check_lora(spec.lora, lora, version, prefix="spec.")
        return spec.model_copy(update={"lora": lora})

    def _plan(self, spec: RunSpec) -> Plan:
        """The whole plan; its time is this machine's, so that there is none for pods elsewhere."""
        config = self._config
        speed = self._calibration.speed(_CALIBRATION_SECONDS) if config.kubernetes is None else None
        return make_plan(
            spec, find_model_folder(config, spec), available_bytes(config, spec), speed=speed, threads=config.threads,
            local_scores=config.endpoints.local_scores, on_gpu=is_on_gpu(config, spec),
        )  # fmt: skip


def run_name(spec: RunSpec, request_id: str) -> str:
    """The name of a run: readable, and the same for the same request id."""
    slug = _SLUG.sub("-", f"{spec.adapter or 'run'}-{spec.algorithm}".lower()).strip("-")[:60]
    return f"runs/{slug}-{hashlib.sha256(request_id.encode()).hexdigest()[:10]}"


def _events(record: RunRecord, offset: int) -> tuple[list[pb.WatchRunResponse], int, bool]:
    """What a watcher is told of the next events behind an offset, the offset behind these, and whether there may be more: a run can have many."""
    found = list(islice(RunDirectory(record.directory).events(offset), _EVENTS_AT_ONCE))
    wires = [wire for event in found if (wire := event_to_proto(event, record)) is not None]
    return wires, found[-1].offset if found else offset, len(found) == _EVENTS_AT_ONCE


def _plan_facts(plan: Plan) -> dict[str, str]:
    return {"peak_memory_bytes": str(plan.peak_bytes), "available_memory_bytes": str(plan.available_bytes)}


async def _thread(work: Callable[[], T]) -> T:
    return await asyncio.to_thread(work)
