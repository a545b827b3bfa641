"""Whether a judge's probabilities mean what they say, and its agreement with people beyond chance. Pure.

What does not belong here: cards (`accord.feedback.cards`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from accord.client.label_cards import Kappa, ReliabilityBin
from accord.data.reliability import bins_of_hits, confidence_of
from accord.feedback.kappa import category, kappa_with_interval
from accord.feedback.records import LabelFacts
from accord.feedback.shares import as_share, hit


def reliability(labels: Sequence[LabelFacts]) -> tuple[ReliabilityBin, ...]:
    """Bins of the judge's confidence (`accord.data.reliability`) over the labelled pairs that people labelled."""
    both = [(label, label.preference, label.human_preference) for label in labels]
    known = [(label, *confidence_of(judge, human)) for label, judge, human in both if judge is not None and human is not None]
    found = [(bin, as_share(bin.accuracy)) for bin in bins_of_hits((confidence, hit(label, people)) for label, confidence, people in known)]
    return tuple(ReliabilityBin(bin.low, bin.high, bin.confidence, accuracy) for bin, accuracy in found if accuracy is not None)


def human_kappa(labels: Sequence[LabelFacts]) -> Kappa | None:
    """Cohen's kappa of judge and people over the pairs that both labelled; categories are either response (`kappa.category`) and tie."""
    both = [(label, label.human_preference) for label in labels if label.preference is not None and label.human_preference is not None]
    found = kappa_with_interval((label.unit, (_side(label, label.outcome), _side(label, _human_outcome(human)))) for label, human in both)
    return None if found is None else replace(found, n=len({label.content_key for label, _ in both}))


def _side(label: LabelFacts, outcome: str) -> str:
    return "tie" if outcome == "tie" else category(label.content_key, takes_low=(outcome == "a") == label.a_is_low)


def _human_outcome(preference: float) -> str:
    return "tie" if preference == 0.5 else "a" if preference > 0.5 else "b"
