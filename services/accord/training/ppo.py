"""Proximal Policy Optimization with a critic, per-token KL and the pretraining term.

The mathematics is `accord.algos`'; the details are those of Huang et al. 2024 (arXiv:2403.17031), InstructGPT (arXiv:2203.02155) and
Ziegler et al. 2019. Policy, reference and critic are adapters over one copy of the base model. What does not belong here: sampling and
scoring (`accord.training.rollout`).
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from accord.algos.advantages import gae, shaped_rewards
from accord.algos.kl import AdaptiveKLController, FixedKLController, KLController, k3
from accord.algos.masking import masked_mean, whiten
from accord.algos.normalisation import RunningMoments
from accord.algos.ppo import missing_eos_penalty, policy_loss, value_loss
from accord.checkpoint import Checkpoint
from accord.data.readers import read_prompts, read_texts
from accord.errors import FailedPreconditionError
from accord.models.batching import collate
from accord.models.heads import HEAD_FILE, HeadFacts, ScalarHead
from accord.models.logprobs import batch_logprobs
from accord.runspec import DataSpec, PpoSpec
from accord.training.adapter_state import POLICY, load_adapter, save_adapter, start_adapter, start_reference
from accord.training.context import RunContext
from accord.training.examples import EncodedExample, EncodedPrompt, batch_at, encode_prompts, encode_texts, epoch_order
from accord.training.loop import ADAPTER_FOLDER
from accord.training.optim import Optimizer
from accord.training.ppo_metrics import Averages, alarms
from accord.training.ppo_tensors import RolloutModel, RolloutTensors, stack_padded
from accord.training.rollout import Draw, Rollout, RolloutSource, read_rollouts, write_rollouts

VALUE = "value"
_VALUE_FOLDER = "value"
_SAMPLER_GAP_BOUND = 0.05
_KEPT_ROLLOUT_VERSIONS = 2


class ProximalPolicyOptimization:
    """PPO through the policy and the reward service. Implements `loop.Algorithm`."""

    def __init__(self, context: RunContext, spec: PpoSpec) -> None:
        self._context = context
        self._spec = spec
        self._reward_version = context.fetch_parent(spec.reward_model)  # one version to the end, whatever is published meanwhile
        self._source = RolloutSource(context, self._reward_version)
        self._controller: KLController = (
            AdaptiveKLController(spec.kl_coef, spec.kl_target, spec.kl_horizon)
            if spec.kl_controller == "adaptive"
            else FixedKLController(spec.kl_coef)
        )
        self._moments = RunningMoments()
        self._head = ScalarHead(context.base.hidden_size).to(context.base.device)
        self._model = RolloutModel(context.adapted, self._head, temperature=spec.temperature)
        self._parents: tuple[str, ...] = ()
        self._reference: str | None = None
        self._data_digest = ""
        self._prompts: Sequence[EncodedPrompt] = ()
        self._eval_prompts: Sequence[EncodedPrompt] = ()
        self._texts: Sequence[EncodedExample] = ()
        self._first_length: float | None = None
        self._step = 0

    def setup(self) -> None:
        """Reads prompts, starts policy, reference and critic, and compares models with the services."""
        self._prompts, self._data_digest = self._read_prompts(self._spec.data)
        if self._spec.eval_data is not None:
            self._eval_prompts = self._read_prompts(self._spec.eval_data)[0]
        if self._spec.ptx_coefficient > 0 and self._spec.ptx_data is not None:
            self._texts = self._read_texts(self._spec.ptx_data)
        self._parents = start_adapter(self._context, POLICY, self._context.spec.parent_adapter)
        self._reference = start_reference(self._context, self._parents)
        self._start_critic()
        self._source.check_services()

    def parameters(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """Policy adapter; critic adapter and head."""
        adapted = self._context.adapted
        return {POLICY: adapted.parameters(POLICY), VALUE: adapted.parameters(VALUE), "head": [self._head.weight, self._head.bias]}

    def evaluate(self, *, final: bool) -> dict[str, float]:
        """Mean score and length of greedy responses to held-out prompts."""
        if not self._eval_prompts:
            return {}
        draw = Draw(self._context.spec.max_response_tokens, 0.0, tuple(0 for _ in self._eval_prompts))
        rollouts = self._source.collect(self._eval_prompts, draw, self._publish_rollout_version())
        lengths = [len(rollout.response_ids) for rollout in rollouts]
        return {
            "eval_score": sum(rollout.score for rollout in rollouts) / len(rollouts),
            "eval_response_tokens": sum(lengths) / len(lengths),
        }

    def step(self, step: int, optimizer: Optimizer) -> dict[str, float]:
        """Samples a batch, learns from it for the epochs of the specification."""
        self._step = step
        self._context.stop.check()
        started = time.monotonic()
        self._context.events.state("rollouts")
        rollouts = self._rollouts(step)
        sampled = time.monotonic()
        self._context.stop.check()
        self._context.events.state("train")
        tensors = self._tensors(rollouts)
        metrics = self._observe(rollouts, tensors)
        metrics |= self._update(step, rollouts, tensors, optimizer)
        self._controller.update(metrics["kl"], len(rollouts))
        tokens = sum(len(rollout.response_ids) for rollout in rollouts)
        finished = time.monotonic()
        metrics |= {
            "seconds_rollout": sampled - started, "seconds_train": finished - sampled, "tokens_per_second": tokens / (finished - started),
            "tokens": sum(len(each.prompt_ids) for each in rollouts) + tokens,
        }  # fmt: skip
        if self._first_length is None:
            self._first_length = metrics["response_tokens"]
        for alarm in alarms(metrics, self._first_length):
            self._context.events.message(alarm)
        return metrics

    def save(self, folder: Path) -> None:
        """Policy adapter to publish; critic beside it."""
        save_adapter(self._context, POLICY, folder / ADAPTER_FOLDER)
        save_adapter(self._context, VALUE, folder / _VALUE_FOLDER)
        self._head.save(folder / _VALUE_FOLDER)

    def load(self, checkpoint: Checkpoint) -> None:
        """Policy, critic, controller and moments."""
        load_adapter(self._context, POLICY, checkpoint)
        load_adapter(self._context, VALUE, checkpoint, _VALUE_FOLDER)
        self._set_head(load_file(checkpoint.path / _VALUE_FOLDER / HEAD_FILE))
        state = checkpoint.state["algorithm"]
        self._controller.load_state_dict(state["kl_controller"])
        self._moments.load_state_dict(state["moments"])
        self._first_length = state["first_length"]
        self._step = checkpoint.step

    def state(self) -> dict[str, Any]:
        """KL coefficient, moments of the scores, length of the first responses."""
        return {"kl_controller": self._controller.state_dict(), "moments": self._moments.state_dict(), "first_length": self._first_length}

    def publication(self) -> dict[str, Any]:
        """A policy, child of its start and of the reward model."""
        parents = list(dict.fromkeys([*self._parents, self._reward_version]))
        facts = {"algorithm": "ppo", "kl_coef": self._spec.kl_coef, "spec_digest": self._context.spec.digest}
        return {"kind": "policy", "parents": parents, "data_digest": self._data_digest, "facts": facts}

    def _rollouts(self, step: int) -> list[Rollout]:
        """The rollouts of a step: those on disk where a killed run left them, else new ones, on disk before they are used."""
        path = self._context.directory.rollouts / f"{step:08d}.jsonl"
        known = read_rollouts(path)
        if known is not None:
            return known
        spec = self._context.spec
        prompts = batch_at(self._prompts, step, spec.batch_size, spec.seed)
        seeds = tuple(rollout_seed(spec.seed, step, index) for index in range(len(prompts)))
        draw = Draw(spec.max_response_tokens, self._spec.temperature, seeds)
        rollouts = self._source.collect(prompts, draw, self._publish_rollout_version())
        write_rollouts(path, rollouts)
        return rollouts

    def _publish_rollout_version(self) -> str:
        """The policy as it is now, as a version that the policy service can load; older ones lose their files."""
        spec, store, digests = self._context.spec, self._context.store, self._context.base.digests
        name = f"{spec.adapter}-rollout"
        with tempfile.TemporaryDirectory() as folder:
            self._context.adapted.save(POLICY, Path(folder))
            version = store.publish(
                name, Path(folder), kind="policy", base_model_digest=digests.base_model, tokenizer_digest=digests.tokenizer,
                parents=self._parents, run=self._context.run.name, data_digest=self._data_digest, step=self._step,
                facts={"transient": True},
            )  # fmt: skip
        mine = [manifest.name for manifest in store.list(name) if manifest.run == self._context.run.name and not manifest.removed]
        others = sorted((each for each in mine if each != version), key=lambda each: int(each.rsplit("/", 1)[1]))
        for old in others[: max(0, len(others) - (_KEPT_ROLLOUT_VERSIONS - 1))]:
            store.remove(old)
        return version

    def _tensors(self, rollouts: Sequence[Rollout]) -> RolloutTensors:
        order, parts = self._parts(rollouts, range(len(rollouts)))
        columns: list[list[Tensor]] = [[], [], [], [], []]
        with torch.no_grad():
            for part in parts:
                members = [rollouts[index] for index in part]
                old, mask, entropy = self._model.logprobs_and_entropy(members, POLICY)
                reference, _ = self._model.logprobs(members, self._reference)
                values = self._model.values(members, VALUE)
                for column, tensor in zip(columns, (mask, old, reference, values, entropy), strict=True):
                    column.append(tensor)
        mask, old, reference, values, entropy = (stack_padded(column, order) for column in columns)
        return RolloutTensors(mask, old, reference, values, entropy, torch.tensor([rollout.score for rollout in rollouts]))

    def _observe(self, rollouts: Sequence[Rollout], tensors: RolloutTensors) -> dict[str, float]:
        """Metrics of the rollouts as they were sampled.

        Raises:
            FailedPreconditionError: the policy service's logprobs are not those of this process: they do not compute the same policy.
        """
        sampler = torch.zeros_like(tensors.old_logprobs)
        for index, rollout in enumerate(rollouts):
            sampler[index, : len(rollout.sampler_logprobs)] = torch.tensor(rollout.sampler_logprobs)
        difference = torch.where(tensors.mask, sampler - tensors.old_logprobs, torch.zeros_like(sampler))
        gap = float(difference.abs().max())
        if gap > _SAMPLER_GAP_BOUND:
            raise FailedPreconditionError(
                f"logprobs of the policy service and of this run differ by up to {gap:.3g} nats a token; {_SAMPLER_GAP_BOUND} are allowed: "
                "they do not compute the same policy (precision, adapter or temperature)",
                field="endpoints.policy",
            )
        per_response = tensors.log_ratio.sum(dim=1)
        return {
            "score_mean": float(tensors.scores.mean()), "score_std": float(tensors.scores.std(unbiased=False)),
            "kl": float(per_response.mean()), "kl_k3": float((k3(tensors.log_ratio) * tensors.mask).sum(dim=1).mean()),
            "entropy": float(masked_mean(tensors.entropy, tensors.mask)), "response_tokens": float(tensors.mask.sum(dim=1).double().mean()),
            "eos_rate": sum(rollout.ended for rollout in rollouts) / len(rollouts), "kl_coef": self._controller.value, "sampler_gap_max": gap,
            "sampler_approx_kl": float(masked_mean(k3(difference), tensors.mask)),
        }  # fmt: skip

    def _update(self, step: int, rollouts: Sequence[Rollout], tensors: RolloutTensors, optimizer: Optimizer) -> dict[str, float]:
        spec = self._spec
        scores = tensors.scores
        if spec.normalize_scores:
            self._moments.update(scores.tolist())
            scores = (scores - self._moments.mean) / self._moments.std
        ended = torch.tensor([rollout.ended for rollout in rollouts])
        scores = missing_eos_penalty(scores, ended, penalty=spec.missing_eos_penalty)
        shaped = shaped_rewards(scores, tensors.old_logprobs, tensors.reference_logprobs, tensors.mask, kl_coef=self._controller.value)
        estimates = gae(shaped.rewards, tensors.old_values, tensors.mask, discount=spec.discount, gae_lambda=spec.gae_lambda)
        advantages = whiten(estimates.advantages, tensors.mask)
        averages = Averages()
        size = spec.minibatch_size or len(rollouts)
        for epoch in range(spec.epochs):
            order = epoch_order([str(index) for index in range(len(rollouts))], step * spec.epochs + epoch, self._context.spec.seed)
            for start in range(0, len(order), size):
                approx_kl = self._minibatch(order[start : start + size], rollouts, tensors, advantages, estimates.returns, averages)
                self._pretraining(step, epoch, start, size, averages)
                averages.add("grad_norm", optimizer.apply())
            averages.end_epoch()
            if spec.target_kl and approx_kl > spec.target_kl:
                self._context.events.message(f"epochs ended early: KL to the old policy {approx_kl:.4f} is over target_kl {spec.target_kl}")
                break
        return averages.values() | {"reward_mean": float(shaped.rewards.sum(dim=1).mean())}

    def _minibatch(
        self, members: Sequence[int], rollouts: Sequence[Rollout], tensors: RolloutTensors, advantages: Tensor, returns: Tensor,
        averages: Averages,
    ) -> float:  # fmt: skip
        """Accumulates the gradients of one minibatch; returns the KL to the old policy that it saw."""
        tokens = int(tensors.mask[torch.tensor(list(members))].sum())
        total_kl = 0.0
        for part in self._parts(rollouts, members)[1]:
            rows = torch.tensor(part)
            each = [rollouts[index] for index in part]
            width = max(len(rollout.response_ids) for rollout in each)
            mask = tensors.mask[rows, :width]
            share = int(mask.sum()) / tokens
            logprobs, _ = self._model.logprobs(each, POLICY)
            policy = policy_loss(logprobs, tensors.old_logprobs[rows, :width], advantages[rows, :width], mask, clip_range=self._spec.clip_range)
            (policy.loss * share).backward()
            values = self._model.values(each, VALUE)
            value = value_loss(values, tensors.old_values[rows, :width], returns[rows, :width], mask, clip_range=self._spec.value_clip_range)
            (self._spec.value_coefficient * value.loss * share).backward()
            total_kl += float(policy.approx_kl) * share
            averages.add_losses(policy, value, share)
        return total_kl

    def _pretraining(self, step: int, epoch: int, start: int, size: int, averages: Averages) -> None:
        """Accumulates the gradient of the pretraining term; with weight 0 nothing happens at all."""
        if not self._texts:
            return
        count = size * self._spec.ptx_rows_per_rollout
        per_step = self._spec.epochs * -(-self._context.spec.batch_size // size)
        place = step * per_step + epoch * -(-self._context.spec.batch_size // size) + start // size
        rows = batch_at(self._texts, place, count, self._context.spec.seed)
        tokens, base = sum(len(row.response) for row in rows), self._context.base
        for first in range(0, len(rows), self._context.micro_batch_size):
            part = rows[first : first + self._context.micro_batch_size]
            batch = collate([(row.prompt, row.response) for row in part], pad_id=base.pad_token_id, device=base.device)
            loss = -batch_logprobs(self._context.adapted, batch, adapter=POLICY).sum() / tokens
            (self._spec.ptx_coefficient * loss).backward()
            averages.add_part("ptx_loss", float(loss.detach()))

    def _parts(self, rollouts: Sequence[Rollout], members: Sequence[int]) -> tuple[list[int], list[list[int]]]:
        """Indices in micro-batches of alike lengths, and their order one after the other."""
        ordered = sorted(members, key=lambda index: (len(rollouts[index].prompt_ids) + len(rollouts[index].response_ids), index))
        size = self._context.micro_batch_size
        return ordered, [list(ordered[start : start + size]) for start in range(0, len(ordered), size)]

    def _start_critic(self) -> None:
        """The critic begins as the reward model, on the scale of its scores, or fresh with values of 0."""
        if not self._spec.value_from_reward_model:
            self._context.adapted.add(VALUE, self._context.spec.lora, seed=self._context.spec.seed + 1, trainable=True)
            return
        folder = self._context.store.fetch(self._reward_version)
        facts = HeadFacts.from_facts(self._context.store.manifest(self._reward_version).facts)
        self._context.adapted.load(VALUE, folder, trainable=True)
        stored = ScalarHead.load(folder, hidden_size=self._context.base.hidden_size)
        with torch.no_grad():
            self._head.weight.copy_(stored.weight / facts.std)
            self._head.bias.copy_((stored.bias - facts.mean) / facts.std)

    def _set_head(self, stored: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            self._head.weight.copy_(stored["weight"])
            self._head.bias.copy_(stored["bias"].reshape(()))

    def _read_prompts(self, data: DataSpec) -> tuple[Sequence[EncodedPrompt], str]:
        spec = self._context.spec
        found = read_prompts(data.uri, format=data.format, split=data.split, limit=data.limit, strict=data.strict, seed=spec.seed)
        encoded = encode_prompts(self._context.base.encoder, found.rows, self._context.limits)
        encoded = replace(encoded, source=found.report.account())
        self._context.events.message(f"{data.uri} ({data.split}): {encoded.account('prompts')}")
        return encoded.at_least_one("prompts", "ppo.data").rows, found.report.digest

    def _read_texts(self, data: DataSpec) -> Sequence[EncodedExample]:
        spec = self._context.spec
        found = read_texts(data.uri, format=data.format, split=data.split, limit=data.limit, strict=data.strict, seed=spec.seed)
        width = min(spec.max_prompt_tokens + spec.max_response_tokens, self._context.base.context_tokens)
        encoded = replace(encode_texts(self._context.base.encoder, found.rows, width), source=found.report.account())
        self._context.events.message(f"{data.uri} ({data.split}): {encoded.account('texts')}")
        return encoded.at_least_one("texts", "ppo.ptx_data").rows


def rollout_seed(run_seed: int, step: int, index: int) -> int:
    """The seed of one rollout: a pure function of the run's seed, the step and the place in the batch."""
    return int.from_bytes(hashlib.sha256(f"rollout {run_seed} {step} {index}".encode()).digest()[:8], "big") >> 1
