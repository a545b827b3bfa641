"""GRPO's and RLOO's steps on the tiny model with rollouts of this process: groups, gradients, what is reported, resumption, ensembles."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.training.surroundings import (
    ALONE,
    NOWHERE,
    WORDS,
    GradientKeeper,
    even_share,
    make_context,
    make_rollout_run,
    metrics_of,
    planted_pairs,
    publish_reward_model,
    shake,
    write_rows,
)
from torch import Tensor

from accord.algos.groups import (
    centred_advantages,
    group_relative_advantages,
    grpo_loss,
    leave_one_out_advantages,
    penalised_rewards,
    rloo_loss,
    token_weights,
)
from accord.client.reward import RewardModel
from accord.errors import InvalidArgumentError, NotFoundError
from accord.training.__main__ import build
from accord.training.distribution import World
from accord.training.examples import batch_at, epoch_order
from accord.training.loop import train
from accord.training.rollout import Rollout, read_rollouts
from accord.training.rollout_algorithm import rollout_seed

KINDS = ("grpo", "rloo")
SIZE, GROUP = 8, 4


def ready(
    root: Path, model: Path, kind: str, part: dict[str, Any], *, name: str = "run", world: World = ALONE, **values: Any
) -> tuple[Any, Any, Any]:  # fmt: skip
    """An algorithm that is set up, with a policy that is shaken so that KL is not trivial."""
    data = write_rows(root / "rows.jsonl", planted_pairs())
    part = {"data": data, "temperature": 1.0, "group_size": GROUP, **part}
    context, algorithm, source = make_rollout_run(root, model, {"batch_size": SIZE, **values, kind: part}, name=name, world=world)
    source.spread = 4
    algorithm.setup()
    shake(context, "policy")
    return context, algorithm, source


def one_step(algorithm: Any, step: int = 0) -> tuple[list[list[Tensor]], dict[str, float]]:
    keeper = GradientKeeper(algorithm.parameters(), algorithm._context.world)
    metrics = algorithm.step(step, keeper)
    return keeper.steps, metrics


def rollouts_of(context: Any, step: int = 0) -> list[Rollout]:
    found = read_rollouts(context.directory.rollouts / f"{step:08d}.jsonl")
    assert found is not None
    return found


def close(first: list[Tensor], second: list[Tensor], atol: float = 1e-6) -> None:
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_whole_groups_each_response_with_its_own_seed(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    context, algorithm, source = ready(tmp_path, tiny_folder, kind, {})
    for step in range(2):
        one_step(algorithm, step)
        rollouts = rollouts_of(context, step)
        prompts = [prompt.id for prompt in batch_at(algorithm._prompts, step, SIZE // GROUP, context.spec.seed)]
        assert [rollout.id for rollout in rollouts] == [prompts[0]] * GROUP + [prompts[1]] * GROUP
        assert source.calls[step] == tuple(rollout.id for rollout in rollouts)
        assert [rollout.seed for rollout in rollouts] == [rollout_seed(context.spec.seed, step, index) for index in range(SIZE)]
        assert len({rollout.response_ids for rollout in rollouts[:GROUP]}) > 1, "they differ, or there is nothing to compare"
    assert set(source.calls[0]).isdisjoint(source.calls[1])


@pytest.mark.parametrize(
    ("kind", "part"),
    [("grpo", {"loss_normalization": each}) for each in ("response", "tokens", "constant")] + [("grpo", {"minibatch_size": 5}), ("rloo", {})],
)
def test_the_size_of_a_micro_batch_does_not_change_the_gradient(tmp_path: Path, tiny_folder: Path, kind: str, part: dict[str, Any]) -> None:
    found = [one_step(ready(tmp_path, tiny_folder, kind, part, name=f"run-{size}", micro_batch_size=size)[1]) for size in (8, 1, 3)]
    assert max(float(each.abs().max()) for each in found[0][0][0]) > 1e-3
    for steps, metrics in found[1:]:
        assert len(steps) == len(found[0][0]) == (2 if part.get("minibatch_size") else 1)
        for one, other in zip(found[0][0], steps, strict=True):
            close(one, other)
        for name in ("policy_loss", "kl", "reward_mean", "ratio_mean", "approx_kl", *(("kl_loss",) if kind == "grpo" else ())):
            assert metrics[name] == pytest.approx(found[0][1][name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize(("scale", "normalization"), [(True, "response"), (False, "constant"), (True, "tokens")])
def test_grpos_gradient_is_that_of_its_loss_on_the_whole_batch(tmp_path: Path, tiny_folder: Path, scale: bool, normalization: str) -> None:
    """One straightforward pass over all rollouts, from `accord.algos` and the rollout file."""
    part = {"kl_coef": 0.2, "scale_advantages": scale, "loss_normalization": normalization, "missing_eos_penalty": 0.5}
    context, algorithm, _ = ready(tmp_path, tiny_folder, "grpo", part, micro_batch_size=3)
    (found,), metrics = one_step(algorithm)
    rollouts = rollouts_of(context)
    assert len({len(rollout.response_ids) for rollout in rollouts}) > 3, "normalizations differ where lengths do"
    logprobs, mask = algorithm._model.logprobs(rollouts, "policy")
    reference = algorithm._model.logprobs(rollouts, None)[0].detach()
    rewards = torch.tensor([rollout.score - (0.0 if rollout.ended else 0.5) for rollout in rollouts])
    advantages = (group_relative_advantages if scale else centred_advantages)(rewards, group_size=GROUP)
    weights = token_weights(mask, normalization=normalization, max_tokens=10)  # type: ignore[arg-type]
    loss = grpo_loss(logprobs, logprobs.detach(), reference, advantages, weights, clip_range=0.2, kl_coef=0.2)
    close(list(torch.autograd.grad(loss.loss, GradientKeeper(algorithm.parameters()).parameters)), found)
    assert metrics["policy_loss"] == pytest.approx(float(loss.surrogate), abs=1e-6)
    assert metrics["kl_loss"] == pytest.approx(float(loss.kl), rel=1e-4)


def test_rloos_gradient_is_that_of_its_loss_on_the_whole_batch(tmp_path: Path, tiny_folder: Path) -> None:
    context, algorithm, _ = ready(tmp_path, tiny_folder, "rloo", {"kl_coef": 0.2, "missing_eos_penalty": 0.5}, micro_batch_size=3)
    (found,), metrics = one_step(algorithm)
    rollouts = rollouts_of(context)
    logprobs, mask = algorithm._model.logprobs(rollouts, "policy")
    reference = algorithm._model.logprobs(rollouts, None)[0].detach()
    scores = torch.tensor([rollout.score - (0.0 if rollout.ended else 0.5) for rollout in rollouts])
    rewards = penalised_rewards(scores, logprobs.detach(), reference, mask, kl_coef=0.2)
    advantages = leave_one_out_advantages(rewards, group_size=GROUP)
    loss = rloo_loss(logprobs, logprobs.detach(), advantages, mask, clip_range=0.2).loss
    close(list(torch.autograd.grad(loss, GradientKeeper(algorithm.parameters()).parameters)), found)
    assert metrics["reward_mean"] == pytest.approx(float(rewards.mean()), rel=1e-4)
    assert metrics["reward_mean"] == pytest.approx(float(scores.mean()) - 0.2 * metrics["kl"], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_reported_is_what_the_rollouts_say(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    context, algorithm, _ = ready(tmp_path, tiny_folder, kind, {"missing_eos_penalty": 0.0, "kl_coef": 0.0})
    _, metrics = one_step(algorithm)
    scores = [rollout.score for rollout in rollouts_of(context)]
    groups = [scores[:GROUP], scores[GROUP:]]
    assert metrics["reward_mean"] == metrics["score_mean"] == pytest.approx(statistics.fmean(scores), rel=1e-5)
    assert metrics["reward_std_in_groups"] == pytest.approx(statistics.fmean(statistics.stdev(group) for group in groups), rel=1e-4)
    assert metrics["groups_without_signal"] == sum(len(set(group)) == 1 for group in groups) / 2
    assert metrics["first_ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert metrics["first_clip_fraction"] == 0
    assert abs(metrics["policy_loss"]) < 1e-5, "advantages of a group sum to 0, and each response counts alike"
    assert metrics["kl_coef"] == 0
    assert not {"value_loss", "explained_variance"} & metrics.keys(), "there is no critic"


@pytest.mark.parametrize("kind", KINDS)
def test_equal_scores_teach_nothing(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    """No group, no signal: the gradient is exactly 0 where nothing tells the responses apart, and the metric says so."""
    _, algorithm, source = ready(tmp_path, tiny_folder, kind, {"missing_eos_penalty": 0.0, "kl_coef": 0.0})
    source._score = lambda _: 1.5
    (found,), metrics = one_step(algorithm)
    assert max(float(each.abs().max()) for each in found) == 0
    assert metrics["groups_without_signal"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_minibatches_split_the_batch_and_epochs_repeat_it(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    """Advantages are those of the whole groups, whatever minibatch a response is in."""
    part = {"loss_normalization": "constant"} if kind == "grpo" else {}
    context, algorithm, _ = ready(tmp_path, tiny_folder, kind, {**part, "epochs": 2, "minibatch_size": 4})
    steps, metrics = one_step(algorithm)
    assert len(steps) == 4
    assert metrics["epochs"] == 2
    whole, _ = one_step(ready(tmp_path, tiny_folder, kind, part, name="whole")[1])
    close(whole[0], [(one + other) / 2 for one, other in zip(steps[0], steps[1], strict=True)])
    order = epoch_order([str(index) for index in range(SIZE)], 0, context.spec.seed)
    assert {index // GROUP for index in order[:4]} == {0, 1}, "the minibatch mixes groups, or the test shows nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_dies_resumes_to_the_same_bits(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    """With rollouts of this process; runs through the services are in tests/e2e."""
    data = write_rows(tmp_path / "rows.jsonl", planted_pairs())

    def made(name: str, adapter: str) -> tuple[Any, Any, Any]:
        values = {
            "steps": 5, "checkpoint_every_steps": 2, "batch_size": SIZE, "adapter": adapter, "optimizer": {"learning_rate": 1e-2},
            kind: {"data": data, "epochs": 2, "minibatch_size": 4, "group_size": GROUP, "clip_range": 0.05},
        }  # fmt: skip
        return make_rollout_run(tmp_path, tiny_folder, values, name=name)

    straight, algorithm, _ = made("straight", "a")
    expected = train(straight, algorithm)
    dying, algorithm, _ = made("dying", "b")
    tensors = algorithm._tensors

    def die_in_step_3(rollouts: list[Rollout]) -> Any:
        if algorithm._step == 3:
            raise KeyboardInterrupt
        return tensors(rollouts)

    algorithm._tensors = die_in_step_3
    with pytest.raises(KeyboardInterrupt):
        train(dying, algorithm)
    again, algorithm, source = made("dying", "b")
    result = train(again, algorithm)
    assert len(source.calls) == 1, "steps 2 and 3 were sampled before, step 4 was not"
    files = [
        {path.name: path.read_bytes() for path in context.store.fetch(outcome.adapter_version).iterdir() if path.name != "manifest.json"}
        for context, outcome in ((straight, expected), (again, result))
    ]
    assert files[0] == files[1]
    optimizers = [(context.directory.checkpoints / "00000005" / "optimizer.safetensors").read_bytes() for context in (straight, again)]
    assert optimizers[0] == optimizers[1]
    for name in ("policy_loss", "kl", "score_mean", "clip_fraction", "reward_std_in_groups"):
        one, other = (metrics_of(context.directory.events(), name) for context in (straight, again))
        assert one == [*other[:2], *other[-3:]], name
    assert max(metrics_of(straight.directory.events(), "clip_fraction")) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_it_raises_the_reward_and_keeps_the_divergence_bounded(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    """The mean score rises over its start; with a strong penalty the policy stays near its reference instead."""
    found = {}
    for name, kl_coef in (("free", 0.01), ("held", 5.0)):
        data = write_rows(tmp_path / "rows.jsonl", planted_pairs(WORDS))
        values = {
            "steps": 15, "batch_size": 32, "max_response_tokens": 6, "optimizer": {"learning_rate": 2e-2},
            kind: {"data": data, "eval_data": data, "kl_coef": kl_coef, "temperature": 1.0, "group_size": 8, "missing_eos_penalty": 0.0},
        }  # fmt: skip
        context, algorithm, _ = make_rollout_run(
            tmp_path, tiny_folder, values, name=name, score=lambda response: 4.0 * sum(token < 67 for token in response) / len(response)
        )
        train(context, algorithm)
        found[name] = list(context.directory.events())
    scores, held = (metrics_of(found[name], "score_mean") for name in ("free", "held"))
    assert sum(scores[-5:]) / 5 > sum(scores[:3]) / 3 + 0.3
    assert sum(held[-5:]) / 5 < sum(scores[-5:]) / 5 - 0.3
    assert metrics_of(found["free"], "eval_score")[-1] > metrics_of(found["free"], "eval_score")[0]
    assert metrics_of(found["held"], "kl_k3")[-1] < 0.4 * metrics_of(found["free"], "kl_k3")[-1]
    assert max(abs(ratio - 1) for ratio in metrics_of(found["free"], "first_ratio_mean")) < 1e-5


# Ensembles


def with_ensemble(root: Path, model: Path, kind: str, names: list[str], **part: Any) -> Any:
    """A context whose run names reward models beside `adapters/rm`; `rm` has two versions and `other` one."""
    data = write_rows(root / "rows.jsonl", planted_pairs())
    values = {"batch_size": 4, kind: {"data": data, "reward_model": "adapters/rm/versions/1", "more_reward_models": names, **part}}
    if kind != "ppo":
        values[kind]["group_size"] = 2
    context = make_context(root, model, values, endpoints=NOWHERE)
    publish_reward_model(context)
    publish_reward_model(context, seed=8)
    publish_reward_model(context, name="other", seed=9)
    return context


@pytest.mark.parametrize("kind", ["ppo", *KINDS])
def test_all_members_score_and_are_parents(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    context = with_ensemble(tmp_path, tiny_folder, kind, ["adapters/rm", "adapters/other"], ensemble_std_coefficient=0.5)
    algorithm: Any = build(context)
    members = ("adapters/rm/versions/1", "adapters/rm/versions/2", "adapters/other/versions/1")
    assert algorithm._source._models == {"trained": RewardModel(members, 0.5)}
    assert algorithm.publication()["parents"] == list(members)
    assert algorithm.publication()["facts"]["algorithm"] == kind


@pytest.mark.parametrize("kind", ["ppo", *KINDS])
def test_a_member_that_is_there_twice_or_not_at_all_is_refused_by_its_field(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    with pytest.raises(InvalidArgumentError, match="adapters/rm/versions/2 is named twice") as error:
        build(with_ensemble(tmp_path, tiny_folder, kind, ["adapters/rm", "adapters/rm/versions/2"]))
    assert error.value.field == f"{kind}.more_reward_models[1]"
    with pytest.raises(NotFoundError) as missing:
        build(with_ensemble(tmp_path, tiny_folder, kind, ["adapters/nobody"]))
    assert missing.value.field == f"{kind}.more_reward_models[0]"


@pytest.mark.parametrize("kind", KINDS)
def test_the_combined_score_is_learned_from_and_the_spread_is_reported(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    context, algorithm, source = ready(tmp_path, tiny_folder, kind, {"missing_eos_penalty": 0.0, "kl_coef": 0.0})
    source.member_scores = lambda response: (even_share(response) + 1, even_share(response) - 2)
    _, metrics = one_step(algorithm)
    assert metrics["score_std_between_models"] == pytest.approx(1.5)
    assert all(len(rollout.member_scores) == 2 for rollout in rollouts_of(context))
    assert metrics["reward_mean"] == pytest.approx(statistics.fmean(rollout.score for rollout in rollouts_of(context)), rel=1e-5)
