"""PPO's losses, the missing-EOS penalty and the pretraining term: closed forms, finite differences, and what must not move."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from accord.algos.kl import k3
from accord.algos.masking import masked_mean, response_mask, whiten
from accord.algos.ppo import (
    behaviour_weights,
    explained_variance,
    language_model_loss,
    missing_eos_penalty,
    policy_loss,
    ptx_total,
    value_loss,
)


def batch(seed: int, rows: int = 3, width: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """New logprobs, old logprobs, advantages and a mask."""
    generator = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(rows, width, generator=generator, dtype=torch.float64)
    new = old + 0.4 * torch.randn(rows, width, generator=generator, dtype=torch.float64)
    advantages = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return new, old, advantages, response_mask(torch.tensor([width, 2, 1]), width)


def one(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


ON = torch.ones(1, 1, dtype=torch.bool)


@given(st.integers(0, 2**20))
def test_before_the_first_update(seed: int) -> None:
    """REFERENCES.md section 3: ratio 1, approx_kl 0, clip_fraction 0, |policy loss| < 1e-6 with whitened advantages."""
    _, old, advantages, mask = batch(seed)
    output = policy_loss(old.clone(), old, whiten(advantages, mask), mask, clip_range=0.2)
    assert output.ratio_mean.item() == 1
    assert output.approx_kl.item() == 0
    assert output.clip_fraction.item() == 0
    assert abs(output.loss.item()) < 1e-6


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "pulls"),
    [
        (1.0, 2.0, -2.0, True), (1.1, 2.0, -2.2, True), (1.5, 2.0, -2.4, False), (0.5, 2.0, -1.0, True),
        (1.0, -2.0, 2.0, True), (0.9, -2.0, 1.8, True), (0.5, -2.0, 1.6, False), (1.5, -2.0, 3.0, True),
    ],
)  # fmt: skip
def test_the_clipped_surrogate(ratio: float, advantage: float, loss: float, pulls: bool) -> None:
    """Schulman et al. 2017 (arXiv:1707.06347), eq. 7 and figure 1: the pessimistic one of the two; flat where clipping helps."""
    new = one(math.log(ratio)).requires_grad_()
    output = policy_loss(new, one(0.0), one(advantage), ON, clip_range=0.2)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(loss)
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(-ratio * advantage if pulls else 0.0)
    assert output.clip_fraction.item() == (1 if abs(ratio - 1) > 0.2 else 0)


def test_a_step_makes_good_tokens_likelier() -> None:
    """The sign: against the gradient, the logprob of a token with a positive advantage rises."""
    new = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    policy_loss(
        new, torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[1.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool), clip_range=0.2
    ).loss.backward()
    assert new.grad is not None
    assert new.grad[0, 0] < 0 < new.grad[0, 1]


@given(st.integers(0, 2**20))
def test_the_loss_is_the_mean_over_counted_tokens(seed: int) -> None:
    """An independent loop over tokens; what stands at padding does not matter."""
    new, old, advantages, mask = batch(seed)
    terms, kls = [], []
    for row, column in mask.nonzero().tolist():
        ratio = math.exp(float(new[row, column] - old[row, column]))
        gain = float(advantages[row, column])
        terms.append(-min(ratio * gain, min(max(ratio, 0.8), 1.2) * gain))
        kls.append(ratio - 1 - math.log(ratio))
    spoilt = [value.masked_fill(~mask, float("nan")) for value in (new, old)]
    output = policy_loss(spoilt[0], spoilt[1], advantages, mask, clip_range=0.2)
    assert output.loss.item() == pytest.approx(math.fsum(terms) / len(terms))
    assert output.approx_kl.item() == pytest.approx(math.fsum(kls) / len(kls))


def test_approx_kl_estimates_the_divergence_of_old_from_new() -> None:
    """Samples are the old policy's: the mean of k3 over its distribution is KL(old, new), not KL(new, old)."""
    generator = torch.Generator().manual_seed(1)
    log_old, log_new = (torch.log_softmax(torch.randn(6, generator=generator, dtype=torch.float64), 0) for _ in range(2))
    counts = (log_old.exp() * 40_000).round().long()
    tokens = torch.repeat_interleave(torch.arange(6), counts)
    output = policy_loss(
        log_new[tokens][None], log_old[tokens][None], torch.zeros(1, len(tokens)), torch.ones(1, len(tokens), dtype=torch.bool), clip_range=0.2
    )
    forward = float((log_old.exp() * (log_old - log_new)).sum())
    assert output.approx_kl.item() == pytest.approx(forward, rel=1e-3)
    assert float((log_new.exp() * (log_new - log_old)).sum()) != pytest.approx(forward, rel=1e-2)
    torch.testing.assert_close(k3(log_old - log_new)[tokens].mean(), output.approx_kl)


