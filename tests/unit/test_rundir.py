"""A run's folder: whole events only, whatever a kill left behind; results at once."""

import errno
import os
from pathlib import Path

import pytest

from accord.errors import DataLossError, InvalidArgumentError, NotFoundError
from accord.rundir import RunDirectory, RunEvent, RunFile, RunProgress, RunResult, read_run_file, write_atomically
from accord.runspec import parse_spec

SPEC = parse_spec({"adapter": "a", "steps": 2, "sft": {"data": {"uri": "sample:summarization"}}})


def test_events_survive_a_writer_killed_inside_a_line(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.append_event(RunEvent("metrics", 1.0, step=1, values={"loss": 0.5}))
    with run.events_path.open("ab") as file:
        file.write(b'{"kind": "metrics", "ti')
    assert [event.step for event in run.events()] == [1]
    run.append_event(RunEvent("metrics", 2.0, step=2, values={"loss": 0.25}))
    events = list(run.events())
    assert [(event.step, event.values["loss"]) for event in events] == [(1, 0.5), (2, 0.25)]
    assert [event.step for event in run.events(events[0].offset)] == [2]


def test_run_file_round_trip_and_errors(tmp_path: Path) -> None:
    run = RunFile(name="runs/a-1", artefacts=str(tmp_path), base_model="embedded", threads=1, spec=SPEC)
    RunDirectory(tmp_path).write_run_file(run)
    assert read_run_file(tmp_path / "run.yaml") == run
    (tmp_path / "run.yaml").write_text((tmp_path / "run.yaml").read_text().replace("steps: 2", "stepz: 2"))
    with pytest.raises(InvalidArgumentError, match=r"stepz"):
        read_run_file(tmp_path / "run.yaml")
    with pytest.raises(NotFoundError, match=r"nothing\.yaml"):
        read_run_file(tmp_path / "nothing.yaml")


def test_result(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.result() is None
    run.write_result(RunResult(0, "done", 2, "adapters/a/versions/1", {"loss": 1.0}, 3.0))
    assert run.result() == RunResult(0, "done", 2, "adapters/a/versions/1", {"loss": 1.0}, 3.0)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(DataLossError, match=r"result\.json"):
        run.result()


def test_progress_reads_what_has_come_since_and_starts_anew_with_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path)
    assert run.progress() == RunProgress()
    run.append_event(RunEvent("state", 1.0, phase="training", waiting_on="adapters/x"))
    run.append_event(RunEvent("metrics", 2.0, step=3, values={"loss": 0.5, "eval_loss": 1.0}))
    first = run.progress()
    assert (first.step, first.phase, first.waiting_on, first.time) == (3, "training", "adapters/x", 2.0)
    run.append_event(RunEvent("state", 3.0, step=1, phase="training"))  # a resumed run repeats steps
    assert run.progress(first).step == 1, "the checkpoint's, whatever the lost attempt had done after it"
    run.append_event(RunEvent("metrics", 4.0, step=2, values={"loss": 0.25}))
    asked: list[int] = []
    events = RunDirectory.events
    monkeypatch.setattr(RunDirectory, "events", lambda self, offset=0: (asked.append(offset), events(self, offset))[1])
    second = run.progress(first)
    assert second == run.progress()
    assert (second.step, second.metrics, second.time) == (2, {"loss": 0.25, "eval_loss": 1.0}, 4.0)
    assert asked == [first.offset, 0]
    run.events_path.write_text("")
    run.append_event(RunEvent("message", 5.0, text="anew"))
    assert run.progress(second).step == 0


def test_versions_of_names_are_kept(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    assert directory.versions() == {}
    directory.keep_version("adapters/a", "adapters/a/versions/3")
    directory.keep_version("adapters/b", "adapters/b/versions/1")
    assert RunDirectory(tmp_path / "run").versions() == {"adapters/a": "adapters/a/versions/3", "adapters/b": "adapters/b/versions/1"}
    for damaged in ("", "{", "[]", "3"):
        (tmp_path / "run" / "versions.json").write_text(damaged)
        with pytest.raises(DataLossError, match="which versions the run began with"):
            directory.versions()


def test_half_a_file_is_no_file_and_does_not_keep_a_full_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rollouts.jsonl"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["rollouts.jsonl"]
