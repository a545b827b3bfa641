"""The optimizer's state comes back bit for bit, its schedule is what it says, and a broken gradient does not reach the weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from accord.errors import DataLossError
from accord.runspec_parts import OptimizerSpec
from accord.training.optim import Optimizer, schedule_factor
from accord.training.stopping import BrokenGradientError, keeps_state


def parameters() -> dict[str, list[nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    return {
        "policy": [nn.Parameter(torch.randn(3, 4, generator=generator)), nn.Parameter(torch.randn(5, generator=generator))],
        "head": [nn.Parameter(torch.zeros(()))],
    }


def optimizer(groups: dict[str, list[nn.Parameter]], **spec: object) -> Optimizer:
    return Optimizer(groups, OptimizerSpec.model_validate({"weight_decay": 0.1, **spec}), learning_rate=0.01, total_steps=20)


def step(groups: dict[str, list[nn.Parameter]], made: Optimizer, number: int) -> None:
    made.set_step(number)
    loss = sum(((parameter - number) ** 2).sum() for group in groups.values() for parameter in group)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    made.apply()


def test_a_state_comes_back_bit_for_bit_through_a_file(tmp_path: Path) -> None:
    straight, resumed = parameters(), parameters()
    one, two = optimizer(straight, schedule="cosine"), optimizer(resumed, schedule="cosine")
    for number in range(4):
        step(straight, one, number)
        step(resumed, two, number)
    save_file({name: tensor.contiguous() for name, tensor in two.state().items()}, tmp_path / "state.safetensors")
    again = {name: [nn.Parameter(each.detach().clone()) for each in group] for name, group in resumed.items()}
    three = optimizer(again, schedule="cosine")
    three.load_state(load_file(tmp_path / "state.safetensors"))
    assert {name: tensor.tolist() for name, tensor in three.state().items()} == {name: tensor.tolist() for name, tensor in two.state().items()}
    for number in range(4, 10):
        step(straight, one, number)
        step(again, three, number)
    for name, group in straight.items():
        for mine, other in zip(group, again[name], strict=True):
            assert torch.equal(mine, other)


def test_without_its_state_it_would_go_elsewhere() -> None:
    """What the round trip is for: fresh moments give other weights."""
    straight, fresh = parameters(), parameters()
    one, two = optimizer(straight), optimizer(fresh)
    for number in range(3):
        step(straight, one, number)
        step(fresh, two, number)
    step(straight, one, 3)
    step(fresh, optimizer(fresh), 3)
    assert not torch.equal(straight["policy"][0], fresh["policy"][0])


def test_a_state_of_other_parameters_is_refused() -> None:
    groups = parameters()
    made = optimizer(groups)
    assert made.state() == {}
    made.load_state({})
    step(groups, made, 0)
    state = made.state()
    state.pop("policy.1/exp_avg")
    with pytest.raises(DataLossError, match=r"other parameters.*policy\.1/exp_avg"):
        optimizer(parameters()).load_state(state)


def test_gradients_are_clipped_to_the_limit_and_forgotten() -> None:
    groups = {"a": [nn.Parameter(torch.zeros(4))]}
    made = optimizer(groups, max_grad_norm=1.0)
    groups["a"][0].grad = torch.full((4,), 3.0)
    seen: list[float] = []
    made._adam.register_step_pre_hook(lambda *_: seen.append(float(groups["a"][0].grad.norm())))  # type: ignore[union-attr]
    assert made.apply() == pytest.approx(6.0)
    assert seen == [pytest.approx(1.0, rel=1e-5)]
    assert groups["a"][0].grad is None
    unlimited = optimizer(groups, max_grad_norm=0)
    groups["a"][0].grad = torch.full((4,), 3.0)
    assert unlimited.apply() == pytest.approx(6.0)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(broken: float) -> None:
    groups = parameters()
    made, before = optimizer(groups), groups["policy"][0].detach().clone()
    for group in groups.values():
        for parameter in group:
            parameter.grad = torch.ones_like(parameter)
    groups["policy"][1].grad = torch.full((5,), broken)
    with pytest.raises(BrokenGradientError, match="lower the learning rate") as caught:
        made.apply()
    assert torch.equal(groups["policy"][0], before)
    assert caught.value.nothing_learnt


def test_an_update_before_a_broken_gradient_is_told_for_its_own_step_alone() -> None:
    groups = parameters()
    made, weight = optimizer(groups), groups["policy"][0]
    for expected in (False, True):
        if not expected:
            weight.grad = torch.ones_like(weight)
            made.apply()
        weight.grad = torch.full_like(weight, math.nan)
        with pytest.raises(BrokenGradientError) as caught:
            made.apply()
        assert caught.value.nothing_learnt is expected
        assert keeps_state(caught.value) is expected
        made.set_step(1)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("constant", 2, [0.5, 1, 1, 1]),
        ("linear", 0, [1, 0.75, 0.5, 0.25]),
        ("linear", 2, [0.5, 1, 1, 0.5]),
        ("cosine", 0, [1, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_schedules(schedule: str, warmup: int, expected: list[float]) -> None:
    spec = OptimizerSpec.model_validate({"schedule": schedule, "warmup_steps": warmup})
    assert [schedule_factor(spec, at, 4) for at in range(4)] == pytest.approx(expected)
