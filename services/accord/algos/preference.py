"""Losses on preference pairs: Bradley-Terry reward models and the DPO family, with soft labels.

All take one number for each pair and return one loss for each pair. What does not belong here: summing logprobs over tokens
(`accord.algos.logprobs`) and models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

LossKind = Literal["sigmoid", "cdpo", "robust", "ipo", "hinge"]
_SMOOTHED: tuple[LossKind, ...] = ("cdpo", "robust")


class PreferenceOutput(NamedTuple):
    """One value for each pair, all of shape (batch,); everything but `losses` carries no gradient.

    `chosen_rewards` and `rejected_rewards` are implicit rewards beta log(pi / pi_ref) for the DPO family, scores for reward models.
    """

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    margins: Tensor
    accuracies: Tensor


def dpo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *,
    beta: float, preference: Tensor | float = 1.0, margin: Tensor | float = 0.0,
) -> PreferenceOutput:  # fmt: skip
    """Direct Preference Optimization loss with soft labels and an offset, one value per pair.

    Rafailov et al. 2023 (arXiv:2305.18290), eq. 7. With h = (policy log-odds - reference log-odds) of chosen over rejected, the loss is
    ``-p log sigmoid(beta h) - (1 - p) log sigmoid(-beta h)``: plain DPO at p = 1, log 2 where the policy still equals the reference. The margin
    m is the offset of Amini et al. 2024 (arXiv:2402.10571): ``-log sigmoid(beta h - m)`` at p = 1, and for soft labels as in `bradley_terry_loss`.

    Args:
        policy_chosen: log pi(y_w | x) in nats, summed over response tokens, shape (batch,).
        policy_rejected: log pi(y_l | x), shape (batch,).
        reference_chosen: log pi_ref(y_w | x); carries no gradient.
        reference_rejected: log pi_ref(y_l | x); carries no gradient.
        beta: strength of the KL constraint, positive.
        preference: probability that chosen is the better response, in [0, 1], scalar or shape (batch,).
        margin: how far apart the implicit rewards should be at least, at least 0, scalar or shape (batch,).

    Raises:
        ValueError: beta is not positive, a preference lies outside [0, 1], a margin is negative, or the shapes differ.
    """
    h = _log_odds(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    _positive("beta", beta)
    p, m = _probability(preference, h), _margin(margin, h)
    losses = -p * logsigmoid(beta * h - m) - (1 - p) * logsigmoid(-beta * h - m)
    return _implicit(losses, policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)


def cdpo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *,
    beta: float, label_smoothing: float,
) -> PreferenceOutput:  # fmt: skip
    """Conservative DPO: every label is taken to be flipped with probability `label_smoothing`.

    Mitchell 2023, "A note on DPO with noisy preferences": DPO with p = 1 - label_smoothing. Arguments and errors as `dpo_loss`.
    """
    _smoothing(label_smoothing)
    return dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=beta, preference=1.0 - label_smoothing)


def robust_dpo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *,
    beta: float, label_smoothing: float,
) -> PreferenceOutput:  # fmt: skip
    """Robust DPO: an unbiased estimate of the loss on clean labels when each is flipped with probability `label_smoothing`.

    Chowdhury et al. 2024 (arXiv:2403.00409), eq. 12: ``(-(1 - e) log s(bh) + e log s(-bh)) / (1 - 2 e)``. Arguments as `dpo_loss`.
    """
    h = _log_odds(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    _positive("beta", beta)
    _smoothing(label_smoothing)
    losses = (-(1 - label_smoothing) * logsigmoid(beta * h) + label_smoothing * logsigmoid(-beta * h)) / (1 - 2 * label_smoothing)
    return _implicit(losses, policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)


def ipo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> PreferenceOutput:
    """Identity Preference Optimization: ``(h - 1 / (2 beta))^2``, with h from sums over tokens.

    Azar et al. 2023 (arXiv:2310.12036), eq. 17; 1 / (4 beta^2) where the policy still equals the reference. Arguments as `dpo_loss`.
    """
    h = _log_odds(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    _positive("beta", beta)
    losses = (h - 1 / (2 * beta)) ** 2
    return _implicit(losses, policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)


def hinge_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> PreferenceOutput:
    """``max(0, 1 - beta h)``: SLiC's calibration loss on DPO's implicit reward; 1 where the policy still equals the reference.

    Zhao et al. 2023 (arXiv:2305.10425), section 2.2, normalised as in Liu et al. 2023 (arXiv:2309.06657). Arguments as `dpo_loss`.
    """
    h = _log_odds(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    _positive("beta", beta)
    losses = torch.relu(1 - beta * h)
    return _implicit(losses, policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)


def simpo_loss(policy_chosen_average: Tensor, policy_rejected_average: Tensor, *, beta: float, gamma: float) -> PreferenceOutput:
    """SimPO: ``-log sigmoid(beta (a_w - a_l) - gamma)`` on average token logprobs, without a reference.

    Meng et al. 2024 (arXiv:2405.14734), eq. 6; softplus(gamma) where the averages are equal.

    Args:
        policy_chosen_average: mean logprob of the chosen response's tokens in nats, shape (batch,).
        policy_rejected_average: the same of the rejected response.
        beta: scale, positive.
        gamma: target margin, at least 0.

    Raises:
        ValueError: beta is not positive, gamma is negative, or the shapes differ.
    """
    _same(policy_chosen_average, policy_rejected_average)
    _positive("beta", beta)
    if gamma < 0:
        raise ValueError(f"gamma must not be negative, got {gamma}")
    losses = -logsigmoid(beta * (policy_chosen_average - policy_rejected_average) - gamma)
    return _output(losses, beta * policy_chosen_average, beta * policy_rejected_average)


def bradley_terry_loss(
    chosen_scores: Tensor, rejected_scores: Tensor, *, preference: Tensor | float = 1.0, margin: Tensor | float = 0.0
) -> PreferenceOutput:
    """Reward-model loss on pairs, one value per pair: ``-p log s(d - m) - (1 - p) log s(-d - m)`` with d = s_w - s_l and m the margin.

    Ouyang et al. 2022 (arXiv:2203.02155), eq. 1, with the margin of Touvron et al. 2023 (arXiv:2307.09288), eq. 2, and the soft label of
    Lee et al. 2023 (arXiv:2309.00267), section 3.1. Adding a constant to all scores changes nothing.

    Args:
        chosen_scores: shape (batch,).
        rejected_scores: shape (batch,).
        preference: probability that chosen is better, in [0, 1], scalar or shape (batch,).
        margin: how far apart the scores should be at least, at least 0, scalar or shape (batch,).

    Raises:
        ValueError: a preference lies outside [0, 1], a margin is negative, or the shapes differ.
    """
    _same(chosen_scores, rejected_scores)
    p = _probability(preference, chosen_scores)
    gap = _margin(margin, chosen_scores)
    difference = chosen_scores - rejected_scores
    losses = -p * logsigmoid(difference - gap) - (1 - p) * logsigmoid(-difference - gap)
    return _output(losses, chosen_scores, rejected_scores)


def preferred_nll(
    policy_chosen: Tensor, policy_rejected: Tensor, chosen_tokens: Tensor, rejected_tokens: Tensor, *, preference: Tensor | float = 1.0
) -> Tensor:
    """Negative log-likelihood a token of the better response, in nats, shape (batch,); expected under the label where that is soft.

    Pang et al. 2024 (arXiv:2404.19733), eq. 1, the second term: beside a loss of the DPO family it keeps the better response likely, which
    differences alone let fall as long as the other falls faster.

    Args:
        policy_chosen: log pi(y_w | x) in nats, summed over response tokens, shape (batch,).
        policy_rejected: log pi(y_l | x), shape (batch,).
        chosen_tokens: response tokens of chosen, at least 1, shape (batch,).
        rejected_tokens: response tokens of rejected, shape (batch,).
        preference: probability that chosen is the better response, in [0, 1], scalar or shape (batch,).

    Raises:
        ValueError: a preference lies outside [0, 1], a response has no token, or the shapes differ.
    """
    for other in (policy_rejected, chosen_tokens, rejected_tokens):
        _same(policy_chosen, other)
    if not bool(((chosen_tokens > 0) & (rejected_tokens > 0)).all()):
        raise ValueError("a response has no token")
    p = _probability(preference, policy_chosen)
    return -p * policy_chosen / chosen_tokens - (1 - p) * policy_rejected / rejected_tokens


def grouped_mean(losses: Tensor, groups: Tensor) -> Tensor:
    """Mean over groups of each group's mean loss, a scalar: all pairs of one prompt count as one element of the batch.

    Ouyang et al. 2022 (arXiv:2203.02155), section 3.5: the C(K, 2) comparisons of a prompt are one element, or the model overfits.
    Equals the plain mean where every group has one pair.

    Args:
        losses: shape (batch,).
        groups: an integer for each pair that is the same for pairs of one prompt, shape (batch,).

    Raises:
        ValueError: the shapes differ or there is no pair.
    """
    _same(losses, groups)
    if losses.numel() == 0:
        raise ValueError("there is no pair to average over")
    _, places, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    mean: Tensor = (losses / counts[places]).sum() / counts.numel()
    return mean


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """A loss of the DPO family with its parameters; a combination without meaning is an error, never ignored.

    Raises:
        ValueError: label_smoothing with a loss that does not smooth, or a parameter out of range.
    """

    kind: LossKind = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _positive("beta", self.beta)
        _smoothing(self.label_smoothing)
        if self.label_smoothing and self.kind not in _SMOOTHED:
            raise ValueError(f"label_smoothing {self.label_smoothing} needs loss cdpo or robust, not {self.kind}")

    def __call__(
        self, policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor,
        preference: Tensor | float = 1.0, margin: Tensor | float = 0.0,
    ) -> PreferenceOutput:  # fmt: skip
        """Returns the loss of each pair; arguments as `dpo_loss`.

        A soft label p weighs both directions whatever the loss: ``p L(h) + (1 - p) L(-h)``, the expected loss under the label. For cdpo that is
        DPO at ``p (1 - e) + (1 - p) e``; for ipo, up to a constant, ``(h - (2 p - 1) / (2 beta))^2``; it keeps robust unbiased.

        Raises:
            ValueError: a preference lies outside [0, 1], a margin with a loss that has no place for one, or the shapes differ.
        """
        four = (policy_chosen, policy_rejected, reference_chosen, reference_rejected)
        if self.kind == "sigmoid":
            return dpo_loss(*four, beta=self.beta, preference=preference, margin=margin)
        if not bool((torch.as_tensor(margin) == 0).all()):
            raise ValueError(f"loss {self.kind} has no place for a margin; use sigmoid")
        p = _probability(preference, policy_chosen)
        there = self._hard(*four)
        if bool((p == 1).all()):
            return there
        back = self._hard(policy_rejected, policy_chosen, reference_rejected, reference_chosen)
        return there._replace(losses=p * there.losses + (1 - p) * back.losses)

    def _hard(self, *four: Tensor) -> PreferenceOutput:
        if self.kind == "cdpo":
            return cdpo_loss(*four, beta=self.beta, label_smoothing=self.label_smoothing)
        if self.kind == "robust":
            return robust_dpo_loss(*four, beta=self.beta, label_smoothing=self.label_smoothing)
        return ipo_loss(*four, beta=self.beta) if self.kind == "ipo" else hinge_loss(*four, beta=self.beta)


def _log_odds(policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor) -> Tensor:
    for other in (policy_rejected, reference_chosen, reference_rejected):
        _same(policy_chosen, other)
    return (policy_chosen - policy_rejected) - (reference_chosen.detach() - reference_rejected.detach())


def _implicit(losses: Tensor, pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float) -> PreferenceOutput:
    return _output(losses, beta * (pc - rc), beta * (pr - rr))


def _output(losses: Tensor, chosen: Tensor, rejected: Tensor) -> PreferenceOutput:
    chosen, rejected = chosen.detach(), rejected.detach()
    margins = chosen - rejected
    ties = (margins == 0).to(margins.dtype) / 2
    return PreferenceOutput(losses, chosen, rejected, margins, (margins > 0).to(margins.dtype) + ties)


def _probability(preference: Tensor | float, like: Tensor) -> Tensor:
    p = torch.as_tensor(preference, dtype=like.dtype, device=like.device)
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError(f"a preference must lie in [0, 1], got {p.min().item()} to {p.max().item()}")
    if p.dim() and p.shape != like.shape:
        raise ValueError(f"preferences of shape {tuple(p.shape)} do not fit pairs of shape {tuple(like.shape)}")
    return p


def _margin(margin: Tensor | float, like: Tensor) -> Tensor:
    m = torch.as_tensor(margin, dtype=like.dtype, device=like.device)
    if not bool((m >= 0).all()):
        raise ValueError("a margin must not be negative")
    if m.dim() and m.shape != like.shape:
        raise ValueError(f"margins of shape {tuple(m.shape)} do not fit pairs of shape {tuple(like.shape)}")
    return m


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")


def _smoothing(value: float) -> None:
    if not 0 <= value < 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5), got {value}")


def _same(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"shapes {tuple(first.shape)} and {tuple(second.shape)} differ")
