"""The arithmetic of soft labels: exact symmetry, and where they end."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.text.judge import (
    expected_rating,
    mutual_information_preference,
    outcome,
    scaled_rating,
    swap_average,
    verdict_probability,
)
from accord.text.tasks import Task, summarization_prompt

probability = st.floats(0, 1, allow_nan=False)
nats = st.floats(-500, 500, allow_nan=False)


@given(probability, probability)
def test_swap_averaged_labels_sum_to_one_exactly(first: float, second: float) -> None:
    """REFERENCES.md section 3: P(A > B) = 1 - P(B > A) exactly; Lee et al. 2023, section 3.1."""
    ab, ba = swap_average(first, second), swap_average(second, first)
    assert ab + ba == 1.0
    assert ab == 1.0 - ba
    assert 0 <= ab <= 1
    assert ab == pytest.approx((first + 1 - second) / 2)


@given(probability)
def test_a_judge_that_looks_at_the_position_alone_has_no_preference(bias: float) -> None:
    assert swap_average(bias, bias) == 0.5


def test_swap_average_follows_the_response_and_not_the_order() -> None:
    assert swap_average(0.9, 0.2) == pytest.approx(0.85)
    assert swap_average(1.0, 0.0) == 1
    assert swap_average(0.0, 1.0) == 0


@given(nats, nats)
def test_verdicts_and_mutual_information_are_exactly_symmetric(a: float, b: float) -> None:
    for label in (verdict_probability, mutual_information_preference):
        assert label(a, b) + label(b, a) == 1.0
        assert label(a, b) == 1.0 - label(b, a)
        assert (label(a, b) > 0.5) == (label(a, b) != 0.5 and a > b)


def test_verdict_probability_is_the_softmax_of_both_tokens() -> None:
    a, b = math.log(0.3), math.log(0.1)
    assert verdict_probability(a, b) == pytest.approx(0.75)


@given(st.lists(nats, min_size=10, max_size=10))
def test_the_expected_rating_is_a_mean_of_a_distribution(logprobs: list[float]) -> None:
    distribution, mean = expected_rating(logprobs)
    assert sum(distribution) == pytest.approx(1)
    assert 1 <= mean <= 10
    weights = [math.exp(value - max(logprobs)) for value in logprobs]
    assert mean == pytest.approx(sum(rating * weight for rating, weight in enumerate(weights, 1)) / sum(weights))


def test_ratings_on_their_scale() -> None:
    """Lee et al. 2023, section 3.2: sum i P(i), scaled to [-1, 1]."""
    certain = [-1e9] * 10
    certain[7] = 0.0
    assert expected_rating(certain)[1] == 8
    assert expected_rating([0.0] * 10)[1] == pytest.approx(5.5)
    assert [scaled_rating(value) for value in (1, 5.5, 10)] == [-1, 0, 1]
    with pytest.raises(ValueError, match="10 logprobs"):
        expected_rating([0.0] * 9)


@pytest.mark.parametrize(
    ("preference", "margin", "expected"),
    [(0.5, 0.0, "tie"), (0.51, 0.0, "a"), (0.49, 0.0, "b"), (0.6, 0.1, "tie"), (0.4, 0.1, "tie"), (0.75, 0.1, "a"), (0.25, 0.1, "b")],
)
def test_outcomes(preference: float, margin: float, expected: str) -> None:
    assert outcome(preference, margin) == expected


def test_the_summarization_prompt_is_one_user_turn_with_the_post_in_it() -> None:
    (turn,) = summarization_prompt("  My dog ran away.  ", " Lost dog ")
    assert turn.role == "user"
    assert turn.content.endswith("Title: Lost dog\n\nMy dog ran away.\n\nTL;DR:")
    assert "Title" not in summarization_prompt("x")[0].content
    assert [task.value for task in Task] == ["summarization", "conversation"]
