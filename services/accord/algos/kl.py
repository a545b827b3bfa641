"""Estimators and controllers of the KL divergence between policy and reference.

The log-ratio is log pi(token) - log pi_ref(token) of tokens drawn from pi, in nats. What does not belong here: rewards
(`accord.algos.advantages`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

_STEEPEST = 20.0  # nats


def k1(log_ratio: Tensor) -> Tensor:
    """The log-ratio itself: unbiased for KL(pi, pi_ref), of either sign, never clamped. Schulman 2020, "Approximating KL divergence"."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """Half the squared log-ratio: biased, low variance. Schulman 2020."""
    return log_ratio**2 / 2


def k3(log_ratio: Tensor) -> Tensor:
    """``exp(-l) - 1 + l``: unbiased and at least 0. Schulman 2020; .018731 at l = .2."""
    return torch.expm1(-log_ratio) + log_ratio


def k3_loss(log_ratio: Tensor) -> Tensor:
    """`k3` to learn from: a straight line, in value and slope its continuation, where the log-ratio is below -20.

    exp(-l) is infinite in float32 at l = -89, and the square of such a gradient, in its norm, at -45. A token that the policy has made e^20 times
    less likely than the reference is still pulled back, with the slope that k3 has there, -4.9e8.
    """
    slope = 1 - math.exp(_STEEPEST)
    tangent = slope * (log_ratio + _STEEPEST) - slope - _STEEPEST
    return torch.where(log_ratio < -_STEEPEST, tangent, k3(log_ratio.clamp(min=-_STEEPEST)))


def best_of_n_kl_bound(n: int) -> float:
    """``ln n - (n - 1) / n``: what best-of-n sampling moves the policy at most, in nats. Stiennon et al. 2020, appendix G.3.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return math.log(n) - (n - 1) / n


class KLController(Protocol):
    """A coefficient of the KL penalty that may follow what is observed."""

    @property
    def value(self) -> float:
        """The coefficient in force."""
        ...

    def update(self, observed_kl: float, episodes: int) -> None:
        """Takes note of the mean KL of some episodes, in nats a response."""
        ...

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint needs."""
        ...

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continues from a checkpoint."""
        ...


class FixedKLController:
    """A coefficient that stays.

    Raises:
        ValueError: the coefficient is negative.
    """

    def __init__(self, kl_coef: float) -> None:
        if not kl_coef >= 0:
            raise ValueError(f"kl_coef must not be negative, got {kl_coef}")
        self._value = kl_coef

    @property
    def value(self) -> float:
        """The coefficient in force."""
        return self._value

    def update(self, observed_kl: float, episodes: int) -> None:
        """Changes nothing."""

    def state_dict(self) -> dict[str, float]:
        """The coefficient."""
        return {"value": self._value}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continues from a checkpoint."""
        self._value = float(state["value"])


class AdaptiveKLController:
    """A coefficient that follows a target: ``value *= 1 + clip(kl / target - 1, -.2, .2) episodes / horizon``.

    Ziegler et al. 2019 (arXiv:1909.08593), section 2.2. At target 6 and horizon 10,000, 256 episodes at KL 12 turn .2 into .201024.

    Args:
        initial: the coefficient at the start, at least 0.
        target: nats a response, positive.
        horizon: episodes, positive.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, initial: float, target: float, horizon: float) -> None:
        if not initial >= 0 or not target > 0 or not horizon > 0:
            raise ValueError(f"initial {initial} must not be negative, target {target} and horizon {horizon} must be positive")
        self._value, self._target, self._horizon = initial, target, horizon

    @property
    def value(self) -> float:
        """The coefficient in force."""
        return self._value

    def update(self, observed_kl: float, episodes: int) -> None:
        """Takes note of the mean KL of some episodes, in nats a response."""
        error = min(max(observed_kl / self._target - 1, -0.2), 0.2)
        self._value *= 1 + error * episodes / self._horizon

    def state_dict(self) -> dict[str, float]:
        """The coefficient."""
        return {"value": self._value}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continues from a checkpoint."""
        self._value = float(state["value"])
