"""What `accord label` makes of its options and of a job's states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from accord.cli.labelling import JobPace, absolute_output, read_candidates, request_id_of
from accord.client.feedback import Candidates, LabelJob, LabelJobSpec, LabelLimits
from accord.errors import InvalidArgumentError
from accord.text.tasks import Task

SPEC = LabelJobSpec("", "sample:summarization", Task.SUMMARIZATION, "/out")
JOB = LabelJob("labelJobs/j", "running", 1000, 0, 0, 0, 0, "", "", "", "", 0.0)


def test_pace_is_that_of_the_last_minute() -> None:
    now = 0.0
    pace = JobPace(clock=lambda: now)
    assert pace.of(JOB) == ""
    found = ""
    for second in range(1, 121):
        now = float(second)
        done = second if second <= 60 else 60 + 5 * (second - 60)  # one a second for a minute, then five
        found = pace.of(replace(JOB, done_pairs=done))
        if second == 60:
            assert found == "1 pairs/s, 15 min 40 s left"
    assert found == "5 pairs/s, 2 min 8 s left"


def test_pace_is_silent_where_nothing_moves() -> None:
    now = 0.0
    pace = JobPace(clock=lambda: now)
    pace.of(replace(JOB, done_pairs=400))
    now = 30.0
    assert pace.of(replace(JOB, done_pairs=400)) == ""


def test_pace_is_silent_once_all_pairs_of_the_data_are_done() -> None:
    """What follows, repeats and attacks, is not counted in them: their time left is not known."""
    now = 0.0
    pace = JobPace(clock=lambda: now)
    pace.of(replace(JOB, done_pairs=400))
    now = 30.0
    assert pace.of(replace(JOB, done_pairs=1000)) == ""


def test_candidates_are_read_by_key_and_type() -> None:
    assert read_candidates("") is None
    found = read_candidates("adapter_a=adapters/x, temperature_b=1.0,best_of=4,reward_model=adapters/rm")
    assert found == Candidates(adapter_a="adapters/x", temperature_b=1.0, best_of=4, reward_model="adapters/rm")


@pytest.mark.parametrize(
    ("text", "message"),
    [("best_of=two", "best_of cannot be 'two': it is a number"), ("n=2", "KEY=VALUE with a key out of adapter_a"), ("best_of", "KEY=VALUE")],
)
def test_other_candidates_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        read_candidates(text)
    assert caught.value.field == "--candidates"


def test_a_job_is_the_same_under_other_limits_and_another_with_other_candidates() -> None:
    assert request_id_of(SPEC) == request_id_of(replace(SPEC, limits=LabelLimits(max_cost=3.0, concurrency=9)))
    assert request_id_of(SPEC) != request_id_of(replace(SPEC, candidates=Candidates()))


def test_a_url_stays_and_a_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_output("labels") == str(tmp_path / "labels")
    assert absolute_output("s3://bucket/labels") == "s3://bucket/labels"
