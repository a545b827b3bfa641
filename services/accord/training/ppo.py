"""Proximal Policy Optimization with a critic, per-token KL and the pretraining term.

The mathematics is `accord.algos`'; the details are those of Huang et al. 2024 (arXiv:2403.17031), InstructGPT (arXiv:2203.02155) and
Ziegler et al. 2019. Policy, reference and critic are adapters over one copy of the base model. What does not belong here: what the
algorithms with rollouts share (`accord.training.rollout_algorithm`), and the critic itself (`accord.training.critic`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from accord.algos.advantages import gae, shaped_rewards
from accord.algos.kl import AdaptiveKLController, FixedKLController, KLController
from accord.algos.masking import masked_mean, whiten
from accord.algos.normalisation import RunningMoments
from accord.algos.ppo import behaviour_weights, explained_variance, policy_loss, value_loss
from accord.checkpoint import Checkpoint
from accord.data.files import shown
from accord.data.readers import read_texts
from accord.errors import FailedPreconditionError
from accord.models.batching import collate
from accord.models.logprobs import batch_logprobs
from accord.runspec_parts import ROWS_FOR_EACH_CHECKED, DataSpec, PpoSpec
from accord.training.adapter_state import POLICY
from accord.training.ahead import BEHAVIOUR, Ahead
from accord.training.context import RunContext
from accord.training.critic import Critic
from accord.training.examples import EncodedExample, encode_texts, epoch_order, rows_from
from accord.training.loop import PTX_DATA_DIGEST
from accord.training.optim import Optimizer
from accord.training.rollout import Rollout
from accord.training.rollout_algorithm import RolloutAlgorithm
from accord.training.rollout_metrics import Averages, critic_alarms, movement
from accord.training.rollout_tensors import Adapters, RolloutTensors
from accord.training.rollout_versions import publish_rollout_version

_WEIGHT_CAP = 2.0


class Targets(NamedTuple):
    """What a step learns towards, besides the tensors of its rollouts; (rollouts, T) each."""

    advantages: Tensor
    old_values: Tensor
    returns: Tensor
    weights: Tensor


class ProximalPolicyOptimization(RolloutAlgorithm):
    """PPO through the policy and the reward service."""

    def __init__(self, context: RunContext, spec: PpoSpec) -> None:
        super().__init__(context, spec)
        self._spec = spec
        self._controller: KLController = (
            AdaptiveKLController(spec.kl_coef, spec.kl_target, spec.kl_horizon)
            if spec.kl_controller == "adaptive"
            else FixedKLController(spec.kl_coef)
        )
        self._moments = RunningMoments()
        self._critic = Critic(context)
        self._texts: Sequence[EncodedExample] = ()
        self._texts_digest = ""
        self._sampler_gap_bound = spec.sampler_gap_bound
        self._ahead = Ahead(context, self._sampled_beside)
        self._abandon = self._ahead.abandon
        self._staleness = 0

    def setup(self) -> None:
        """As every algorithm with rollouts, with the texts of the pretraining term and the critic."""
        if self._spec.ptx_coefficient > 0 and self._spec.ptx_data is not None:
            self._texts, self._texts_digest = self._read_texts(self._spec.ptx_data)
        super().setup()
        if self._spec.starts_value_from_reward_model:
            self._critic.start_from_reward_model(self._reward_versions[0])
        else:
            self._critic.start_fresh()

    def parameters(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """Policy adapter; critic adapter and head."""
        return {**super().parameters(), **self._critic.parameters()}

    def step(self, step: int, optimizer: Optimizer) -> dict[str, float]:
        """Samples a batch, learns from it for the epochs of the specification; the KL coefficient follows."""
        metrics = super().step(step, optimizer)
        self._controller.update(metrics["kl"], self._context.spec.batch_size)
        return metrics

    def save(self, folder: Path) -> None:
        """Policy adapter to publish; critic beside it."""
        super().save(folder)
        self._critic.save(folder)
        self._ahead.save(folder)

    def load(self, checkpoint: Checkpoint) -> None:
        """Policy, critic, controller and moments."""
        super().load(checkpoint)
        self._critic.load(checkpoint)
        state = checkpoint.state["algorithm"]
        self._controller.load_state_dict(state["kl_controller"])
        self._moments.load_state_dict(state["moments"])
        self._ahead.load(checkpoint, state)

    def state(self) -> dict[str, Any]:
        """KL coefficient, moments of the scores and the behaviour policy's age besides what all have."""
        own = {"kl_controller": self._controller.state_dict(), "moments": self._moments.state_dict()}
        return {**super().state(), **own, **self._ahead.state()}

    def publication(self) -> dict[str, Any]:
        """A policy, with the KL coefficient that it was asked for, and the digest of the texts of the pretraining term where it has some."""
        found = super().publication()
        texts = {PTX_DATA_DIGEST: self._texts_digest} if self._texts else {}
        return {**found, "facts": {**found["facts"], "kl_coef": self._spec.kl_coef, **texts}}

    def _rollouts(self, step: int) -> list[Rollout]:
        rollouts = super()._rollouts(step)
        self._staleness = self._age(step, rollouts)
        return rollouts

    def _sampled_now(self, step: int) -> list[Rollout]:
        """Those that were begun a step ago, else by the policy that was to sample them then: a batch has one behaviour policy, killed or not."""
        begun = self._ahead.take(step)
        if begun is not None:
            return begun
        if self._ahead.updates is None:
            return super()._sampled_now(step)
        version = publish_rollout_version(
            self._context, parents=self._parents, data_digest=self._data_digest, step=self._ahead.updates, adapter=BEHAVIOUR
        )
        return self._sampled(step, version, self._source)

    def _sampled_beside(self, step: int, version: str) -> list[Rollout]:
        with closing(self._source.beside()) as source:
            return self._sampled(step, version, source, self._ahead.keep)

    def _age(self, step: int, rollouts: Sequence[Rollout]) -> int:
        """Updates that the policy is ahead of the one that sampled.

        Raises:
            FailedPreconditionError: more than `max_staleness`, or the rollouts are not of one policy.
        """
        for version in dict.fromkeys(rollout.adapter_version for rollout in rollouts):
            behind = step - self._context.manifest(version).step
            if not 0 <= behind <= self._spec.max_staleness or version != rollouts[0].adapter_version:
                raise FailedPreconditionError(
                    f"rollouts of step {step} were sampled by {version}, {behind} updates behind the policy that learns; ppo.max_staleness "
                    f"{self._spec.max_staleness} allows no more, and one version for a batch",
                    field="ppo.max_staleness",
                )
        return behind

    def _tensors(self, rollouts: Sequence[Rollout]) -> RolloutTensors:
        """Begins to sample the next batch where that is asked for, then looks at this one."""
        step, size = self._step, self._context.micro_batch_size
        if self._spec.max_staleness and step + 1 < self._context.spec.steps:
            self._context.world.from_first(lambda: self._begin(step + 1))
        adapters = Adapters(POLICY, self._reference, BEHAVIOUR if self._staleness else POLICY)
        return self._model.tensors(rollouts, adapters, micro_batch_size=size, checked=self._checked(step, len(rollouts)))

    def _begin(self, step: int) -> None:
        """Begins with the batch of a step, unless it is on disk; what keeps the policy from being published is an error of all processes."""
        if not self._rollout_path(step).exists():
            self._ahead.begin(step, self._publish_rollout_version())

    def _alarm(self, metrics: Mapping[str, float]) -> None:
        super()._alarm(metrics)
        if self._step == 1:
            for alarm in critic_alarms(metrics["explained_variance"], from_reward_model=self._spec.starts_value_from_reward_model):
                self._context.events.message(alarm)

    def _checked(self, step: int, count: int) -> list[int] | None:
        """Rows on which the sampler's logprobs are compared where they are reused, others at each step; None for all."""
        if not self._spec.reuse_sampler_logprobs:
            return None
        order = epoch_order([str(index) for index in range(count)], step, self._context.spec.seed)
        return sorted(order[: -(-count // ROWS_FOR_EACH_CHECKED)])

    def _update(self, step: int, rollouts: Sequence[Rollout], tensors: RolloutTensors, optimizer: Optimizer) -> dict[str, float]:
        before = self._context.adapted.state(POLICY) if self._spec.max_staleness else None
        moments, averages = copy(self._moments), Averages(self._context.world)
        targets, metrics = self._targets(step, rollouts, tensors, averages, moments)
        for epoch in range(self._spec.epochs):
            learnt = self._learn_epoch(step * self._spec.epochs + epoch, rollouts, tensors, targets, averages, optimizer)
            averages.end_epoch(learnt / len(rollouts))
            if learnt < len(rollouts):
                break
        self._moments = moments
        if before is not None:
            self._ahead.remember(step, before)
        return averages.values() | metrics | {"kl_coef": self._controller.value, "staleness": float(self._staleness)}

    def _learn_epoch(
        self, place: int, rollouts: Sequence[Rollout], tensors: RolloutTensors, targets: Targets, averages: Averages, optimizer: Optimizer
    ) -> int:  # fmt: skip
        """Learns from a batch in minibatches, `place` counting the epochs of the whole run; returns from how many rollouts: all, unless the policy
        has come further than target_kl from the old one. The minibatch that saw it so is left out, as everything behind it is."""
        learnt, bound = 0, self._spec.target_kl
        for members in self._minibatches(place, len(rollouts)):
            seen = self._learn_policy(members, rollouts, tensors, targets)
            if self._learnt and bound and seen["approx_kl"] > bound:  # the same number in all processes
                optimizer.zero_grad()
                self._context.events.message(f"epochs ended early: KL to the old policy {seen['approx_kl']:.4f} is over target_kl {bound}")
                break
            averages.add_minibatch(seen)
            if self._learnt:  # the first minibatch's values are learnt by `_old_values`
                self._learn_values(members, rollouts, tensors.mask, targets, averages)
            self._pretraining(place * len(rollouts) + learnt, len(members), averages)
            learnt += len(members)
            averages.add("grad_norm", self._apply(optimizer))
        return learnt

    def _targets(
        self, step: int, rollouts: Sequence[Rollout], tensors: RolloutTensors, averages: Averages, moments: RunningMoments
    ) -> tuple[Targets, dict[str, float]]:  # fmt: skip
        """Whitened advantages, values, returns and weights of a batch, and their metrics. The critic has the first minibatch's gradient then, and
        `moments` the scores."""
        spec, scores = self._spec, tensors.scores
        if spec.normalize_scores:
            moments.update(scores.tolist())
            scores = (scores - moments.mean) / moments.std
        scores = self._penalised(scores, rollouts)
        shaped = shaped_rewards(scores, tensors.old_logprobs, tensors.reference_logprobs, tensors.mask, kl_coef=self._controller.value)
        first = next(self._minibatches(step * spec.epochs, len(rollouts)))
        old_values = self._old_values(first, rollouts, tensors.mask, shaped.rewards, averages)
        estimates = gae(shaped.rewards, old_values, tensors.mask, discount=spec.discount, gae_lambda=spec.gae_lambda)
        weights = behaviour_weights(tensors.old_logprobs, tensors.behaviour_logprobs, tensors.mask, cap=_WEIGHT_CAP)
        metrics = {
            "reward_mean": float(shaped.rewards.sum(dim=1).mean()),
            "explained_variance": float(explained_variance(old_values, estimates.returns, tensors.mask)),
        }
        if spec.max_staleness:
            cut = masked_mean((weights >= _WEIGHT_CAP).to(weights.dtype), tensors.mask)
            metrics |= {"behaviour_weight_mean": float(masked_mean(weights, tensors.mask)), "behaviour_weight_cut_share": float(cut)}
        return Targets(whiten(estimates.advantages, tensors.mask), old_values, estimates.returns, weights), metrics

    def _old_values(
        self, first: Sequence[int], rollouts: Sequence[Rollout], mask: Tensor, rewards: Tensor, averages: Averages
    ) -> Tensor:  # fmt: skip
        """Values before anything is learnt, (rollouts, T). Those of the first minibatch come from the passes that learn from it: a response's
        returns need no other response's values, and a pass of the critic over the batch is saved."""
        table = self._context.world.rows(*mask.shape)
        self._critic.fill(table, rollouts, sorted(set(range(len(rollouts))) - set(first)))
        tokens = int(mask[torch.tensor(list(first))].sum())
        for part in self._parts(rollouts, first):
            values = self._critic.values([rollouts[index] for index in part])
            old, counts = values.detach(), mask[torch.tensor(part), : values.shape[1]]
            table.put(part, old)
            given = rewards[torch.tensor(part), : values.shape[1]]
            returns = gae(given, old, counts, discount=self._spec.discount, gae_lambda=self._spec.gae_lambda).returns
            self._add_value_gradient(values, old, returns, counts, int(counts.sum()) / tokens, averages)
        return table.whole()

    def _learn_values(
        self, members: Sequence[int], rollouts: Sequence[Rollout], mask: Tensor, targets: Targets, averages: Averages
    ) -> None:  # fmt: skip
        """Accumulates the critic's gradient of one minibatch."""
        tokens = int(mask[torch.tensor(list(members))].sum())
        for part in self._parts(rollouts, members):
            values = self._critic.values([rollouts[index] for index in part])
            old, returns, counts = (tensor[torch.tensor(part), : values.shape[1]] for tensor in (targets.old_values, targets.returns, mask))
            self._add_value_gradient(values, old, returns, counts, int(counts.sum()) / tokens, averages)

    def _add_value_gradient(self, values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, share: float, averages: Averages) -> None:
        """Accumulates the gradient of a part that has this share of its minibatch's tokens."""
        value = value_loss(values, old, returns, mask, clip_range=self._spec.value_clip_range)
        self._context.world.backward(self._spec.value_coefficient * value.loss * share)
        for name, tensor in (("value_loss", value.loss), ("value_clip_fraction", value.clip_fraction)):
            averages.add_part(name, float(tensor.detach()) * share)

    def _learn_policy(
        self, members: Sequence[int], rollouts: Sequence[Rollout], tensors: RolloutTensors, targets: Targets
    ) -> dict[str, float]:  # fmt: skip
        """Accumulates the policy's gradient of one minibatch; returns its loss and `movement`, of all processes' parts."""
        tokens = int(tensors.mask[torch.tensor(list(members))].sum())
        world, seen = self._context.world, self._context.world.sums()
        for part in self._parts(rollouts, members):
            rows = torch.tensor(part)
            each = [rollouts[index] for index in part]
            width = max(len(rollout.response_ids) for rollout in each)
            mask, old = tensors.mask[rows, :width], tensors.old_logprobs[rows, :width]
            advantages, weights = targets.advantages[rows, :width], targets.weights[rows, :width]
            share = int(mask.sum()) / tokens
            policy = policy_loss(self._model.logprobs(each, POLICY)[0], old, advantages, mask, clip_range=self._spec.clip_range, weights=weights)
            world.backward(policy.loss * share)
            seen.add(policy_loss=float(policy.loss.detach()) * share, **movement(policy, share))
        return seen.total()

    def _pretraining(self, before: int, members: int, averages: Averages) -> None:
        """Accumulates the gradient of the pretraining term for the next `members` rollouts after `before`, counted over all epochs of the run; with
        weight 0 nothing happens at all."""
        if not self._texts:
            return
        each = self._spec.ptx_rows_per_rollout
        rows = rows_from(self._texts, before * each, members * each, self._context.spec.seed)
        tokens, base = sum(len(row.response) for row in rows), self._context.base
        size, world = self._context.micro_batch_size, self._context.world
        for part in world.share([rows[first : first + size] for first in range(0, len(rows), size)]):
            self._heed_stop()
            batch = collate([(row.prompt, row.response) for row in part], pad_id=base.pad_token_id, device=base.device)
            loss = -batch_logprobs(self._context.adapted, batch, adapter=POLICY).sum() / tokens
            world.backward(self._spec.ptx_coefficient * loss)
            averages.add_part("ptx_loss", float(loss.detach()))

    def _read_texts(self, data: DataSpec) -> tuple[Sequence[EncodedExample], str]:
        spec = self._context.spec
        found = read_texts(data.uri, format=data.format, split=data.split, limit=data.limit, strict=data.strict, seed=spec.seed)
        width = min(spec.max_prompt_tokens + spec.max_response_tokens, self._context.base.context_tokens)
        encoded = replace(encode_texts(self._context.base.encoder, found.rows, width), source=found.report.account())
        self._context.events.message(f"{shown(data.uri)} ({data.split}): {encoded.account('texts')}")
        return encoded.at_least_one("texts", "ppo.ptx_data").rows, found.report.digest
