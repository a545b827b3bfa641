"""Whether a judge's probabilities mean what they say, and its agreement with people beyond chance. Pure.

What does not belong here: cards (`accord.feedback.cards`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from accord.client.label_cards import Kappa, ReliabilityBin, Share
from accord.data.reliability import confidence_of, reliability_bins
from accord.feedback.kappa import category, kappa_with_interval
from accord.feedback.records import LabelFacts


def reliability(labels: Sequence[LabelFacts]) -> tuple[ReliabilityBin, ...]:
    """Bins of the judge's confidence (`accord.data.reliability`) over the labelled pairs that people labelled."""
    both = [(label.preference, label.human_preference) for label in labels]
    pairs = [confidence_of(judge, human) for judge, human in both if judge is not None and human is not None]
    return tuple(
        ReliabilityBin(
            found.low, found.high, found.confidence, Share(found.accuracy.value, found.accuracy.low, found.accuracy.high, found.accuracy.n)
        )
        for found in reliability_bins(pairs)
    )


def human_kappa(labels: Sequence[LabelFacts]) -> Kappa | None:
    """Cohen's kappa of judge and people over the pairs that both labelled; categories are either response (`kappa.category`) and tie."""
    both = [(label, label.human_preference) for label in labels if label.preference is not None and label.human_preference is not None]
    return kappa_with_interval(Counter((_side(label, label.outcome), _side(label, _human_outcome(human))) for label, human in both))


def _side(label: LabelFacts, outcome: str) -> str:
    return "tie" if outcome == "tie" else category(label.content_key, takes_low=(outcome == "a") == label.a_is_low)


def _human_outcome(preference: float) -> str:
    return "tie" if preference == 0.5 else "a" if preference > 0.5 else "b"
