"""Figures on held-out pairs, by hand and against a slow loop."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from accord.data.agreement import wilson_interval
from accord.training.examples import EncodedPair
from accord.training.held_out import held_out

_NUMBERS = itertools.count()


def pair(preference: float, chosen: int = 3, rejected: int = 2, prompt: str = "") -> EncodedPair:
    """A pair with a prompt of its own where none is given."""
    name = f"p{next(_NUMBERS)}"
    return EncodedPair(name, prompt or name, (1,), (2,) * chosen, (3,) * rejected, preference)


def test_by_hand() -> None:
    """Right, wrong, right the other way round, undecided, and a tie, which counts in calibration alone."""
    pairs = [pair(1.0), pair(1.0, 2, 5), pair(0.0, 2, 5), pair(1.0), pair(0.5)]
    found = held_out([2.0, -1.0, -3.0, 0.0, 1.0], pairs)
    assert (found.accuracy.value, found.accuracy.n) == (2.5 / 4, 4)
    assert (found.accuracy.low, found.accuracy.high) == wilson_interval(2.5, 4)
    assert found.length_baseline.value == 3 / 4
    assert found.margin == pytest.approx(1.0), "of the better response over the other"


def test_scores_that_mean_what_they_say_are_calibrated_and_others_are_not() -> None:
    """With labels drawn by the sigmoid of the margin the error is that of the draw; with margins five times as large it is what theory says."""
    chance = random.Random(1)
    margins = [chance.gauss(0, 1.5) for _ in range(40_000)]
    shares = [1 / (1 + math.exp(-margin)) for margin in margins]
    pairs = [pair(float(chance.random() < share)) for share in shares]
    assert held_out(margins, pairs).calibration_error < 0.02
    boastful = held_out([5 * margin for margin in margins], pairs).calibration_error
    expected = sum(1 / (1 + math.exp(-5 * abs(margin))) - max(share, 1 - share) for margin, share in zip(margins, shares, strict=True)) / len(margins)
    assert boastful == pytest.approx(expected, abs=0.03)
    assert boastful > 0.1


def test_huge_margins_are_certain_and_no_overflow() -> None:
    found = held_out([1e4, -1e4], [pair(1.0), pair(1.0)])
    assert (found.accuracy.value, found.calibration_error) == (0.5, pytest.approx(0.5))
    facts = found.facts()
    assert facts["eval_reliability"] == [[pytest.approx(0.95), 1.0, 1.0, 0.5, 2]]
    assert {"eval_length_baseline_low", "eval_accuracy_high", "eval_calibration_error"} <= facts.keys()


def test_intervals_draw_prompts_with_all_of_their_pairs() -> None:
    """A model that gets a prompt right or wrong as a whole has been tried on ten prompts, and not on ninety pairs; so has taking the longer one."""
    right = [True] * 7 + [False] * 3
    pairs = [pair(1.0, 3 + hit, 3 + (not hit), f"prompt {place}") for place, hit in enumerate(right) for _ in range(9)]
    found = held_out([1.0 if hit else -1.0 for hit in right for _ in range(9)], pairs)
    low, high = wilson_interval(7, 10)
    for figure in (found.accuracy, found.length_baseline):
        assert (figure.value, figure.n) == (0.7, 90)
        assert (figure.low, figure.high) == (pytest.approx(low, abs=0.06), pytest.approx(high, abs=0.03))
        assert figure.high - figure.low > 2 * (wilson_interval(63, 90)[1] - wilson_interval(63, 90)[0])


def test_ties_alone_have_no_accuracy_and_the_widest_interval() -> None:
    found = held_out([1.0], [pair(0.5)])
    assert (found.accuracy.n, found.accuracy.low, found.accuracy.high) == (0, 0.0, 1.0)
