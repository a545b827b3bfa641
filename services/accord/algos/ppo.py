"""Losses of Proximal Policy Optimization for language models, and InstructGPT's pretraining term.

What does not belong here: advantages (`accord.algos.advantages`), the loop (`accord.training.ppo`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from accord.algos.kl import k3
from accord.algos.masking import masked_mean, masked_var

_LARGEST_LOG_RATIO = 80.0
"""Nats; in float32 exp(89) is infinite, and the gradient of what is clipped there would be 0 times infinity. Whole responses come that far."""


class PolicyLoss(NamedTuple):
    """A scalar loss, and what it looked like: share of clipped tokens, k3 estimate of KL(old, new), mean ratio (no gradient)."""

    loss: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor
    ratio_mean: Tensor


class ValueLoss(NamedTuple):
    """A scalar loss, and the share of clipped tokens (no gradient)."""

    loss: Tensor
    clip_fraction: Tensor


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip_range: float, weights: Tensor | None = None
) -> PolicyLoss:
    """Clipped surrogate loss, averaged over the tokens that count.

    Schulman et al. 2017 (arXiv:1707.06347), eq. 7. Where the policy has not moved the ratio is 1, nothing is clipped, and the loss is minus
    the mean advantage: 0 for whitened advantages.

    Args:
        logprobs: of the sampled tokens under the policy, nats, shape (batch, T).
        old_logprobs: the same when they were sampled; carries no gradient.
        advantages: shape (batch, T); carries no gradient.
        mask: True at response tokens, shape (batch, T).
        clip_range: the ratio counts in [1 - clip_range, 1 + clip_range]; in (0, 1).
        weights: of the tokens, shape (batch, T), where another policy than the old one sampled (`behaviour_weights`); None where it did.

    Raises:
        ValueError: the shapes differ, nothing counts, or clip_range is out of range.
    """
    _shapes(mask, logprobs, old_logprobs, advantages)
    log_ratio = torch.where(mask, logprobs - old_logprobs.detach(), torch.zeros_like(logprobs))
    losses = clipped_surrogate(log_ratio, advantages.detach(), clip_range=clip_range)
    loss = masked_mean(losses if weights is None else weights.detach() * losses, mask)
    with torch.no_grad():
        ratio = log_ratio.exp()
        fraction = masked_mean(((ratio - 1).abs() > clip_range).to(ratio.dtype), mask)
        approx_kl = masked_mean(k3(-log_ratio), mask)  # k3 takes log old - log new for KL(old, new): the samples are the old policy's
        return PolicyLoss(loss, fraction, approx_kl, masked_mean(ratio, mask))


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, *, clip_range: float) -> Tensor:
    """The larger of minus advantage times ratio and minus advantage times clipped ratio: one loss for each log-ratio, of its shape.

    Schulman et al. 2017 (arXiv:1707.06347), eq. 7, negated.

    Args:
        log_ratio: log pi - log pi_old of tokens or of whole responses, any shape.
        advantages: broadcastable to it, without gradient.
        clip_range: the ratio counts in [1 - clip_range, 1 + clip_range]; in (0, 1).

    Raises:
        ValueError: clip_range is out of range.
    """
    if not 0 < clip_range < 1:
        raise ValueError(f"clip_range must lie in (0, 1), got {clip_range}")
    ratio = log_ratio.clamp(max=_LARGEST_LOG_RATIO).exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range))


def behaviour_weights(old_logprobs: Tensor, behaviour_logprobs: Tensor, mask: Tensor, *, cap: float) -> Tensor:
    """pi_old / pi_behaviour of each token, at most `cap`: what corrects the loss for samples of an older policy. No gradient, 1 outside the mask.

    The decoupled objective of Hilton et al. 2021 (arXiv:2110.00641), which Fu et al. 2025 (AReaL, arXiv:2505.24298) use for stale rollouts: this
    weight corrects for the policy that sampled, and the clipped ratio stays that to the policy before the update. Truncated from above as in
    Espeholt et al. 2018 (arXiv:1802.01561): less variance for a bias towards the behaviour policy. Where nothing is cut off, the expectation under
    the behaviour policy of the weighted gradient is that under the old one; all weights are 1 where the two are the same.

    Args:
        old_logprobs: of the sampled tokens under the policy before the update, nats, shape (batch, T).
        behaviour_logprobs: the same under the policy that sampled them.
        mask: True at response tokens.
        cap: the largest weight, at least 1.

    Raises:
        ValueError: the shapes differ, or the cap is below 1.
    """
    if not cap >= 1:
        raise ValueError(f"cap must be at least 1, got {cap}")
    _shapes(mask, old_logprobs, behaviour_logprobs)
    log_weight = torch.where(mask, old_logprobs.detach() - behaviour_logprobs.detach(), torch.zeros_like(old_logprobs))
    return log_weight.exp().clamp(max=cap)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip_range: float) -> ValueLoss:
    """Half the larger of the squared errors of the value and of the value clipped around its old one, averaged over tokens that count.

    Stiennon et al. 2020 (arXiv:2009.01325) after Schulman's implementation; Huang et al. 2024 (arXiv:2403.17031).

    Args:
        values: of the critic now, shape (batch, T).
        old_values: when the rollouts were made; carries no gradient.
        returns: targets, shape (batch, T); carries no gradient.
        mask: True at response tokens.
        clip_range: most change that counts, positive.

    Raises:
        ValueError: the shapes differ, nothing counts, or clip_range is not positive.
    """
    if not clip_range > 0:
        raise ValueError(f"clip_range must be positive, got {clip_range}")
    _shapes(mask, values, old_values, returns)
    old, targets = old_values.detach(), returns.detach()
    clipped = torch.minimum(torch.maximum(values, old - clip_range), old + clip_range)
    plain_error, clipped_error = (values - targets) ** 2, (clipped - targets) ** 2
    loss = 0.5 * masked_mean(torch.maximum(plain_error, clipped_error), mask)
    with torch.no_grad():
        return ValueLoss(loss, masked_mean((clipped_error > plain_error).to(values.dtype), mask))


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """``1 - Var(returns - values) / Var(returns)`` over the tokens that count, a scalar without gradient.

    1 for a critic that knows the returns, 0 for one that says the same everywhere, below 0 for a worse one; 0 too where the returns do not vary.

    Of a whole batch: the mean of its parts' would be another number for each cut.

    Raises:
        ValueError: the shapes differ or nothing counts.
    """
    _shapes(mask, values, returns)
    targets, seen = returns.detach(), values.detach()
    variance = masked_var(targets, mask, unbiased=False)
    unexplained = masked_var(targets - seen, mask, unbiased=False)
    return torch.where(variance > 0, 1 - unexplained / variance.clamp(min=1e-12), torch.zeros_like(variance))


def missing_eos_penalty(scores: Tensor, has_eos: Tensor, *, penalty: float) -> Tensor:
    """Scores, less `penalty` where a response has no end of turn. Huang et al. 2024 (arXiv:2403.17031), "EOS trick". Shape (batch,).

    Raises:
        ValueError: the penalty is negative or the shapes differ.
    """
    if penalty < 0:
        raise ValueError(f"penalty must not be negative, got {penalty}")
    if scores.shape != has_eos.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and has_eos {tuple(has_eos.shape)} differ")
    return torch.where(has_eos.bool(), scores, scores - penalty)


def language_model_loss(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Mean negative logprob of the tokens that count, a scalar in nats a token.

    Raises:
        ValueError: the shapes differ or nothing counts.
    """
    return -masked_mean(logprobs, mask)


def ptx_total(ppo_loss: Tensor, lm_loss: Tensor | None, *, ptx_coefficient: float) -> Tensor:
    """PPO loss plus the weighted pretraining loss; the PPO loss itself, bit for bit, where the weight is 0.

    Ouyang et al. 2022 (arXiv:2203.02155), eq. 2: gamma E_pretrain[log pi(x)]. grad(total) = grad(ppo) + ptx_coefficient grad(lm).

    Raises:
        ValueError: the weight is negative, or positive without a pretraining loss.
    """
    if ptx_coefficient < 0:
        raise ValueError(f"ptx_coefficient must not be negative, got {ptx_coefficient}")
    if ptx_coefficient == 0:
        return ppo_loss
    if lm_loss is None:
        raise ValueError("a pretraining loss is needed where ptx_coefficient is positive")
    return ppo_loss + ptx_coefficient * lm_loss


def _shapes(mask: Tensor, *others: Tensor) -> None:
    for other in others:
        if other.shape != mask.shape:
            raise ValueError(f"shape {tuple(other.shape)} does not fit the mask's {tuple(mask.shape)}")
