"""PPO's updates of one batch behind the first: what is clipped, and when target_kl leaves the rest out, in one process and in several."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.training import test_ahead as ahead
from tests.unit.training.ranked import on_ranks
from tests.unit.training.surroundings import ALONE, dying_in, metrics_of, write_rows
from tests.unit.training.test_ppo_steps import ready
from torch import Tensor

from accord.algos.advantages import gae, shaped_rewards
from accord.algos.masking import whiten
from accord.algos.ppo import PolicyLoss, ValueLoss, policy_loss, value_loss
from accord.training.distribution import World
from accord.training.loop import train
from accord.training.optim import Optimizer
from accord.training.rollout import read_rollouts


class Counting(Optimizer):
    """Takes the first `most` updates of a step, and forgets the gradients of the others."""

    updates = 0
    most = 1_000
    forgotten: tuple[Tensor, ...] = ()

    def apply(self) -> float:
        self.updates += 1
        if self.updates > self.most:
            self.forgotten = tuple(torch.zeros_like(each) if each.grad is None else each.grad.clone() for _, each in self._named)
            self.zero_grad()
            return 0.0
        return super().apply()


def stepped(algorithm: Any, *, most: int = 1_000, world: World = ALONE, learning_rate: float = 0.05) -> tuple[Counting, dict[str, float]]:
    optimizer = Counting(algorithm.parameters(), algorithm._context.spec.optimizer, learning_rate=learning_rate, total_steps=3, world=world)
    optimizer.most = most
    optimizer.set_step(0)
    return optimizer, algorithm.step(0, optimizer)


def learnt(algorithm: Any) -> list[Tensor]:
    return [parameter.detach().clone() for _, group in sorted(algorithm.parameters().items()) for parameter in group]


def ends(context: Any) -> list[str]:
    return [event.text for event in context.directory.events() if event.text.startswith("epochs ended early")]


def test_the_second_update_is_that_of_losses_clipped_around_the_policy_and_the_values_before_the_first(tmp_path: Path, tiny_folder: Path) -> None:
    """Gradient and clip fractions against one pass over all rollouts, from `accord.algos` and the rollout file; without either bound it is another."""
    _, algorithm, _ = ready(tmp_path, tiny_folder, {"epochs": 2, "kl_coef": 0.2, "clip_range": 0.1, "value_clip_range": 0.03}, micro_batch_size=3)
    parameters = [parameter for _, group in sorted(algorithm.parameters().items()) for parameter in group]
    before = learnt(algorithm)
    optimizer, metrics = stepped(algorithm, most=1)
    after = learnt(algorithm)
    rollouts = read_rollouts(algorithm._context.directory.rollouts / "00000000.jsonl")
    assert rollouts is not None

    def put(values: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)

    put(before)
    with torch.no_grad():
        (old, mask), old_values = algorithm._model.logprobs(rollouts, "policy"), algorithm._critic.values(rollouts)
        reference = algorithm._model.logprobs(rollouts, None)[0]
    scores = torch.tensor([rollout.score - (0.0 if rollout.ended else 1.0) for rollout in rollouts])
    shaped = shaped_rewards(scores, old, reference, mask, kl_coef=0.2)
    advantages, returns = gae(shaped.rewards, old_values, mask, discount=1.0, gae_lambda=0.95)
    put(after)

    def expected(clip_range: float, value_clip_range: float) -> tuple[tuple[Tensor, ...], PolicyLoss, ValueLoss]:
        policy = policy_loss(algorithm._model.logprobs(rollouts, "policy")[0], old, whiten(advantages, mask), mask, clip_range=clip_range)
        value = value_loss(algorithm._critic.values(rollouts), old_values, returns, mask, clip_range=value_clip_range)
        gradients = torch.autograd.grad(policy.loss + 0.1 * value.loss, parameters, allow_unused=True)
        return tuple(torch.zeros_like(each) if grad is None else grad for each, grad in zip(parameters, gradients, strict=True)), policy, value

    def apart(gradients: tuple[Tensor, ...]) -> float:
        return max(float((one - other).abs().max()) for one, other in zip(optimizer.forgotten, gradients, strict=True))

    gradients, policy, value = expected(0.1, 0.03)
    for one, other in zip(optimizer.forgotten, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert min(apart(expected(*bounds)[0]) for bounds in ((0.1, 1e9), (0.999999, 0.03))) > 1e-4
    assert float(policy.clip_fraction) > 0.1 < float(value.clip_fraction)
    assert metrics["clip_fraction"] == pytest.approx(float(policy.clip_fraction) / 2), "nothing is clipped in the first update"
    assert metrics["value_clip_fraction"] == pytest.approx(float(value.clip_fraction) / 2)
    assert metrics["approx_kl"] == pytest.approx(float(policy.approx_kl) / 2, rel=1e-4)


def test_epochs_end_early_at_the_target_divergence(tmp_path: Path, tiny_folder: Path) -> None:
    context, algorithm, _ = ready(tmp_path, tiny_folder, {"epochs": 8, "target_kl": 0.22})
    optimizer, metrics = stepped(algorithm, learning_rate=0.002)
    assert 1 < metrics["epochs"] < 8
    assert optimizer.updates == metrics["epochs"], "the minibatch that saw it is left out"
    (said,) = ends(context)
    found = re.fullmatch(r"epochs ended early: KL to the old policy ([\d.]+) is over target_kl 0\.22", said)
    assert found is not None
    assert float(found[1]) > 0.22
    assert metrics["approx_kl"] < 0.22, "of what was learnt from"


@pytest.mark.parametrize(
    ("options", "epochs"),
    [({"epochs": 1, "minibatch_size": 1}, 0.25), ({"epochs": 1, "minibatch_size": 3}, 0.75), ({"epochs": 2}, 1.0)],
    ids=["minibatches", "uneven", "epochs"],
)
def test_the_update_behind_the_one_that_went_too_far_is_left_out(tmp_path: Path, tiny_folder: Path, options: dict[str, Any], epochs: float) -> None:
    """Policy, critic and moments are those of a step whose other updates were thrown away, in parts of a row and with the pretraining term."""
    text = {"ptx_data": write_rows(tmp_path / "text.jsonl", [{"text": "a word and more " + "x" * n} for n in range(6)]), "ptx_coefficient": 0.5}
    context, algorithm, _ = ready(tmp_path, tiny_folder, {**options, **text, "target_kl": 1e-4}, micro_batch_size=1)
    optimizer, metrics = stepped(algorithm)
    plain_context, plain, _ = ready(tmp_path, tiny_folder, {**options, **text}, name="plain", micro_batch_size=1)
    other, plain_metrics = stepped(plain, most=1)
    assert optimizer.updates == 1 < other.updates
    assert all(torch.equal(one, two) for one, two in zip(learnt(algorithm), learnt(plain), strict=True))
    assert all(parameter.grad is None for group in algorithm.parameters().values() for parameter in group), "nothing of it is left for the next step"
    assert {name: value.tolist() for name, value in optimizer.state().items()} == {name: value.tolist() for name, value in other.state().items()}
    assert metrics["epochs"] == epochs
    assert metrics["policy_loss"] == metrics["first_policy_loss"] == plain_metrics["first_policy_loss"], "a mean over what was learnt from"
    assert len(ends(context)) == 1
    assert ends(plain_context) == []


def test_nothing_is_said_where_no_update_is_left_out(tmp_path: Path, tiny_folder: Path) -> None:
    context, algorithm, _ = ready(tmp_path, tiny_folder, {"epochs": 1, "target_kl": 1e-9})
    optimizer, metrics = stepped(algorithm)
    assert (optimizer.updates, metrics["epochs"]) == (1, 1)
    assert ends(context) == []


def _bounded(world: World, root: Path, model: Path, strategy: str, bound: float) -> Any:
    spread = {"distribution": {"processes": world.size, "strategy": strategy}} if world.size > 1 else {}
    name = f"run-{world.size}-{strategy}"
    options = {"epochs": 3, "target_kl": bound}
    context, algorithm, _ = ready(root, model, options, name=name, world=world, micro_batch_size=1, batch_size=5, **spread)
    optimizer, metrics = stepped(algorithm, world=world)
    return optimizer.updates, metrics["epochs"], ends(context), learnt(algorithm)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_processes_leave_the_same_updates_out(tmp_path: Path, tiny_folder: Path, strategy: str) -> None:
    """The bound is that of the whole minibatch: no process's own part of it passes it."""
    updates, _, said, _ = _bounded(World(), tmp_path, tiny_folder, "tiny", 1e-9)
    assert updates == 1
    kl = float(said[0].split("policy ")[1].split(" ")[0])
    assert kl > 0.01
    folder = tmp_path / f"run-2-{strategy}" / "rollouts"
    folder.mkdir(parents=True)
    (folder / "00000000.jsonl").write_bytes((tmp_path / "run-1-tiny" / "rollouts" / "00000000.jsonl").read_bytes())
    found = on_ranks(tmp_path, 2, _bounded, tmp_path, tiny_folder, strategy, 0.95 * kl, strategy=strategy)
    assert [(each[0], each[1]) for each in found] == [(1, 1.0)] * 2
    assert all(torch.equal(one, other) for one, other in zip(found[0][3], found[1][3], strict=True))


def test_a_batch_that_was_sampled_ahead_is_resumed_to_the_same_bits(tmp_path: Path, tiny_folder: Path) -> None:
    """The divergence is from the policy before the update, not from the one that sampled, which a stale batch begins away from."""

    def made(name: str) -> tuple[Any, Any]:
        ppo = {"epochs": 2, "max_staleness": 1, "target_kl": 1e-7}
        return ahead.made(tmp_path, tiny_folder, ppo, name=name, steps=4, checkpoint_every_steps=1)[:2]

    straight, algorithm = made("straight")
    train(straight, algorithm)
    assert metrics_of(straight.directory.events(), "epochs") == [1.0] * 4
    assert min(abs(weight - 1) for weight in metrics_of(straight.directory.events(), "behaviour_weight_mean")[1:]) > 1e-6
    dying, algorithm = made("dying")
    with pytest.raises(KeyboardInterrupt):
        train(dying, dying_in(algorithm, 2))
    again, algorithm = made("dying")
    train(again, algorithm)
    folders = [each.directory.checkpoints / "00000004" for each in (straight, again)]
    for file in ("adapter/adapter_model.safetensors", "value/adapter_model.safetensors", "value/head.safetensors", "optimizer.safetensors"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes(), file
