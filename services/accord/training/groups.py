"""GRPO and RLOO: several responses to each prompt are one another's baseline, so that there is no critic.

The mathematics is `accord.algos.groups`. What does not belong here: what they share with PPO (`accord.training.rollout_algorithm`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

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
from accord.runspec_parts import GrpoSpec, RlooSpec
from accord.training.adapter_state import POLICY
from accord.training.context import RunContext
from accord.training.optim import Optimizer
from accord.training.rollout import Rollout
from accord.training.rollout_algorithm import RolloutAlgorithm
from accord.training.rollout_metrics import Averages, movement
from accord.training.rollout_tensors import RolloutTensors


@dataclass(frozen=True)
class GroupBatch:
    """Rollouts, group after group, with their tensors and the advantage of each response, (rollouts,)."""

    rollouts: Sequence[Rollout]
    tensors: RolloutTensors
    advantages: Tensor


class Part(NamedTuple):
    """A micro-batch: its rows in the batch, the width of its longest response, and the policy's logprobs, which carry the gradient."""

    rows: Tensor
    width: int
    logprobs: Tensor


class GroupAlgorithm(RolloutAlgorithm):
    """Learns from groups of `group_size` rollouts of one prompt."""

    def __init__(self, context: RunContext, spec: GrpoSpec | RlooSpec) -> None:
        super().__init__(context, spec, samples_per_prompt=spec.group_size)
        self._epochs = spec.epochs
        self._kl_coef = spec.kl_coef

    @abstractmethod
    def _rewards(self, scores: Tensor, tensors: RolloutTensors) -> Tensor:
        """Reward of each response of its score, (rollouts,)."""

    @abstractmethod
    def _advantages(self, rewards: Tensor) -> Tensor:
        """Advantage of each response, (rollouts,)."""

    @abstractmethod
    def _minibatch(self, members: Sequence[int], batch: GroupBatch, averages: Averages) -> None:
        """Accumulates the gradients of one minibatch."""

    def publication(self) -> dict[str, Any]:
        """A policy, with the KL coefficient and the size of the groups."""
        found = super().publication()
        facts = {**found["facts"], "kl_coef": self._kl_coef, "group_size": self._samples_per_prompt}
        return {**found, "facts": facts}

    def _update(self, step: int, rollouts: Sequence[Rollout], tensors: RolloutTensors, optimizer: Optimizer) -> dict[str, float]:
        rewards = self._rewards(self._penalised(tensors.scores, rollouts), tensors)
        batch = GroupBatch(rollouts, tensors, self._advantages(rewards))
        averages = Averages(self._context.world)
        for epoch in range(self._epochs):
            for members in self._minibatches(step * self._epochs + epoch, len(rollouts)):
                self._minibatch(members, batch, averages)
                averages.add("grad_norm", self._apply(optimizer))
            averages.end_epoch()
        spread = group_spread(rewards, group_size=self._samples_per_prompt)
        return averages.values() | {
            "reward_mean": float(rewards.mean()), "kl_coef": self._kl_coef, "reward_std_in_groups": float(spread.mean()),
            "groups_without_signal": float((spread == 0).double().mean()),
        }  # fmt: skip

    def _computed(self, members: Sequence[int], batch: GroupBatch) -> Iterator[Part]:
        """The micro-batches of a minibatch, each after its forward pass."""
        for part in self._parts(batch.rollouts, members):
            logprobs = self._model.logprobs([batch.rollouts[index] for index in part], POLICY)[0]
            yield Part(torch.tensor(part), logprobs.shape[1], logprobs)


class GroupRelativePolicyOptimization(GroupAlgorithm):
    """GRPO: advantages relative to the group, a loss for each token, and the KL divergence in the loss."""

    def __init__(self, context: RunContext, spec: GrpoSpec) -> None:
        super().__init__(context, spec)
        self._spec = spec

    def _rewards(self, scores: Tensor, tensors: RolloutTensors) -> Tensor:
        return scores

    def _advantages(self, rewards: Tensor) -> Tensor:
        advantages = group_relative_advantages if self._spec.scale_advantages else centred_advantages
        return advantages(rewards, group_size=self._spec.group_size)

    def _minibatch(self, members: Sequence[int], batch: GroupBatch, averages: Averages) -> None:
        spec, tensors, chosen = self._spec, batch.tensors, torch.tensor(list(members))
        weights = torch.zeros_like(tensors.old_logprobs)
        weights[chosen] = token_weights(
            tensors.mask[chosen], normalization=spec.loss_normalization, max_tokens=self._context.spec.max_response_tokens
        )
        tokens = int(tensors.mask[chosen].sum())
        for rows, width, logprobs in self._computed(members, batch):
            old, reference, each = (tensor[rows, :width] for tensor in (tensors.old_logprobs, tensors.reference_logprobs, weights))
            loss = grpo_loss(logprobs, old, reference, batch.advantages[rows], each, clip_range=spec.clip_range, kl_coef=spec.kl_coef)
            self._context.world.backward(loss.loss)
            share = int(tensors.mask[rows].sum()) / tokens
            averages.add_policy({"policy_loss": float(loss.surrogate), **movement(loss, share)})
            averages.add_part("kl_loss", float(loss.kl))


class ReinforceLeaveOneOut(GroupAlgorithm):
    """RLOO: the others of a group as baseline, the whole response as one action, and the KL divergence in the reward."""

    def __init__(self, context: RunContext, spec: RlooSpec) -> None:
        super().__init__(context, spec)
        self._spec = spec

    def _rewards(self, scores: Tensor, tensors: RolloutTensors) -> Tensor:
        return penalised_rewards(scores, tensors.old_logprobs, tensors.reference_logprobs, tensors.mask, kl_coef=self._spec.kl_coef)

    def _advantages(self, rewards: Tensor) -> Tensor:
        return leave_one_out_advantages(rewards, group_size=self._spec.group_size)

    def _minibatch(self, members: Sequence[int], batch: GroupBatch, averages: Averages) -> None:
        tensors = batch.tensors
        for rows, width, logprobs in self._computed(members, batch):
            old, mask = tensors.old_logprobs[rows, :width], tensors.mask[rows, :width]
            loss = rloo_loss(logprobs, old, batch.advantages[rows], mask, clip_range=self._spec.clip_range)
            share = len(rows) / len(members)
            self._context.world.backward(loss.loss * share)
            averages.add_policy({"policy_loss": float(loss.loss.detach()) * share, **movement(loss, share)})
