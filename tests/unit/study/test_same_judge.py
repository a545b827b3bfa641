"""A study that goes on says where another judge would answer than the one that has labelled."""

from __future__ import annotations

from typing import cast

import pytest

from accord.client.feedback import FeedbackClient, LabelJob, LabelJobSpec
from accord.errors import AlreadyExistsError, NotFoundError
from accord.study.actions import label_spec
from accord.study.graph import Graph, build_graph
from accord.study.recipe import StudyRecipe, load_recipe
from accord.study.same_judge import changes
from accord.study.steps import StepResult

OTHER = "the judge is another one now (new, digest f; then e)"


class Feedback:
    """Doubles as the client of a service whose jobs have all succeeded: one id is one request, and `message` says who would label now."""

    def __init__(self, message: str, *, knows: bool = True) -> None:
        self._message, self._knows = message, knows
        self.asked: list[LabelJobSpec] = []
        self.payloads: dict[str, LabelJobSpec] = {}

    def get_label_job(self, name: str) -> LabelJob:
        if not self._knows:
            raise NotFoundError(f"there is no label job {name!r}", field="name")
        return LabelJob(name, "succeeded", 4, 4, 0, 0, 0, "", "", "", "", 0.0)

    def create_label_job(self, spec: LabelJobSpec) -> LabelJob:
        self.asked.append(spec)
        if self.payloads.setdefault(spec.request_id, spec) != spec:
            raise AlreadyExistsError(f"request_id {spec.request_id!r} was used with another payload", field="request_id")
        return LabelJob(f"labelJobs/{spec.request_id}", "succeeded", 4, 4, 0, 0, 0, self._message, "", "", "", 0.0)


@pytest.fixture
def recipe() -> StudyRecipe:
    return load_recipe("quick")


def known(graph: Graph, *names: str, attempt: str = "") -> dict[str, StepResult]:
    """Results of some steps."""
    return {
        step.name: StepResult(step.name, graph.keys[step.name], {"job": f"labelJobs/study-{graph.keys[step.name]}{attempt}"}, 1.0, 0.0)
        for step in graph.steps
        if step.name in names
    }


def said(graph: Graph, found: dict[str, StepResult], feedback: Feedback) -> list[str]:
    return changes(graph, found, cast(FeedbackClient, feedback), lambda key: f"/labels/{key}")


def test_each_judge_is_compared_once_and_a_change_is_said(recipe: StudyRecipe) -> None:
    graph = build_graph(recipe, {})
    found = known(graph, "summarization/labels-ai", "conversation/labels-ai", "summarization/judge-check-verdict")
    feedback = Feedback(OTHER)
    one, other = said(graph, found, feedback)
    assert one == (
        f"summarization/labels-ai: {OTHER}; labels of earlier calls stay and the steps that are left ask who answers now; with another --home all "
        "steps do"
    )
    assert other.startswith(f"summarization/judge-check-verdict: {OTHER}; ")
    assert [spec.judge.kind for spec in feedback.asked] == ["likelihood", "verdict"]
    assert said(graph, found, Feedback("")) == []


@pytest.mark.parametrize("attempt", ["", "-3"])
def test_a_job_is_asked_for_as_it_was_created_so_that_none_is_begun(recipe: StudyRecipe, attempt: str) -> None:
    graph = build_graph(recipe, {})
    step = graph.steps[0]
    key = graph.keys[step.name]
    feedback = Feedback(OTHER)
    feedback.payloads[f"study-{key}{attempt}"] = label_spec(step, key, f"/labels/{key}", int(attempt.strip("-") or 1))
    assert OTHER in said(graph, known(graph, step.name, attempt=attempt), feedback)[0]
    assert list(feedback.payloads) == [f"study-{key}{attempt}"]


def test_who_labelled_in_another_service_or_folder_is_not_known_and_no_job_is_begun_for_it(recipe: StudyRecipe) -> None:
    graph = build_graph(recipe, {})
    step = graph.steps[0]
    found = known(graph, step.name)
    away = Feedback("", knows=False)
    assert "whether the judge is the one that labelled is not known: there is no label job" in said(graph, found, away)[0]
    assert not away.asked
    moved = Feedback("")
    moved.payloads[f"study-{graph.keys[step.name]}"] = label_spec(step, graph.keys[step.name], "/elsewhere")
    assert "was used with another payload" in said(graph, found, moved)[0]


def test_nobody_is_asked_where_no_step_that_asks_the_judge_is_left(recipe: StudyRecipe) -> None:
    graph = build_graph(recipe, {})
    feedback = Feedback(OTHER)
    asking = [step.name for step in graph.steps if step.kind in ("label", "judge")]
    assert said(graph, known(graph, *asking), feedback) == []
    assert said(graph, {}, feedback) == []
    assert not feedback.asked
