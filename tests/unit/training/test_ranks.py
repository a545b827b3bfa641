"""How the processes of a run end together; the processes are small scripts that take the arguments of `python -m accord.training`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from accord.errors import AbortedError
from accord.rundir import EXIT_CONFIGURATION, EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, RunDirectory, RunFile, RunResult
from accord.runspec import parse_spec
from accord.training import __main__ as entry
from accord.training.place import Place, clear_failures, ended_by, tell_failure, told_failure
from accord.training.ranks import Ranks, threads_each

HEAD = """
import json, os, signal, sys, time
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
rank, folder = int(given["--rank"]), os.path.dirname(given["--config"])
def say(name, row):
    open(os.path.join(folder, name), "w").write(json.dumps(row))
def result(code, message):
    say("result.json", {"exit_code": code, "message": message, "step": 4, "adapter_version": "", "metrics": {}, "time": time.time()})
"""


def ranks_of(root: Path, body: str, *, grace_seconds: float = 5.0) -> tuple[Ranks, RunDirectory]:
    script = root / "script.py"
    script.write_text(HEAD + body)
    directory = RunDirectory(root / "run")
    spec = parse_spec({"adapter": "a", "steps": 5, "sft": {"data": {"uri": "rows.jsonl"}}, "distribution": {"processes": 2}})
    run = RunFile(name="runs/run", artefacts=str(root / "artefacts"), base_model="embedded", threads=2, spec=spec)
    directory.write_run_file(run)
    return Ranks(directory.path / "run.yaml", directory, run, command=(sys.executable, str(script)), grace_seconds=grace_seconds), directory


def ended(directory: RunDirectory) -> RunResult:
    result = directory.result()
    assert result is not None
    return result


def test_all_run_to_the_end_on_their_share_of_the_threads(tmp_path: Path) -> None:
    ranks, directory = ranks_of(tmp_path, "say(f'seen-{rank}', os.environ['OMP_NUM_THREADS'])\nif rank == 0: result(0, 'done')\n")
    assert ranks.run() == EXIT_DONE
    assert [(directory.path / f"seen-{rank}").read_text() for rank in range(2)] == ['"1"', '"1"']
    assert (threads_each(8, 3), threads_each(1, 2)) == (2, 1)


def test_one_that_dies_takes_a_deaf_one_with_it_and_is_named(tmp_path: Path) -> None:
    body = "if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)\n"
    ranks, directory = ranks_of(tmp_path, body, grace_seconds=0.5)
    started = time.monotonic()
    assert ranks.run() == EXIT_FAILED
    assert time.monotonic() - started < 20
    assert ended(directory).message.startswith("process 1 of 2 was ended by SIGKILL; the others were ended with it")


def test_the_dead_is_named_although_the_first_one_saw_only_that_it_was_gone(tmp_path: Path) -> None:
    body = "if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(0.3)\nresult(1, 'connection closed')\nsys.exit(1)\n"
    ranks, directory = ranks_of(tmp_path, body)
    assert ranks.run() == EXIT_FAILED
    assert "was ended by SIGKILL" in ended(directory).message
    assert ended(directory).step == 4


@pytest.mark.parametrize("code", [EXIT_CONFIGURATION, 4])
def test_an_error_of_the_first_process_is_the_runs(tmp_path: Path, code: int) -> None:
    body = f"if rank == 0: time.sleep(0.3); result({code}, 'no such adapter')\nsys.exit({code} if rank == 0 else 1)\n"
    ranks, directory = ranks_of(tmp_path, body)
    assert ranks.run() == code
    assert ended(directory).message == "no such adapter"


def test_what_another_process_said_is_the_reason_where_the_first_one_hung(tmp_path: Path) -> None:
    body = "if rank == 1: say('failure-1.json', {'message': 'out of memory'}); sys.exit(1)\ntime.sleep(60)\n"
    ranks, directory = ranks_of(tmp_path, body, grace_seconds=0.5)
    assert ranks.run() == EXIT_FAILED
    assert ended(directory).message.startswith("process 1 of 2: out of memory; the others were ended with it")


def test_a_stop_reaches_all_and_is_waited_for(tmp_path: Path) -> None:
    """A checkpoint may take longer than the grace that a failure gives."""
    body = (
        "def stop(*_):\n    time.sleep(1.5 if rank == 0 else 0)\n    say(f'stopped-{rank}', 1)\n    os._exit(3)\n"
        "signal.signal(signal.SIGTERM, stop)\nsay(f'ready-{rank}', 1)\ntime.sleep(60)\n"
    )
    ranks, directory = ranks_of(tmp_path, body, grace_seconds=0.2)

    def ask() -> None:
        while not all((directory.path / f"ready-{rank}").exists() for rank in range(2)):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=ask, daemon=True).start()
    assert ranks.run() == EXIT_STOPPED
    assert all((directory.path / f"stopped-{rank}").exists() for rank in range(2))
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_reason_of_an_earlier_attempt_is_not_this_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun starts a run again in the same folder, and clears nothing away."""
    directory, gone = RunDirectory(tmp_path), AbortedError("another process of the run ended")
    place = Place(0, 3, 0, 1, joined=True)
    tell_failure(directory, 1, "no memory, last week")
    monkeypatch.setattr(entry, "_STARTED", time.time())
    assert entry._peer_failure(directory, place, gone) == ""
    tell_failure(directory, 2, "the disk is full")
    assert entry._peer_failure(directory, place, gone) == "process 2 of 3: the disk is full"


def test_failures_are_told_and_forgotten(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert told_failure(directory, 3, wait_seconds=0.0) == ""
    tell_failure(directory, 2, "the disk is full")
    assert told_failure(directory, 3, wait_seconds=0.0) == "process 2 of 3: the disk is full"
    assert told_failure(directory, 3, since=time.time() - 60, wait_seconds=0.0) == "process 2 of 3: the disk is full"
    clear_failures(directory)
    assert told_failure(directory, 3, wait_seconds=0.0) == ""
    assert (ended_by(1), ended_by(-9)) == ("ended with code 1", "was ended by SIGKILL")
