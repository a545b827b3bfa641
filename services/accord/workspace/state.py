"""services.json: which processes are the services of a workspace, and the lock of whoever changes that.

What does not belong here: looking at the processes (`accord.launch.processes`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from accord.errors import DataLossError, DeadlineExceededError, NotFoundError
from accord.launch.processes import ProcessId
from accord.rundir import write_atomically
from accord.workspace.layout import SERVICE_NAMES, Layout, ServiceName

_LOCK_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """What is known of one service.

    `listen` is what its configuration was given and `address` what it announced; both stay when it is stopped, so that it comes back at the
    same address. `process` is None once it was stopped on request. `upstream` are the addresses that it was told.
    """

    process: ProcessId | None = None
    listen: str = ""
    address: str = ""
    start_time: float = 0.0
    log_offset: int = 0
    ready: bool = False
    upstream: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkspaceState:
    """What a workspace's services were started with, and each of them."""

    base_model: str = ""
    threads: int = 0
    services: Mapping[ServiceName, ServiceRecord] = field(default_factory=dict)

    def record(self, name: ServiceName) -> ServiceRecord:
        """What is known of a service; an empty record where nothing is."""
        return self.services.get(name, ServiceRecord())

    def with_record(self, name: ServiceName, record: ServiceRecord) -> WorkspaceState:
        """The state with another record of one service."""
        return replace(self, services={**self.services, name: record})


def read_state(layout: Layout) -> WorkspaceState:
    """The state of a workspace; an empty one where nothing was ever started.

    Raises:
        DataLossError: services.json is damaged.
    """
    try:
        values = json.loads(layout.state.read_text(encoding="utf-8"))
        services = {name: _record(values["services"][name]) for name in SERVICE_NAMES if name in values["services"]}
        return WorkspaceState(str(values["base_model"]), int(values["threads"]), services)
    except (FileNotFoundError, NotADirectoryError):
        return WorkspaceState()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        damaged = DataLossError(f"{layout.state} is damaged ({type(error).__name__})")
        damaged.add_note("stop the workspace's processes by hand, then remove the file")
        raise damaged from error


def write_state(layout: Layout, state: WorkspaceState) -> None:
    """Replaces services.json."""
    write_atomically(layout.state, json.dumps(asdict(state), indent=1))


@contextlib.contextmanager
def locked(layout: Layout, *, timeout_seconds: float, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Holds the workspace's lock, which the system drops when its holder dies. `on_wait` is told, once, who holds it.

    Raises:
        NotFoundError: the workspace's folder does not exist.
        DeadlineExceededError: somebody else holds the lock for longer than the timeout.
    """
    deadline, told = time.monotonic() + timeout_seconds, False
    try:
        handle = layout.lock.open("a+")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"there is no workspace {layout.home}", field="home") from error
    with handle:
        while not _taken(handle.fileno()):
            if not told:
                told = True
                on_wait(f"process {_holder(layout.lock)} is starting or stopping services here; waiting for it")
            if time.monotonic() > deadline:
                raise DeadlineExceededError(
                    f"process {_holder(layout.lock)} has been starting or stopping services in {layout.home} for {timeout_seconds:g} s"
                )
            time.sleep(_LOCK_POLL_SECONDS)
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(lock: Path) -> str:
    with contextlib.suppress(OSError):
        return lock.read_text(encoding="utf-8").strip() or "unknown"
    return "unknown"


def _record(values: Mapping[str, object]) -> ServiceRecord:
    process = values.pop("process")  # type: ignore[attr-defined]
    return ServiceRecord(process=None if process is None else ProcessId(**process), **values)  # type: ignore[arg-type]
