"""The length model: planted effects are recovered, their sign is seen, separation stays finite."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.evaluation.win_rate import fit_length_model, length_adjusted_win_rate, length_terms

THETA = 0.4
EQUAL_LENGTHS = 1 / (1 + np.exp(-THETA))


def planted(effect: float, rows: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Wins by the model with theta .4 and this phi, of an arm whose responses are longer by a third on average."""
    generator = np.random.default_rng(seed)
    ratios = generator.normal(0.3, 0.5, size=rows)
    chances = 1 / (1 + np.exp(-(THETA + effect * length_terms(ratios))))
    return (generator.random(rows) < chances).astype(float), ratios


@pytest.mark.parametrize("effect", [2.0, -2.0])
def test_a_planted_length_effect_is_recovered_with_its_sign(effect: float) -> None:
    wins, ratios = planted(effect)
    theta, phi = fit_length_model(wins, length_terms(ratios), np.ones((1, len(wins))))
    assert theta[0] == pytest.approx(THETA, abs=0.12)
    assert phi[0] == pytest.approx(effect, abs=0.25)
    found = length_adjusted_win_rate(wins, ratios, samples=300)
    assert found.low < EQUAL_LENGTHS < found.high
    assert found.high - found.low < 0.08
    # the plain win rate is flattered where length helps, and belittled where it hurts
    assert np.sign(wins.mean() - found.value) == np.sign(effect)
    assert abs(wins.mean() - found.value) > 0.05


def test_without_a_length_effect_it_is_the_plain_win_rate() -> None:
    wins, ratios = planted(0.0)
    assert length_adjusted_win_rate(wins, ratios, samples=100).value == pytest.approx(wins.mean(), abs=0.02)
    fair = length_adjusted_win_rate(np.array([1.0, 0, 0.5] * 40), np.zeros(120), samples=100)
    assert fair.value == pytest.approx(0.5, abs=1e-9)
    three_of_four = length_adjusted_win_rate(np.array([1.0, 1, 1, 0] * 50), np.zeros(200), samples=100)
    assert 0.74 < three_of_four.value < 0.75  # drawn towards 1/2 by the prior, a little


def test_only_the_ratio_of_lengths_counts_not_its_scale() -> None:
    wins, ratios = planted(1.5, rows=300)
    assert length_adjusted_win_rate(wins, 10 * ratios, samples=100).value == pytest.approx(length_adjusted_win_rate(wins, ratios, samples=100).value)


def test_swapping_the_sides_gives_the_complement() -> None:
    wins, ratios = planted(2.0, rows=400)
    ours, theirs = length_adjusted_win_rate(wins, ratios, samples=200), length_adjusted_win_rate(1 - wins, -ratios, samples=200)
    assert (theirs.value, theirs.low, theirs.high) == pytest.approx((1 - ours.value, 1 - ours.high, 1 - ours.low), abs=1e-7)


def test_complete_separation_stays_finite() -> None:
    ratios = np.concatenate([np.linspace(0.1, 2, 30), -np.linspace(0.1, 2, 30)])
    longer_wins = length_adjusted_win_rate((ratios > 0).astype(float), ratios, samples=200)
    assert longer_wins.value == pytest.approx(0.5, abs=0.02)  # length explains it all
    wins_always = length_adjusted_win_rate(np.ones(60), ratios, samples=200)
    assert 0.95 < wins_always.low <= wins_always.high < 1
    assert wins_always.value == pytest.approx(wins_always.high, abs=0.001)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-8, 8)), min_size=1, max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_rows_have_a_minimum(rows: list[tuple[float, float]]) -> None:
    wins, terms = np.array([row[0] for row in rows]), length_terms(np.array([row[1] for row in rows]))
    weights = np.random.default_rng(0).integers(0, 2000, size=(3, len(rows))).astype(float)
    theta, phi = fit_length_model(wins, terms, weights)
    surplus = weights * (1 / (1 + np.exp(-(theta[:, None] + phi[:, None] * terms))) - wins)
    # the slopes of cross-entropy plus theta^2 / (2 * 2.5^2) and the same of phi, written anew
    assert surplus.sum(axis=1) + theta / 6.25 == pytest.approx(np.zeros(3), abs=1e-4)
    assert (surplus * terms).sum(axis=1) + phi / 6.25 == pytest.approx(np.zeros(3), abs=1e-4)


@pytest.mark.parametrize(
    ("wins", "ratios", "reason"),
    [
        ([], [], "at least one row"),
        ([1.0], [0.0, 1.0], "shape"),
        ([1.2], [0.0], "outside"),
        ([-0.1], [0.0], "outside"),
        ([1.0], [np.inf], "not finite"),
    ],
)
def test_bad_input_is_refused(wins: list[float], ratios: list[float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        length_adjusted_win_rate(np.array(wins), np.array(ratios))
