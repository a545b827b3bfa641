"""Group advantages and the losses of GRPO and RLOO: golden values, a slow loop, finite differences, and what must not move."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from accord.algos.advantages import shaped_rewards
from accord.algos.groups import (
    centred_advantages,
    group_relative_advantages,
    group_spread,
    grpo_loss,
    leave_one_out_advantages,
    penalised_rewards,
    rloo_loss,
    token_weights,
)
from accord.algos.masking import response_mask
from accord.algos.ppo import policy_loss

LENGTHS, WIDTH = (5, 2, 1, 4), 5
MASK = response_mask(torch.tensor(LENGTHS), WIDTH)
NORMALIZATIONS = ("response", "tokens", "constant")


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """New, old and reference logprobs, (4, 5), and advantages of the four responses."""
    generator = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(4, WIDTH, generator=generator, dtype=torch.float64)
    new, reference = (old + 0.4 * torch.randn(4, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    return new, old, reference, torch.randn(4, generator=generator, dtype=torch.float64)


def weights(normalization: str = "response", mask: Tensor = MASK) -> Tensor:
    return token_weights(mask, normalization=normalization, max_tokens=8).double()  # type: ignore[arg-type]


def grpo(new: Tensor, old: Tensor, reference: Tensor, advantages: Tensor, normalization: str = "response", kl_coef: float = 0.3) -> Tensor:
    return grpo_loss(new, old, reference, advantages, weights(normalization), clip_range=0.2, kl_coef=kl_coef).loss


# Advantages


def test_golden_advantages() -> None:
    """Two groups, (1, 2, 3, 6) and (5, 5, 5, 5), by hand: mean 3; sum of squares 14, so deviation sqrt(14 / 3); the others' mean (12 - r) / 3."""
    rewards = torch.tensor([1.0, 2.0, 3.0, 6.0, 5.0, 5.0, 5.0, 5.0], dtype=torch.float64)
    assert centred_advantages(rewards, group_size=4).tolist() == [-2, -1, 0, 3, 0, 0, 0, 0]
    deviation = math.sqrt(14 / 3) + 1e-4
    assert group_relative_advantages(rewards, group_size=4).tolist() == pytest.approx([-2 / deviation, -1 / deviation, 0, 3 / deviation, 0, 0, 0, 0])
    assert leave_one_out_advantages(rewards, group_size=4).tolist() == pytest.approx([1 - 11 / 3, 2 - 10 / 3, 0, 6 - 2, 0, 0, 0, 0])


@pytest.mark.parametrize("advantages", [group_relative_advantages, centred_advantages, leave_one_out_advantages])
def test_equal_rewards_give_exactly_nothing(advantages: Any) -> None:
    """Not the rounding of their mean, of which Adam, which does not know how small a gradient is, would make steps of full length."""
    for size in range(2, 17):
        rewards = (torch.arange(1, 200) * 0.0173).repeat_interleave(size)
        assert not advantages(rewards, group_size=size).any(), size
        assert not group_spread(rewards, group_size=size).any(), size
        assert advantages(rewards, group_size=size).dtype == torch.float32


def test_two_responses_scaled_are_a_comparison() -> None:
    """+-1 / sqrt(2) whatever the difference is; not scaled, half the difference; left out, all of it."""
    for difference in (0.5, 40.0):
        rewards = torch.tensor([difference, 0.0], dtype=torch.float64)
        assert group_relative_advantages(rewards, group_size=2).tolist() == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)], rel=1e-3)
        assert centred_advantages(rewards, group_size=2).tolist() == [difference / 2, -difference / 2]
        assert leave_one_out_advantages(rewards, group_size=2).tolist() == [difference, -difference]


@given(st.lists(st.floats(-50, 50), min_size=12, max_size=12), st.sampled_from([2, 3, 4, 6]))
def test_advantages_against_a_loop_over_groups(values: list[float], size: int) -> None:
    rewards = torch.tensor(values, dtype=torch.float64)
    centred, scaled, left = [], [], []
    for start in range(0, 12, size):
        group = values[start : start + size]
        for place, reward in enumerate(group):
            centred.append(reward - statistics.fmean(group))
            scaled.append(centred[-1] / (statistics.stdev(group) + 1e-4))
            left.append(reward - statistics.fmean(group[:place] + group[place + 1 :]))
    assert centred_advantages(rewards, group_size=size).tolist() == pytest.approx(centred, abs=1e-9)
    assert group_relative_advantages(rewards, group_size=size).tolist() == pytest.approx(scaled, abs=1e-6)
    assert leave_one_out_advantages(rewards, group_size=size).tolist() == pytest.approx(left, abs=1e-9)


