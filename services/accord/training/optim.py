"""AdamW with a schedule and clipping, whose state can be written without pickle and read back bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from accord.errors import DataLossError
from accord.runspec_parts import OptimizerSpec
from accord.training.distribution import World
from accord.training.stopping import BrokenGradientError

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


class Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) over named groups of parameters.

    Args:
        groups: parameters by a name that stays the same over restarts.
        spec: weight decay, clipping, schedule.
        learning_rate: at the peak.
        total_steps: of the run, for schedules that end at 0.
        world: whose processes' gradients add up; they clip by the norm of the sum and take the same step.
    """

    def __init__(
        self, groups: Mapping[str, Sequence[nn.Parameter]], spec: OptimizerSpec, *, learning_rate: float, total_steps: int,
        world: World | None = None,
    ) -> None:  # fmt: skip
        self._spec = spec
        self._world = world or World()
        self._peak = learning_rate
        self._total = total_steps
        self._applied = False
        self._named = [(f"{name}.{index}", parameter) for name, group in sorted(groups.items()) for index, parameter in enumerate(group)]
        self._adam = torch.optim.AdamW(
            [parameter for _, parameter in self._named], lr=learning_rate, betas=_BETAS, eps=_EPSILON, weight_decay=spec.weight_decay
        )

    def set_step(self, step: int) -> float:
        """Begins a step, counted from 0: sets and returns its learning rate."""
        self._applied = False
        rate = self._peak * schedule_factor(self._spec, step, self._total)
        for group in self._adam.param_groups:
            group["lr"] = rate
        return rate

    def zero_grad(self) -> None:
        """Forgets gradients."""
        self._adam.zero_grad(set_to_none=True)

    def apply(self) -> float:
        """Sums the processes' gradients, clips the sum, steps, forgets it; returns its L2 norm before clipping.

        Raises:
            BrokenGradientError: the norm is not finite: the step would destroy the weights.
        """
        parameters = [parameter for _, parameter in self._named]
        self._world.reduce_gradients(parameters)
        limit = self._spec.max_grad_norm or math.inf
        norm = float(nn.utils.clip_grad_norm_(parameters, limit))
        if not math.isfinite(norm):
            reason = f"the gradient's norm is {norm}: lower the learning rate, or look for broken data"
            raise BrokenGradientError(reason, nothing_learnt=not self._applied)
        self._adam.step()
        self._applied = True
        self.zero_grad()
        return norm

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by parameter name; empty before the first step."""
        found: dict[str, Tensor] = {}
        for name, parameter in self._named:
            for key, value in self._adam.state.get(parameter, {}).items():
                found[f"{name}/{key}"] = value.detach().clone().reshape(-1) if value.dim() == 0 else value.detach().clone()
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state.

        Raises:
            DataLossError: it is of other parameters.
        """
        if not state:
            return
        expected = {f"{name}/{key}" for name, _ in self._named for key in ("step", "exp_avg", "exp_avg_sq")}
        if set(state) != expected:
            raise DataLossError(f"the optimizer's state is of other parameters: {sorted(set(state) ^ expected)[:3]}")
        for name, parameter in self._named:
            self._adam.state[parameter] = {
                "step": state[f"{name}/step"].reshape(()).clone(),
                "exp_avg": state[f"{name}/exp_avg"].reshape(parameter.shape).to(parameter.device, copy=True),
                "exp_avg_sq": state[f"{name}/exp_avg_sq"].reshape(parameter.shape).to(parameter.device, copy=True),
            }


def schedule_factor(spec: OptimizerSpec, step: int, total_steps: int) -> float:
    """Share of the peak learning rate at a step, counted from 0: linear warm-up, then constant, linear or cosine down to 0."""
    if step < spec.warmup_steps:
        return (step + 1) / spec.warmup_steps
    if spec.schedule == "constant":
        return 1.0
    done = (step - spec.warmup_steps) / max(1, total_steps - spec.warmup_steps)
    return 1.0 - done if spec.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
