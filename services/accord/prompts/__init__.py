"""The judge's rubrics: numbered files that never change once they are released (`released.lock` holds their digests).

What does not belong here: rendering and parsing (`accord.text.judge`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import yaml

from accord.errors import InvalidArgumentError, NotFoundError
from accord.text.tasks import Task

RubricKind = Literal["verdict", "rating"]


@dataclass(frozen=True, slots=True)
class Rubric:
    """One rubric; `verdict_prefix` starts the judge's answer so that its next token is the verdict; `digest` is the file's sha256.

    Examples of a few-shot rubric stand in its template before anything that differs from question to question, so that the prefix cache reads
    them once. `rationale` says that the rubric is about a chain of thought: reasons come first, and the verdict is read behind them.
    """

    id: str
    task: Task
    kind: RubricKind
    template: str
    verdict_prefix: str
    digest: str
    rationale: bool = False


@cache
def list_rubrics() -> tuple[Rubric, ...]:
    """All rubrics by id."""
    found = []
    for task in Task:
        for file in resources.files(__package__).joinpath(task.value).iterdir():
            if file.name.endswith(".yaml"):
                found.append(_parse(file.read_bytes()))
    return tuple(sorted(found, key=lambda rubric: rubric.id))


def load_rubric(rubric_id: str, *, task: Task | None = None, kind: RubricKind | None = None) -> Rubric:
    """The rubric of that id.

    Raises:
        NotFoundError: there is none; the message lists those there are.
        InvalidArgumentError: it is for another task or another kind of judging.
    """
    for rubric in list_rubrics():
        if rubric.id == rubric_id:
            if task is not None and rubric.task != task:
                raise InvalidArgumentError(f"rubric {rubric_id} judges {rubric.task}, not {task}", field="judge.rubric")
            if kind is not None and rubric.kind != kind:
                raise InvalidArgumentError(f"rubric {rubric_id} is for {rubric.kind}, not {kind}", field="judge.rubric")
            return rubric
    names = ", ".join(rubric.id for rubric in list_rubrics())
    raise NotFoundError(f"there is no rubric {rubric_id!r}; there are {names}", field="judge.rubric")


def default_rubric(task: Task, kind: RubricKind) -> Rubric:
    """The rubric that a judge of that kind uses for a task when none is named."""
    return load_rubric(f"{task.value}/{'detailed' if kind == 'verdict' else 'rating'}/1", task=task, kind=kind)


def _parse(stored: bytes) -> Rubric:
    values = yaml.safe_load(stored)
    return Rubric(
        values["id"],
        Task(values["task"]),
        values["kind"],
        values["template"],
        values["verdict_prefix"],
        hashlib.sha256(stored).hexdigest(),
        values.get("rationale", False),
    )
