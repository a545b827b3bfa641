"""Averages over the micro-batches and epochs of a PPO step, and alarms in words.

What does not belong here: anything with a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping

from accord.algos.ppo import PolicyLoss, ValueLoss

_RATIO_BOUND = 1e-3
_LENGTH_FACTOR = 2.0
_NEGATIVE_KL = -0.5


class Averages:
    """Metrics of a step: means over its minibatches; those of the first epoch also by themselves, where PPO must not have moved yet."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._minibatches = 0
        self._epoch = 0

    def add_losses(self, policy: PolicyLoss, value: ValueLoss, share: float) -> None:
        """Takes note of one micro-batch that is `share` of its minibatch."""
        parts = {
            "policy_loss": policy.loss, "clip_fraction": policy.clip_fraction, "approx_kl": policy.approx_kl, "ratio_mean": policy.ratio_mean,
            "value_loss": value.loss, "value_clip_fraction": value.clip_fraction, "explained_variance": value.explained_variance,
        }  # fmt: skip
        for name, tensor in parts.items():
            self.add_part(name, float(tensor.detach()) * share)
        if self._minibatches == 0:
            for name in ("policy_loss", "clip_fraction", "approx_kl", "ratio_mean"):
                self.add_part(f"first_{name}", float(parts[name].detach()) * share)

    def add_part(self, name: str, value: float) -> None:
        """Takes note of a part of a minibatch."""
        self._sums[name] = self._sums.get(name, 0.0) + value

    def add(self, name: str, value: float) -> None:
        """Takes note of a number of a whole minibatch, and that the minibatch is over."""
        self.add_part(name, value)
        self._minibatches += 1

    def end_epoch(self) -> None:
        """Takes note that an epoch is over."""
        self._epoch += 1

    def values(self) -> dict[str, float]:
        """The means, and the epochs that were done."""
        count = max(1, self._minibatches)
        means = {name: total if name.startswith("first_") else total / count for name, total in self._sums.items()}
        return means | {"epochs": float(self._epoch)}


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
