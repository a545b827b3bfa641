"""The label step of a study: a job that failed, was cancelled or labelled nothing does not block the studies after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from accord.client.feedback import LabelJob, LabelJobSpec
from accord.client.label_cards import LabelCard
from accord.errors import FailedPreconditionError, InternalError
from accord.study.actions import StepContext, label
from accord.study.graph import Step, build_graph
from accord.study.recipe import load_recipe

PARAMS = {
    "task": "conversation", "uri": "sample:conversation", "format": "", "split": "train", "limit": 4, "seed": 1,
    "judge": {"kind": "verdict", "name": "large"},
}  # fmt: skip


class FakeFeedback:
    """Gives an ended job back unchanged, as the service does, and lets no job write where another that runs or succeeded has. Jobs end as `ends` says."""

    def __init__(self, *ends: dict[str, Any]) -> None:
        self.ends = list(ends)
        self.jobs: dict[str, LabelJob] = {}
        self.outputs: dict[str, str] = {}

    def create_label_job(self, spec: LabelJobSpec) -> LabelJob:
        name = f"labelJobs/{spec.request_id}"
        if name not in self.jobs:
            for other, output in self.outputs.items():
                if output == spec.output_uri and self.jobs[other].state in ("running", "succeeded"):
                    raise FailedPreconditionError(f"{output} is the output folder of {other}; give another", field="output_uri")
            self.outputs[name] = spec.output_uri
            self.jobs[name] = LabelJob(name, "running", 4, 0, 0, 0, 0, "", "", "", "", 0.0)
        assert self.outputs[name] == spec.output_uri
        return self.jobs[name]

    def watch_label_job(self, name: str, **_: Any) -> Iterator[LabelJob]:
        if self.jobs[name].state == "running":
            done = {"state": "succeeded", "done_pairs": 4, "dataset_uri": f"{self.outputs[name]}/labels.jsonl"}
            self.jobs[name] = replace(self.jobs[name], **(done | self.ends.pop(0)))
        yield self.jobs[name]

    def label_cards(self, *, job: str) -> tuple[LabelCard, ...]:
        abstained = {"unreadable verdict": found} if (found := self.jobs[job].abstained_pairs) else {}
        return (LabelCard("large", "verdict", "r/1", None, 4, None, None, None, None, None, abstained, 0, 0, ()),)


def call(feedback: FakeFeedback, folder: Path, *, is_trained_on: bool = True) -> dict[str, Any]:
    services: Any = type("Services", (), {"feedback": feedback})
    context = StepContext(services, {}, folder, str(folder), "k", lambda *_: None)
    return label(Step("conversation/labels-ai", "label", "", PARAMS, is_trained_on=is_trained_on), context)


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_job_that_is_lost_is_begun_anew_once_a_call(tmp_path: Path, end: str) -> None:
    feedback = FakeFeedback({"state": end, "message": "answered 401"}, {"state": end, "message": "still 401"}, {})
    for said in ("answered 401", "still 401"):
        with pytest.raises(InternalError, match=f"{end}: {said}; mend that and run the study again"):
            call(feedback, tmp_path)
    found = call(feedback, tmp_path)
    assert list(feedback.jobs) == ["labelJobs/study-k", "labelJobs/study-k-2", "labelJobs/study-k-3"]
    assert (found["job"], found["pairs"], found["abstained"]) == ("labelJobs/study-k-3", 4, 0)
    assert call(feedback, tmp_path)["job"] == found["job"]  # as after a kill: what has succeeded is found
    assert len(feedback.jobs) == 3


def test_labels_to_train_on_are_asked_for_again_where_the_judge_abstained_from_all(tmp_path: Path) -> None:
    feedback = FakeFeedback({"abstained_pairs": 4}, {"abstained_pairs": 4}, {"abstained_pairs": 3})
    for number in (1, 2):
        with pytest.raises(FailedPreconditionError, match=r"abstained from all 4 pairs \(4 unreadable verdict\).* another judge, kind or rubric"):
            call(feedback, tmp_path)
        assert len(feedback.jobs) == number
    found = call(feedback, tmp_path)
    assert (found["job"], found["abstained"]) == ("labelJobs/study-k-3", 3)
    assert found["dataset_uri"] == f"{tmp_path}/attempt-3/labels.jsonl"


def test_a_judge_that_is_only_measured_may_abstain_from_all(tmp_path: Path) -> None:
    feedback = FakeFeedback({"abstained_pairs": 4})
    assert [call(feedback, tmp_path, is_trained_on=False)["abstained"] for _ in range(2)] == [4, 4]
    assert len(feedback.jobs) == 1


def test_labels_that_arms_learn_from_are_known_as_such() -> None:
    trained_on = {step.name for step in build_graph(load_recipe("quick"), {}).steps if step.is_trained_on}
    assert trained_on == {"summarization/labels-ai", "conversation/labels-ai"}
