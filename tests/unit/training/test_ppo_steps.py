"""PPO's step on the tiny model with rollouts of this process: gradients, the pretraining term, rollouts on disk, what it reports."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.training.surroundings import ALONE, GradientKeeper, make_context, make_ppo, planted_pairs, publish_reward_model, shake, write_rows
from torch import Tensor

from accord.algos.advantages import gae, shaped_rewards
from accord.algos.masking import whiten
from accord.algos.ppo import policy_loss, value_loss
from accord.checkpoint import read_checkpoint
from accord.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, UnavailableError
from accord.training.__main__ import build
from accord.training.distribution import World
from accord.training.loop import train
from accord.training.rollout import read_rollouts, write_rollouts
from accord.training.rollout_algorithm import rollout_seed


def ready(
    root: Path, model: Path, ppo: dict[str, Any], *, name: str = "run", world: World = ALONE, **values: Any
) -> tuple[Any, Any, Any]:  # fmt: skip
    """A PPO algorithm that is set up, with policy and critic shaken so that ratios, KL and values are not trivial."""
    data = write_rows(root / "rows.jsonl", planted_pairs())
    context, algorithm, source = make_ppo(root, model, values, {"data": data, "epochs": 1, "temperature": 1.0, **ppo}, name=name, world=world)
    algorithm.setup()
    shake(context, "policy")
    shake(context, "value", 4)
    return context, algorithm, source


def one_step(algorithm: Any, step: int = 0) -> tuple[list[list[Tensor]], dict[str, float]]:
    keeper = GradientKeeper(algorithm.parameters(), algorithm._context.world)
    metrics = algorithm.step(step, keeper)
    return keeper.steps, metrics


def close(first: list[Tensor], second: list[Tensor], atol: float = 1e-6) -> None:
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("ppo", [{"ptx_coefficient": 0.0}, {"ptx_coefficient": 0.5}], ids=["plain", "ptx"])
def test_the_size_of_a_micro_batch_does_not_change_the_gradient(tmp_path: Path, tiny_folder: Path, ppo: dict[str, Any]) -> None:
    text = {"ptx_data": write_rows(tmp_path / "text.jsonl", [{"text": "a word and more " + "x" * n} for n in range(6)])}
    found = [one_step(ready(tmp_path, tiny_folder, {**text, **ppo}, name=f"run-{size}", micro_batch_size=size)[1]) for size in (4, 1, 3)]
    assert max(float(each.abs().max()) for each in found[0][0][0]) > 1e-3
    for steps, metrics in found[1:]:
        close(found[0][0][0], steps[0])
        for name in ("policy_loss", "value_loss", "kl", "reward_mean", "entropy", "explained_variance", "value_clip_fraction"):
            assert metrics[name] == pytest.approx(found[0][1][name], rel=1e-4, abs=1e-6), name


def test_the_gradient_is_that_of_the_losses_on_the_whole_batch(tmp_path: Path, tiny_folder: Path) -> None:
    """Policy and value gradients against one straightforward pass over all rollouts, from `accord.algos` and the rollout file."""
    context, algorithm, _ = ready(tmp_path, tiny_folder, {"kl_coef": 0.2, "value_coefficient": 0.7}, micro_batch_size=2)
    (found,), _ = one_step(algorithm)
    rollouts = read_rollouts(context.directory.rollouts / "00000000.jsonl")
    assert rollouts is not None
    logprobs, mask = algorithm._model.logprobs(rollouts, "policy")
    values = algorithm._critic.values(rollouts)
    reference = algorithm._model.logprobs(rollouts, None)[0].detach()
    scores = torch.tensor([rollout.score - (0.0 if rollout.ended else 1.0) for rollout in rollouts])
    shaped = shaped_rewards(scores, logprobs.detach(), reference, mask, kl_coef=0.2)
    estimates = gae(shaped.rewards, values.detach(), mask, discount=1.0, gae_lambda=0.95)
    policy = policy_loss(logprobs, logprobs.detach(), whiten(estimates.advantages, mask), mask, clip_range=0.2).loss
    value = value_loss(values, values.detach(), estimates.returns, mask, clip_range=0.2).loss
    parameters = GradientKeeper(algorithm.parameters()).parameters
    expected = torch.autograd.grad(policy + 0.7 * value, parameters, allow_unused=True)
    close([torch.zeros_like(each) if grad is None else grad for each, grad in zip(parameters, expected, strict=True)], found)


def test_the_pretraining_gradient_adds(tmp_path: Path, tiny_folder: Path) -> None:
    """REFERENCES.md section 3: grad(total) = grad(ppo) + ptx_coefficient grad(lm), through the whole step."""
    text = {"ptx_data": write_rows(tmp_path / "text.jsonl", [{"text": "a word and more " + "x" * n} for n in range(6)])}
    found = {}
    for coefficient in (0.0, 1.0, 2.0):
        _, algorithm, _ = ready(tmp_path, tiny_folder, {**text, "ptx_coefficient": coefficient}, name=f"run-{coefficient:g}")
        (found[coefficient],), metrics = one_step(algorithm)
        assert ("ptx_loss" in metrics) == (coefficient > 0)
    language_model = [one - plain for plain, one in zip(found[0.0], found[1.0], strict=True)]
    assert max(float(each.abs().max()) for each in language_model) > 1e-2
    close([plain + 2 * lm for plain, lm in zip(found[0.0], language_model, strict=True)], found[2.0])


def test_a_coefficient_of_zero_is_plain_ppo_bit_for_bit(tmp_path: Path, tiny_folder: Path) -> None:
    """REFERENCES.md section 3; with the text there and with none at all."""
    text = {"ptx_data": write_rows(tmp_path / "text.jsonl", [{"text": "a word and more"}]), "ptx_coefficient": 0.0}
    plain = one_step(ready(tmp_path, tiny_folder, {"epochs": 2}, name="plain")[1])[0]
    zero = one_step(ready(tmp_path, tiny_folder, {"epochs": 2, **text}, name="zero")[1])[0]
    assert all(torch.equal(first, second) for one, other in zip(plain, zero, strict=True) for first, second in zip(one, other, strict=True))


@pytest.mark.parametrize("minibatch_size", [3, 8])
def test_each_minibatch_has_the_pretraining_rows_of_its_own_rollouts(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, minibatch_size: int
) -> None:  # fmt: skip
    """Two for each rollout also where the last minibatch is smaller or the only one is, and each row before any comes again."""
    from accord.training import ppo

    collate = ppo.collate
    drawn: list[tuple[int, ...]] = []
    monkeypatch.setattr(ppo, "collate", lambda rows, **more: (drawn.extend(tuple(row[1]) for row in rows), collate(rows, **more))[1])
    text = write_rows(tmp_path / "text.jsonl", [{"text": f"a text {chr(97 + n)}"} for n in range(20)])
    options = {"epochs": 2, "minibatch_size": minibatch_size, "ptx_coefficient": 0.5, "ptx_data": text, "ptx_rows_per_rollout": 2}
    _, algorithm, _ = ready(tmp_path, tiny_folder, options, batch_size=5)
    steps, _ = one_step(algorithm)
    assert len(steps) == (4 if minibatch_size == 3 else 2)
    assert len(drawn) == len(set(drawn)) == 20


def test_the_first_epoch_starts_from_a_ratio_of_one(tmp_path: Path, tiny_folder: Path) -> None:
    """REFERENCES.md section 3: ratio 1, approx_kl 0, clip_fraction 0, |policy loss| < 1e-6 with whitened advantages."""
    _, algorithm, _ = ready(tmp_path, tiny_folder, {"temperature": 0.7})
    _, metrics = one_step(algorithm)
    assert metrics["first_ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert metrics["first_approx_kl"] < 1e-6
    assert metrics["first_clip_fraction"] == 0
    assert abs(metrics["first_policy_loss"]) < 1e-6
    assert metrics["sampler_gap_max"] < 1e-4
    assert 0 <= metrics["sampler_approx_kl"] < 1e-6


def test_what_is_reported_is_what_the_rollouts_say(tmp_path: Path, tiny_folder: Path) -> None:
    context, algorithm, _ = ready(tmp_path, tiny_folder, {"kl_coef": 0.2, "missing_eos_penalty": 0.5})
    _, metrics = one_step(algorithm)
    rollouts = read_rollouts(context.directory.rollouts / "00000000.jsonl")
    assert rollouts is not None
    scores = [rollout.score for rollout in rollouts]
    assert metrics["score_mean"] == pytest.approx(sum(scores) / 4)
    assert metrics["response_tokens"] == pytest.approx(sum(len(rollout.response_ids) for rollout in rollouts) / 4)
    assert metrics["eos_rate"] == sum(rollout.ended for rollout in rollouts) / 4
    assert metrics["tokens"] == sum(len(rollout.prompt_ids) + len(rollout.response_ids) for rollout in rollouts)
    assert metrics["kl_k3"] >= 0
    penalised = sum(scores) / 4 - 0.5 * (1 - metrics["eos_rate"]) - 0.2 * metrics["kl"]
    assert metrics["reward_mean"] == pytest.approx(penalised, rel=1e-4), "score less the penalties, summed over tokens"


def test_minibatches_split_the_batch_and_epochs_repeat_it(tmp_path: Path, tiny_folder: Path) -> None:
    _, algorithm, _ = ready(tmp_path, tiny_folder, {"epochs": 3, "minibatch_size": 2})
    steps, metrics = one_step(algorithm)
    assert len(steps) == 6
    assert metrics["epochs"] == 3
    whole, _ = one_step(ready(tmp_path, tiny_folder, {"epochs": 1}, name="whole")[1])
    tokens = [_tokens(algorithm, part) for part in _first_epoch(algorithm)]
    mixed = [(tokens[0] * a + tokens[1] * b) / sum(tokens) for a, b in zip(steps[0], steps[1], strict=True)]
    close(whole[0], mixed)


def _first_epoch(algorithm: Any) -> list[list[int]]:
    from accord.training.examples import epoch_order

    order = epoch_order([str(index) for index in range(4)], 0, algorithm._context.spec.seed)
    return [order[:2], order[2:]]


def _tokens(algorithm: Any, members: list[int]) -> int:
    rollouts = read_rollouts(algorithm._context.directory.rollouts / "00000000.jsonl")
    assert rollouts is not None
    return sum(len(rollouts[index].response_ids) for index in members)


def test_rollouts_are_on_disk_before_they_are_used_and_used_again_after_a_kill(tmp_path: Path, tiny_folder: Path) -> None:
    context, algorithm, source = ready(tmp_path, tiny_folder, {})
    path = context.directory.rollouts / "00000000.jsonl"
    seen: list[bool] = []
    tensors = algorithm._tensors
    algorithm._tensors = lambda rollouts: (seen.append(path.exists()), tensors(rollouts))[1]
    first, metrics = one_step(algorithm)
    assert seen == [True]
    assert len(source.calls) == 1
    content = path.read_bytes()
    context, again, source = ready(tmp_path, tiny_folder, {})  # the process died and came back, without a checkpoint
    second, repeated = one_step(again)
    assert source.calls == [], "what was sampled and scored is not paid for twice"
    assert path.read_bytes() == content
    assert all(torch.equal(one, other) for one, other in zip(first[0], second[0], strict=True))
    assert {name: value for name, value in repeated.items() if "second" not in name} == {
        name: value for name, value in metrics.items() if "second" not in name
    }


def test_rollouts_round_trip_and_every_damage_is_seen(tmp_path: Path, tiny_folder: Path) -> None:
    context, algorithm, _ = ready(tmp_path, tiny_folder, {})
    one_step(algorithm)
    path = context.directory.rollouts / "00000000.jsonl"
    rollouts = read_rollouts(path)
    assert rollouts is not None
    write_rollouts(tmp_path / "again.jsonl", rollouts)
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()
    assert read_rollouts(tmp_path / "none.jsonl") is None
    content = path.read_bytes()
    flips = [bytes([*content[:place], content[place] ^ 1, *content[place + 1 :]]) for place in range(0, len(content) - 1, 17)]
    for damaged in (content[:-20], content[: len(content) // 2], b"", b"\xff", *flips):
        path.write_bytes(damaged)
        with pytest.raises(DataLossError, match=r"rollout file 00000000\.jsonl is damaged"):
            read_rollouts(path)


def test_a_damaged_rollout_file_is_said_put_aside_and_sampled_again(tmp_path: Path, tiny_folder: Path) -> None:
    context, algorithm, source = ready(tmp_path, tiny_folder, {})
    first, _ = one_step(algorithm)
    path = context.directory.rollouts / "00000000.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    second, _ = one_step(algorithm)
    assert len(source.calls) == 2
    assert path.read_bytes() == content, "seeds decide what is sampled"
    assert all(torch.equal(one, other) for one, other in zip(first[0], second[0], strict=True))
    assert (context.directory.rollouts / "00000000.damaged").exists()
    assert any("00000000.jsonl is damaged" in event.text and "sampled again" in event.text for event in context.directory.events())


def test_each_rollout_has_a_seed_of_its_own() -> None:
    seeds = {rollout_seed(run, step, index) for run in range(3) for step in range(5) for index in range(8)}
    assert len(seeds) == 120
    assert rollout_seed(1, 2, 3) == rollout_seed(1, 2, 3)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_sampler_that_computes_another_policy_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    """A wrong temperature, adapter or precision at the policy service shows in its logprobs, and never trains silently."""
    context, algorithm, _ = ready(tmp_path, tiny_folder, {})
    one_step(algorithm)
    path = context.directory.rollouts / "00000000.jsonl"
    rollouts = read_rollouts(path)
    assert rollouts is not None
    first, *rest = rollouts[1].sampler_logprobs
    rollouts[1] = replace(rollouts[1], sampler_logprobs=(first - 0.5, *rest))
    write_rollouts(path, rollouts)
    with pytest.raises(FailedPreconditionError, match=r"differ by up to 0\.5 nats a token") as error:
        one_step(algorithm)
    assert error.value.field == "endpoints.policy"


def test_the_adaptive_coefficient_and_the_moments_are_in_the_state(tmp_path: Path, tiny_folder: Path) -> None:
    _, algorithm, _ = ready(
        tmp_path, tiny_folder, {"kl_controller": "adaptive", "kl_target": 0.01, "kl_horizon": 40, "kl_coef": 0.1, "normalize_scores": True}
    )
    _, metrics = one_step(algorithm)
    assert metrics["kl_coef"] == 0.1, "the coefficient that was used, not the next one"
    assert metrics["kl"] > 0.012
    state = json.loads(json.dumps(algorithm.state()))
    assert state["kl_controller"]["value"] == pytest.approx(0.1 * (1 + 0.2 * 4 / 40))
    assert state["moments"]["count"] == 4
    assert state["moments"]["mean"] == pytest.approx(metrics["score_mean"], rel=1e-5)
    assert state["first_length"] == metrics["response_tokens"]


def test_the_critic_starts_as_the_reward_model_on_the_scale_of_its_scores(tmp_path: Path, tiny_folder: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", planted_pairs())
    context, algorithm, _ = make_ppo(tmp_path, tiny_folder, {}, {"data": data})
    algorithm.setup()
    folder = context.store.fetch("adapters/rm/versions/1")
    from accord.models.heads import ScalarHead

    stored = ScalarHead.load(folder)
    hidden = torch.randn(3, context.base.hidden_size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(algorithm._critic.head(hidden), (stored(hidden) - 0.25) / 2.0)
    fresh_context, fresh, _ = make_ppo(tmp_path, tiny_folder, {}, {"data": data, "value_from_reward_model": False}, name="fresh")
    fresh.setup()
    assert float(fresh._critic.head(hidden).detach().abs().max()) == 0
    assert fresh_context.adapted.names[:2] == ("policy", "value")


def test_a_start_from_the_reward_model_that_harms_is_said_once(tmp_path: Path, tiny_folder: Path) -> None:
    """A head that says a great deal of each token, and all of it wrong; one that starts from 0 explains nothing, which is no alarm."""
    said = {}
    for name, start in (("warm", True), ("fresh", False)):
        context, algorithm, _ = ready(tmp_path, tiny_folder, {"value_from_reward_model": start, "value_coefficient": 0.0}, name=name)
        with torch.no_grad():
            algorithm._critic.head.weight.mul_(100)
        explained = [one_step(algorithm, step)[1]["explained_variance"] for step in (0, 1)]
        assert all(value < -1 for value in explained) if start else explained[0] == pytest.approx(0, abs=1e-6)
        said[name] = [event.text for event in context.directory.events() if event.text.startswith("alarm: the critic")]
    assert len(said["warm"]) == 1
    assert "ppo.value_from_reward_model: false" in said["warm"][0]
    assert said["fresh"] == []


def test_a_published_policy_is_known_by_what_its_last_step_measured(tmp_path: Path, tiny_folder: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", planted_pairs())
    values = {"steps": 2, "checkpoint_every_steps": 1, "max_response_tokens": 4}
    context, algorithm, _ = make_ppo(tmp_path, tiny_folder, values, {"data": data, "eval_data": {**data, "limit": 2}, "epochs": 1})
    result = train(context, algorithm)
    facts, last = context.store.manifest(result.adapter_version).facts, result.metrics
    for name in ("score_mean", "kl"):
        assert facts[f"rollout_{name}"] == last[name]
    assert facts["eval_score"] == last["eval_score"]
    assert "seconds" not in facts
    first = read_checkpoint(context.directory.checkpoints / "00000001", spec=None).publish["facts"]
    assert "rollout_kl" in first
    assert "eval_score" not in first, "that policy was not evaluated"


def test_old_versions_of_the_policy_lose_their_files(tmp_path: Path, tiny_folder: Path) -> None:
    """A version a step would fill the disk; the manifests stay, for lineage."""
    context, algorithm, _ = ready(tmp_path, tiny_folder, {})
    for step in range(5):
        shake(context, "policy", step)
        one_step(algorithm, step)
    versions = context.store.list("a-rollout")
    assert [manifest.removed for manifest in versions] == [True, True, True, False, False]
    assert all(manifest.facts["transient"] for manifest in versions)


def test_what_a_step_reads_of_old_versions_does_not_grow_with_the_run(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a URL each is a request."""
    monkeypatch.setattr("accord.artefacts.store._TWIN_WINDOW", 4)
    context, algorithm, _ = ready(tmp_path, tiny_folder, {})
    read, counts = type(context.store)._read, []
    monkeypatch.setattr(type(context.store), "_read", lambda store, name: (counts.append(str(name)), read(store, name))[1])
    grown = []
    for step in range(30):
        shake(context, "policy", step)
        algorithm._step = step
        algorithm._publish_rollout_version()
        grown.append(len(counts))
        counts.clear()
    assert grown[29] == grown[15] < 30
    assert [manifest.removed for manifest in context.store.list("a-rollout")] == [True] * 28 + [False] * 2


