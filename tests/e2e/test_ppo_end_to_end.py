"""PPO through real policy and reward servers: what comes back over the wire is what the trainer computes, and nothing that dies changes the result."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pytest
import torch
from tests.contract.harness import ServerProcess
from tests.e2e.rollout_world import World, assert_same_curve, rollout_world
from tests.e2e.runs import TrainingRun, kill_between_checkpoints, stop_and_resume

from accord.algos.kl import k3
from accord.artefacts.store import ArtefactStore
from accord.models.base import load_base_model
from accord.models.batching import collate
from accord.models.heads import HeadFacts, ScalarHead
from accord.models.logprobs import response_logprobs
from accord.models.lora import AdaptedModel
from accord.training.rollout import Rollout, read_rollouts

STEPS, EVERY, TEMPERATURE = 8, 3, 0.7
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with rollout_world(tmp_path_factory.mktemp("ppo")) as made:
        yield made


def ppo(
    world: World, name: str, *, part: Mapping[str, Any] = MappingProxyType({}), values: Mapping[str, Any] = MappingProxyType({}), **more: Any
) -> TrainingRun:  # fmt: skip
    """A PPO run, not yet started; `part` are more fields of its own, `values` of the specification."""
    data = world.data
    spec = {
        "steps": STEPS, "batch_size": 6, "micro_batch_size": 2, "checkpoint_every_steps": EVERY, "max_prompt_tokens": 120, "max_response_tokens": 12,
        "lora": {"rank": 4}, "seed": 5, "parent_adapter": world.start, "optimizer": {"learning_rate": 1e-3},
        "ppo": {
            "data": data, "eval_data": {**data, "limit": 3}, "reward_model": world.reward_models[0], "epochs": 3, "minibatch_size": 3,
            "temperature": TEMPERATURE, "ptx_coefficient": 0.3, "ptx_data": data, "kl_controller": "adaptive", "kl_target": 0.05, "kl_horizon": 50,
            "normalize_scores": True, **part,
        },
        **values,
    }  # fmt: skip
    return world.run(name, spec, **more)


@pytest.fixture(scope="module")
def straight(world: World) -> Iterator[TrainingRun]:
    """The run that nobody disturbs."""
    run = ppo(world, "straight").start()
    run.finish()
    yield run
    run.close()


def rollouts_of(run: TrainingRun, step: int) -> list[Rollout]:
    found = read_rollouts(run.directory.rollouts / f"{step:08d}.jsonl")
    assert found is not None
    return found


def differences(world: World, rollouts: list[Rollout], version: str, temperature: float = TEMPERATURE) -> torch.Tensor:
    """log-ratio of each sampled token: what this process computes under a version, less what came back over the wire."""
    adapted = AdaptedModel(load_base_model(str(world.model), threads=1))
    adapted.load("policy", ArtefactStore(str(world.root / "artefacts")).fetch(version))
    with torch.no_grad():
        mine = response_logprobs(adapted, [(each.prompt_ids, each.response_ids) for each in rollouts], adapter="policy", temperature=temperature)
    return torch.cat(mine).double() - torch.tensor([logprob for each in rollouts for logprob in each.sampler_logprobs], dtype=torch.float64)


def test_logprobs_over_the_wire_are_those_that_the_trainer_computes(world: World, straight: TrainingRun) -> None:
    """REFERENCES.md section 3: ratio 1 and approx_kl < 1e-6 at the first epoch, so tokens, template, temperature and adapter agree end to end."""
    first = rollouts_of(straight, 0)
    parent = world.start
    log_ratio = differences(world, first, parent)
    assert float(log_ratio.exp().mean()) == pytest.approx(1, abs=1e-5)
    assert float(k3(-log_ratio).mean()) < 1e-6
    last = rollouts_of(straight, STEPS - 1)
    assert float(k3(-differences(world, last, last[0].adapter_version)).mean()) < 1e-6
    assert float(k3(-differences(world, last, parent)).mean()) > 1e-5, "the policy has moved, and its service moved with it"
    assert float(k3(-differences(world, first, parent, temperature=1.0)).mean()) > 1e-3, "the measure would notice another temperature"


def test_the_run_itself_saw_a_ratio_of_one_at_every_step(straight: TrainingRun) -> None:
    for step, metrics in straight.curve().items():
        if step:
            assert 0 <= metrics["sampler_approx_kl"] < 1e-6
            assert metrics["sampler_gap_max"] < 1e-3
            assert metrics["first_ratio_mean"] == pytest.approx(1, abs=1e-5)
            assert metrics["first_approx_kl"] < 1e-6
            assert metrics["first_clip_fraction"] == 0
    assert straight.curve()[1]["kl"] == pytest.approx(0, abs=1e-5), "it starts as its reference"
    assert not [event.text for event in straight.directory.events() if event.text.startswith("alarm: the ratio")]


def test_scores_over_the_wire_are_those_of_the_reward_model(world: World, straight: TrainingRun) -> None:
    store = ArtefactStore(str(world.root / "artefacts"))
    name = world.reward_models[0]
    adapted = AdaptedModel(load_base_model(str(world.model), threads=1))
    adapted.load("reward", store.fetch(name))
    head, facts = ScalarHead.load(store.fetch(name)), HeadFacts.from_facts(store.manifest(name).facts)
    rollouts = rollouts_of(straight, 2)
    with torch.no_grad():
        end = (adapted.base.encoder.end_of_turn_id,)  # of those that were cut
        read = [(each.prompt_ids, each.response_ids if each.ended else (*each.response_ids, *end)) for each in rollouts]
        batch = collate(read, pad_id=adapted.base.pad_token_id)
        hidden = adapted.hidden(batch.input_ids, batch.attention_mask, adapter="reward", position_ids=batch.position_ids)
        raw = head.at_last_token(hidden, batch.attention_mask)
    assert [each.score for each in rollouts] == pytest.approx(((raw - facts.mean) / facts.std).tolist(), abs=1e-4)


def test_every_rollout_was_sampled_and_used_once(straight: TrainingRun) -> None:
    files = sorted(path.name for path in straight.directory.rollouts.iterdir())
    assert files == [f"{step:08d}.jsonl" for step in range(STEPS)]
    seeds = [each.seed for step in range(STEPS) for each in rollouts_of(straight, step)]
    assert len(set(seeds)) == len(seeds) == STEPS * 6


def test_scored_by_itself_a_run_has_the_scores_of_the_reward_service(world: World, straight: TrainingRun) -> None:
    run = ppo(world, "local", reward="local").start()
    try:
        run.finish()
        mine, theirs = rollouts_of(run, 0), rollouts_of(straight, 0)
        assert [each.response_ids for each in mine] == [each.response_ids for each in theirs]
        assert [each.score for each in mine] == pytest.approx([each.score for each in theirs], abs=1e-4)
    finally:
        run.close()


def test_killed_it_scores_by_itself_and_shares_its_lower_layers_with_the_same_bits(world: World) -> None:
    """Policy and critic are on the last layer, and the reward model, on all of them, is computed beside what they share."""

    def start(name: str) -> TrainingRun:
        values = {"lora": {"rank": 4, "last_layers": 1}, "parent_adapter": ""}
        return ppo(world, name, part={"value_from_reward_model": False}, values=values, reward="local").start()

    whole = start("shared")
    whole.finish()
    for attempt in range(3):
        run = start(f"shared-disturbed-{attempt}")
        if kill_between_checkpoints(run, after_step=EVERY + 1, before_step=2 * EVERY):
            break
    else:
        raise AssertionError("three kills came too late")
    run.start().finish()
    assert run.published() == whole.published()
    assert_same_curve(run, whole)
    run.close()
    whole.close()


def test_killed_and_stopped_it_publishes_the_bits_of_an_undisturbed_run(world: World, straight: TrainingRun) -> None:
    for attempt in range(3):
        run = ppo(world, f"disturbed-{attempt}").start()
        if kill_between_checkpoints(run, after_step=EVERY + 1, before_step=2 * EVERY):
            break
    else:
        raise AssertionError("three kills came too late")
    sampled = {path.name: path.read_bytes() for path in run.directory.rollouts.iterdir()}
    run.start()
    stop_and_resume(run, after_step=EVERY + 2, steps=STEPS)
    run.start().finish()
    assert run.published() == straight.published()
    assert_same_curve(run, straight)
    for name, content in sampled.items():
        assert (run.directory.rollouts / name).read_bytes() == content, "what was sampled before the kill was not sampled again"
        for mine, other in zip(_rows(content), _rows((straight.directory.rollouts / name).read_bytes()), strict=True):
            assert mine.pop("sampler_logprobs") == pytest.approx(other.pop("sampler_logprobs"), abs=1e-4)
            assert mine == other
    critic = [path.directory.checkpoints / f"{STEPS:08d}" for path in (run, straight)]
    for file in ("value/adapter_model.safetensors", "value/head.safetensors", "optimizer.safetensors"):
        assert (critic[0] / file).read_bytes() == (critic[1] / file).read_bytes()


def _rows(content: bytes) -> list[dict[str, Any]]:
    return [{**json.loads(line), "adapter_version": ""} for line in content.splitlines()[:-1]]


def test_a_reward_service_that_dies_is_waited_for_and_changes_nothing(world: World, straight: TrainingRun) -> None:
    run = ppo(world, "patient").start()
    run.until(lambda: run.last_step() >= 2)
    address = world.reward.address
    world.reward.kill()
    waiting = run.until(lambda: [event for event in run.events() if event.waiting_on])
    assert f"reward service at {address}" in waiting[0].waiting_on
    assert "UNAVAILABLE" in waiting[0].waiting_on
    assert waiting[0].phase == "rollouts"
    world.reward = world.start_reward(address)
    assert world.reward.address == address
    run.finish()
    assert any("is back after" in event.text for event in run.events())
    assert run.published() == straight.published()
    assert_same_curve(run, straight)


def test_a_policy_service_that_stays_away_ends_the_run_with_its_work_kept(world: World, straight: TrainingRun) -> None:
    """It gives up after wait_seconds, behind a checkpoint; started again with the service there, it ends as if nothing had been."""
    gone = ServerProcess("accord.policy", world.server_config(), world.root).__enter__()
    run = ppo(world, "impatient", wait_seconds=6.0)
    written = run.directory.path / "run.yaml"
    text = written.read_text()
    written.write_text(text.replace(world.policy.address, gone.address))
    run.start()
    run.until(lambda: run.last_step() >= 1)
    gone.kill()
    assert run.wait() == 4
    result = run.directory.result()
    assert result is not None
    assert f"policy service at {gone.address}" in result.message
    assert "wait_seconds 6" in result.message
    assert 1 <= result.step < STEPS
    assert (run.directory.checkpoints / f"{result.step:08d}").is_dir()
    written.write_text(text)
    run.start().finish()
    assert run.published() == straight.published()


def test_one_step_ahead_killed_it_publishes_the_bits_of_an_undisturbed_run(world: World) -> None:
    """The batch that was under way when it died is sampled again by the policy that was to sample it."""
    ahead = {"max_staleness": 1}
    straight = ppo(world, "ahead-straight", part=ahead).start()
    straight.finish()
    curve = straight.curve()
    assert [curve[step]["staleness"] for step in range(1, STEPS + 1)] == [0] + [1] * (STEPS - 1)
    assert all(curve[step]["sampler_gap_max"] < 1e-3 for step in range(1, STEPS + 1)), "the policy that sampled is the one that is corrected for"
    assert any(abs(curve[step]["behaviour_weight_mean"] - 1) > 1e-6 for step in range(2, STEPS + 1))
    for attempt in range(3):
        run = ppo(world, f"ahead-{attempt}", part=ahead).start()
        if kill_between_checkpoints(run, after_step=EVERY + 1, before_step=2 * EVERY):
            break
    else:
        raise AssertionError("three kills came too late")
    run.start().finish()
    assert run.published() == straight.published()
    assert_same_curve(run, straight)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("service", ["policy", "reward"])
@pytest.mark.parametrize("outages", [(1.0,), (10.0,), (60.0,), (0.0, 2.0, 0.5)], ids=["1-s", "10-s", "60-s", "flapping"])
def test_real_servers_that_go_away_change_nothing(world: World, straight: TrainingRun, service: str, outages: tuple[float, ...]) -> None:
    run = ppo(world, f"outage-{service}-{len(outages)}-{int(outages[0])}", wait_seconds=300.0).start()
    for number, seconds in enumerate(outages, start=1):
        run.until(lambda number=number: run.last_step() >= number)  # type: ignore[misc]
        server: ServerProcess = getattr(world, service)
        server.kill()
        time.sleep(seconds)
        setattr(world, service, ServerProcess(f"accord.{service}", world.server_config(server.address), world.root).__enter__())
    run.finish()
    said = [event.waiting_on for event in run.directory.events() if event.waiting_on]
    assert said
    assert all(text.startswith(f"{service} service at {getattr(world, service).address}: ") for text in said)
    assert run.published() == straight.published()
    assert_same_curve(run, straight)
