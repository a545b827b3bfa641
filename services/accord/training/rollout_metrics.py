"""What a step with rollouts reports: metrics of the rollouts, averages over micro-batches and epochs, alarms in words.

What does not belong here: anything with a gradient.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch

from accord.algos.groups import GroupLoss
from accord.algos.kl import k3
from accord.algos.masking import masked_mean
from accord.algos.ppo import PolicyLoss
from accord.training.distribution import World
from accord.training.guards import repeated_share
from accord.training.rollout import Rollout
from accord.training.rollout_tensors import RolloutTensors, sampler_logprobs

_RATIO_BOUND = 1e-3
_LENGTH_FACTOR = 2.0
_NEGATIVE_KL = -0.5
_WORSE_THAN_NOTHING = -0.25


class Averages:
    """Metrics of a step: means over its minibatches; those of the first epoch also by themselves, where the policy must not have moved yet.

    Parts are summed over the processes of `world`; numbers of whole minibatches are the same in each of them.
    """

    def __init__(self, world: World) -> None:
        self._parts = world.sums()
        self._whole: dict[str, float] = {}
        self._minibatches = 0
        self._epochs = 0.0

    def add_policy(self, parts: Mapping[str, float]) -> None:
        """Takes note of parts of a minibatch that say how far the policy is from the one that sampled."""
        for name, value in parts.items():
            self.add_part(name, value)
            if self._minibatches == 0:
                self.add_part(f"first_{name}", value)

    def add_minibatch(self, means: Mapping[str, float]) -> None:
        """As `add_policy`, of a whole minibatch, whose means over all processes are known."""
        for name, value in means.items():
            self._whole[name] = self._whole.get(name, 0.0) + value
            if self._minibatches == 0:
                self._whole[f"first_{name}"] = value

    def add_part(self, name: str, value: float) -> None:
        """Takes note of a part of a minibatch."""
        self._parts.add(**{name: value})

    def add(self, name: str, value: float) -> None:
        """Takes note of a number of a whole minibatch, and that the minibatch is over."""
        self._whole[name] = self._whole.get(name, 0.0) + value
        self._minibatches += 1

    def end_epoch(self, share: float = 1.0) -> None:
        """Takes note that an epoch is over, of which `share` was learnt from, in [0, 1]."""
        self._epochs += share

    def values(self) -> dict[str, float]:
        """The means, and the epochs that were done, the last one as far as it went."""
        count = max(1, self._minibatches)
        sums = self._parts.total() | self._whole
        means = {name: total if name.startswith("first_") else total / count for name, total in sums.items()}
        return means | {"epochs": self._epochs}


def observed(rollouts: Sequence[Rollout], tensors: RolloutTensors) -> dict[str, float]:
    """Metrics of rollouts as they were sampled.

    `kl` and `kl_k3` are of the policy that sampled, nats a response; `sampler_gap_max` and `sampler_approx_kl` compare the policy service's
    logprobs with this process's, nats a token, on the checked rows; `score_std_between_models` is how far an ensemble's members are apart;
    `repetition` is the mean share of repeated 4-grams.
    """
    checked = list(tensors.checked)
    mask = tensors.mask[checked]
    difference = torch.where(mask, (sampler_logprobs(rollouts, tensors.mask.float()) - tensors.behaviour_logprobs)[checked], 0.0)
    known = tensors.mask & ~tensors.entropy.isnan()
    spread = {}
    if len(rollouts[0].member_scores) > 1:
        spread["score_std_between_models"] = statistics.fmean(statistics.pstdev(rollout.member_scores) for rollout in rollouts)
    return spread | held_out_metrics(rollouts) | {
        "score_mean": float(tensors.scores.mean()), "score_std": float(tensors.scores.std(unbiased=False)),
        "kl": float(tensors.log_ratio.sum(dim=1).mean()), "kl_k3": float((k3(tensors.log_ratio) * tensors.mask).sum(dim=1).mean()),
        "entropy": float(masked_mean(tensors.entropy.nan_to_num(), known)), "response_tokens": float(tensors.mask.sum(dim=1).double().mean()),
        "eos_rate": sum(rollout.ended for rollout in rollouts) / len(rollouts), "sampler_gap_max": float(difference.abs().max()),
        "sampler_approx_kl": float(masked_mean(k3(difference), mask)),
        "repetition": statistics.fmean(repeated_share(rollout.response_ids) for rollout in rollouts),
    }  # fmt: skip


def movement(loss: PolicyLoss | GroupLoss, share: float) -> dict[str, float]:
    """How far the policy had moved in a micro-batch that is `share` of its minibatch, as parts of the minibatch's means."""
    return {name: float(getattr(loss, name)) * share for name in ("clip_fraction", "approx_kl", "ratio_mean")}


def held_out_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """What the reward model says that the policy is not trained on; nothing where there is none."""
    scores = [rollout.held_out_score for rollout in rollouts if rollout.held_out_score is not None]
    if not scores:
        return {}
    return {"held_out_score_mean": statistics.fmean(scores), "held_out_score_std": statistics.pstdev(scores)}


def alarms(metrics: Mapping[str, float], first_length: float) -> list[str]:
    """What an engineer should look at, in sentences; empty when nothing is odd."""
    found = []
    if metrics["kl"] < _NEGATIVE_KL:
        found.append(
            f"alarm: mean k1 is {metrics['kl']:.3f}: samples are likelier under the reference than under the policy that drew them; "
            "look for truncated sampling or wrong logprobs"
        )
    if abs(metrics["first_ratio_mean"] - 1) > _RATIO_BOUND:
        found.append(
            f"alarm: the ratio is {metrics['first_ratio_mean']:.4f} before the first update; it must be 1: old logprobs are not the policy's"
        )
    if metrics["response_tokens"] > _LENGTH_FACTOR * first_length:
        found.append(f"alarm: responses grew from {first_length:.0f} to {metrics['response_tokens']:.0f} tokens; is length rewarded?")
    return found


def critic_alarms(explained_variance: float, *, from_reward_model: bool) -> list[str]:
    """What to look at where a critic that has learnt nothing yet says more wrong than right of its first returns; empty where it does not.

    One that says the same everywhere explains 0 of their variance. A reward model has learnt to read a response at its last token alone, and its
    scale is not that of the returns with normalize_scores or an ensemble; until the critic has learnt, advantages are noisier than without it.
    """
    if explained_variance >= _WORSE_THAN_NOTHING:
        return []
    start = (
        "it started as the reward model; ppo.value_from_reward_model: false starts it from 0"
        if from_reward_model
        else "look for rewards that change from response to response for no reason"
    )
    return [f"alarm: the critic explains {explained_variance:.2f} of the variance of its first returns, where a constant explains 0: {start}"]
