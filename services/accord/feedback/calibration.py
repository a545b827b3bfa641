"""Whether a judge's probabilities mean what they say, and its agreement with people beyond chance. Pure.

What does not belong here: cards (`accord.feedback.cards`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from accord.client.label_cards import Kappa, ReliabilityBin
from accord.feedback.kappa import category, kappa_with_interval
from accord.feedback.records import LabelFacts
from accord.feedback.shares import share_of

_EDGES = tuple(0.5 + step / 20 for step in range(11))
"""Of the ten bins of confidence."""


def confidences(labels: Sequence[LabelFacts]) -> list[tuple[float, float]]:
    """The judge's confidence max(p, 1 - p) and how far people take the response that it takes, for each labelled pair that people labelled.

    People's labels may be soft: the share that takes it. At p = 1/2 exactly the judge takes neither, and one half stands for people.
    """
    found = []
    for label in labels:
        if label.preference is None or label.human_preference is None:
            continue
        human = 0.5 if label.preference == 0.5 else label.human_preference if label.preference > 0.5 else 1.0 - label.human_preference
        found.append((max(label.preference, 1.0 - label.preference), human))
    return found


def reliability(labels: Sequence[LabelFacts]) -> tuple[ReliabilityBin, ...]:
    """Ten bins of confidence of the same width from 1/2 to 1 (a bin has its lower end, the last one both); those without pairs are left out."""
    bins: dict[int, list[tuple[float, float]]] = {}
    for confidence, human in confidences(labels):
        bins.setdefault(min(len(_EDGES) - 1, bisect_right(_EDGES, confidence)) - 1, []).append((confidence, human))
    found = []
    for place in sorted(bins):
        accuracy = share_of([human for _, human in bins[place]])
        assert accuracy is not None
        found.append(ReliabilityBin(_EDGES[place], _EDGES[place + 1], fmean(confidence for confidence, _ in bins[place]), accuracy))
    return tuple(found)


def calibration_error(bins: Sequence[ReliabilityBin]) -> float | None:
    """Expected calibration error: the mean over pairs of their bin's |accuracy - confidence| (Guo et al. 2017, eq. 3); None without pairs."""
    pairs = sum(found.accuracy.n for found in bins)
    return math.fsum(found.accuracy.n * abs(found.accuracy.value - found.confidence) for found in bins) / pairs if pairs else None


def human_kappa(labels: Sequence[LabelFacts]) -> Kappa | None:
    """Cohen's kappa of judge and people over the pairs that both labelled; categories are either response (`kappa.category`) and tie."""
    both = [(label, label.human_preference) for label in labels if label.preference is not None and label.human_preference is not None]
    return kappa_with_interval(Counter((_side(label, label.outcome), _side(label, _human_outcome(human))) for label, human in both))


def _side(label: LabelFacts, outcome: str) -> str:
    return "tie" if outcome == "tie" else category(label.content_key, takes_low=(outcome == "a") == label.a_is_low)


def _human_outcome(preference: float) -> str:
    return "tie" if preference == 0.5 else "a" if preference > 0.5 else "b"
