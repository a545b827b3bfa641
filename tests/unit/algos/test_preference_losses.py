"""Losses on pairs against closed forms, published figures and finite differences. Figures are those of REFERENCES.md, section 3."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from accord.algos.preference import (
    PreferenceLoss,
    bradley_terry_loss,
    cdpo_loss,
    dpo_loss,
    grouped_mean,
    hinge_loss,
    ipo_loss,
    preferred_nll,
    robust_dpo_loss,
    simpo_loss,
)

LN2 = math.log(2)
logprob = st.floats(-50, 0, allow_nan=False)
probability = st.floats(0, 1, allow_nan=False)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def example() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The worked example: logp_w -10, logp_l -12, ref_w -11, ref_l -11.5, so h = 1.5."""
    return numbers(-10.0), numbers(-12.0), numbers(-11.0), numbers(-11.5)


def policies(seed: int, count: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second, third, fourth = (-20 * torch.rand(count, generator=generator, dtype=torch.float64) for _ in range(4))
    return first, second, third, fourth


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5, 2.0])
def test_where_the_policy_is_the_reference(beta: float) -> None:
    """REFERENCES.md section 3: DPO = cDPO = robust DPO = ln 2 for any beta, IPO 1 / (4 beta^2), hinge 1."""
    w, l = numbers(-10.0, -3.0), numbers(-12.0, -40.0)  # noqa: E741
    for output in (
        dpo_loss(w, l, w, l, beta=beta),
        dpo_loss(w, l, w, l, beta=beta, preference=0.3),
        cdpo_loss(w, l, w, l, beta=beta, label_smoothing=0.1),
        robust_dpo_loss(w, l, w, l, beta=beta, label_smoothing=0.1),
    ):
        torch.testing.assert_close(output.losses, numbers(LN2, LN2))
        assert output.margins.tolist() == [0, 0]
        assert output.accuracies.tolist() == [0.5, 0.5]
    torch.testing.assert_close(ipo_loss(w, l, w, l, beta=beta).losses, numbers(1, 1) / (4 * beta**2))
    assert hinge_loss(w, l, w, l, beta=beta).losses.tolist() == [1, 1]


def test_ln2_and_25_as_printed() -> None:
    """REFERENCES.md section 3: .693147, and 25 for IPO at beta .1."""
    w, l = numbers(-10.0), numbers(-12.0)  # noqa: E741
    assert dpo_loss(w, l, w, l, beta=0.1).losses.item() == pytest.approx(0.693147, abs=5e-7)
    assert ipo_loss(w, l, w, l, beta=0.1).losses.item() == pytest.approx(25.0, abs=1e-9)
    assert bradley_terry_loss(w, w).losses.item() == pytest.approx(0.693147, abs=5e-7)


def test_simpo_with_equal_averages() -> None:
    """REFERENCES.md section 3: softplus(gamma) = 1.313262 at gamma 1; Meng et al. 2024 (arXiv:2405.14734), eq. 6."""
    average = numbers(-1.5)
    assert simpo_loss(average, average, beta=2.0, gamma=1.0).losses.item() == pytest.approx(1.313262, abs=5e-7)
    better = simpo_loss(numbers(-1.0), numbers(-2.0), beta=2.0, gamma=1.0).losses.item()
    assert better == pytest.approx(math.log1p(math.exp(-(2.0 * 1.0 - 1.0))))


@pytest.mark.parametrize(
    ("kind", "smoothing", "expected"),
    [("sigmoid", 0.0, 0.620957), ("cdpo", 0.1, 0.635957), ("robust", 0.1, 0.602207), ("ipo", 0.0, 12.25), ("hinge", 0.0, 0.85)],
)
def test_the_worked_example(kind: str, smoothing: float, expected: float) -> None:
    """REFERENCES.md section 3: h = 1.5 at beta .1; the same through the function and through `PreferenceLoss`."""
    output = PreferenceLoss(kind, 0.1, smoothing)(*example())  # type: ignore[arg-type]
    assert output.losses.item() == pytest.approx(expected, abs=5e-7)
    assert output.chosen_rewards.item() == pytest.approx(0.1)
    assert output.rejected_rewards.item() == pytest.approx(-0.05)
    assert output.margins.item() == pytest.approx(0.15)
    assert output.accuracies.item() == 1