def test_a_service_that_stays_away_is_an_error_before_anything_changed(tmp_path: Path, tiny_folder: Path) -> None:
    context, algorithm, source = ready(tmp_path, tiny_folder, {})

    def away(*_: Any) -> None:
        raise UnavailableError("policy service at nowhere did not answer")

    source.collect = away
    before = context.adapted.state("policy")
    with pytest.raises(UnavailableError):
        one_step(algorithm)
    assert not (context.directory.rollouts / "00000000.jsonl").exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in context.adapted.state("policy").items())


def test_a_run_without_an_address_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", planted_pairs())
    context = make_context(tmp_path, tiny_folder, {"ppo": {"data": data, "reward_model": "adapters/rm"}})
    publish_reward_model(context)
    with pytest.raises(InvalidArgumentError, match="needs the policy service") as error:
        build(context)
    assert error.value.field == "endpoints.policy"


def test_entropy_is_that_of_the_sampling_temperature(tmp_path: Path, tiny_folder: Path) -> None:
    _, cold, _ = ready(tmp_path, tiny_folder, {"temperature": 0.3}, name="cold")
    _, hot, _ = ready(tmp_path, tiny_folder, {"temperature": 5.0}, name="hot")
    entropies = [one_step(algorithm)[1]["entropy"] for algorithm in (cold, hot)]
    assert entropies[0] < entropies[1] < math.log(259)
