"""Rubrics never change once they are released: a label records the id, and the id must go on meaning the same text."""

from __future__ import annotations

import json
import re
from importlib import resources

import pytest

from accord.errors import InvalidArgumentError, NotFoundError
from accord.prompts import Rubric, default_rubric, list_rubrics, load_rubric
from accord.text.judge import render_template
from accord.text.tasks import Task

# Written down here as well as in released.lock, so that rewriting the lock does not go unnoticed.
RELEASED = {
    "conversation/detailed/1": "58bdb3998681f46f981e98b2b5aac7b8cf18017556f4e6f3400f31b7232c23fc",
    "conversation/rating/1": "d42d753578c02b850ccfab3f04ab0006508e9ade2a3649dc102beac0e860e1df",
    "summarization/detailed/1": "5599e57700fbae17d9392d1467c9540ce8868fb80a4afcec433c75a6015b6103",
    "summarization/rating/1": "5018ee9deb81a866b46be4218b2156f30503a626e80057232167d95f2d00d2dc",
}
CRITERIA = ("coherence", "accuracy", "coverage", "overall quality")


def test_released_rubrics_are_as_they_were() -> None:
    found = {rubric.id: rubric.digest for rubric in list_rubrics()}
    assert {name: found.get(name) for name in RELEASED} == RELEASED


def test_every_rubric_is_in_the_lock() -> None:
    lock = json.loads(resources.files("accord.prompts").joinpath("released.lock").read_text())
    assert lock == {rubric.id: rubric.digest for rubric in list_rubrics()}


@pytest.mark.parametrize("rubric", list_rubrics(), ids=lambda rubric: rubric.id)
def test_every_rubric_takes_what_its_kind_needs(rubric: Rubric) -> None:
    lowered = rubric.template.lower()
    assert "never an instruction" in lowered
    needed = {"prompt", "first", "second"} if rubric.kind == "verdict" else {"prompt", "response"}
    values = {name: f"<{name}>" for name in ("prompt", "first", "second", "response")}
    shown = render_template(rubric.template, values)
    assert {name for name, value in values.items() if value in shown} == needed
    assert rubric.verdict_prefix in rubric.template, "the machine-readable line that is asked for begins as the forced answer does"
    assert rubric.rationale == ("/cot" in rubric.id or "-cot" in rubric.id)
    if "base" not in rubric.id and not rubric.id.startswith("conversation/h"):
        assert all(criterion in lowered for criterion in CRITERIA)


@pytest.mark.parametrize("prefix", ["summarization/", "conversation/helpful-", "conversation/harmless-"])
@pytest.mark.parametrize("style", ["base", "detailed", "cot"])
def test_each_style_has_both_numbers_of_examples(prefix: str, style: str) -> None:
    """The rubrics of Lee et al. 2023, table 2: the examples stand before all that differs, and show each verdict once."""
    bare, few = load_rubric(f"{prefix}{style}/1"), load_rubric(f"{prefix}{style}-few-shot/1")
    shared, _, _ = few.template.partition("{prompt}")
    assert re.findall(r'^"rank": \[([12])\]$', shared, re.MULTILINE) == ["1", "2"]
    assert "### Example" not in bare.template
    assert ("reasons" in few.template or "few sentences" in few.template) == (style == "cot")


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("kind", ["verdict", "rating"])
def test_each_task_has_a_default(task: Task, kind) -> None:
    rubric = default_rubric(task, kind)
    assert (rubric.task, rubric.kind) == (task, kind)
    assert load_rubric(rubric.id, task=task, kind=kind) == rubric


def test_unfit_rubrics_are_refused() -> None:
    with pytest.raises(NotFoundError, match="summarization/detailed/1") as missing:
        load_rubric("summarization/detailed/99")
    assert missing.value.field == "judge.rubric"
    with pytest.raises(InvalidArgumentError, match="judges summarization, not conversation"):
        load_rubric("summarization/detailed/1", task=Task.CONVERSATION)
    with pytest.raises(InvalidArgumentError, match="is for verdict, not rating"):
        load_rubric("summarization/detailed/1", kind="rating")
