"""A workspace: starts the four services of a folder, says how they are, and stops them.

What does not belong here: what the services do, and where a run of the study keeps its results (`accord.study`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from accord.errors import FailedPreconditionError
from accord.launch.processes import ProcessId, is_alive, stop_processes
from accord.workspace.basemodel import EMBEDDED, absolute_base_model, ensure_model_folder
from accord.workspace.configuration import JudgeTable, default_threads, read_configuration
from accord.workspace.health import ServiceStatus, service_status
from accord.workspace.launching import Commands, Launch
from accord.workspace.layout import SERVICE_NAMES, Layout, ServiceName, command_line
from accord.workspace.runs import running_runs, stop_running_runs
from accord.workspace.state import WorkspaceState, locked, read_state, write_state

DEFAULT_HOME = ".accord"
_LEAST_STOP_SECONDS = 2.0
_STOP_ORDER: tuple[tuple[ServiceName, ...], ...] = (("trainer", "feedback"), ("policy", "reward"))


@dataclass(frozen=True, slots=True)
class Services:
    """The addresses (``host:port``) of the four services."""

    policy: str
    reward: str
    feedback: str
    trainer: str


class Workspace:
    """The services of one folder.

    Args:
        home: the folder; made by `up`.
        commands: how a service is started, by name, where it is not `python -m accord.NAME`; the path of its configuration is appended.
    """

    def __init__(self, home: Path | str, *, commands: Commands | None = None) -> None:
        self._layout = Layout(Path(home).expanduser().absolute())
        self._commands = commands or {}

    @property
    def home(self) -> Path:
        """The folder."""
        return self._layout.home

    @property
    def artefacts(self) -> str:
        """URI of the artefact store."""
        return str(self._layout.artefacts)

    @property
    def runs(self) -> Path:
        """The folder of run directories."""
        return self._layout.runs

    @property
    def base_model(self) -> str:
        """The base model that the services were last started with; empty where they never were."""
        return read_state(self._layout).base_model

    def up(
        self,
        *,
        base_model: str = EMBEDDED,
        threads: int | None = None,
        judge_table: JudgeTable | None = None,
        report: Callable[[str], None] | None = None,
        timeout_seconds: float = 300,
    ) -> Services:
        """Starts the services that do not run and returns all addresses once every one is SERVING; does nothing where they are.

        What this call has started is stopped again if it cannot finish. A service comes back at its earlier address where that is free;
        where it is not, those that know the old address are started again too.

        Args:
            base_model: `embedded`, a folder or a hub id.
            threads: torch threads of each service and of runs; default what the workspace had before, else the physical cores.
            judge_table: judges that the feedback service is to have beside those of its file.
            report: told in sentences how it goes.
            timeout_seconds: for everything, a conversion of the embedded model included.

        Raises:
            FailedPreconditionError: services run already with another base model, other threads or without these judges; a fixed port is taken; the
                embedded model is not installed.
            UnavailableError: a service ended while it started, or was not SERVING in time; the message has the last words of its log.
            DeadlineExceededError: somebody else starts or stops services here, or the conversion took too long.
            NotFoundError, InvalidArgumentError: there is no such model folder; a configuration file was edited wrongly.
        """
        say = report or _silent
        deadline = time.monotonic() + timeout_seconds
        wanted = absolute_base_model(base_model)
        self._layout.make()
        with locked(self._layout, timeout_seconds=timeout_seconds, on_wait=say):
            state = read_state(self._layout)
            running = _running(state)
            if running:
                _check_same(self.home, state, running, wanted, threads)
            if "feedback" in running:
                _check_judges(self._layout, judge_table or JudgeTable())
            count = threads or state.threads or default_threads()
            state = replace(state, base_model=wanted, threads=count)
            find = partial(ensure_model_folder, wanted, report=say, timeout_seconds=max(0.1, deadline - time.monotonic()))
            launch = Launch(self._layout, state, find, self._commands, say, judge_table=judge_table or JudgeTable())
            return Services(**launch.run(deadline))

    def services(self) -> Services:
        """The addresses of the running services.

        Raises:
            FailedPreconditionError: not all of them run; the message says what to do.
        """
        return Services(**{name: self.address(name) for name in SERVICE_NAMES})

    def address(self, name: ServiceName) -> str:
        """The address of one running service. Raises as `services`."""
        state = read_state(self._layout)
        record = state.record(name)
        if record.ready and is_alive(record.process):
            return record.address
        what = f"the {name} service is not up" if _running(state) else "no services run"
        raise FailedPreconditionError(f"{what} in {self.home}; start what is missing: {command_line('up', self.home)}")

    def status(self) -> tuple[ServiceStatus, ...]:
        """How each service is; takes at most a second for each."""
        state = read_state(self._layout)
        return tuple(service_status(self._layout, name, state.record(name)) for name in SERVICE_NAMES)

    def running_runs(self) -> tuple[str, ...]:
        """Names (`runs/x`) of the runs whose process goes on, with or without services."""
        return running_runs(self._layout)

    def down(self, *, timeout_seconds: float = 60, stop_runs: bool = False, report: Callable[[str], None] | None = None) -> tuple[ServiceName, ...]:
        """Stops the services that this workspace has started and returns their names; no error where none runs.

        Each gets SIGTERM and the time to finish calls in flight; SIGKILL only after the timeout. Runs go on by themselves, unless
        `stop_runs` asks them to checkpoint and stop first.

        Raises:
            DeadlineExceededError: somebody else starts or stops services here.
        """
        say = report or _silent
        if not self._layout.state.exists():
            return ()
        deadline = time.monotonic() + timeout_seconds
        with locked(self._layout, timeout_seconds=timeout_seconds, on_wait=say):
            state = read_state(self._layout)
            if stop_runs:
                trainer = state.record("trainer")
                address = trainer.address if is_alive(trainer.process) else ""
                stop_running_runs(self._layout, address, timeout_seconds=max(0.0, deadline - time.monotonic()), report=say)
            stopped: list[ServiceName] = []
            for names in _STOP_ORDER:
                stopped += self._stop(state, names, deadline, say)
            for name in SERVICE_NAMES:
                state = state.with_record(name, replace(state.record(name), process=None, ready=False))
            write_state(self._layout, state)
        return tuple(stopped)

    def _stop(self, state: WorkspaceState, names: tuple[ServiceName, ...], deadline: float, say: Callable[[str], None]) -> list[ServiceName]:
        processes: dict[ServiceName, ProcessId] = {name: process for name in names if (process := _alive(state, name)) is not None}
        if processes:
            say(f"stopping {' and '.join(processes)}")
        stop_processes(tuple(processes.values()), timeout_seconds=max(_LEAST_STOP_SECONDS, deadline - time.monotonic()))
        return list(processes)


def _alive(state: WorkspaceState, name: ServiceName) -> ProcessId | None:
    process = state.record(name).process
    return process if is_alive(process) else None


def _running(state: WorkspaceState) -> tuple[ServiceName, ...]:
    return tuple(name for name in SERVICE_NAMES if _alive(state, name) is not None)


def _check_same(home: Path, state: WorkspaceState, running: tuple[ServiceName, ...], base_model: str, threads: int | None) -> None:
    """A workspace has one base model and one thread count at a time."""
    who = f"{', '.join(running)} {'run' if len(running) > 1 else 'runs'} in {home}"
    if state.base_model != base_model:
        raise FailedPreconditionError(
            f"{who} with base model {state.base_model}, not {base_model}; stop them ({command_line('down', home)}), or use another --home",
            field="base_model",
            metadata={"running": state.base_model, "wanted": base_model},
        )
    if threads is not None and threads != state.threads:
        raise FailedPreconditionError(
            f"{who} with {state.threads} threads, not {threads}; stop them first: {command_line('down', home)}", field="threads"
        )


def _check_judges(layout: Layout, wanted: JudgeTable) -> None:
    """A feedback service that runs is given no more judges."""
    kept = read_configuration(layout, "feedback")
    if wanted.merged(kept) != kept:
        names = ", ".join(sorted(wanted.judges))
        raise FailedPreconditionError(
            f"the feedback service runs in {layout.home} without the judges {names} as they are wanted; stop it first: "
            f"{command_line('down', layout.home)}", field="judges",
        )  # fmt: skip


def _silent(_: str) -> None:
    """Nobody listens."""
