"""One process of a run at a time, whatever happens to the one before."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from accord.rundir import EXIT_CONFIGURATION, EXIT_FAILED, EXIT_STOPPED, RunDirectory, RunFile, RunResult
from accord.runspec import parse_spec
from accord.training import claim
from accord.training.__main__ import main
from accord.training.claim import claimed
from accord.training.context import EventLog, RunStopped, StopSignal

HOLDER = "import fcntl, sys, time; file = open(sys.argv[1], 'ab'); fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    found = RunDirectory(tmp_path / "run")
    spec = parse_spec({"adapter": "a", "steps": 1, "sft": {"data": {"uri": "/nowhere.jsonl"}}})
    found.write_run_file(RunFile(name="runs/run", artefacts=str(tmp_path / "artefacts"), base_model="/nowhere", threads=1, spec=spec))
    return found


def hold(directory: RunDirectory) -> subprocess.Popen[str]:
    """Another process that has the run's folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(directory.lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_waits_until_the_first_is_killed_and_says_so(directory: RunDirectory) -> None:
    first = hold(directory)
    entered = threading.Event()

    def second() -> None:
        with claimed(directory, EventLog(directory), StopSignal()):
            entered.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not entered.wait(0.7)
    assert [event.waiting_on for event in directory.events()] == ["the run's earlier process, which has not ended yet"]
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert entered.wait(5)
    thread.join()
    with claimed(directory, EventLog(directory), StopSignal()):
        pass


def test_one_that_is_stopped_while_it_waits_leaves_the_folder_alone(directory: RunDirectory) -> None:
    first = hold(directory)
    directory.write_result(RunResult(EXIT_STOPPED, "the other's", 4))
    stop = StopSignal()
    stop.set()
    with pytest.raises(RunStopped), claimed(directory, EventLog(directory), stop):
        raise AssertionError("two at once")
    result = directory.result()
    assert result is not None
    assert result.message == "the other's"
    first.kill()
    first.wait()


def test_a_file_system_without_locks_is_told_and_used(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(claim.fcntl, "flock", refuse)
    with claimed(directory, EventLog(directory), StopSignal()):
        pass
    assert [event.text for event in directory.events()] == [
        "the run's folder cannot be locked (No locks available): nothing keeps a second process of this run away from it"
    ]


def test_the_run_file_may_lie_elsewhere_and_an_earlier_end_is_forgotten(directory: RunDirectory, tmp_path: Path) -> None:
    elsewhere = tmp_path / "config" / "run.yaml"
    elsewhere.parent.mkdir()
    (directory.path / "run.yaml").rename(elsewhere)
    directory.write_result(RunResult(EXIT_STOPPED, "an earlier pod's", 4))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        code = main(["--config", str(elsewhere), "--directory", str(directory.path)])
    finally:
        signal.signal(signal.SIGTERM, handler)
    result = directory.result()
    assert result is not None
    assert (code, result.exit_code) == (EXIT_CONFIGURATION, EXIT_CONFIGURATION)
    assert "/nowhere" in result.message
    assert not (elsewhere.parent / "result.json").exists()


def test_a_folder_that_is_not_there_is_one_line(directory: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        code = main(["--config", str(directory.path / "run.yaml"), "--directory", str(tmp_path / "not-mounted")])
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert code == EXIT_FAILED
    assert "the run's folder cannot be used" in capsys.readouterr().err
    assert main(["--config", "x", "--folder", "y"]) == EXIT_CONFIGURATION
    assert "usage" in capsys.readouterr().err


def test_a_stop_that_comes_while_it_still_loads_is_heard(directory: RunDirectory) -> None:
    command = [sys.executable, "-m", "accord.training", "--config", str(directory.path / "run.yaml")]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, stderr=subprocess.PIPE, text=True)
    status, deadline = Path(f"/proc/{process.pid}/status"), time.monotonic() + 60
    while not int(re.search(r"SigCgt:\s*(\w+)", status.read_text()).group(1), 16) >> (signal.SIGTERM - 1) & 1:  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert not directory.events_path.exists(), "it has not begun"
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) == EXIT_STOPPED
    result = directory.result()
    assert result is not None
    assert result.message == "stopped on request before its first step; it begins anew when it is resumed"
