"""Rewards per token and generalized advantage estimation.

What does not belong here: whitening (`accord.algos.masking`) and losses (`accord.algos.ppo`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from accord.algos.kl import k1
from accord.algos.masking import last_true_index


class ShapedRewards(NamedTuple):
    """Rewards per token and the KL estimate (k1) per token, both (batch, T), 0 where the mask is False; no gradient."""

    rewards: Tensor
    kl: Tensor


class Advantages(NamedTuple):
    """Advantages and returns, both (batch, T), 0 where the mask is False; no gradient."""

    advantages: Tensor
    returns: Tensor


def shaped_rewards(scores: Tensor, logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor, *, kl_coef: float) -> ShapedRewards:
    """Reward of each token: minus the KL penalty, plus the score at the last response token.

    Ouyang et al. 2022 (arXiv:2203.02155), eq. 2, per token as in Ziegler et al. 2019. The KL is k1 and never clamped. The rewards of a row
    sum to its score minus kl_coef times its summed log-ratio.

    Args:
        scores: of each response, shape (batch,).
        logprobs: of the tokens under the policy before the update, which is the one that sampled them unless that was a step ahead, nats, shape
            (batch, T).
        reference_logprobs: of the same tokens under the reference, shape (batch, T).
        mask: True at response tokens, shape (batch, T).
        kl_coef: strength of the penalty, at least 0.

    Raises:
        ValueError: the shapes do not fit, a row has no token, or kl_coef is negative.
    """
    if logprobs.shape != mask.shape or reference_logprobs.shape != mask.shape or scores.shape != mask.shape[:1]:
        raise ValueError(
            f"scores {tuple(scores.shape)}, logprobs {tuple(logprobs.shape)}, reference {tuple(reference_logprobs.shape)} and mask "
            f"{tuple(mask.shape)} do not fit"
        )
    if not kl_coef >= 0:
        raise ValueError(f"kl_coef must not be negative, got {kl_coef}")
    kl = torch.where(mask, k1(logprobs - reference_logprobs), torch.zeros_like(logprobs)).detach()
    rewards = -kl_coef * kl
    rewards[torch.arange(len(scores)), last_true_index(mask)] += scores.detach().to(rewards.dtype)
    return ShapedRewards(rewards, kl)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float, gae_lambda: float) -> Advantages:
    """Generalized advantage estimates and returns (advantages + values), before any whitening.

    Schulman et al. 2016 (arXiv:1506.02438), eq. 16: A_t = sum_k (discount lambda)^k delta_{t+k}, delta_t = r_t + discount V_{t+1} - V_t,
    and V = 0 after the last token that counts. Each row's tokens that count must be contiguous.

    Args:
        rewards: shape (batch, T).
        values: value of the state before each token, shape (batch, T).
        mask: True at response tokens, shape (batch, T).
        discount: in (0, 1].
        gae_lambda: in [0, 1]; 1 is Monte Carlo, 0 one-step.

    Raises:
        ValueError: the shapes differ or a factor is out of range.
    """
    if rewards.shape != mask.shape or values.shape != mask.shape:
        raise ValueError(f"rewards {tuple(rewards.shape)}, values {tuple(values.shape)} and mask {tuple(mask.shape)} differ")
    if not 0 < discount <= 1 or not 0 <= gae_lambda <= 1:
        raise ValueError(f"discount {discount} must lie in (0, 1] and gae_lambda {gae_lambda} in [0, 1]")
    zeros = torch.zeros_like(values)
    rewards, values = torch.where(mask, rewards, zeros).detach(), torch.where(mask, values, zeros).detach()
    advantages = torch.zeros_like(values)
    following, next_value = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for step in range(values.shape[1] - 1, -1, -1):
        counts = mask[:, step]
        delta = rewards[:, step] + discount * next_value - values[:, step]
        following = torch.where(counts, delta + discount * gae_lambda * following, torch.zeros_like(following))
        next_value = torch.where(counts, values[:, step], torch.zeros_like(next_value))
        advantages[:, step] = following
    return Advantages(advantages, torch.where(mask, advantages + values, zeros))
