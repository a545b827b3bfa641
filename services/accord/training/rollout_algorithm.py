"""What PPO, GRPO and RLOO share: prompts, policy and reference, rollouts through the services, what is reported, checkpoints.

A subclass says how it learns from a batch of rollouts. What does not belong here: losses, advantages, a critic (`accord.training.ppo`,
`groups`), and the calls to the services (`accord.training.rollout`).
"""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from accord.algos.ppo import missing_eos_penalty
from accord.checkpoint import Checkpoint
from accord.client.reward import RewardModel
from accord.runspec_parts import RolloutSpec
from accord.serving.reward_models import by_field, resolve_held_out, resolve_reward_models
from accord.serving.run_limits import check_reach, check_sampled_tokens
from accord.training.adapter_state import POLICY, load_adapter, save_adapter, start_adapter, start_reference
from accord.training.context import RunContext
from accord.training.examples import EncodedPrompt, batch_at, epoch_order
from accord.training.judge_scores import OneJudge
from accord.training.loop import ADAPTER_FOLDER
from accord.training.optim import Optimizer
from accord.training.prompts import read_encoded_prompts
from accord.training.rollout import Rollout, RolloutSource, check_sampler_gap, kept_rollouts, read_rollouts, write_rollouts
from accord.training.rollout_metrics import alarms, held_out_metrics, observed
from accord.training.rollout_tensors import Adapters, RolloutModel, RolloutTensors, micro_batches
from accord.training.rollout_versions import publish_rollout_version
from accord.training.sampler import Draw
from accord.training.scorers import scored_ids
from accord.training.stopping import RunStopped

_SAMPLER_GAP_BOUND = 0.05