@given(st.tuples(logprob, logprob, logprob, logprob), probability, st.floats(0.01, 2))
def test_a_soft_label_weighs_both_directions(values: tuple[float, float, float, float], p: float, beta: float) -> None:
    """REFERENCES.md section 3: -p log s(beta h) - (1 - p) log s(-beta h), by an independent softplus."""
    pc, pr, rc, rr = values
    h = (pc - pr) - (rc - rr)
    expected = p * math.log1p(math.exp(-beta * h)) + (1 - p) * math.log1p(math.exp(beta * h))
    got = dpo_loss(*(numbers(value) for value in values), beta=beta, preference=numbers(p)).losses.item()
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(st.integers(0, 2**20), probability, st.sampled_from(["cdpo", "robust", "ipo", "hinge"]))
def test_a_soft_label_is_the_expectation_over_hard_ones_with_every_loss(seed: int, p: float, kind: Any) -> None:
    """By closed forms in h: Mitchell 2023 for cdpo, Azar et al. 2023 for ipo up to its constant; swapping the pair and its label changes nothing."""
    beta, e = 0.3, 0.1 if kind in ("cdpo", "robust") else 0.0
    pc, pr, rc, rr = policies(seed)
    loss = PreferenceLoss(kind, beta, e)
    got = loss(pc, pr, rc, rr, preference=p).losses
    torch.testing.assert_close(got, loss(pr, pc, rr, rc, preference=1 - p).losses)
    h, s = (pc - pr) - (rc - rr), torch.nn.functional.logsigmoid
    expected = {
        "cdpo": -(p * (1 - e) + (1 - p) * e) * s(beta * h) - (p * e + (1 - p) * (1 - e)) * s(-beta * h),
        "robust": (-(p * (1 - e) - (1 - p) * e) * s(beta * h) - ((1 - p) * (1 - e) - p * e) * s(-beta * h)) / (1 - 2 * e),
        "ipo": (h - (2 * p - 1) / (2 * beta)) ** 2 + (1 - (2 * p - 1) ** 2) / (4 * beta**2),
        "hinge": p * torch.relu(1 - beta * h) + (1 - p) * torch.relu(1 + beta * h),
    }[kind]
    torch.testing.assert_close(got, expected)


@given(st.integers(0, 2**20), probability)
def test_swapping_chosen_and_rejected_with_the_label_changes_nothing(seed: int, p: float) -> None:
    pc, pr, rc, rr = policies(seed)
    there, back = dpo_loss(pc, pr, rc, rr, beta=0.3, preference=p), dpo_loss(pr, pc, rr, rc, beta=0.3, preference=1 - p)
    torch.testing.assert_close(there.losses, back.losses)
    torch.testing.assert_close(there.margins, -back.margins)
    torch.testing.assert_close(there.accuracies, 1 - back.accuracies)


def test_cdpo_is_a_label_between() -> None:
    """Mitchell 2023: cDPO is DPO at p = 1 - epsilon, a mean of the loss and of its flip; it is not what the sigmoid loss gives."""
    four = policies(1)
    flipped = (four[1], four[0], four[3], four[2])
    mixed = 0.9 * dpo_loss(*four, beta=0.1).losses + 0.1 * dpo_loss(*flipped, beta=0.1).losses
    torch.testing.assert_close(cdpo_loss(*four, beta=0.1, label_smoothing=0.1).losses, mixed)
    assert not torch.allclose(mixed, dpo_loss(*four, beta=0.1).losses)


def test_robust_dpo_is_unbiased_under_flipped_labels() -> None:
    """Chowdhury et al. 2024 (arXiv:2403.00409): the mean over labels flipped with probability e is the loss on clean labels."""
    four = policies(2)
    flipped = (four[1], four[0], four[3], four[2])
    for e in (0.05, 0.2, 0.4):
        mean = (1 - e) * robust_dpo_loss(*four, beta=0.2, label_smoothing=e).losses
        mean = mean + e * robust_dpo_loss(*flipped, beta=0.2, label_smoothing=e).losses
        torch.testing.assert_close(mean, dpo_loss(*four, beta=0.2).losses)


