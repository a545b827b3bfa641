"""PPO that samples one step ahead, and PPO that takes the sampler's word for logprobs: what is corrected, checked, recorded, refused and resumed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.training.ranked import on_ranks
from tests.unit.training.surroundings import GradientKeeper, VersionSource, even_share, make_ppo, metrics_of, planted_pairs, shake, write_rows

from accord.algos.advantages import gae, shaped_rewards
from accord.algos.masking import whiten
from accord.algos.ppo import behaviour_weights, policy_loss, value_loss
from accord.errors import FailedPreconditionError, UnavailableError
from accord.training.distribution import World
from accord.training.loop import train
from accord.training.optim import Optimizer
from accord.training.rollout import Rollout, read_rollouts, write_rollouts
from accord.training.waiting import ServiceAwayError

STEPS = 5


def made(root: Path, model: Path, ppo: dict[str, Any], *, name: str = "run", **values: Any) -> tuple[Any, Any, VersionSource]:
    """A PPO run whose rollouts come from a model of their own, not yet set up."""
    data = write_rows(root / "rows.jsonl", planted_pairs())
    given = {"steps": STEPS, "max_response_tokens": 6, "adapter": name, "optimizer": {"learning_rate": 2e-3}, **values}
    context, algorithm, _ = make_ppo(root, model, given, {"data": data, "epochs": 2, "temperature": 1.0, **ppo}, name=name)
    algorithm._source = source = VersionSource(context, even_share)
    return context, algorithm, source


def rollouts_of(context: Any, step: int) -> list[Rollout]:
    found = read_rollouts(context.directory.rollouts / f"{step:08d}.jsonl")
    assert found is not None
    return found


def test_each_batch_is_sampled_while_the_one_before_is_learnt_from(tmp_path: Path, tiny_folder: Path) -> None:
    context, algorithm, source = made(tmp_path, tiny_folder, {"max_staleness": 1})
    known: list[tuple[int, int]] = []
    begin = algorithm._ahead.begin
    algorithm._ahead.begin = lambda step, version: (known.append((step, context.events.step)), begin(step, version))
    train(context, algorithm)
    events = list(context.directory.events())
    assert metrics_of(events, "staleness") == [0, 1, 1, 1, 1]
    assert known == [(1, 0), (2, 1), (3, 2), (4, 3)], "step n + 1 is asked for before the metrics of step n are there"
    assert len(source.versions) == STEPS
    updates = [context.store.manifest(rollouts_of(context, step)[0].adapter_version).step for step in range(STEPS)]
    assert updates == [0, 0, 1, 2, 3]
    weights = metrics_of(events, "behaviour_weight_mean")
    assert weights[0] == 1
    assert all(abs(weight - 1) > 1e-7 for weight in weights[1:]), "the policy has moved since"
    assert max(metrics_of(events, "sampler_gap_max")) < 1e-4, "the behaviour policy of this run is the one that sampled"
    assert max(abs(ratio - 1) for ratio in metrics_of(events, "first_ratio_mean")) < 1e-5, "the ratio is to the policy before the update"


def test_without_it_nothing_is_stale_and_nothing_is_sampled_ahead(tmp_path: Path, tiny_folder: Path) -> None:
    context, algorithm, source = made(tmp_path, tiny_folder, {})
    train(context, algorithm)
    assert metrics_of(context.directory.events(), "staleness") == [0] * STEPS
    assert [context.store.manifest(version).step for version in source.versions] == list(range(STEPS))
    assert "behaviour" not in context.adapted.names


def test_the_gradient_of_a_stale_batch_is_that_of_the_weighted_losses(tmp_path: Path, tiny_folder: Path) -> None:
    """Against one straightforward pass over all rollouts, from `accord.algos` and the rollout file."""
    context, algorithm, _ = made(
        tmp_path, tiny_folder, {"max_staleness": 1, "epochs": 1, "kl_coef": 0.2, "missing_eos_penalty": 0.0}, micro_batch_size=3
    )
    algorithm.setup()
    shake(context, "policy")
    optimizer = Optimizer(algorithm.parameters(), context.spec.optimizer, learning_rate=0.05, total_steps=STEPS)
    optimizer.set_step(0)
    algorithm.step(0, optimizer)
    context.adapted.copy("behaviour", "then", trainable=False)
    keeper = GradientKeeper(algorithm.parameters())
    metrics = algorithm.step(1, keeper)
    (found,) = keeper.steps
    rollouts = rollouts_of(context, 1)
    logprobs, mask = algorithm._model.logprobs(rollouts, "policy")
    values, old = algorithm._critic.values(rollouts), logprobs.detach()
    then, reference = (algorithm._model.logprobs(rollouts, name)[0].detach() for name in ("then", None))
    ratio = (old - then).exp()
    assert float(ratio.max()) > 2
    weights = ratio.clamp(max=2.0) * mask
    shaped = shaped_rewards(torch.tensor([each.score for each in rollouts]), old, reference, mask, kl_coef=0.2)
    estimates = gae(shaped.rewards, values.detach(), mask, discount=1.0, gae_lambda=0.95)
    policy = -(weights * whiten(estimates.advantages, mask) * (logprobs - old).exp() * mask).sum() / mask.sum()
    value = value_loss(values, values.detach(), estimates.returns, mask, clip_range=0.2).loss
    expected = torch.autograd.grad(policy + 0.1 * value, keeper.parameters, allow_unused=True)
    assert max(float(each.abs().max()) for each in found) > 1e-3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other, rtol=1e-4, atol=1e-6)
    assert metrics["kl"] == pytest.approx(float(((then - reference) * mask).sum(dim=1).mean()), rel=1e-4), "of the policy that sampled"
    assert metrics["kl"] != pytest.approx(float(((old - reference) * mask).sum(dim=1).mean()), rel=0.01)
    assert metrics["behaviour_weight_mean"] == pytest.approx(float(weights.sum() / mask.sum()), rel=1e-5)
    assert metrics["behaviour_weight_cut_share"] == pytest.approx(float(((ratio > 2) & mask).sum() / mask.sum()), abs=1e-6)


@pytest.mark.parametrize(("allowed", "older"), [(0, 1), (1, 2)])
def test_rollouts_of_an_older_policy_are_refused(tmp_path: Path, tiny_folder: Path, allowed: int, older: int) -> None:
    context, algorithm, _ = made(tmp_path, tiny_folder, {"max_staleness": allowed})
    train(context, algorithm)
    again, algorithm, _ = made(tmp_path, tiny_folder, {"max_staleness": allowed})
    version = next(each.name for each in context.store.list("run-rollout") if each.step == 4 - older)
    stale = [replace(each, adapter_version=version) for each in rollouts_of(context, 4)]
    write_rollouts(context.directory.rollouts / "00000004.jsonl", stale)
    for folder in context.directory.checkpoints.iterdir():
        folder.rename(folder.with_name("lost"))  # so that the run begins anew, over the rollouts that are there
    with pytest.raises(
        FailedPreconditionError, match=rf"step 4 were sampled by {version}, {older} updates behind .*max_staleness {allowed}"
    ) as error:
        train(again, algorithm)
    assert error.value.field == "ppo.max_staleness"


def test_the_wait_for_scores_is_that_for_the_batch_of_the_step(tmp_path: Path, tiny_folder: Path) -> None:
    """Not for the next one, whose scores come while this one is learnt from: nothing waits for them."""
    context, algorithm, source = made(tmp_path, tiny_folder, {"max_staleness": 1}, steps=2)
    collect, update = source.collect, algorithm._update

    def scored(*arguments: Any) -> list[Rollout]:
        found = collect(*arguments)
        time.sleep(0.3)
        source.score_seconds += 0.3
        return found

    def patient(*arguments: Any) -> dict[str, float]:
        if algorithm._ahead._under is not None:
            algorithm._ahead._under.join()
        return update(*arguments)

    source.collect, algorithm._update = scored, patient  # type: ignore[method-assign]
    train(context, algorithm)
    assert metrics_of(context.directory.events(), "seconds_score") == [pytest.approx(0.3), 0]


def test_a_service_that_goes_while_it_samples_ahead_costs_nothing(tmp_path: Path, tiny_folder: Path) -> None:
    straight, algorithm, _ = made(tmp_path, tiny_folder, {"max_staleness": 1}, name="straight")
    train(straight, algorithm)
    context, algorithm, source = made(tmp_path, tiny_folder, {"max_staleness": 1}, name="disturbed")
    collect = source.collect

    def away(*arguments: Any) -> list[Rollout]:
        if len(source.versions) == 3:
            raise UnavailableError("reward service gave no answer")
        return collect(*arguments)

    source.collect = away  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        train(context, algorithm)
    assert [path.name for path in context.directory.checkpoints.iterdir()] == ["00000003"], "the step that was being learnt from is kept"
    again, algorithm, source = made(tmp_path, tiny_folder, {"max_staleness": 1}, name="disturbed")
    train(again, algorithm)
    assert again.store.manifest(source.versions[0]).step == 2, "sampled by the policy that was to sample it"
    names = ("adapter/adapter_model.safetensors", "behaviour/adapter_model.safetensors", "value/adapter_model.safetensors", "optimizer.safetensors")
    folders = [each.directory.checkpoints / f"{STEPS:08d}" for each in (straight, again)]
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def _store_away(world: World, root: Path, model: Path) -> str:
    """A run of two processes whose first one cannot publish the policy that is to sample ahead in its second step."""
    values = {"steps": 3, "adapter": "away", "max_response_tokens": 4, "distribution": {"processes": 2}}
    ppo = {"data": {"uri": str(root / "rows.jsonl")}, "epochs": 1, "max_staleness": 1}
    context, algorithm, _ = make_ppo(root, model, values, ppo, name="away", world=world)
    algorithm._source = VersionSource(context, even_share)
    publish, asked = context.store.publish, []

    def failing(*arguments: Any, **named: Any) -> str:
        asked.append(arguments[0])
        if len(asked) == 3:
            raise ServiceAwayError("artefact store gave no answer")
        return publish(*arguments, **named)

    context.store.publish = failing  # type: ignore[method-assign]
    with pytest.raises(UnavailableError) as error:
        train(context, algorithm)
    return str(error.value)


def test_two_processes_hear_of_a_store_that_is_away_when_the_next_batch_is_begun(tmp_path: Path, tiny_folder: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", planted_pairs())
    said = on_ranks(tmp_path, 2, _store_away, tmp_path, tiny_folder)
    assert [text.removeprefix("process 0 of 2: ") for text in said] == ["artefact store gave no answer"] * 2
    assert [path.name for path in (tmp_path / "away" / "checkpoints").iterdir()] == ["00000001"]


class Counter:
    """Counts the rows of each pass over rollouts without gradient, by adapter."""

    def __init__(self, algorithm: Any) -> None:
        self.rows: dict[str | None, int] = {}
        inner: Callable[..., Any] = algorithm._model._token_rows

        def counted(rollouts: Any, adapter: str | None, **named: Any) -> Any:
            if not torch.is_grad_enabled():
                self.rows[adapter] = self.rows.get(adapter, 0) + len(rollouts)
            return inner(rollouts, adapter, **named)

        algorithm._model._token_rows = counted


def first_step(root: Path, model: Path, ppo: dict[str, Any], name: str, change: Callable[[int, Rollout], Rollout] | None = None) -> Any:
    """Context, gradients, metrics and passes of a first step over 12 rollouts; `change` stands for what the sampler got wrong."""
    context, algorithm, source = made(root, model, {"epochs": 1, **ppo}, name=name, batch_size=12)
    algorithm.setup()
    shake(context, "policy")
    collect = source.collect
    if change is not None:
        source.collect = lambda *arguments: [change(index, each) for index, each in enumerate(collect(*arguments))]  # type: ignore[method-assign]
    keeper, counter = GradientKeeper(algorithm.parameters()), Counter(algorithm)
    metrics = algorithm.step(0, keeper)
    return keeper.steps[0], metrics, counter.rows


def shifted(by: float, rows: set[int] | None = None) -> Callable[[int, Rollout], Rollout]:
    def change(index: int, rollout: Rollout) -> Rollout:
        if rows is not None and index not in rows:
            return rollout
        return replace(rollout, sampler_logprobs=tuple(logprob + by for logprob in rollout.sampler_logprobs))

    return change


def test_reused_logprobs_give_the_same_gradient_for_fewer_passes(tmp_path: Path, tiny_folder: Path) -> None:
    plain, plain_metrics, plain_rows = first_step(tmp_path, tiny_folder, {}, "plain")
    reused, metrics, rows = first_step(tmp_path, tiny_folder, {"reuse_sampler_logprobs": True}, "reused")
    assert plain_rows == {"policy": 12, None: 12}
    assert rows == {"policy": 2, None: 12}, "an eighth of the rows is checked"
    for one, other in zip(plain, reused, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert 0 < metrics["sampler_gap_max"] < 1e-4
    for name in ("kl", "reward_mean", "score_mean"):
        assert metrics[name] == pytest.approx(plain_metrics[name], rel=1e-4, abs=1e-5), name
    assert metrics["entropy"] == pytest.approx(plain_metrics["entropy"], rel=0.3)


def test_reused_logprobs_are_what_is_learnt_from(tmp_path: Path, tiny_folder: Path) -> None:
    """A shift within the bound shows in the ratio: nothing is computed behind the reader's back."""
    _, metrics, _ = first_step(tmp_path, tiny_folder, {"reuse_sampler_logprobs": True}, "reused", shifted(-0.04))
    assert metrics["first_ratio_mean"] == pytest.approx(1 + 0.0408 * 10 / 12, abs=0.02)
    assert metrics["sampler_gap_max"] == pytest.approx(0.04, abs=1e-3)
    _, metrics, _ = first_step(tmp_path, tiny_folder, {}, "plain", shifted(-0.04))
    assert metrics["first_ratio_mean"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize(("by", "bound", "stops"), [(0.1, 0.05, True), (0.1, 0.2, False), (0.01, 0.005, True), (float("nan"), 0.05, True)])
def test_a_gap_beyond_the_bound_stops_the_run_in_words(tmp_path: Path, tiny_folder: Path, reuse: bool, by: float, bound: float, stops: bool) -> None:
    ppo = {"reuse_sampler_logprobs": reuse, "sampler_gap_bound": bound}
    if not stops:
        assert first_step(tmp_path, tiny_folder, ppo, "run", shifted(by))[1]["sampler_gap_max"] == pytest.approx(by, abs=1e-3)
        return
    with pytest.raises(
        FailedPreconditionError, match=rf"differ by up to .* nats a token; {bound:g} are allowed: they do not compute the same policy"
    ):
        first_step(tmp_path, tiny_folder, ppo, "run", shifted(by))
    said = (tmp_path / "run" / "events.jsonl").read_text()
    assert "alarm: logprobs of the policy service and of this run differ" in said
    assert "the run stops before it learns from them" in said


def test_the_checked_rows_change_from_step_to_step(tmp_path: Path, tiny_folder: Path) -> None:
    _, algorithm, _ = made(tmp_path, tiny_folder, {"reuse_sampler_logprobs": True}, batch_size=12)
    seen = [tuple(algorithm._checked(step, 12)) for step in range(30)]
    assert all(len(rows) == 2 for rows in seen)
    assert {row for rows in seen for row in rows} == set(range(12))


def test_weights_and_reuse_work_together(tmp_path: Path, tiny_folder: Path) -> None:
    """The policy that learns is always computed; only the older one's word is taken."""
    context, algorithm, _ = made(tmp_path, tiny_folder, {"max_staleness": 1, "reuse_sampler_logprobs": True})
    plain, other, _ = made(tmp_path, tiny_folder, {"max_staleness": 1}, name="plain")
    train(context, algorithm)
    train(plain, other)
    one, two = (metrics_of(each.directory.events(), "behaviour_weight_mean") for each in (context, plain))
    assert one == pytest.approx(two, abs=1e-4)
    assert max(abs(ratio - 1) for ratio in metrics_of(context.directory.events(), "first_ratio_mean")[1:]) < 1e-5


def test_plain_losses_are_the_weighted_ones_with_weights_of_one() -> None:
    generator = torch.Generator().manual_seed(0)
    old, advantages = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True] * 3 + [False]])
    ones = behaviour_weights(old, old, mask, cap=2.0)
    assert torch.equal(ones, torch.ones(3, 4))
    logprobs = old + 0.1 * torch.randn(3, 4, generator=generator)
    weighted, plain = (policy_loss(logprobs, old, advantages, mask, clip_range=0.2, weights=weights).loss for weights in (ones, None))
    assert torch.equal(weighted, plain)
