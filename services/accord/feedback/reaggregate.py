"""Labels under other rules, out of the judgements that they rest on; no judge is asked. Pure.

A label's judgements are a judge's answers in one or both orders, over samples of self-consistency, by one judge or several. They are put together
from the inside out: orders, then samples, then judges by the rule that the label's options name. What does not belong here: reading the ledger, and
how labels are first made (`accord.feedback.labels`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from accord.client.feedback import Judgement, Label
from accord.errors import InvalidArgumentError
from accord.feedback.judge_config import Combine
from accord.feedback.labels import Said, preference_of
from accord.feedback.panels import JSON, Finding, combined, escalated, is_unsure
from accord.text.judge import outcome

Orders = Literal["both", "first"]


@dataclass(frozen=True, slots=True)
class Rules:
    """How judgements become a label.

    `orders`: both orders averaged, or the first alone, as a judge that is asked in one order; kinds that show one response at a time have no order.
    `combine`: over samples and over an ensemble's judges the mean of preferences, or the share of votes (ties half). `tie_margin`. None of the two is
    the label's own: samples then have their mean. `hard`: a preference becomes 1, 0, or one half for a tie.

    Raises:
        InvalidArgumentError: the tie margin is not in [0, 0.5).
    """

    orders: Orders = "both"
    combine: Combine | None = None
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


def options_under(options: str, rules: Rules) -> str:
    """A label's options with the rules that it was made anew under, so that rows of other labels do not say that they are the first ones.

    Under its own rules they stay as they were.
    """
    other = {name: value for name, value in asdict(rules).items() if value != getattr(Rules(), name)}
    return json.dumps({**json.loads(options or "{}"), "reaggregated": other}, sort_keys=True) if other else options


def reaggregated(label: Label, rules: Rules, options: str) -> Label | None:
    """The label under other rules; `options` is the JSON that the ledger keeps with it.

    Under its own rules a label comes out as it was (`labels.preference_of`). Where samples vote, an order without a usable answer makes its sample
    an abstention; a sample or judge that abstains has no say, and where not more than half have one there is no label. Of an escalation the larger
    judge decides where it was asked when the label was made, and no other rule asks it. None where the ledger does not say how the label came about:
    no judgement, or several judges without their rule.
    """
    asked = json.loads(options or "{}")
    by_judge: dict[str, list[Judgement]] = {}
    for judgement in label.judgements:
        by_judge.setdefault(judgement.judge_digest, []).append(judgement)
    panel = asked.get("panel") or (next(iter(by_judge)) if len(by_judge) == 1 else None)
    if panel is None or not by_judge:
        return None
    seats = Counter(_judges_of(panel))
    own = _Reading(by_judge, seats, Rules(), float(asked.get("tie_margin", 0.0)), ordered=label.kind == "verdict")
    margin = own.margin if rules.tie_margin is None else rules.tie_margin
    finding = replace(own, rules=rules, margin=margin, own=own).of(panel)
    preference = finding.preference
    said = "abstain" if preference is None else outcome(preference, margin)
    if rules.hard and preference is not None:
        preference = {"a": 1.0, "b": 0.0}.get(said, 0.5)
    return replace(
        label, preference=preference, outcome=said, abstention_reason=finding.reason, agreement=finding.agreement, escalated=finding.escalated,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Reading:
    """A label's judgements, read by a rule; `own` reads them by the rules under which the label was made, None where these are they.

    `seats` says in how many places of the panel a judge sits.
    """

    by_judge: Mapping[str, Sequence[Judgement]]
    seats: Mapping[str, int]
    rules: Rules
    margin: float
    ordered: bool
    own: _Reading | None = None

    def of(self, panel: JSON) -> Finding[None]:
        """What a judge, or several with their rule (`panels.described`), come to."""
        if isinstance(panel, str):
            return self._of_judge(panel)
        if "members" in panel:
            return combined([self.of(member) for member in panel["members"]], self.rules.combine or panel["combine"], self.margin)
        first = self.of(panel["first"])
        return escalated(first, self.of(panel["then"])) if (self.own or self)._was_asked(panel) else first

    def _was_asked(self, escalation: JSON) -> bool:
        """Whether an escalation's second judge was asked. Answers of who sits nowhere else tell; where all do, as it was decided then."""
        then = escalation["then"]
        if alone := [digest for digest in _asked_first(then) if self.seats[digest] == 1]:
            return any(digest in self.by_judge for digest in alone)
        return any(digest in self.by_judge for digest in _judges_of(then)) and is_unsure(self.of(escalation["first"]), escalation["threshold"])

    def _of_judge(self, digest: str) -> Finding[None]:
        samples: dict[int, list[Judgement]] = {}
        for answer in self.by_judge.get(digest, ()):
            samples.setdefault(answer.sample, []).append(answer)
        if len(samples) > 1 and self.rules.combine == "majority":
            return replace(combined([self._mean(answers) for answers in samples.values()], "majority", self.margin, who="samples"), agreement=None)
        return self._mean([answer for answers in samples.values() for answer in answers])

    def _mean(self, answers: Sequence[Judgement]) -> Finding[None]:
        """What answers of one judge say, averaged as labels are."""
        if not answers:
            return Finding(None, "it was not asked")
        used = [answer for answer in answers if answer.a_first] if self.ordered and self.rules.orders == "first" else answers
        if not used:
            return Finding(None, "it was not asked in the first order")
        return Finding(*preference_of([_said(answer) for answer in used]))


def _judges_of(panel: JSON) -> Iterator[str]:
    """The digest of the judge in each place."""
    if isinstance(panel, str):
        yield panel
    else:
        for part in panel.get("members") or (panel["first"], panel["then"]):
            yield from _judges_of(part)


def _asked_first(panel: JSON) -> Iterator[str]:
    """As `_judges_of`, of the judges that are asked whatever the others say."""
    if isinstance(panel, str):
        yield panel
    else:
        for part in panel.get("members") or (panel["first"],):
            yield from _asked_first(part)


def _said(answer: Judgement) -> Said:
    first = answer.probability_a if answer.a_first or answer.probability_a is None else 1.0 - answer.probability_a
    return Said(answer.a_first, first, answer.abstention_reason)
