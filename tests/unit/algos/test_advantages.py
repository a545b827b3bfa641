"""Shaped rewards, advantages and returns: published figures, and an independent slow loop straight from the definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from accord.algos.advantages import gae, shaped_rewards
from accord.algos.masking import response_mask

REWARDS, VALUES = [[-0.01, -0.02, 1.0]], [[0.3, 0.4, 0.5]]


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def batch(seed: int, rows: int = 4, width: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random rewards, values, mask of lengths from 1 to the width, and lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    rewards, values = (torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(2))
    return rewards, values, response_mask(lengths, width), lengths


def slow_gae(rewards: Tensor, values: Tensor, lengths: Tensor, discount: float, gae_lambda: float) -> list[list[float]]:
    """Schulman et al. 2016, eq. 16 as a double sum over each row's tokens, nothing shared with the code under test."""
    rows = []
    for row, length in enumerate(lengths.tolist()):
        found = []
        for t in range(length):
            total = 0.0
            for k in range(length - t):
                following = float(values[row, t + k + 1]) if t + k + 1 < length else 0.0
                delta = float(rewards[row, t + k]) + discount * following - float(values[row, t + k])
                total += (discount * gae_lambda) ** k * delta
            found.append(total)
        rows.append(found)
    return rows


@pytest.mark.parametrize(("gae_lambda", "expected"), [(1.0, [0.67, 0.58, 0.5]), (0.95, [0.61725, 0.555, 0.5]), (0.0, [0.09, 0.08, 0.5])])
def test_gae_as_printed(gae_lambda: float, expected: list[float]) -> None:
    """REFERENCES.md section 3: r = [-.01, -.02, 1], V = [.3, .4, .5], discount 1; returns are advantages + V, before whitening."""
    found = gae(double(REWARDS), double(VALUES), torch.ones(1, 3, dtype=torch.bool), discount=1.0, gae_lambda=gae_lambda)
    assert found.advantages[0].tolist() == pytest.approx(expected, abs=1e-12)
    assert found.returns[0].tolist() == pytest.approx([a + v for a, v in zip(expected, VALUES[0], strict=True)], abs=1e-12)


@given(st.integers(0, 2**20), st.floats(0.1, 1), st.floats(0, 1))
def test_gae_is_the_double_sum_of_its_definition(seed: int, discount: float, gae_lambda: float) -> None:
    rewards, values, mask, lengths = batch(seed)
    found = gae(rewards, values, mask, discount=discount, gae_lambda=gae_lambda)
    for row, expected in enumerate(slow_gae(rewards, values, lengths, discount, gae_lambda)):
        assert found.advantages[row, : len(expected)].tolist() == pytest.approx(expected, abs=1e-9)
        assert found.advantages[row, len(expected) :].abs().sum() == 0
        assert found.returns[row, len(expected) :].abs().sum() == 0
    torch.testing.assert_close(found.returns[mask], (found.advantages + values)[mask])


def test_what_stands_at_padding_is_never_read() -> None:
    """The value behind the last token would be bootstrapped from, if it were."""
    rewards, values, mask, _ = batch(3)
    spoilt = gae(rewards.masked_fill(~mask, 1e6), values.masked_fill(~mask, float("nan")), mask, discount=0.9, gae_lambda=0.8)
    clean = gae(rewards, values, mask, discount=0.9, gae_lambda=0.8)
    assert torch.equal(spoilt.advantages, clean.advantages)
    assert torch.equal(spoilt.returns, clean.returns)


def test_padding_side_does_not_matter() -> None:
    rewards, values, mask, lengths = batch(4)
    right = gae(rewards, values, mask, discount=0.9, gae_lambda=0.8).advantages
    shift = [mask.shape[1] - length for length in lengths.tolist()]
    left = [torch.stack([row.roll(by) for row, by in zip(each, shift, strict=True)]) for each in (rewards, values, mask)]
    moved = gae(left[0], left[1], left[2], discount=0.9, gae_lambda=0.8).advantages
    for row, by in enumerate(shift):
        torch.testing.assert_close(moved[row].roll(-by), right[row])


def test_advantages_carry_no_gradient() -> None:
    rewards, values, mask, _ = batch(5)
    found = gae(rewards.requires_grad_(), values.requires_grad_(), mask, discount=1.0, gae_lambda=0.95)
    assert not found.advantages.requires_grad
    assert not found.returns.requires_grad


def test_the_score_comes_at_the_last_token_and_the_penalty_at_each() -> None:
    """Ouyang et al. 2022, eq. 2, per token as Ziegler et al. 2019: r_t = -beta (log pi - log ref), plus the score at the end."""
    logprobs, reference = double([[-1.0, -2.0, -3.0], [-1.0, -1.0, 9.0]]), double([[-1.5, -1.0, -3.0], [-2.0, -1.0, -9.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    shaped = shaped_rewards(double([2.0, -3.0]), logprobs, reference, mask, kl_coef=0.1)
    assert shaped.rewards[0].tolist() == pytest.approx([-0.05, 0.1, 2.0])
    assert shaped.rewards[1].tolist() == pytest.approx([-0.1, -3.0, 0.0])
    assert shaped.kl[0].tolist() == pytest.approx([0.5, -1.0, 0.0]), "k1 is negative where the reference likes the token more: never clamped"
    assert shaped.kl[1].tolist() == pytest.approx([1.0, 0.0, 0.0])


@given(st.integers(0, 2**20), st.floats(0, 2))
def test_rewards_sum_to_the_score_less_the_penalty(seed: int, kl_coef: float) -> None:
    logprobs, reference, mask, lengths = batch(seed)
    scores = torch.randn(len(lengths), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    shaped = shaped_rewards(scores, logprobs, reference, mask, kl_coef=kl_coef)
    expected = scores - kl_coef * torch.where(mask, logprobs - reference, torch.zeros_like(logprobs)).sum(dim=1)
    torch.testing.assert_close(shaped.rewards.sum(dim=1), expected)


def test_where_policy_and_reference_agree_there_is_no_penalty() -> None:
    """REFERENCES.md section 3: policy == reference: KL 0."""
    logprobs, _, mask, lengths = batch(7)
    shaped = shaped_rewards(torch.ones(len(lengths), dtype=torch.float64), logprobs, logprobs.clone(), mask, kl_coef=0.5)
    assert shaped.kl.abs().sum() == 0
    assert shaped.rewards.abs().sum() == len(lengths)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r, v, m: gae(r, v[:, :2], m, discount=1.0, gae_lambda=1.0), "differ"),
        (lambda r, v, m: gae(r, v, m, discount=0.0, gae_lambda=1.0), "discount"),
        (lambda r, v, m: gae(r, v, m, discount=1.0, gae_lambda=1.1), "gae_lambda"),
        (lambda r, v, m: shaped_rewards(torch.ones(3), r, v, m, kl_coef=0.1), "do not fit"),
        (lambda r, v, m: shaped_rewards(torch.ones(1), r, v, m, kl_coef=-0.1), "kl_coef"),
        (lambda r, v, m: shaped_rewards(torch.ones(1), r, v, m & False, kl_coef=0.1), "no token that counts"),
    ],
)
def test_what_does_not_fit_is_refused(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(torch.tensor(REWARDS), torch.tensor(VALUES), torch.ones(1, 3, dtype=torch.bool))
