"""Means, variances and whitening over the tokens that count, against the same on a plain list of those tokens."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from accord.algos.masking import last_true_index, masked_mean, masked_var, response_mask, scale, whiten


def case(seed: int) -> tuple[Tensor, Tensor, list[float]]:
    """Values with NaN where the mask is False, the mask, and the values that count as a list."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 5, generator=generator) > 0.4
    mask[0, :2] = True
    return values.masked_fill(~mask, float("nan")), mask, values[mask].tolist()


@given(st.integers(0, 2**20))
def test_mean_and_variance_are_those_of_the_list(seed: int) -> None:
    values, mask, kept = case(seed)
    assert masked_mean(values, mask).item() == pytest.approx(statistics.fmean(kept))
    assert masked_var(values, mask, unbiased=False).item() == pytest.approx(statistics.pvariance(kept))
    assert masked_var(values, mask, unbiased=True).item() == pytest.approx(statistics.variance(kept))


@given(st.integers(0, 2**20))
def test_whitened_values_are_centred_with_variance_one(seed: int) -> None:
    """Huang et al. 2024 (arXiv:2403.17031): over the tokens that count, always centred; order and signs of differences stay."""
    values, mask, kept = case(seed)
    white = whiten(values, mask)
    assert masked_mean(white, mask).item() == pytest.approx(0, abs=1e-9)
    assert masked_var(white, mask, unbiased=False).item() == pytest.approx(1, rel=1e-6)
    assert white[~mask].abs().sum() == 0
    assert white[mask].argsort().tolist() == sorted(range(len(kept)), key=kept.__getitem__)


@given(st.integers(0, 2**20))
def test_scaled_values_keep_their_sign_and_their_zero(seed: int) -> None:
    values, mask, kept = case(seed)
    scaled = scale(values, mask)
    expected = [value / statistics.pstdev(kept) for value in kept]
    assert scaled[mask].tolist() == pytest.approx(expected, rel=1e-6)
    assert scaled[~mask].abs().sum() == 0


def test_constant_values_whiten_to_zero() -> None:
    assert whiten(torch.full((2, 3), 7.0), torch.ones(2, 3, dtype=torch.bool)).abs().max() == 0


def test_a_mean_along_a_dimension_is_zero_where_nothing_counts() -> None:
    values, mask = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[True, True], [False, False]])
    assert masked_mean(values, mask, dim=1).tolist() == [1.5, 0]
    assert masked_mean(values, mask, dim=0).tolist() == [1, 2]


def test_last_token_on_either_side() -> None:
    assert last_true_index(torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0]], dtype=torch.bool)).tolist() == [1, 2, 0]
    assert last_true_index(torch.tensor([[1, 0, 1]], dtype=torch.bool)).tolist() == [2]


def test_response_mask() -> None:
    assert response_mask(torch.tensor([0, 1, 3]), 3).tolist() == [[False] * 3, [True, False, False], [True] * 3]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda v, m: masked_mean(v, m & False), "no value counts"),
        (lambda v, m: whiten(v, m & False), "no value counts"),
        (lambda v, m: masked_mean(v, m[:, :1]), "differ"),
        (lambda v, m: masked_var(v[:, :1], m[:, :1], unbiased=True), "at least two"),
        (lambda v, m: last_true_index(m & False), "no token that counts"),
        (lambda v, m: response_mask(torch.tensor([3]), 2), "lengths must lie in"),
        (lambda v, m: response_mask(torch.tensor([-1]), 2), "lengths must lie in"),
    ],
)
def test_what_has_no_answer_is_refused(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool))
