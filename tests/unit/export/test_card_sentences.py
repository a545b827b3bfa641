"""What the card of a reward model says of its accuracy beside that of taking the longer response."""

from __future__ import annotations

import pytest

from accord.export.card import _held_out


@pytest.mark.parametrize(
    ("accuracy", "least", "said"),
    [
        (0.75, 0.61, "which it beats"),
        (0.75, 0.55, "which it is above, though its interval reaches down to it"),
        (0.6, 0.5, "which it does not beat"),
        (0.3, 0.2, "which it does not beat"),
    ],
)
def test_a_model_beats_the_longer_response_where_its_interval_does(accuracy: float, least: float, said: str) -> None:
    facts = {
        "held_out_accuracy": accuracy, "eval_accuracy": accuracy, "eval_accuracy_low": least, "eval_accuracy_high": 0.9, "eval_pairs": 40.0,
        "eval_margin": 1.0, "eval_length_baseline": 0.6, "eval_length_baseline_low": 0.45, "eval_length_baseline_high": 0.74,
        "eval_calibration_error": 0.1,
    }  # fmt: skip
    _, line, _ = _held_out(facts)
    assert line.endswith(f"0.600 (0.450 to 0.740), {said}")
    assert facts == {}, "each figure is said once"
