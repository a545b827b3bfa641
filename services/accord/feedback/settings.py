"""How a caller wants to be judged for, with defaults filled in and contradictions refused.

What does not belong here: who judges (`accord.feedback.roster`).
"""

from __future__ import annotations

from dataclasses import dataclass

from accord.client.feedback import Judge
from accord.errors import InvalidArgumentError
from accord.feedback.records import Kind, VerdictSource
from accord.prompts import Rubric, default_rubric, load_rubric
from accord.text.tasks import Task

_DEFAULT_RATIONALE_TOKENS = 256
_DEFAULT_TEMPERATURE = 0.3


@dataclass(frozen=True, slots=True)
class Settings:
    """What a caller asks for; `rubric` is None for the task's default, and for likelihood, which has none. `judge` is a name of the configuration.

    `samples` above 1 are those of self-consistency, each with a rationale sampled at `temperature`; one rationale alone is greedy. A `repeat` above 0
    asks once more what was asked before.
    """

    kind: Kind
    rubric: Rubric | None
    adapter: str
    both_orders: bool
    rationale: bool
    max_rationale_tokens: int
    tie_margin: float
    judge: str = "default"
    samples: int = 1
    temperature: float = 0.0
    verdict_source: VerdictSource = ""
    repeat: int = 0

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
            values |= {"consistency_samples": self.samples, "consistency_temperature": self.temperature} if self.samples > 1 else {}
            values |= {"verdict_source": self.verdict_source} if self.verdict_source else {}
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
    rubric = load_rubric(judge.rubric, kind=kind) if judge.rubric and kind != "likelihood" else None
    rationale = _wants_rationale(judge, kind, rubric)
    if judge.verdict_source and kind != "verdict":
        raise InvalidArgumentError(f"{kind} has no verdict that could be read in two ways; only verdict has", field="judge.verdict_source")
    samples, temperature = _consistency(judge, rationale)
    both_orders = kind == "verdict" and judge.both_orders is not False
    tokens = judge.max_rationale_tokens or _DEFAULT_RATIONALE_TOKENS
    return Settings(
        kind, rubric, judge.adapter, both_orders, rationale, tokens if rationale else 0, judge.tie_margin or 0.0,
        samples=samples, temperature=temperature, verdict_source=judge.verdict_source,
    )  # fmt: skip


def _wants_rationale(judge: Judge, kind: Kind, rubric: Rubric | None) -> bool:
    """Whether reasons come first: where they are asked for, and with a rubric that is about them."""
    if judge.rationale and kind != "verdict":
        raise InvalidArgumentError(f"{kind} writes no rationale; only verdict does", field="judge.rationale")
    needed = rubric is not None and rubric.rationale
    if needed and judge.rationale is False:
        raise InvalidArgumentError(
            f"rubric {judge.rubric} asks for a rationale first; leave judge.rationale out, or take a rubric without cot in its name",
            field="judge.rationale",
        )
    rationale = needed or bool(judge.rationale)
    if judge.max_rationale_tokens is not None and not rationale:
        raise InvalidArgumentError(
            "max_rationale_tokens is for judge.rationale = true, or for a rubric with cot in its name", field="judge.max_rationale_tokens"
        )
    return rationale


def _consistency(judge: Judge, rationale: bool) -> tuple[int, float]:
    """Samples and temperature of self-consistency (Wang et al. 2022, arXiv:2203.11171); (1, 0) where it is off."""
    samples = judge.consistency_samples or 1
    if samples > 1 and not rationale:
        raise InvalidArgumentError(
            f"{samples} samples would all be the same without a rationale; set judge.rationale = true, or take a rubric with cot in its name",
            field="judge.consistency_samples",
        )
    if samples == 1:
        if judge.consistency_temperature is not None:
            raise InvalidArgumentError("a temperature is for consistency_samples of 2 or more", field="judge.consistency_temperature")
        return 1, 0.0
    return samples, _DEFAULT_TEMPERATURE if judge.consistency_temperature is None else judge.consistency_temperature
