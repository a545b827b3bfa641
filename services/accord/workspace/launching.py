"""One `up`: starts what does not run in waves, waits until all serve, and takes back what it started where that fails.

What does not belong here: locks, and the choice of base model and threads (`accord.workspace.workspace`).
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from accord.errors import UnavailableError
from accord.launch.processes import ProcessId, identify, is_alive, module_command, open_log, start_process, stop_processes
from accord.workspace.configuration import UPSTREAM, JudgeTable, Setting, write_configuration
from accord.workspace.health import announced_address, last_words, probe
from accord.workspace.layout import Layout, ServiceName
from accord.workspace.state import ServiceRecord, WorkspaceState, write_state

Commands = Mapping[ServiceName, Sequence[str]]
_WAVES: tuple[tuple[ServiceName, ...], ...] = (("policy", "reward"), ("feedback",), ("trainer",))
_POLL_SECONDS = 0.1
_REPORT_SECONDS = 10.0
_TAKE_BACK_SECONDS = 15.0
_RESTART_SECONDS = 45.0


class Launch:
    """Starts services; the state is written after each change, so that whoever comes next finds every process.

    Args:
        layout: of the workspace.
        state: as it is, with the base model and the threads that are wanted.
        find_folder: gives the base model's folder, and may take long; asked before the first start.
        commands: as `Workspace`.
        report: told how it goes.
        judge_table: for the feedback service.
    """

    def __init__(
        self, layout: Layout, state: WorkspaceState, find_folder: Callable[[], str], commands: Commands, report: Callable[[str], None], *,
        judge_table: JudgeTable,
    ) -> None:  # fmt: skip
        self._layout = layout
        self._state = state
        self._find_folder = find_folder
        self._setting: Setting | None = None
        self._commands = commands
        self._report = report
        self._judge_table = judge_table
        self._started: dict[ServiceName, ProcessId] = {}
        self._children: list[subprocess.Popen[bytes]] = []

    def run(self, deadline: float) -> dict[str, str]:
        """The addresses of all services once they serve.

        Raises:
            AccordError: as `Workspace.up`; what was started is stopped.
        """
        try:
            for names in _WAVES:
                self._start_wave(names)
                self._wait_wave(names, deadline)
        except BaseException:
            self._take_back()
            raise
        return {name: self._state.record(name).address for names in _WAVES for name in names}

    def _start_wave(self, names: Sequence[ServiceName]) -> None:
        for name in names:
            record = self._state.record(name)
            upstream: dict[str, str] = {other: self._state.record(other).address for other in UPSTREAM[name]}
            if record.process is not None and is_alive(record.process):
                if dict(record.upstream) == upstream:
                    continue
                self._report(f"{name} is started again: {_moved(record.upstream, upstream)}")
                stop_processes([record.process], timeout_seconds=_RESTART_SECONDS)
            elif record.process is not None:
                self._report(f"{name} had ended by itself ({last_words(self._layout, name, record)}); starting it again")
            else:
                self._report(f"starting {name}")
            self._start(name, record, upstream)

    def _start(self, name: ServiceName, known: ServiceRecord, upstream: Mapping[str, str]) -> None:
        setting = self._setting or Setting(self._state.base_model, self._find_folder(), self._state.threads, self._judge_table)
        self._setting = setting
        listen = write_configuration(self._layout, name, setting, upstream, known)
        log = self._layout.log(name)
        offset = open_log(log)
        command = (*self._commands.get(name, module_command(f"accord.{name}")), str(self._layout.config(name)))
        self._layout.announcement(name).unlink(missing_ok=True)
        child = start_process(command, log=log, folder=self._layout.home, threads=setting.threads)
        self._children.append(child)
        process = identify(child.pid) or ProcessId(child.pid, "gone")
        self._started[name] = process
        self._keep(name, ServiceRecord(process, listen, known.address, time.time(), offset, upstream=dict(upstream)))

    def _wait_wave(self, names: Sequence[ServiceName], deadline: float) -> None:
        waiting, told = list(names), time.monotonic()
        while waiting:
            for name in tuple(waiting):
                if self._serves(name):
                    waiting.remove(name)
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise UnavailableError(self._late(waiting[0]), metadata={"service": waiting[0]})
            if time.monotonic() - told > _REPORT_SECONDS:
                told = time.monotonic()
                self._report(f"waiting for {' and '.join(waiting)} to load")
            time.sleep(_POLL_SECONDS)

    def _serves(self, name: ServiceName) -> bool:
        """Whether a service is SERVING now; takes note of its address once it is.

        Raises:
            UnavailableError: its process has ended.
        """
        record = self._state.record(name)
        if record.process is None or not is_alive(record.process):
            words = last_words(self._layout, name, record)
            raise UnavailableError(
                f"the {name} service ended while it started: {words}; its log: {self._layout.log(name)}", metadata={"service": name}
            )
        address = announced_address(self._layout, name, record.process.pid)
        if address is None or probe(address, ready=record.ready)[0] != "serving":
            return False
        if not record.ready or record.address != address:
            self._keep(name, replace(record, address=address, ready=True))
            self._report(f"{name} serves at {address} after {time.time() - record.start_time:.1f} s")
        return True

    def _late(self, name: ServiceName) -> str:
        record = self._state.record(name)
        address = announced_address(self._layout, name, record.process.pid) if record.process else None
        health, note = ("starting", "") if address is None else probe(address, ready=record.ready)
        where = f"at {address}" if address else "(it has bound no port yet)"
        return f"the {name} service {where} was not SERVING in time: {note or health}; its log: {self._layout.log(name)}"

    def _take_back(self) -> None:
        """Stops what this call has started; services that ran before stay."""
        stop_processes(tuple(self._started.values()), timeout_seconds=_TAKE_BACK_SECONDS)
        for name in self._started:
            self._keep(name, replace(self._state.record(name), process=None, ready=False))
        for child in self._children:
            child.wait()

    def _keep(self, name: ServiceName, record: ServiceRecord) -> None:
        self._state = self._state.with_record(name, record)
        write_state(self._layout, self._state)


def _moved(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    return ", ".join(f"{name} has moved to {address}" for name, address in new.items() if old.get(name) != address)
