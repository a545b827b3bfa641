"""What a reward model is worth on held-out pairs: accuracy with its interval beside the length baseline, and calibration. Pure.

What does not belong here: scoring (`accord.training.reward_model`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accord.data.agreement import Estimate
from accord.data.intervals import Hit
from accord.data.reliability import Bin, bins_of_hits, calibration_error, confidence_of
from accord.training.examples import EncodedPair
from accord.training.pairs import agreement_estimate, toward_labels


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Of pairs whose label is no tie: accuracy, and that of always taking the longer response; of all pairs, the margin
    of the better response and calibration. Intervals draw prompts, each with all of its pairs (`accord.data.intervals`).

    P(chosen better) is the sigmoid of the difference of raw scores, as the Bradley-Terry loss means it.
    """

    accuracy: Estimate
    length_baseline: Estimate
    margin: float
    bins: tuple[Bin, ...]

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, `accord.data.reliability.calibration_error`."""
        return calibration_error(self.bins) or 0.0

    def metrics(self) -> dict[str, float]:
        """As a run's events have it."""
        return {
            "eval_accuracy": self.accuracy.value, "eval_accuracy_low": self.accuracy.low, "eval_accuracy_high": self.accuracy.high,
            "eval_pairs": self.accuracy.n, "eval_length_baseline": self.length_baseline.value, "eval_margin": self.margin,
            "eval_calibration_error": self.calibration_error,
        }  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """As the manifest has it, for cards; `eval_reliability` is (from, to, mean confidence, accuracy, pairs) of each bin of confidence."""
        return self.metrics() | {
            "eval_length_baseline_low": self.length_baseline.low, "eval_length_baseline_high": self.length_baseline.high,
            "eval_reliability": [[found.low, found.high, found.confidence, found.accuracy.value, found.accuracy.n] for found in self.bins],
        }  # fmt: skip


def held_out(margins: Sequence[float], pairs: Sequence[EncodedPair]) -> HeldOut:
    """How the margins (raw score of chosen less that of rejected) of some pairs, at least one, agree with their labels."""
    preferences = [pair.preference for pair in pairs]
    longer = [float(len(pair.chosen) - len(pair.rejected)) for pair in pairs]
    sure = []
    for margin, pair in zip(margins, pairs, strict=True):
        confidence, people = confidence_of(_sigmoid(margin), pair.preference)
        sure.append((confidence, Hit(people, pair.group, pair.id)))
    return HeldOut(
        agreement_estimate(margins, pairs), agreement_estimate(longer, pairs), math.fsum(toward_labels(margins, preferences)) / len(pairs),
        bins_of_hits(sure),
    )  # fmt: skip


def _sigmoid(value: float) -> float:
    """Of a large value 1, without overflow."""
    return 1.0 / (1.0 + math.exp(-value)) if value >= 0 else math.exp(value) / (1.0 + math.exp(value))
