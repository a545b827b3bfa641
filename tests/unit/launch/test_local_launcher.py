"""Runs as processes of this machine: which process is a run's, where nothing but its command line says so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from accord.launch.launcher import Observation
from accord.launch.local import LocalLauncher

Begin = Callable[[Sequence[str]], "subprocess.Popen[bytes]"]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Starts a process that waits for its stdin to be closed, in the run's folder and in a session of its own, as runs are."""
    with ExitStack() as stack:
        yield lambda command: stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, cwd=tmp_path, start_new_session=True))


def test_who_reads_the_file_of_a_run_is_not_its_process(tmp_path: Path, begin: Begin) -> None:
    viewer = begin([sys.executable, "-c", "import sys; sys.stdin.read()", str(tmp_path / "run.yaml")])
    launcher = LocalLauncher((sys.executable, "-m", "accord.training", "--config"), threads=1)
    assert launcher.observe(tmp_path) == Observation("unknown")
    launcher.stop(tmp_path, force=True)
    assert not (tmp_path / "process.json").exists()
    viewer.communicate(b"", timeout=10)
    assert viewer.returncode == 0, "it was not killed"


@pytest.mark.parametrize("named", ["by its path", "by its name"])
def test_a_run_that_a_script_starts_is_found(tmp_path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    """Its command line begins with the interpreter and the script's whole path."""
    script = tmp_path / "start-run"
    script.write_text("#!/bin/sh\nread line\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    command = (str(script) if named == "by its path" else script.name, "--config")
    process = begin([*command, str(tmp_path / "run.yaml")])
    launcher = LocalLauncher(command, threads=1)
    assert launcher.observe(tmp_path) == Observation("running")
    launcher.stop(tmp_path, force=True)
    assert process.wait(10) == -9
