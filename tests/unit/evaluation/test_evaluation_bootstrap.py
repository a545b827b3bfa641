"""Bootstrap: coverage on a known distribution, pairing, determinism, and the sign of a difference."""

import numpy as np
import pytest

from accord.evaluation import bootstrap
from accord.evaluation.bootstrap import mean_statistic, replicate


def prompts(count: int) -> list[str]:
    return [f"p{number}" for number in range(count)]


def interval(values: np.ndarray, *, samples: int = 1000, seed: int = 0) -> bootstrap.Interval:
    return replicate(prompts(len(values)), {"mean": mean_statistic(values)}, samples=samples, seed=seed)["mean"].interval()


def test_intervals_cover_the_mean_of_an_exponential_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(11)
    covered = 0
    for trial in range(400):
        found = interval(generator.exponential(size=60), samples=300, seed=trial)
        covered += found.low <= 1.0 <= found.high
    # 95 % minus the known shortfall of percentiles on a skewed distribution of 60; three standard errors either way
    assert 0.88 <= covered / 400 <= 0.97


def test_the_width_is_that_of_the_standard_error() -> None:
    values = np.random.default_rng(5).normal(size=400)
    found = interval(values, samples=4000)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)
    assert found.n == 400


def test_rows_of_a_prompt_are_drawn_together() -> None:
    """Copies of a row say nothing new: neither the interval nor n changes, and it is as wide as that of the prompts' means."""
    generator = np.random.default_rng(8)
    means = generator.normal(size=30)
    single = interval(means, samples=2000)
    ids = [prompt for prompt in prompts(30) for _ in range(4)]
    copies = replicate(ids, {"mean": mean_statistic(means.repeat(4))}, samples=2000, seed=0)["mean"].interval()
    assert (copies.value, copies.n) == (pytest.approx(single.value), 30)
    assert copies.high - copies.low == pytest.approx(single.high - single.low, rel=0.1)
    noisy = means.repeat(4) + generator.normal(scale=0.01, size=120)
    one_row_each = replicate(prompts(120), {"mean": mean_statistic(noisy)}, samples=2000, seed=0)["mean"].interval()
    assert one_row_each.high - one_row_each.low < 0.6 * (copies.high - copies.low)


def test_one_prompt_has_no_width_and_a_constant_neither() -> None:
    assert interval(np.array([0.25])) == bootstrap.Interval(0.25, 0.25, 0.25, 1)
    found = interval(np.full(30, 2.0))
    assert (found.low, found.high) == pytest.approx((2.0, 2.0))


def test_a_paired_difference_has_the_sign_of_a_minus_b() -> None:
    generator = np.random.default_rng(2)
    hardness = generator.normal(scale=5, size=50)  # shared by both arms: only pairing sees through it
    worse, better = hardness + generator.normal(scale=0.1, size=50), hardness + 0.2 + generator.normal(scale=0.1, size=50)
    found = replicate(prompts(50), {"better": mean_statistic(better), "worse": mean_statistic(worse)}, samples=1000, seed=0)
    up, down = found["better"].minus(found["worse"]), found["worse"].minus(found["better"])
    assert up.difference == pytest.approx((better - worse).mean())
    assert 0.1 < up.low < up.difference < up.high < 0.3
    assert up.share_a_better == 1
    assert (down.difference, down.low, down.high, down.share_a_better) == pytest.approx((-up.difference, -up.high, -up.low, 0))
    # unpaired, the same difference would drown
    assert found["better"].interval().low < found["worse"].interval().value


def test_an_arm_against_itself_is_a_tie() -> None:
    values = np.random.default_rng(4).normal(size=33)
    found = replicate(prompts(33), {"a": mean_statistic(values), "b": mean_statistic(values.copy())}, samples=500, seed=1)
    assert found["a"].minus(found["b"]) == bootstrap.Contrast(0, 0, 0, 0.5, 33)


def test_the_share_is_that_of_a_normal_difference() -> None:
    """A difference of one standard error is above 0 in Phi(1) = 84 % of resamples."""
    noise = np.random.default_rng(8).normal(size=200)
    difference = (noise - noise.mean()) / noise.std() + 1 / np.sqrt(200)
    found = replicate(prompts(200), {"a": mean_statistic(difference), "b": mean_statistic(np.zeros(200))}, samples=8000, seed=0)
    assert found["a"].minus(found["b"]).share_a_better == pytest.approx(0.841, abs=0.03)


def test_seed_and_prompts_decide_and_the_size_of_parts_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(6).normal(size=40)
    first = interval(values, samples=250, seed=3)
    assert interval(values, samples=250, seed=3) == first
    assert interval(values, samples=250, seed=4) != first
    monkeypatch.setattr(bootstrap, "_CELLS_AT_ONCE", 40 * 7)
    parts = interval(values, samples=250, seed=3)
    assert (parts.low, parts.high) == pytest.approx((first.low, first.high))


def test_resamples_draw_as_many_prompts_as_there_are() -> None:
    seen: list[np.ndarray] = []

    def keep(weights: np.ndarray) -> np.ndarray:
        seen.append(weights)
        return weights[:, 0]

    replicate(prompts(9), {"keep": keep}, samples=500, seed=0)
    drawn = np.concatenate([weights for weights in seen if len(weights) > 1])
    assert drawn.shape == (500, 9)
    assert set(drawn.sum(axis=1)) == {9.0}
    assert drawn.mean(axis=0) == pytest.approx(np.ones(9), abs=0.15)


def test_nothing_to_resample_is_refused() -> None:
    with pytest.raises(ValueError, match="0 prompts"):
        replicate([], {}, samples=10, seed=0)
    with pytest.raises(ValueError, match="0 resamples"):
        replicate(["p"], {}, samples=0, seed=0)