@given(st.floats(-100, 100), st.floats(0.5, 20), st.integers(0, 2**20))
def test_what_a_shift_and_a_scale_of_rewards_change(shift: float, factor: float, seed: int) -> None:
    """A constant for all responses of a prompt changes nothing; a factor scales what is not scaled away."""
    rewards = torch.randn(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    changed = rewards * factor + shift
    for advantages, scale in ((centred_advantages, factor), (leave_one_out_advantages, factor), (group_relative_advantages, 1.0)):
        expected = advantages(rewards, group_size=4) * scale
        torch.testing.assert_close(advantages(changed, group_size=4), expected, rtol=2e-3, atol=1e-6)


def test_the_leave_one_out_gradient_is_unbiased_and_the_group_mean_shrinks_it() -> None:
    """Over all groups of three draws from four responses, weighted by their probability: the expected score-function gradient, exactly."""
    policy, rewards = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64), torch.tensor([3.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    scores = torch.eye(4, dtype=torch.float64) - policy  # row y: gradient of log pi(y) with respect to the logits
    exact = (policy[:, None] * rewards[:, None] * scores).sum(dim=0)
    for advantages, factor in ((leave_one_out_advantages, 1.0), (centred_advantages, 1 - 1 / 3)):
        total = torch.zeros(4, dtype=torch.float64)
        for drawn in itertools.product(range(4), repeat=3):
            rows = torch.tensor(drawn)
            gradient = (advantages(rewards[rows], group_size=3)[:, None] * scores[rows]).mean(dim=0)
            total += policy[rows].prod() * gradient
        torch.testing.assert_close(total, factor * exact)


def test_penalised_rewards_are_the_sum_of_ppos_shaped_rewards() -> None:
    new, _, reference, scores = batch(1)
    found = penalised_rewards(scores, new, reference, MASK, kl_coef=0.2)
    torch.testing.assert_close(found, shaped_rewards(scores, new, reference, MASK, kl_coef=0.2).rewards.sum(dim=1))
    assert penalised_rewards(torch.ones(1), torch.tensor([[-1.0, -2.0]]), torch.tensor([[-2.0, -4.0]]), MASK[:1, :2], kl_coef=0.1).item() == (
        pytest.approx(1 - 0.1 * 3)
    )


# Weights


def test_golden_weights() -> None:
    """Responses of 2 and 1 tokens, at most 4: each response 1/2; each token 1/3; each token 1/8."""
    mask = response_mask(torch.tensor([2, 1]), 2)
    found = {name: token_weights(mask, normalization=name, max_tokens=4) for name in NORMALIZATIONS}  # type: ignore[arg-type]
    torch.testing.assert_close(found["response"], torch.tensor([[1 / 4, 1 / 4], [1 / 2, 0]]))
    torch.testing.assert_close(found["tokens"], torch.tensor([[1 / 3, 1 / 3], [1 / 3, 0]]))
    torch.testing.assert_close(found["constant"], torch.tensor([[1 / 8, 1 / 8], [1 / 8, 0]]))


@pytest.mark.parametrize(("normalization", "ratio"), [("response", 1.0), ("tokens", 5.0), ("constant", 5.0)])
def test_how_much_a_long_response_counts(normalization: str, ratio: float) -> None:
    """By response as much as a short one, else by its tokens."""
    counted = weights(normalization).sum(dim=1)
    assert float(counted[0] / counted[2]) == pytest.approx(ratio)


# Losses


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("seed", [2, 3])
def test_grpo_against_a_loop_over_tokens(normalization: str, seed: int) -> None:
    new, old, reference, advantages = batch(seed)
    divisors = {"response": [4 * n for n in LENGTHS], "tokens": [sum(LENGTHS)] * 4, "constant": [4 * 8] * 4}[normalization]
    surrogate, kl = [], []
    for row, column in MASK.nonzero().tolist():
        ratio, gain = math.exp(float(new[row, column] - old[row, column])), float(advantages[row])
        surrogate.append(-min(ratio * gain, min(max(ratio, 0.8), 1.2) * gain) / divisors[row])
        log_ratio = float(reference[row, column] - new[row, column])
        kl.append((math.exp(log_ratio) - log_ratio - 1) / divisors[row])
    spoilt = [value.masked_fill(~MASK, float("nan")) for value in (new, old, reference)]
    found = grpo_loss(*spoilt, advantages, weights(normalization), clip_range=0.2, kl_coef=0.3)  # type: ignore[arg-type]
    assert found.surrogate.item() == pytest.approx(math.fsum(surrogate), rel=1e-6)
    assert found.kl.item() == pytest.approx(math.fsum(kl), rel=1e-6)
    assert found.loss.item() == pytest.approx(math.fsum(surrogate) + 0.3 * math.fsum(kl), rel=1e-6)
    assert found.kl.item() > 0


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_parts_of_a_minibatch_add_up(normalization: str) -> None:
    new, old, reference, advantages = batch(4)
    counted = weights(normalization)
    total = sum(
        grpo_loss(new[part], old[part], reference[part], advantages[part], counted[part], clip_range=0.2, kl_coef=0.3).loss.item()
        for part in ([0], [1, 3], [2])
    )
    assert total == pytest.approx(grpo(new, old, reference, advantages, normalization).item())


def test_by_tokens_and_without_divergence_it_is_ppos_loss() -> None:
    new, old, reference, advantages = batch(5)
    expected = policy_loss(new, old, advantages[:, None].expand(4, WIDTH), MASK, clip_range=0.2)
    found = grpo_loss(new, old, reference, advantages, weights("tokens"), clip_range=0.2, kl_coef=0.0)
    for name in ("loss", "clip_fraction", "approx_kl", "ratio_mean"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("seed", [6, 7])
def test_rloo_against_a_loop_over_responses(seed: int) -> None:
    new, old, _, advantages = batch(seed)
    losses, kls = [], []
    for row, length in enumerate(LENGTHS):
        log_ratio = sum(float(new[row, column] - old[row, column]) for column in range(length))
        ratio, gain = math.exp(log_ratio), float(advantages[row])
        losses.append(-min(ratio * gain, min(max(ratio, 0.8), 1.2) * gain))
        kls.append(ratio - 1 - log_ratio)
    found = rloo_loss(new.masked_fill(~MASK, float("nan")), old, advantages, MASK, clip_range=0.2)
    assert found.loss.item() == pytest.approx(statistics.fmean(losses))
    assert found.approx_kl.item() == pytest.approx(statistics.fmean(kls))


def test_where_the_policy_has_not_moved() -> None:
    """Ratio 1, nothing clipped, loss minus the mean advantage (0 over groups); RLOO's gradient is REINFORCE's on whole responses."""
    _, old, _, _ = batch(8)
    advantages = leave_one_out_advantages(torch.tensor([1.0, 3.0, -2.0, 0.5], dtype=torch.float64), group_size=2)
    new = old.clone().requires_grad_()
    found = rloo_loss(new, old, advantages, MASK, clip_range=0.2)
    assert (found.loss.item(), found.ratio_mean.item(), found.clip_fraction.item(), found.approx_kl.item()) == (pytest.approx(0), 1, 0, 0)
    found.loss.backward()
    torch.testing.assert_close(new.grad, -(advantages[:, None] * MASK) / 4)
    other = old.clone().requires_grad_()
    grpo(other, old, old, advantages, "response").backward()
    torch.testing.assert_close(other.grad, -(advantages[:, None] * MASK) / (4 * torch.tensor(LENGTHS)[:, None]))


def test_the_whole_response_is_clipped_where_no_token_would_be() -> None:
    """Four tokens of ratio 1.1 make 1.46: RLOO stops pulling there, GRPO does not."""
    old = torch.full((1, 4), -1.0, dtype=torch.float64)
    mask, gain = torch.ones(1, 4, dtype=torch.bool), torch.ones(1, dtype=torch.float64)
    for loss, pulls in (
        (lambda x: rloo_loss(x, old, gain, mask, clip_range=0.2).loss, False),
        (lambda x: grpo_loss(x, old, old, gain, weights(mask=mask), clip_range=0.2, kl_coef=0.0).loss, True),
    ):
        new = (old + math.log(1.1)).requires_grad_()
        loss(new).backward()
        assert bool((new.grad < 0).all()) is pulls
    assert rloo_loss(old + math.log(1.1), old, gain, mask, clip_range=0.2).clip_fraction.item() == 1


@pytest.mark.parametrize(("advantage", "loss"), [(1.0, -1.2), (0.0, 0.0)])
def test_a_response_that_became_likelier_by_a_hundred_nats_is_clipped_and_not_nan(advantage: float, loss: float) -> None:
    """A tenth of a nat on each of a thousand tokens."""
    logprobs = torch.zeros(1, 1000, requires_grad=True)
    found = rloo_loss(
        logprobs, torch.full((1, 1000), -0.1), torch.tensor([advantage]), torch.ones(1, 1000, dtype=torch.bool), clip_range=0.2
    )  # fmt: skip
    found.loss.backward()
    assert found.loss.item() == pytest.approx(loss)
    assert logprobs.grad is not None
    assert not logprobs.grad.any()


@pytest.mark.parametrize("kl_coef", [0.0, 0.04])
def test_no_divergence_is_too_large(kl_coef: float) -> None:
    """120 nats a token below the reference: loss, gradient and its norm are numbers, and the gradient pulls the policy back."""
    new = torch.full((4, WIDTH), -120.0, requires_grad=True)
    found = grpo_loss(new, new.detach(), torch.zeros(4, WIDTH), torch.ones(4), weights().float(), clip_range=0.2, kl_coef=kl_coef)
    found.loss.backward()
    assert 1e10 < found.kl.item() < 1e11
    assert found.loss.item() == pytest.approx(-1 + kl_coef * found.kl.item())
    assert new.grad is not None
    assert math.isfinite(float(new.grad.norm()))
    assert bool((new.grad[MASK] < (-1e5 if kl_coef else 0)).all())


def test_gradients_by_finite_differences() -> None:
    new, old, reference, advantages = batch(9)
    new.requires_grad_()
    for normalization in NORMALIZATIONS:
        counted = weights(normalization)
        assert torch.autograd.gradcheck(
            lambda x, counted=counted: grpo_loss(x, old, reference, advantages, counted, clip_range=0.2, kl_coef=0.3).loss, (new,)
        )
    assert torch.autograd.gradcheck(lambda x: rloo_loss(x, old, advantages, MASK, clip_range=0.2).loss, (new,))


def test_no_gradient_flows_into_what_was_observed() -> None:
    new, old, reference, advantages = (value.requires_grad_() for value in batch(10))
    (grpo(new, old, reference, advantages) + rloo_loss(new, old, advantages, MASK, clip_range=0.2).loss).backward()
    assert old.grad is reference.grad is advantages.grad is None
    assert not penalised_rewards(advantages, old, reference, MASK, kl_coef=0.1).requires_grad
    assert not leave_one_out_advantages(advantages, group_size=2).requires_grad


def test_the_divergence_term_pulls_towards_the_reference() -> None:
    """Less likely than under the reference: made likelier, and the other way round."""
    new = torch.tensor([[-3.0, -1.0]], dtype=torch.float64, requires_grad=True)
    reference, mask = torch.tensor([[-1.0, -3.0]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
    grpo_loss(new, new.detach(), reference, torch.zeros(1), weights(mask=mask), clip_range=0.2, kl_coef=1.0).loss.backward()
    assert new.grad is not None
    assert new.grad[0, 0] < 0 < new.grad[0, 1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: centred_advantages(x[:, 0], group_size=3), "whole groups of 3"),
        (lambda x: group_relative_advantages(x[:, 0], group_size=1), "at least 2"),
        (lambda x: leave_one_out_advantages(x, group_size=2), "whole groups"),
        (lambda x: leave_one_out_advantages(x[:0, 0], group_size=2), "whole groups"),
        (lambda x: penalised_rewards(x[:, 0], x, x, MASK, kl_coef=-0.1), "kl_coef"),
        (lambda x: penalised_rewards(x[:2, 0], x, x, MASK, kl_coef=0.1), "scores"),
        (lambda x: token_weights(MASK & False, normalization="tokens", max_tokens=5), "must be positive"),
        (lambda x: token_weights(MASK, normalization="constant", max_tokens=0), "max_tokens 0"),
        (lambda x: token_weights(MASK, normalization="mean", max_tokens=5), "response, tokens, constant"),  # type: ignore[arg-type]
        (lambda x: grpo_loss(x, x, x, x[:, 0], weights(), clip_range=1.0, kl_coef=0.1), "clip_range"),
        (lambda x: grpo_loss(x, x, x, x[:, 0], weights(), clip_range=0.2, kl_coef=-1.0), "kl_coef"),
        (lambda x: grpo_loss(x, x, x, x, weights(), clip_range=0.2, kl_coef=0.1), "advantages"),
        (lambda x: grpo_loss(x, x[:1], x, x[:, 0], weights(), clip_range=0.2, kl_coef=0.1), "does not fit"),
        (lambda x: rloo_loss(x, x, x[:, 0], MASK[:2], clip_range=0.2), "does not fit"),
        (lambda x: rloo_loss(x, x, x[:, 0], MASK, clip_range=0.0), "clip_range"),
    ],
)
def test_what_has_no_meaning_is_refused(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(torch.full((4, WIDTH), 0.5))