def test_gradients_by_finite_differences() -> None:
    new, old, advantages, mask = batch(5)
    new.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: policy_loss(x, old, advantages, mask, clip_range=0.2).loss, (new,))
    values = torch.randn_like(old).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: value_loss(x, old, advantages, mask, clip_range=0.2).loss, (values,))
    assert torch.autograd.gradcheck(lambda x: language_model_loss(x, mask), (new,))


def test_no_gradient_flows_into_what_was_observed() -> None:
    new, old, advantages, mask = (value.requires_grad_() if value.is_floating_point() else value for value in batch(6))
    policy_loss(new, old, advantages, mask, clip_range=0.2).loss.backward()
    assert old.grad is None
    assert advantages.grad is None
    returns, values = torch.randn_like(old).requires_grad_(), torch.randn_like(old).requires_grad_()
    value_loss(values, old, returns, mask, clip_range=0.2).loss.backward()
    assert returns.grad is None
    assert old.grad is None


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "pulls"),
    [
        (1.0, 1.0, 3.0, 2.0, True),
        (2.0, 1.0, 3.0, 1.62, False),
        (0.0, 1.0, 3.0, 4.5, True),
        (4.0, 1.0, 3.0, 1.62, False),
        (1.1, 1.0, 3.0, 1.805, True),
    ],
)
def test_the_clipped_value_loss(value: float, old: float, target: float, loss: float, pulls: bool) -> None:
    """Half the larger squared error of the value and of the value within .2 of its old one; flat where the clipped one is larger."""
    values = one(value).requires_grad_()
    output = value_loss(values, one(old), one(target), ON, clip_range=0.2)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(loss)
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(value - target if pulls else 0)
    assert output.clip_fraction.item() == (0 if pulls else 1)


def test_explained_variance() -> None:
    returns, mask = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2, 2, dtype=torch.bool)
    assert explained_variance(returns, returns, mask).item() == 1
    assert explained_variance(torch.full_like(returns, 9.0), returns, mask).item() == pytest.approx(0)
    assert explained_variance(-returns, returns, mask).item() == pytest.approx(-3)
    assert explained_variance(returns, torch.ones_like(returns), mask).item() == 0
    levels = torch.tensor([[1.5, 1.5], [3.5, 3.5]])  # knows which response is good, and nothing within one: in neither row by itself
    assert explained_variance(levels, returns, mask).item() == pytest.approx(0.8)
    padded = torch.tensor([[1.0, 2.0, 99.0], [3.0, 4.0, -7.0]])
    counts = torch.tensor([[True, True, False]] * 2)
    assert explained_variance(torch.nn.functional.pad(levels, (0, 1)), padded, counts).item() == pytest.approx(0.8)


def test_missing_eos_costs_the_penalty_and_ending_costs_nothing() -> None:
    """Huang et al. 2024 (arXiv:2403.17031), the EOS trick: scores of unfinished responses go down, others stay."""
    scores, ended = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([True, False, False])
    assert missing_eos_penalty(scores, ended, penalty=1.5).tolist() == [1.0, -3.5, -1.0]
    assert missing_eos_penalty(scores, ended, penalty=0.0).tolist() == scores.tolist()


