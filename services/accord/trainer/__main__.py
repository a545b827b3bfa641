"""`python -m accord.trainer CONFIG.yaml`: the trainer service as a process."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from accord.api.trainer.v1 import trainer_pb2_grpc as rpc
from accord.artefacts.store import ArtefactStore
from accord.errors import FailedPreconditionError
from accord.launch.launcher import Launcher
from accord.launch.local import DEFAULT_COMMAND, LocalLauncher
from accord.rpc.server import Component, ServiceBinding, main
from accord.rundir import RunFile
from accord.trainer.calibration import Calibration
from accord.trainer.config import TrainerConfig
from accord.trainer.model_folder import check_memory_known, find_model_folder
from accord.trainer.planner import available_bytes, is_on_gpu, plan_memory, room_for
from accord.trainer.registry import Registry
from accord.trainer.servicer import TrainerServicer
from accord.trainer.supervisor import Supervisor

_LONGEST_LOOK_SECONDS = 120.0  # a start may read data for its plan, and an API server that is away takes each request's deadline
_log = structlog.get_logger(__name__)


class TrainerComponent:
    """The registry, the supervisor's loop and the servicer. Implements `accord.rpc.server.Component`.

    Args:
        config: of the trainer.
        clock: monotonic seconds.

    Raises:
        UnavailableError: the registry's database does not answer.
        FailedPreconditionError: as `build_launcher`.
    """

    def __init__(self, config: TrainerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        Path(config.runs).mkdir(parents=True, exist_ok=True)
        self._config = config
        self._registry = Registry(config.database)
        self._launcher = build_launcher(config)
        self._supervisor = Supervisor(self._registry, self._launcher, config)
        self._calibration = Calibration()
        self._servicer = TrainerServicer(self._registry, self._supervisor, ArtefactStore(config.artefacts), config, self._calibration)
        self._loop: asyncio.Task[None] | None = None
        self._fault: str | None = None
        self._clock = clock
        self._looking_since: float | None = None

    @property
    def bindings(self) -> Sequence[ServiceBinding]:
        """TrainerService."""
        return (
            ServiceBinding("accord.api.trainer.v1.TrainerService", lambda server: rpc.add_TrainerServiceServicer_to_server(self._servicer, server)),
        )

    async def start(self) -> None:
        """Takes up the runs where they are now, then goes on looking at them; measures the machine where nobody has."""
        if self._config.kubernetes is None:
            self._calibration.start()
        await asyncio.to_thread(self._supervisor.tick)
        self._loop = asyncio.create_task(self._watch())

    async def drain(self) -> None:
        """Runs go on without the server; with `stop_runs` they write a checkpoint first, and end as stopped, so that they can be resumed."""
        if not self._config.stop_runs:
            return
        await asyncio.to_thread(self._supervisor.stop_all)
        while not await asyncio.to_thread(self._supervisor.has_ended_all):
            await asyncio.sleep(self._config.poll_seconds)

    async def close(self) -> None:
        """Stops looking at the runs, which go on."""
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
        self._launcher.close()
        self._registry.close()

    def fault(self) -> str | None:
        """Why runs are not looked after, or None."""
        return self._fault or self._launcher.fault() or self._endless_look()

    def _endless_look(self) -> str | None:
        """A look that does not end raises nothing: a database that is frozen, a network's file system that is away."""
        waited = 0.0 if self._looking_since is None else self._clock() - self._looking_since
        if waited <= _LONGEST_LOOK_SECONDS:
            return None
        return (
            f"runs cannot be looked after: the look at them that began {waited:.0f} s ago waits for the database, the folder of runs or the cluster"
        )

    async def _watch(self) -> None:
        while True:
            self._looking_since = self._clock()
            try:
                await asyncio.to_thread(self._supervisor.tick)
                self._fault = None
            except Exception as error:  # noqa: BLE001 - a full disk or a lost database must not end the loop; health says it
                self._fault = f"runs cannot be looked after: {type(error).__name__}: {error}"
                _log.error("tick_failed", reason=self._fault)
            self._looking_since = None
            await asyncio.sleep(self._config.poll_seconds)


def build_launcher(config: TrainerConfig) -> Launcher:
    """What starts the runs. The Kubernetes client is loaded only where it is needed.

    Raises:
        FailedPreconditionError: the client is not installed, or there is no cluster.
    """
    if config.kubernetes is None:
        return LocalLauncher(config.command or DEFAULT_COMMAND, threads=config.threads, nice=config.nice, room=room_for(config))
    try:
        from accord.launch.jobs import JobLauncher
        from accord.launch.kubernetes import Cluster
    except ModuleNotFoundError as error:
        raise FailedPreconditionError(f"launcher kubernetes needs the extra accord[kubernetes]: {error}", field="launcher") from error

    def peak_bytes(run: RunFile) -> int:
        check_memory_known(config, run.spec)
        folder, local = find_model_folder(config, run.spec), run.endpoints.local_scores
        return plan_memory(run.spec, folder, available_bytes(config, run.spec), local_scores=local, on_gpu=is_on_gpu(config, run.spec)).peak_bytes

    return JobLauncher(config.kubernetes, Cluster(config.kubernetes), stop_grace_seconds=config.stop_grace_seconds, peak_bytes=peak_bytes)


def build(config: TrainerConfig) -> Component:
    """Returns the component of a configuration."""
    return TrainerComponent(config)


if __name__ == "__main__":
    sys.exit(main(TrainerConfig, build))
