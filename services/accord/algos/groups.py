"""Advantages from groups of responses to one prompt, and the losses of GRPO and RLOO: no critic.

The responses of a group stand one after the other: row i belongs to group ``i // group_size``. What does not belong here: PPO's losses, whose
clipped surrogate is used (`accord.algos.ppo`), and the loop (`accord.training.groups`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from accord.algos.kl import k3, k3_loss
from accord.algos.logprobs import sequence_logprobs
from accord.algos.masking import masked_mean
from accord.algos.ppo import PolicyLoss, clipped_surrogate

LossNormalization = Literal["response", "tokens", "constant"]
_STD_EPSILON = 1e-4


class GroupLoss(NamedTuple):
    """A scalar loss; its surrogate and its KL term before `kl_coef`; and as `PolicyLoss` what it looked like (no gradient but in `loss`)."""

    loss: Tensor
    surrogate: Tensor
    kl: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor
    ratio_mean: Tensor


def centred_advantages(rewards: Tensor, *, group_size: int) -> Tensor:
    """Each reward less the mean of its group, shape (batch,), no gradient.

    Dr. GRPO, Liu et al. 2025 (arXiv:2503.20783), section 3.2. The mean holds the reward itself, so that in expectation this is
    ``(1 - 1 / group_size)`` times the leave-one-out advantage. Each group sums to 0.

    Args:
        rewards: of whole responses, shape (batch,), group after group.
        group_size: responses of one prompt, at least 2.

    Raises:
        ValueError: the batch is not made of whole groups, or groups are too small.
    """
    grouped = _grouped(rewards, group_size)
    return (grouped - grouped.mean(dim=1, keepdim=True)).reshape(-1).to(rewards.dtype)


def group_relative_advantages(rewards: Tensor, *, group_size: int) -> Tensor:
    """Each reward less the mean of its group, over the group's standard deviation, shape (batch,), no gradient.

    Shao et al. 2024 (arXiv:2402.03300), section 4.1.2. The deviation is the sample's (n - 1) and 1e-4 is added to it, as TRL does; a group of
    equal rewards gives 0. In a group of two, +-1 / sqrt(2): who is better, not by how much.

    Args:
        rewards: of whole responses, shape (batch,), group after group.
        group_size: responses of one prompt, at least 2.

    Raises:
        ValueError: the batch is not made of whole groups, or groups are too small.
    """
    grouped = _grouped(rewards, group_size)
    centred, spread = grouped - grouped.mean(dim=1, keepdim=True), group_spread(rewards, group_size=group_size)[:, None]
    return (centred / (spread + _STD_EPSILON)).reshape(-1).to(rewards.dtype)


def group_spread(rewards: Tensor, *, group_size: int) -> Tensor:
    """Standard deviation (n - 1) of each group's rewards, shape (groups,), float64, no gradient: exactly 0 where they are equal float32 numbers.

    Raises:
        ValueError: the batch is not made of whole groups, or groups are too small.
    """
    return _grouped(rewards, group_size).std(dim=1, unbiased=True)


def leave_one_out_advantages(rewards: Tensor, *, group_size: int) -> Tensor:
    """Each reward less the mean of the others in its group, shape (batch,), no gradient.

    Ahmadian et al. 2024 (arXiv:2402.14740), the RLOO estimator, after Kool et al. 2019: the baseline does not depend on the response that it
    judges, so that the gradient is unbiased. Each group sums to 0.

    Args:
        rewards: of whole responses, shape (batch,), group after group.
        group_size: responses of one prompt, at least 2.

    Raises:
        ValueError: the batch is not made of whole groups, or groups are too small.
    """
    grouped = _grouped(rewards, group_size)
    others = (grouped.sum(dim=1, keepdim=True) - grouped) / (group_size - 1)
    return (grouped - others).reshape(-1).to(rewards.dtype)


def penalised_rewards(scores: Tensor, logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """Score of each response less `kl_coef` times its summed log-ratio (k1), shape (batch,), no gradient.

    Ahmadian et al. 2024 (arXiv:2402.14740): the whole response is one action. It is what `accord.algos.advantages.shaped_rewards` sums to.

    Args:
        scores: shape (batch,).
        logprobs: under the policy that sampled, nats, shape (batch, T).
        reference_logprobs: under the reference, shape (batch, T).
        mask: True at response tokens, shape (batch, T).
        kl_coef: at least 0.

    Raises:
        ValueError: the shapes do not fit, or kl_coef is negative.
    """
    _check_shapes(mask, logprobs, reference_logprobs)
    _check_rows("scores", scores, mask)
    if not kl_coef >= 0:
        raise ValueError(f"kl_coef must not be negative, got {kl_coef}")
    log_ratio = sequence_logprobs(logprobs, mask) - sequence_logprobs(reference_logprobs, mask)
    return (scores - kl_coef * log_ratio).detach()


def token_weights(mask: Tensor, *, normalization: LossNormalization, max_tokens: int) -> Tensor:
    """What each token's loss counts in the sum over a minibatch, shape (batch, T), 0 where the mask is False.

    `response`: 1 / (batch x length of its response), as Shao et al. 2024 (arXiv:2402.03300), eq. 3. `tokens`: 1 / tokens of the minibatch, as
    DAPO, Yu et al. 2025 (arXiv:2503.14476), eq. 8. `constant`: 1 / (batch x max_tokens), as Dr. GRPO, Liu et al. 2025 (arXiv:2503.20783). The
    first two sum to 1. Rows may be summed in any parts afterwards.

    Args:
        mask: True at response tokens, shape (batch, T), of a whole minibatch.
        normalization: which of the three.
        max_tokens: longest response that is sampled, positive.

    Raises:
        ValueError: a row has no token, max_tokens is not positive, or the normalization is none of the three.
    """
    lengths = mask.sum(dim=1)
    if not bool((lengths > 0).all()) or not max_tokens > 0:
        raise ValueError(f"responses of {lengths.tolist()} tokens and max_tokens {max_tokens} must be positive")
    rows = len(mask)
    divisors = {"response": rows * lengths, "tokens": lengths.sum().expand(rows), "constant": torch.full_like(lengths, rows * max_tokens)}
    if normalization not in divisors:
        raise ValueError(f"normalization must be one of {', '.join(divisors)}, got {normalization!r}")
    return mask / divisors[normalization][:, None]


def grpo_loss(
    logprobs: Tensor, old_logprobs: Tensor, reference_logprobs: Tensor, advantages: Tensor, weights: Tensor, *, clip_range: float, kl_coef: float
) -> GroupLoss:
    """Weighted sum over tokens of the clipped surrogate and `kl_coef` times k3 of the policy over the reference (`accord.algos.kl.k3_loss`).

    Shao et al. 2024 (arXiv:2402.03300), eq. 3 and 4. Where the policy has not moved since it sampled, the gradient of the KL term is in
    expectation that of KL(reference, policy), so that a policy settles at ``pi_ref kl_coef / (c - advantage)`` and not at PPO's
    ``pi_ref exp(reward / kl_coef) / Z`` (Vojnovic & Yun 2025, arXiv:2502.18548). TRL 1.16 multiplies k3 by the ratio unless told not to
    (`use_bias_correction_kl`), which makes it KL(policy, reference); this is the paper's.

    Args:
        logprobs: of the sampled tokens under the policy, nats, shape (batch, T).
        old_logprobs: the same when they were sampled; carries no gradient.
        reference_logprobs: of the same tokens under the reference; carries no gradient.
        advantages: of whole responses, shape (batch,); carries no gradient.
        weights: of `token_weights`, positive exactly where a token counts, shape (batch, T).
        clip_range: the ratio of a token counts in [1 - clip_range, 1 + clip_range]; in (0, 1).
        kl_coef: at least 0.

    Raises:
        ValueError: the shapes do not fit, nothing counts, or a number is out of range.
    """
    mask = weights > 0
    _check_shapes(mask, logprobs, old_logprobs, reference_logprobs)
    _check_rows("advantages", advantages, mask)
    if not kl_coef >= 0:
        raise ValueError(f"kl_coef must not be negative, got {kl_coef}")
    log_ratio = _where(mask, logprobs - old_logprobs.detach())
    surrogate = (weights * clipped_surrogate(log_ratio, advantages.detach()[:, None], clip_range=clip_range)).sum()
    kl = (weights * k3_loss(_where(mask, logprobs - reference_logprobs.detach()))).sum()
    with torch.no_grad():
        fraction, approx_kl, ratio = _movement(log_ratio, mask, clip_range)
    return GroupLoss(surrogate + kl_coef * kl, surrogate.detach(), kl.detach(), fraction, approx_kl, ratio)


def rloo_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip_range: float) -> PolicyLoss:
    """Clipped surrogate of whole responses, averaged over them.

    Ahmadian et al. 2024 (arXiv:2402.14740) with PPO's clipping on the ratio of the response's probabilities, as TRL has it. Where the policy
    has not moved, its gradient is that of REINFORCE: minus the mean of advantage times the gradient of the sequence_logprob. The diagnostics
    are of responses: share of clipped ones, k3 in nats a response, mean ratio.

    Args:
        logprobs: of the sampled tokens under the policy, nats, shape (batch, T).
        old_logprobs: the same when they were sampled; carries no gradient.
        advantages: of whole responses, shape (batch,); carries no gradient.
        mask: True at response tokens, shape (batch, T).
        clip_range: the ratio of a response counts in [1 - clip_range, 1 + clip_range]; in (0, 1).

    Raises:
        ValueError: the shapes do not fit, nothing counts, or clip_range is out of range.
    """
    _check_shapes(mask, logprobs, old_logprobs)
    _check_rows("advantages", advantages, mask)
    log_ratio = _where(mask, logprobs - old_logprobs.detach()).sum(dim=1)
    loss = clipped_surrogate(log_ratio, advantages.detach(), clip_range=clip_range).mean()
    with torch.no_grad():
        return PolicyLoss(loss, *_movement(log_ratio, torch.ones_like(log_ratio, dtype=torch.bool), clip_range))


def _movement(log_ratio: Tensor, mask: Tensor, clip_range: float) -> tuple[Tensor, Tensor, Tensor]:
    """Share of clipped ratios, k3 of KL(old, new), mean ratio."""
    ratio = log_ratio.exp()
    clipped = ((ratio - 1).abs() > clip_range).to(ratio.dtype)
    return masked_mean(clipped, mask), masked_mean(k3(-log_ratio), mask), masked_mean(ratio, mask)


def _grouped(rewards: Tensor, group_size: int) -> Tensor:
    if group_size < 2 or rewards.dim() != 1 or len(rewards) == 0 or len(rewards) % group_size:
        raise ValueError(f"rewards of shape {tuple(rewards.shape)} are not whole groups of {group_size}; a group has at least 2")
    return rewards.detach().double().reshape(-1, group_size)  # the mean of equal float32 numbers is that number in float64, not always in float32


def _where(mask: Tensor, values: Tensor) -> Tensor:
    return torch.where(mask, values, torch.zeros_like(values))


def _check_shapes(mask: Tensor, *others: Tensor) -> None:
    for other in others:
        if other.shape != mask.shape:
            raise ValueError(f"shape {tuple(other.shape)} does not fit the mask's {tuple(mask.shape)}")


def _check_rows(name: str, values: Tensor, mask: Tensor) -> None:
    if values.shape != mask.shape[:1]:
        raise ValueError(f"{name} of shape {tuple(values.shape)} are not one a row of {tuple(mask.shape)}")