def test_ipo_is_least_at_its_target_margin() -> None:
    """Azar et al. 2023 (arXiv:2310.12036), eq. 17: 0 at h = 1 / (2 beta), whatever the margin's size may promise beyond."""
    zero = numbers(0.0)
    assert ipo_loss(numbers(5.0), zero, zero, zero, beta=0.1).losses.item() == pytest.approx(0)
    assert ipo_loss(numbers(6.0), zero, zero, zero, beta=0.1).losses.item() == pytest.approx(1)


def test_hinge_is_flat_beyond_its_margin() -> None:
    zero = numbers(0.0)
    assert hinge_loss(numbers(10.0), zero, zero, zero, beta=0.1).losses.item() == 0
    assert hinge_loss(numbers(11.0), zero, zero, zero, beta=0.1).losses.item() == 0
    assert hinge_loss(numbers(-10.0), zero, zero, zero, beta=0.1).losses.item() == 2


def test_the_gradient_of_dpo() -> None:
    """REFERENCES.md section 3; Rafailov et al. 2023, eq. 7: dL = -beta sigmoid(-beta h)(grad logp_w - grad logp_l)."""
    pc, pr, rc, rr = policies(3)
    pc.requires_grad_()
    pr.requires_grad_()
    dpo_loss(pc, pr, rc, rr, beta=0.1).losses.sum().backward()
    h = (pc - pr - (rc - rr)).detach()
    expected = -0.1 * torch.sigmoid(-0.1 * h)
    torch.testing.assert_close(pc.grad, expected)
    torch.testing.assert_close(pr.grad, -expected)
    assert bool((expected < 0).all()), "a step against the gradient makes the chosen response likelier"


@pytest.mark.parametrize(
    "loss",
    [
        PreferenceLoss("sigmoid", 0.3),
        PreferenceLoss("cdpo", 0.3, 0.1),
        PreferenceLoss("robust", 0.3, 0.2),
        PreferenceLoss("ipo", 0.3),
        PreferenceLoss("hinge", 0.3),
    ],
    ids=lambda loss: loss.kind,
)
def test_gradients_by_finite_differences(loss: PreferenceLoss) -> None:
    pc, pr, rc, rr = policies(4)
    pc.requires_grad_()
    pr.requires_grad_()
    assert torch.autograd.gradcheck(lambda first, second: loss(first, second, rc, rr).losses, (pc, pr))


def test_gradients_of_the_reward_loss_by_finite_differences() -> None:
    chosen, rejected, _, _ = policies(5)
    labels = torch.linspace(0, 1, 6, dtype=torch.float64)
    chosen.requires_grad_()
    rejected.requires_grad_()
    assert torch.autograd.gradcheck(lambda w, v: bradley_terry_loss(w, v, preference=labels, margin=0.2).losses, (chosen, rejected))
    assert torch.autograd.gradcheck(lambda w, v: simpo_loss(w, v, beta=2.0, gamma=0.5).losses, (chosen, rejected))


def test_nothing_flows_into_the_reference_or_out_of_the_metrics() -> None:
    four = [value.requires_grad_() for value in policies(6)]
    output = dpo_loss(*four, beta=0.1)
    output.losses.sum().backward()
    assert four[2].grad is None
    assert four[3].grad is None
    assert not any(value.requires_grad for value in output[1:])


def test_reward_loss_as_printed() -> None:
    """REFERENCES.md section 3: RM(1.5, .5) = .313262; with margin .3, .403186."""
    chosen, rejected = numbers(1.5), numbers(0.5)
    assert bradley_terry_loss(chosen, rejected).losses.item() == pytest.approx(0.313262, abs=5e-7)
    assert bradley_terry_loss(chosen, rejected, margin=0.3).losses.item() == pytest.approx(0.403186, abs=5e-7)
    assert bradley_terry_loss(rejected, chosen).losses.item() == pytest.approx(1.313262, abs=5e-7)


