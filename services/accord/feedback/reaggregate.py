"""Labels under other rules, out of the judgements that they rest on; no judge is asked. Pure.

A label's judgements are a judge's answers in one or both orders, over samples of self-consistency, by one judge or several. They are put together
from the inside out: orders, then samples, then judges. What does not belong here: reading the ledger, and how labels are first made
(`accord.feedback.labels`).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from accord.client.feedback import Judgement, Label
from accord.errors import InvalidArgumentError
from accord.text.judge import outcome, swap_average

Orders = Literal["both", "first"]
Combine = Literal["mean", "majority"]
Reading = tuple[float | None, str]
"""P(A better) or None, and why there is none."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How judgements become a label.

    `orders`: both orders averaged, or the first alone, as a judge that is asked in one order; kinds that show one response at a time have no order.
    `combine`: over samples, and over judges, the mean of preferences or the share of votes (ties half). `tie_margin`: None is that of each label.
    `hard`: a preference becomes 1, 0, or one half for a tie.

    Raises:
        InvalidArgumentError: the tie margin is not in [0, 0.5).
    """

    orders: Orders = "both"
    combine: Combine = "mean"
    tie_margin: float | None = None
    hard: bool = False

    def __post_init__(self) -> None:
        if self.tie_margin is not None and not 0 <= self.tie_margin < 0.5:
            raise InvalidArgumentError(f"a tie margin of {self.tie_margin:g} is not in [0, 0.5)", field="tie_margin")


@dataclass
class Changes:
    """What other rules change. `moves` counts labels by outcome before and after; `unchangeable` those that stay, their rule not being known."""

    labels: int = 0
    unchangeable: int = 0
    moves: Counter[tuple[str, str]] = field(default_factory=Counter)
    moved_by: float = 0.0
    compared: int = 0

    def add(self, before: Label, after: Label | None) -> None:
        """Takes the next label; `after` is None where it cannot be made under other rules."""
        self.labels += 1
        if after is None:
            self.unchangeable += 1
            return
        self.moves[before.outcome, after.outcome] += 1
        if before.preference is not None and after.preference is not None:
            self.moved_by += abs(after.preference - before.preference)
            self.compared += 1

    @property
    def changed(self) -> int:
        """Labels whose outcome is another one."""
        return sum(count for (before, after), count in self.moves.items() if before != after)

    @property
    def mean_move(self) -> float | None:
        """Mean distance of the preferences before and after; None where no label has both."""
        return self.moved_by / self.compared if self.compared else None


def reaggregated(label: Label, rules: Rules, options: str) -> Label | None:
    """The label under other rules; `options` is the JSON that the ledger keeps with it.

    Under both orders, mean, and its own tie margin a label comes out as it was. A judgement without a usable answer makes its orders an abstention;
    a sample or judge that abstains has no say, and where not more than half have one there is no label. None where the ledger does not say how the
    label came about: no judgement, or an escalation among more than two judges.
    """
    judgements = deciding(label)
    if not judgements:
        return None
    margin = tie_margin_of(options) if rules.tie_margin is None else rules.tie_margin
    by_judge: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        by_judge.setdefault(judgement.judge_digest, []).append(judgement)
    readings = [_of_samples(answers, label.kind == "verdict", rules, margin) for answers in by_judge.values()]
    preference, reason = _combined(readings, rules.combine, margin, "judges")
    said = "abstain" if preference is None else outcome(preference, margin)
    if rules.hard and preference is not None:
        preference = {"a": 1.0, "b": 0.0}.get(said, 0.5)
    votes = [None if value is None else outcome(value, margin) for value, _ in readings]
    agreement = votes.count(said) / len(votes) if len(votes) > 1 and said != "abstain" else None  # type: ignore[arg-type]
    return replace(label, preference=preference, outcome=said, abstention_reason=reason, agreement=agreement)


def deciding(label: Label) -> tuple[Judgement, ...]:
    """The judgements that decide: all, but those of the larger judge alone where it was asked. Empty where that cannot be told."""
    if not label.escalated:
        return label.judgements
    judges = list(dict.fromkeys(judgement.judge_digest for judgement in label.judgements))
    return tuple(judgement for judgement in label.judgements if judgement.judge_digest == judges[1]) if len(judges) == 2 else ()


def tie_margin_of(options: str) -> float:
    """The tie margin in a label's options; 0 where they name none."""
    return float(json.loads(options or "{}").get("tie_margin", 0.0))


def _of_samples(answers: Sequence[Judgement], ordered: bool, rules: Rules, margin: float) -> Reading:
    samples: dict[Hashable, list[Judgement]] = {}
    for answer in answers:
        samples.setdefault(answer.sample, []).append(answer)
    return _combined([_of_orders(each, ordered, rules.orders) for each in samples.values()], rules.combine, margin, "samples")


def _of_orders(answers: Sequence[Judgement], ordered: bool, orders: Orders) -> Reading:
    """What the answers of one sample say: averaged over orders as labels are."""
    used = [answer for answer in answers if answer.a_first] if ordered and orders == "first" else list(answers)
    if not used:
        return None, "it was not asked in the first order"
    for answer in used:
        if answer.probability_a is None:
            return None, answer.abstention_reason
    by_order = {answer.a_first: answer.probability_a for answer in used}
    ab, ba = by_order.get(True), by_order.get(False)
    if ab is not None and ba is not None:
        return swap_average(ab, 1.0 - ba), ""
    return (ba if ab is None else ab), ""


def _combined(readings: Sequence[Reading], combine: Combine, margin: float, who: str) -> Reading:
    """Several readings as one; swapping A and B turns a preference p into 1 - p."""
    if len(readings) == 1:
        return readings[0]
    known = [preference for preference, _ in readings if preference is not None]
    if 2 * len(known) <= len(readings):
        reason = next(reason for preference, reason in readings if preference is None)
        return None, f"no quorum: {len(readings) - len(known)} of {len(readings)} {who} abstain: {reason}"
    if combine == "majority":
        known = [{"a": 1.0, "b": 0.0}.get(outcome(preference, margin), 0.5) for preference in known]
    return mean_preference(known), ""


def mean_preference(values: Iterable[float]) -> float:
    """The mean, such that that of 1 - v for each v is exactly 1 minus it."""
    distances = [value - 0.5 for value in values]
    difference = math.fsum(distances) / len(distances)
    return 0.5 + difference if difference >= 0 else 1.0 - (0.5 - difference)
