"""What several judges come to: ensembles and escalations, as trees of judges and as arithmetic over their findings. Pure.

What does not belong here: asking (`accord.feedback.labeller`) and which judges there are (`accord.feedback.roster`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from accord.feedback.judge_config import Combine
from accord.feedback.records import JudgeIdentity, digest_of
from accord.text.judge import outcome

AnsweredT = TypeVar("AnsweredT")


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Judges that are all asked."""

    members: tuple[Seat, ...]
    combine: Combine

    @property
    def name(self) -> str:
        """Who judges, for people."""
        return f"{self.combine} of ({'; '.join(member.name for member in self.members)})"

    @property
    def digest(self) -> str:
        """sha256 over the rule and the members' digests, in any order."""
        return digest_of("ensemble/1", self.combine, sorted(member.digest for member in self.members))


@dataclass(frozen=True, slots=True)
class Escalation:
    """A judge, and the one that decides where it is unsure: |p - 0.5| below the threshold, or an abstention."""

    first: Seat
    then: Seat
    threshold: float

    @property
    def name(self) -> str:
        """Who judges, for people."""
        return f"{self.first.name}, then {self.then.name} below {self.threshold:g}"

    @property
    def digest(self) -> str:
        """sha256 over both judges' digests and the threshold."""
        return digest_of("escalation/1", self.first.digest, self.then.digest, self.threshold)


JSON = Any  # str, float, and lists and string-keyed dicts of these
Seat = JudgeIdentity | Ensemble | Escalation
"""Who labels: one judge, or several with a rule."""


def judges_of(seat: Seat) -> tuple[JudgeIdentity, ...]:
    """All who may be asked, the second judge of an escalation too."""
    if isinstance(seat, Ensemble):
        return tuple(judge for member in seat.members for judge in judges_of(member))
    if isinstance(seat, Escalation):
        return (*judges_of(seat.first), *judges_of(seat.then))
    return (seat,)


@dataclass(frozen=True, slots=True)
class Finding(Generic[AnsweredT]):
    """What a judge, or several, say of a pair: P(A better) or why there is none, and the answers that it rests on.

    `agreement` is the share of an ensemble's members that take its side, None for a single judge and where there is no side.
    """

    preference: float | None
    reason: str
    answered: tuple[AnsweredT, ...] = ()
    agreement: float | None = None
    escalated: bool = False


def described(seat: Seat) -> JSON:
    """Who labels, as JSON: a judge is its digest, an ensemble its rule and members, an escalation both its judges and the threshold."""
    if isinstance(seat, Ensemble):
        return {"combine": seat.combine, "members": [described(member) for member in seat.members]}
    if isinstance(seat, Escalation):
        return {"first": described(seat.first), "then": described(seat.then), "threshold": seat.threshold}
    return seat.digest


def combined(findings: Sequence[Finding[AnsweredT]], combine: Combine, tie_margin: float, *, who: str = "judges") -> Finding[AnsweredT]:
    """What an ensemble comes to; `who` its members are, for people.

    `mean`: the mean of the members' preferences. `majority`: the share of members whose outcome is A, ties as half. A member that abstains has
    no say; where not more than half have one, the ensemble abstains. Swapping A and B turns a preference p into exactly 1 - p. Agreement counts
    all members, those that abstain too.
    """
    known = [finding.preference for finding in findings if finding.preference is not None]
    answered = tuple(item for finding in findings for item in finding.answered)
    escalated = any(finding.escalated for finding in findings)
    if 2 * len(known) <= len(findings):
        first = next(finding.reason for finding in findings if finding.preference is None)
        return Finding(None, f"no quorum: {len(findings) - len(known)} of {len(findings)} {who} abstain: {first}", answered, escalated=escalated)
    votes = [outcome(preference, tie_margin) for preference in known]
    values = known if combine == "mean" else [{"a": 1.0, "b": 0.0, "tie": 0.5}[vote] for vote in votes]
    preference = _mean(values)
    side = outcome(preference, tie_margin)
    return Finding(preference, "", answered, sum(vote == side for vote in votes) / len(findings), escalated)


def is_unsure(finding: Finding[AnsweredT], threshold: float) -> bool:
    """Whether the next judge of an escalation is asked."""
    return finding.preference is None or abs(finding.preference - 0.5) < threshold


def escalated(first: Finding[AnsweredT], then: Finding[AnsweredT]) -> Finding[AnsweredT]:
    """What an escalation comes to where the second judge was asked: it decides alone, an abstention included; the answers of both stay."""
    return replace(then, answered=(*first.answered, *then.answered), escalated=True)


def mean_distribution(distributions: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The mean of several distributions over the same ratings."""
    return tuple(math.fsum(shares) / len(distributions) for shares in zip(*distributions, strict=True))


def _mean(values: Sequence[float]) -> float:
    """The mean, such that that of 1 - v for each v is exactly 1 minus it."""
    difference = math.fsum(value - 0.5 for value in values) / len(values)
    return 0.5 + difference if difference >= 0 else 1.0 - (0.5 - difference)