def test_reward_loss_with_soft_labels_is_least_where_the_model_says_the_label() -> None:
    """Lee et al. 2023, section 3.1: cross-entropy, so d = logit(p) is the minimum and the loss there is the label's entropy."""
    p = 0.7
    logit = numbers(math.log(p / (1 - p))).requires_grad_()
    output = bradley_terry_loss(logit, numbers(0.0), preference=p)
    output.losses.sum().backward()
    assert output.losses.item() == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p))
    assert logit.grad is not None
    assert logit.grad.item() == pytest.approx(0, abs=1e-12)


def test_dpo_with_an_offset() -> None:
    """Amini et al. 2024 (arXiv:2402.10571): -log s(beta h - m). At beta h = .15 and m = .3 it is softplus(.15) = .770957, and at m = .15 ln 2."""
    assert dpo_loss(*example(), beta=0.1, margin=0.3).losses.item() == pytest.approx(0.770957, abs=5e-7)
    assert PreferenceLoss("sigmoid", 0.1)(*example(), margin=numbers(0.15)).losses.item() == pytest.approx(LN2)
    four = policies(4)
    assert torch.equal(dpo_loss(*four, beta=0.1, margin=0.0).losses, dpo_loss(*four, beta=0.1).losses)
    assert torch.equal(dpo_loss(*four, beta=0.1, margin=3.0).margins, dpo_loss(*four, beta=0.1).margins), (
        "the metric is of the policy, not of the loss"
    )


@pytest.mark.parametrize("p", [1.0, 0.7])
def test_the_gradient_of_dpo_with_an_offset(p: float) -> None:
    """dL / dh = -beta (p s(m - beta h) - (1 - p) s(beta h + m)), and finite differences."""
    four, m = policies(5), torch.linspace(0, 2, 6, dtype=torch.float64)
    chosen, rejected = (each.clone().requires_grad_() for each in four[:2])
    grad, other = torch.autograd.grad(dpo_loss(chosen, rejected, *four[2:], beta=0.3, preference=p, margin=m).losses.sum(), (chosen, rejected))
    bh = 0.3 * ((four[0] - four[1]) - (four[2] - four[3]))
    torch.testing.assert_close(grad, -0.3 * (p * torch.sigmoid(m - bh) - (1 - p) * torch.sigmoid(bh + m)))
    torch.testing.assert_close(other, -grad)
    assert torch.autograd.gradcheck(lambda w, v: dpo_loss(w, v, *four[2:], beta=0.3, preference=p, margin=m).losses, (chosen, rejected))


def test_a_margin_asks_more_of_both_directions() -> None:
    """With a soft label the margin holds for either response: swapping the responses and the label changes nothing."""
    there = bradley_terry_loss(numbers(1.0), numbers(-1.0), preference=0.8, margin=0.3).losses
    back = bradley_terry_loss(numbers(-1.0), numbers(1.0), preference=0.2, margin=0.3).losses
    torch.testing.assert_close(there, back)
    assert there.item() > bradley_terry_loss(numbers(1.0), numbers(-1.0), preference=0.8).losses.item()


@given(st.integers(0, 2**20), st.floats(-100, 100))
def test_a_constant_on_all_scores_changes_nothing_and_a_swap_turns_accuracy_round(seed: int, constant: float) -> None:
    """REFERENCES.md section 3: adding a constant changes nothing; swapping chosen and rejected maps accuracy a to 1 - a."""
    chosen, rejected, _, _ = policies(seed)
    plain, shifted = bradley_terry_loss(chosen, rejected), bradley_terry_loss(chosen + constant, rejected + constant)
    torch.testing.assert_close(shifted.losses, plain.losses)
    torch.testing.assert_close(shifted.margins, plain.margins)
    tied = torch.cat([chosen, chosen[:1]]), torch.cat([rejected, chosen[:1]])
    accuracy = bradley_terry_loss(*tied).accuracies.mean()
    torch.testing.assert_close(bradley_terry_loss(tied[1], tied[0]).accuracies.mean(), 1 - accuracy)


