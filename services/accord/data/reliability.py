"""Whether probabilities of preferences mean what they say: reliability and expected calibration error. Pure.

What does not belong here: whose probabilities they are (a judge's: `accord.feedback.calibration`; a reward model's: `accord.training.reward_model`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from accord.data.agreement import Estimate
from accord.data.intervals import Hit, share_of

_EDGES = tuple(0.5 + step / 20 for step in range(11))
"""Of the ten bins of confidence."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs about which somebody was `low` to `high` sure: the mean confidence, and how often people take the response that was taken."""

    low: float
    high: float
    confidence: float
    accuracy: Estimate


class Share(Protocol):
    """A share of n pairs."""

    @property
    def value(self) -> float: ...

    @property
    def n(self) -> int: ...


class Confident(Protocol):
    """A bin, whoever made it."""

    @property
    def confidence(self) -> float: ...

    @property
    def accuracy(self) -> Share: ...


def confidence_of(preference: float, human: float) -> tuple[float, float]:
    """How sure a preference P(A better) is, max(p, 1 - p), and how far people take the response that it takes, out of P(A better) by people.

    People's labels may be soft: the share that takes it. At p = 1/2 exactly neither is taken, and one half stands for people.
    """
    people = 0.5 if preference == 0.5 else human if preference > 0.5 else 1.0 - human
    return max(preference, 1.0 - preference), people


def bins_of_hits(labels: Iterable[tuple[float, Hit]]) -> tuple[Bin, ...]:
    """Ten bins of confidence of the same width from 1/2 to 1 (a bin has its lower end, the last one both); those without labels are left out.

    Args:
        labels: of each what `confidence_of` gives, the second as a hit, since labels may go together.
    """
    bins: dict[int, list[tuple[float, Hit]]] = {}
    for confidence, people in labels:
        bins.setdefault(min(len(_EDGES) - 1, bisect_right(_EDGES, confidence)) - 1, []).append((confidence, people))
    found = [(place, fmean(confidence for confidence, _ in own), share_of(people for _, people in own)) for place, own in sorted(bins.items())]
    return tuple(Bin(_EDGES[place], _EDGES[place + 1], confidence, share) for place, confidence, share in found if share is not None)


def calibration_error(bins: Sequence[Confident]) -> float | None:
    """Expected calibration error: the mean over pairs of their bin's |accuracy - confidence| (Guo et al. 2017, eq. 3); None without pairs."""
    pairs = sum(found.accuracy.n for found in bins)
    return math.fsum(found.accuracy.n * abs(found.accuracy.value - found.confidence) for found in bins) / pairs if pairs else None
