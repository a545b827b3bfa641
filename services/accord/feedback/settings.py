"""How a caller wants to be judged for, with defaults filled in and contradictions refused.

What does not belong here: who judges (`accord.feedback.roster`).
"""

from __future__ import annotations

from dataclasses import dataclass

from accord.client.feedback import Judge
from accord.errors import InvalidArgumentError
from accord.feedback.records import Kind
from accord.prompts import Rubric, default_rubric, load_rubric
from accord.text.tasks import Task

_DEFAULT_RATIONALE_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Settings:
    """What a caller asks for; `rubric` is None for the task's default, and for likelihood, which has none. `judge` is a name of the configuration."""

    kind: Kind
    rubric: Rubric | None
    adapter: str
    both_orders: bool
    rationale: bool
    max_rationale_tokens: int
    tie_margin: float
    judge: str = "default"

    def rubric_for(self, task: Task) -> Rubric | None:
        """The rubric for a pair of that task.

        Raises:
            InvalidArgumentError: the rubric asked for is for another task.
        """
        if self.kind == "likelihood":
            return None
        if self.rubric is None:
            return default_rubric(task, self.kind)
        return load_rubric(self.rubric.id, task=task, kind=self.kind)

    @property
    def values(self) -> dict[str, object]:
        """The settings that a label depends on besides kind and rubric, as JSON holds them."""
        values: dict[str, object] = {"tie_margin": self.tie_margin}
        if self.kind == "verdict":
            values |= {"both_orders": self.both_orders, "rationale": self.rationale}
            values |= {"max_rationale_tokens": self.max_rationale_tokens} if self.rationale else {}
        return values


def read_settings(judge: Judge, default_kind: Kind) -> Settings:
    """The settings of a request.

    Raises:
        NotFoundError: there is no such rubric.
        InvalidArgumentError: an option that this kind of judge does not have, or the rubric is for another kind.
    """
    kind: Kind = default_kind if judge.kind == "default" else judge.kind
    if kind == "likelihood" and judge.rubric:
        raise InvalidArgumentError("likelihood uses no rubric; leave it empty, or take kind verdict or rating", field="judge.rubric")
    rationale = bool(judge.rationale)
    if rationale and kind != "verdict":
        raise InvalidArgumentError(f"{kind} writes no rationale; only verdict does", field="judge.rationale")
    if judge.max_rationale_tokens is not None and not rationale:
        raise InvalidArgumentError("max_rationale_tokens is for judge.rationale = true", field="judge.max_rationale_tokens")
    rubric = None
    if judge.rubric and kind != "likelihood":
        rubric = load_rubric(judge.rubric, kind=kind)
    both_orders = kind == "verdict" and judge.both_orders is not False
    tokens = judge.max_rationale_tokens or _DEFAULT_RATIONALE_TOKENS
    return Settings(kind, rubric, judge.adapter, both_orders, rationale, tokens if rationale else 0, judge.tie_margin or 0.0)