def test_all_pairs_of_a_prompt_count_as_one_element() -> None:
    """Ouyang et al. 2022, section 3.5: six pairs of one prompt weigh as much as the one pair of another."""
    losses = numbers(1, 2, 3, 4, 5, 6, 100)
    assert grouped_mean(losses, torch.tensor([7, 7, 7, 7, 7, 7, 3])).item() == pytest.approx((3.5 + 100) / 2)
    assert grouped_mean(losses, torch.arange(7)).item() == pytest.approx(losses.mean().item())


def test_the_nll_is_a_token_of_the_better_response_and_expected_under_a_soft_label() -> None:
    chosen, rejected = numbers(-4, -4, -4), numbers(-9, -9, -9)
    found = preferred_nll(chosen, rejected, numbers(2, 2, 2), numbers(3, 3, 3), preference=numbers(1, 0, 0.25))
    torch.testing.assert_close(found, numbers(2, 3, 0.25 * 2 + 0.75 * 3))


def test_extreme_arguments_stay_finite() -> None:
    far = numbers(-1e4, 0.0), numbers(0.0, -1e4), numbers(0.0, 0.0), numbers(0.0, 0.0)
    for kind in ("sigmoid", "cdpo", "robust", "ipo", "hinge"):
        assert bool(PreferenceLoss(kind, 0.1)(*far).losses.isfinite().all()), kind


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: dpo_loss(*example(), beta=0.0), "beta must be positive"),
        (lambda: dpo_loss(*example(), beta=float("nan")), "beta must be positive"),
        (lambda: dpo_loss(*example(), beta=0.1, preference=1.1), "preference must lie in"),
        (lambda: dpo_loss(*example(), beta=0.1, preference=float("nan")), "preference must lie in"),
        (lambda: dpo_loss(*example(), beta=0.1, preference=numbers(1, 0)), "do not fit"),
        (lambda: dpo_loss(numbers(1, 2), *example()[1:], beta=0.1), "differ"),
        (lambda: cdpo_loss(*example(), beta=0.1, label_smoothing=0.5), "label_smoothing"),
        (lambda: robust_dpo_loss(*example(), beta=0.1, label_smoothing=-0.1), "label_smoothing"),
        (lambda: bradley_terry_loss(numbers(1), numbers(2), margin=-1.0), "margin"),
        (lambda: bradley_terry_loss(numbers(1), numbers(2), margin=numbers(1, 1)), "do not fit"),
        (lambda: dpo_loss(*example(), beta=0.1, margin=float("nan")), "margin must not be negative"),
        (lambda: PreferenceLoss("hinge", 0.1)(*example(), margin=0.1), "no place for a margin"),
        (lambda: bradley_terry_loss(numbers(1), numbers(2, 3)), "differ"),
        (lambda: simpo_loss(numbers(1), numbers(2), beta=1.0, gamma=-1.0), "gamma"),
        (lambda: grouped_mean(numbers(), torch.tensor([])), "no pair"),
        (lambda: preferred_nll(numbers(-4), numbers(-9), numbers(0), numbers(3)), "no token"),
        (lambda: preferred_nll(numbers(-4), numbers(-9), numbers(2), numbers(3), preference=1.1), "must lie in"),
        (lambda: preferred_nll(numbers(-4), numbers(-9), numbers(2, 2), numbers(3)), "differ"),
        (lambda: PreferenceLoss("sigmoid", 0.1, 0.1), "needs loss cdpo or robust"),
        (lambda: PreferenceLoss("ipo", 0.1, 0.1), "needs loss cdpo or robust"),
        (lambda: PreferenceLoss("ipo", 0.1)(*example(), preference=1.7), "must lie in"),
        (lambda: PreferenceLoss("cdpo", 0.1, 0.1)(*example(), preference=-0.1), "must lie in"),
    ],
)
def test_what_has_no_meaning_is_refused(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