class Model(nn.Module):
    """A policy small enough to differentiate by hand: logits by position."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.table = nn.Parameter(torch.randn(4, 6, generator=generator, dtype=torch.float64))

    def logprobs(self, tokens: Tensor) -> Tensor:
        return torch.log_softmax(self.table, -1).gather(-1, tokens[:, None])[None, :, 0]


def gradient(loss: Tensor, model: Model) -> Tensor:
    return torch.autograd.grad(loss, model.table, retain_graph=True)[0]


@pytest.mark.parametrize("coefficient", [0.5, 2.0, 27.8])
def test_the_pretraining_gradient_adds_exactly(coefficient: float) -> None:
    """REFERENCES.md section 3: grad(total) = grad(ppo) + ptx_coefficient grad(lm); bit for bit where the coefficient is a power of two."""
    model, mask = Model(), torch.ones(1, 4, dtype=torch.bool)
    sampled, text = torch.tensor([0, 1, 2, 3]), torch.tensor([5, 4, 1, 0])
    ppo = policy_loss(
        model.logprobs(sampled), torch.full((1, 4), -1.5, dtype=torch.float64), torch.tensor([[1.0, -1.0, 0.5, 2.0]]), mask, clip_range=0.2
    ).loss
    lm = language_model_loss(model.logprobs(text), mask)
    total = gradient(ptx_total(ppo, lm, ptx_coefficient=coefficient), model)
    expected = gradient(ppo, model) + coefficient * gradient(lm, model)
    torch.testing.assert_close(total, expected, rtol=1e-14, atol=1e-15)
    model.table.grad = None
    ppo.backward(retain_graph=True)
    (coefficient * lm).backward()
    torch.testing.assert_close(model.table.grad, expected, rtol=1e-14, atol=1e-15)


def test_without_a_coefficient_it_is_plain_ppo_bit_for_bit() -> None:
    """REFERENCES.md section 3; the very same tensor, so that not even a rounding can differ."""
    loss, lm = torch.tensor(0.1), torch.tensor(float("nan"))
    assert ptx_total(loss, lm, ptx_coefficient=0.0) is loss
    assert ptx_total(loss, None, ptx_coefficient=0.0) is loss


def test_language_model_loss_is_nats_a_token() -> None:
    logprobs = torch.tensor([[-1.0, -3.0, float("nan")]])
    assert language_model_loss(logprobs, torch.tensor([[True, True, False]])).item() == 2
    assert language_model_loss(torch.full((2, 3), -math.log(7)), torch.ones(2, 3, dtype=torch.bool)).item() == pytest.approx(math.log(7))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: policy_loss(x, x, x, ON, clip_range=0.0), "clip_range"),
        (lambda x: policy_loss(x, x, x, ON, clip_range=1.0), "clip_range"),
        (lambda x: policy_loss(x, x[:0], x, ON, clip_range=0.2), "does not fit"),
        (lambda x: policy_loss(x, x, x, ON & False, clip_range=0.2), "no value counts"),
        (lambda x: value_loss(x, x, x, ON, clip_range=0.0), "clip_range"),
        (lambda x: missing_eos_penalty(x[0], ON[0], penalty=-1.0), "penalty"),
        (lambda x: missing_eos_penalty(x[0], ON, penalty=1.0), "differ"),
        (lambda x: ptx_total(x, x, ptx_coefficient=-1.0), "ptx_coefficient"),
        (lambda x: ptx_total(x, None, ptx_coefficient=1.0), "is needed"),
    ],
)
def test_what_has_no_meaning_is_refused(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(one(0.5))


def test_masked_mean_of_losses_weighs_tokens_not_rows() -> None:
    """A response of four tokens counts four times one of one token: the mean is over tokens."""
    loss = policy_loss(
        torch.zeros(2, 4), torch.zeros(2, 4), torch.tensor([[1.0] * 4, [-4.0] * 4]), response_mask(torch.tensor([4, 1]), 4), clip_range=0.2
    ).loss
    assert loss.item() == pytest.approx(-(4 * 1.0 - 4.0) / 5)
    assert masked_mean(torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool)).item() == 1


def test_behaviour_weights_by_hand() -> None:
    """0.3 / 0.6, 0.4 / 0.25, 0.5 / 0.1 cut off at 2, and 1 behind the response; the loss of ratio 1.1 and advantage 1 is weighted by them."""
    old = torch.tensor([[0.3, 0.4, 0.5, 0.9]]).log()
    behaviour = torch.tensor([[0.6, 0.25, 0.1, 0.1]]).log()
    mask = torch.tensor([[True, True, True, False]])
    weights = behaviour_weights(old, behaviour, mask, cap=2.0)
    torch.testing.assert_close(weights, torch.tensor([[0.5, 1.6, 2.0, 1.0]]))
    logprobs = old + math.log(1.1)
    loss = policy_loss(logprobs, old, torch.ones(1, 4), mask, clip_range=0.2, weights=weights).loss
    assert float(loss) == pytest.approx(-1.1 * (0.5 + 1.6 + 2.0) / 3)
    assert not behaviour_weights(old.requires_grad_(), behaviour, mask, cap=2.0).requires_grad


def test_weighted_samples_of_the_behaviour_policy_give_the_gradient_of_the_old_one() -> None:
    """Every action as often as the behaviour policy takes it: weighted, the gradient is the expectation under the old policy; unweighted it is not."""
    counts = torch.tensor([3, 1, 4, 2])
    actions = torch.repeat_interleave(torch.arange(4), counts)
    behaviour, gains = (counts / 10).log(), torch.tensor([1.0, -2.0, 0.5, 3.0])
    logits = torch.tensor([0.2, 0.9, -0.4, 0.1], requires_grad=True)
    old = torch.log_softmax(logits.detach(), 0)
    (expected,) = torch.autograd.grad(-(old.exp() * gains * torch.log_softmax(logits, 0)).sum(), logits)
    mask = torch.ones(1, 10, dtype=torch.bool)

    def gradient(cap: float | None) -> Tensor:
        weights = None if cap is None else behaviour_weights(old[actions][None], behaviour[actions][None], mask, cap=cap)
        loss = policy_loss(
            torch.log_softmax(logits, 0)[actions][None], old[actions][None], gains[actions][None], mask, clip_range=0.2, weights=weights
        ).loss
        return torch.autograd.grad(loss, logits)[0]

    torch.testing.assert_close(gradient(100.0), expected)
    assert float((gradient(None) - expected).abs().max()) > 0.1
    assert float((gradient(1.0) - expected).abs().max()) > 0.1, "what is cut off is a bias"


@pytest.mark.parametrize("cap", [0.5, 0.0, math.nan])
def test_a_cap_below_one_is_refused(cap: float) -> None:
    zeros = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="cap must be at least 1"):
        behaviour_weights(zeros, zeros, torch.ones(1, 2, dtype=torch.bool), cap=cap)