class RolloutAlgorithm(ABC):
    """Learns from responses that the policy service samples and the reward service scores. Implements `loop.Algorithm`.

    Args:
        context: of the run.
        part: the algorithm's part of the specification.
        samples_per_prompt: responses of one prompt in a batch; they stand one after the other.

    Raises:
        InvalidArgumentError: a reward model is named twice, or reads less than the run samples; the policy service samples no such long responses;
            or the run has no address of a service.
    """

    def __init__(self, context: RunContext, part: RolloutSpec, *, samples_per_prompt: int = 1) -> None:
        check_sampled_tokens(context.spec)
        self._context = context
        self._part = part
        self._samples_per_prompt = samples_per_prompt
        # The same ones to the end, whatever is published meanwhile.
        self._reward_versions = resolve_reward_models(part, context.spec.algorithm, context.fetch_parent)
        self._held_out = resolve_held_out(context.spec.guards, self._reward_versions, "guards", context.fetch_parent)
        check_reach(
            context.spec, by_field(context.spec, self._reward_versions, self._held_out), lambda version: context.manifest(version).facts,
            context_tokens=context.base.context_tokens,
        )  # fmt: skip
        self._judge = OneJudge(part.judge_reward, f"{context.spec.algorithm}.judge_reward") if part.judge_reward is not None else None
        trained = self._judge or RewardModel(self._reward_versions, part.ensemble_std_coefficient)
        self._source = RolloutSource(context, trained, held_out=self._held_out)
        self._model = RolloutModel(context.adapted, context.world, temperature=part.temperature, before_pass=context.stop.check)
        self._parents: tuple[str, ...] = ()
        self._reference: str | None = None
        self._data_digest = ""
        self._prompts: Sequence[EncodedPrompt] = ()
        self._eval_prompts: Sequence[EncodedPrompt] = ()
        self._first_length: float | None = None
        self._sampler_gap_bound = _SAMPLER_GAP_BOUND
        self._abandon: Callable[[], None] = lambda: None  # what is sampled ahead, where something is
        self._step = 0  # updates done
        self._learnt = False  # whether the step under way has changed what it learns

    @abstractmethod
    def _update(self, step: int, rollouts: Sequence[Rollout], tensors: RolloutTensors, optimizer: Optimizer) -> dict[str, float]:
        """Learns from a batch, through `_apply`, and returns the metrics of it; `first_ratio_mean`, before the first update, among them.

        What it changes besides what learns, it changes after that: until then a stop leaves the state of the last step.
        """

    def setup(self) -> None:
        """Reads prompts, starts policy and reference, and compares models with the services."""
        algorithm = self._context.spec.algorithm
        self._prompts, self._data_digest = read_encoded_prompts(self._context, self._part.data, f"{algorithm}.data")
        if self._part.eval_data is not None:
            self._eval_prompts = read_encoded_prompts(self._context, self._part.eval_data, f"{algorithm}.eval_data")[0]
        if self._judge is not None:
            self._judge.check_prompts([*self._prompts, *self._eval_prompts])
        self._parents = start_adapter(self._context, POLICY, self._context.spec.parent_adapter)
        self._reference = start_reference(self._context, self._parents)
        self._context.world.from_first(self._source.check_services)

    def parameters(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """The policy's adapter."""
        return {POLICY: self._context.adapted.parameters(POLICY)}

    def evaluate(self, *, final: bool) -> dict[str, float]:
        """Mean scores and length of greedy responses to held-out prompts."""
        return self._context.world.from_first(self._evaluate) if self._eval_prompts else {}

    def _evaluate(self) -> dict[str, float]:
        draw = Draw(self._context.spec.max_response_tokens, 0.0, tuple(0 for _ in self._eval_prompts))
        rollouts = self._source.collect(self._eval_prompts, draw, self._publish_rollout_version())
        lengths = [len(rollout.response_ids) for rollout in rollouts]
        return {
            "eval_score": sum(rollout.score for rollout in rollouts) / len(rollouts),
            "eval_response_tokens": sum(lengths) / len(lengths),
            **{f"eval_{name}": value for name, value in held_out_metrics(rollouts).items()},
        }

    def step(self, step: int, optimizer: Optimizer) -> dict[str, float]:
        """Samples a batch and learns from it."""
        with self._context.shared_trunk():
            return self._sample_and_learn(step, optimizer)

    def _sample_and_learn(self, step: int, optimizer: Optimizer) -> dict[str, float]:
        self._step, self._learnt = step, False
        self._context.stop.check()
        started, scored = time.monotonic(), self._source.score_seconds
        self._context.events.state("rollouts")
        rollouts = self._rollouts(step)
        sampled = time.monotonic()
        scoring = min(self._source.score_seconds - scored, sampled - started)  # a batch sampled ahead was scored in part before this step
        self._context.stop.check()
        self._context.events.state("train")
        self._prepare_trunk(rollouts)
        tensors = self._tensors(rollouts)
        metrics = self._observe(rollouts, tensors)
        metrics |= self._update(step, rollouts, tensors, optimizer)
        self._step = step + 1
        tokens = sum(len(rollout.response_ids) for rollout in rollouts)
        finished = time.monotonic()
        metrics |= {
            "seconds_rollout": sampled - started - scoring, "seconds_score": scoring, "seconds_train": finished - sampled,
            "tokens_per_second": tokens / (finished - started),
            "tokens": sum(len(each.prompt_ids) for each in rollouts) + tokens,
        }  # fmt: skip
        self._alarm(metrics)
        return metrics

    def _prepare_trunk(self, rollouts: Sequence[Rollout]) -> None:
        """Shares the layers below all adapters between all passes of a step, in parts that do not depend on what was scored here, and when."""
        trunk, size = self._context.adapted.trunk, self._context.micro_batch_size
        if trunk is None or self._context.world.size > 1:
            return
        sampled = [(*each.prompt_ids, *each.response_ids) for each in rollouts]
        scored = [(*each.prompt_ids, *scored_ids(self._context.base, each.prompt_ids, each.response_ids, ended=each.ended)) for each in rollouts]
        others = [row for row, read in zip(sampled, scored, strict=True) if row not in (read, read[:-1])]  # with other end tokens
        for rows in (scored, others):
            for start in range(0, len(rows), size):
                self._heed_stop()
                trunk.prepare(rows[start : start + size], size=size)

    def save(self, folder: Path) -> None:
        """Policy adapter to publish."""
        save_adapter(self._context, POLICY, folder / ADAPTER_FOLDER)

    def load(self, checkpoint: Checkpoint) -> None:
        """Policy and the length of the first responses."""
        load_adapter(self._context, POLICY, checkpoint)
        self._first_length = checkpoint.state["algorithm"]["first_length"]
        self._step = checkpoint.step
        if self._judge is not None:
            self._judge.take(checkpoint.state["algorithm"]["judge"])

    def state(self) -> dict[str, Any]:
        """Length of the first responses, and who judges where a judge does."""
        return {"first_length": self._first_length} | ({} if self._judge is None else {"judge": dict(self._judge.facts)})

    def publication(self) -> dict[str, Any]:
        """A policy, child of its start and of the reward models."""
        parents = list(dict.fromkeys([*self._parents, *self._reward_versions]))
        facts = {"algorithm": self._context.spec.algorithm, "spec_digest": self._context.spec.digest}
        facts |= {} if self._judge is None else self._judge.facts
        facts |= {"held_out_reward_model": self._held_out} if self._held_out else {}
        return {"kind": "policy", "parents": parents, "data_digest": self._data_digest, "facts": facts}

    def _rollouts(self, step: int) -> list[Rollout]:
        """The rollouts of a step: those on disk where a killed run left them, else new ones, on disk before they are used.

        The first process asks the services, for all: its one stream keeps the policy service's rows as full as many would.
        """
        self._context.world.from_first(lambda: self._prepare(step))
        found = read_rollouts(self._rollout_path(step))
        assert found is not None
        if self._judge is not None:
            for rollout in found:
                self._judge.take(rollout.judge)
        return found

    def _prepare(self, step: int) -> None:
        if kept_rollouts(self._rollout_path(step), self._context.events.message) is None:
            self._sampled_now(step)

    def _sampled_now(self, step: int) -> list[Rollout]:
        """New rollouts of a step, on disk."""
        return self._sampled(step, self._publish_rollout_version(), self._source)

    def _sampled(
        self, step: int, version: str, source: RolloutSource, keep: Callable[[Path, Sequence[Rollout]], None] = write_rollouts
    ) -> list[Rollout]:  # fmt: skip
        """New rollouts of a step under a version of the policy, on disk."""
        spec = self._context.spec
        prompts = batch_at(self._prompts, step, spec.batch_size // self._samples_per_prompt, spec.seed)
        repeated = [prompt for prompt in prompts for _ in range(self._samples_per_prompt)]
        seeds = tuple(rollout_seed(spec.seed, step, index) for index in range(len(repeated)))
        draw = Draw(spec.max_response_tokens, self._part.temperature, seeds)
        rollouts = source.collect(repeated, draw, version)
        keep(self._rollout_path(step), rollouts)
        return rollouts

    def _rollout_path(self, step: int) -> Path:
        return self._context.directory.rollouts / f"{step:08d}.jsonl"

    def _publish_rollout_version(self) -> str:
        return publish_rollout_version(self._context, parents=self._parents, data_digest=self._data_digest, step=self._step)

    def _tensors(self, rollouts: Sequence[Rollout]) -> RolloutTensors:
        return self._model.tensors(rollouts, Adapters(POLICY, self._reference, POLICY), micro_batch_size=self._context.micro_batch_size)

    def _observe(self, rollouts: Sequence[Rollout], tensors: RolloutTensors) -> dict[str, float]:
        """Metrics of the rollouts as they were sampled.

        Raises:
            OtherPolicyError: the policy service's logprobs are not those of this process: they do not compute the same policy.
        """
        metrics = observed(rollouts, tensors)
        if self._judge is not None:
            metrics["unrated"] = sum(not rollout.judge for rollout in rollouts) / len(rollouts)
        check_sampler_gap(self._context, self._step, metrics["sampler_gap_max"], self._sampler_gap_bound, abandon=self._abandon)
        return metrics

    def _penalised(self, scores: Tensor, rollouts: Sequence[Rollout]) -> Tensor:
        """Scores, less what a response without an end costs; (rollouts,)."""
        ended = torch.tensor([rollout.ended for rollout in rollouts])
        return missing_eos_penalty(scores, ended, penalty=self._part.missing_eos_penalty)

    def _minibatches(self, place: int, count: int) -> Iterator[list[int]]:
        """Indices of all rollouts in minibatches, in the order of an epoch: `place` counts the epochs of the whole run."""
        size = self._part.minibatch_size or count
        order = epoch_order([str(index) for index in range(count)], place, self._context.spec.seed)
        yield from (order[start : start + size] for start in range(0, count, size))

    def _parts(self, rollouts: Sequence[Rollout], members: Sequence[int]) -> Iterator[list[int]]:
        """This process's micro-batches of a minibatch."""
        for part in self._context.world.share(micro_batches(rollouts, members, self._context.micro_batch_size)):
            self._heed_stop()
            yield part

    def _heed_stop(self) -> None:
        """Ends the step before a pass of it where the run is asked to stop and nothing has been learnt: it is made again from the same rollouts."""
        if not self._learnt:
            self._context.stop.check()

    def _apply(self, optimizer: Optimizer) -> float:
        """Learns from the gradients of a minibatch. Before the first one all processes agree on whether to stop; after it the step is finished."""
        if not self._learnt and self._context.world.agree(self._context.stop.is_set):
            raise RunStopped
        norm = optimizer.apply()
        self._learnt = True
        return norm

    def _alarm(self, metrics: Mapping[str, float]) -> None:
        if self._first_length is None:
            self._first_length = metrics["response_tokens"]
        for alarm in alarms(metrics, self._first_length):
            self._context.events.message(alarm)


def rollout_seed(run_seed: int, step: int, index: int) -> int:
    """The seed of one rollout: a pure function of the run's seed, the step and the place in the batch."""
    return int.from_bytes(hashlib.sha256(f"rollout {run_seed} {step} {index}".encode()).digest()[:8], "big") >> 1
