"""What a plan counts for the algorithms with rollouts: prompts, all data they read, adapters of policy and reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from accord.client import trainer as client
from accord.models.testing import tiny_model_folder
from accord.runspec import RunSpec, parse_spec
from accord.runspec_parts import LoraSpec
from accord.trainer.calibration import Speed
from accord.trainer.convert import plan_to_proto
from accord.trainer.lengths import Lengths, Row
from accord.trainer.planner import Plan, data_specs, make_plan
from accord.trainer.shape import ModelShape
from accord.trainer.workload import Workload

OPERATIONS_ONLY = Speed(1.0, 1e30)
PROMPT, RESPONSE, ROWS, STEPS = 20, 10, 8, 5


def spec_of(root: Path, kind: str) -> RunSpec:
    rows = [{"prompt": f"say {n}"} for n in range(7)]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"uri": str(root / "prompts.jsonl")}
    scored = {} if kind == "online_dpo" else {"reward_model": "adapters/r/versions/1"}
    return parse_spec({"adapter": "a", "steps": 1, kind: {"data": data, "eval_data": {**data, "limit": 2}, **scored}})


@pytest.mark.parametrize("kind", ["ppo", "grpo", "rloo", "online_dpo"])
def test_prompts_are_counted_and_both_data_sets_named(tmp_path: Path, kind: str) -> None:
    spec = spec_of(tmp_path, kind)
    assert make_plan(spec, None, 2**40).rows == 7
    assert set(data_specs(spec)) == {f"{kind}.data", f"{kind}.eval_data"}


def test_without_a_critic_there_is_one_adapter_less(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "model")
    sizes = {}
    for kind in ("ppo", "grpo", "rloo", "online_dpo"):
        memory = {item.role: item.bytes for item in make_plan(spec_of(tmp_path, kind), folder, 2**40).memory}
        sizes[kind] = (memory["adapters"], memory["gradients and Adam moments"])
    adapter = sizes["ppo"][0] / 3
    assert sizes["grpo"] == sizes["rloo"] == sizes["online_dpo"] == (2 * adapter, 3 * adapter)
    assert sizes["ppo"][1] == 6 * adapter


@pytest.mark.parametrize("kind", ["ppo", "grpo", "rloo", "online_dpo"])
def test_local_reward_models_and_the_policy_that_sampled_are_counted(tmp_path: Path, kind: str) -> None:
    folder = tiny_model_folder(tmp_path / "model")
    spec = spec_of(tmp_path, kind)
    values = spec.model_dump(exclude_none=True)
    if kind != "online_dpo":
        values[kind]["more_reward_models"] = ("adapters/s/versions/1",)
        values["guards"] = {"held_out_reward_model": "adapters/t/versions/1"}
    plain, local = (make_plan(parse_spec(values), folder, 2**40, local_scores=local) for local in (False, True))
    adapter = next(item.bytes for item in plain.memory if item.role == "adapters") / (3 if kind == "ppo" else 2)
    assert local.peak_bytes - plain.peak_bytes == (0 if kind == "online_dpo" else 3 * adapter)
    if kind == "ppo":
        values["ppo"]["max_staleness"] = 1
        ahead = make_plan(parse_spec(values), folder, 2**40)
        assert ahead.peak_bytes - plain.peak_bytes == adapter


def work(folder: Path, kind: str = "ppo", part: dict[str, Any] | None = None, **values: Any) -> Workload:
    """A run of five steps of eight rollouts, over prompts of one length."""
    given = {"data": {"uri": "sample:summarization"}, "reward_model": "adapters/r/versions/1", **(part or {})}
    common = {"adapter": "a", "steps": STEPS, "batch_size": ROWS, "max_response_tokens": RESPONSE, "lora": {"rank": 4}}
    return Workload(parse_spec({**common, kind: given, **values}), ModelShape.read(folder), Lengths((Row(PROMPT, 0, 0),), 1.0))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("part", "guarded", "passes"),
    [
        ({}, False, 1),
        ({"more_reward_models": ("adapters/s/versions/1", "adapters/s/versions/2")}, False, 3),
        ({"more_reward_models": ("adapters/s/versions/1",)}, True, 3),
        ({"reward_model": "", "judge_reward": {"task": "summarization"}}, False, 0),
        ({"reward_model": "", "judge_reward": {"task": "summarization"}}, True, 1),
    ],
)
def test_every_reward_model_reads_every_response(model: Path, part: dict[str, Any], guarded: bool, passes: int) -> None:
    """Against sampling alone, by hand: prompts once, then a pass for each token."""
    guards = {"guards": {"held_out_reward_model": "adapters/t/versions/1"}} if guarded else {}
    shape, adapter = ModelShape.read(model), ModelShape.read(model).adapter_parameters(LoraSpec(rank=4))
    sampling = shape.forward_operations(ROWS * PROMPT, PROMPT, ROWS, adapter)
    sampling += RESPONSE * shape.forward_operations(ROWS, PROMPT + RESPONSE / 2, ROWS, adapter)
    scoring = shape.forward_operations(ROWS * (PROMPT + RESPONSE), PROMPT + RESPONSE, 0, adapter)
    found = work(model, part=part, **guards)
    assert found.evaluation_seconds(OPERATIONS_ONLY, 1, ROWS) == pytest.approx(sampling + passes * scoring)
    plain = work(model, part=part)
    assert found.step_seconds(OPERATIONS_ONLY, 1) - plain.step_seconds(OPERATIONS_ONLY, 1) == pytest.approx(guarded * scoring)


def test_held_out_models_are_in_memory_beside_a_judge_too(model: Path) -> None:
    part = {"reward_model": "", "judge_reward": {"task": "summarization"}}
    guarded = work(model, part=part, guards={"held_out_reward_model": "adapters/t/versions/1"})
    local = Workload(guarded.spec, guarded.shape, guarded.lengths, local_scores=True)
    (item,) = (item for item in local.memory() if item.role == "local reward models")
    assert item.bytes == 4 * local.shape.adapter_parameters(LoraSpec(rank=4))


@pytest.mark.parametrize("members", [16, 1], ids=["sampling is longer", "learning is longer"])
def test_one_step_ahead_the_longer_of_sampling_and_learning_counts(model: Path, members: int) -> None:
    """The services' time is that of an evaluation over as many rows. In all: every batch is sampled and learnt from once, and only the first sampling
    and the last learning have nothing beside them."""
    slow, more = OPERATIONS_ONLY, tuple(f"adapters/s/versions/{number}" for number in range(1, members))
    plain, ahead = (work(model, part={"epochs": 1, "more_reward_models": more, "max_staleness": stale}) for stale in (0, 1))
    sampling = plain.evaluation_seconds(slow, 1, ROWS)
    learning = plain.step_seconds(slow, 1) - sampling
    read = ahead._read(slow, 1, *plain.rows.batch(ROWS, plain.micro))  # that of the policy that sampled
    assert ahead._own_seconds(slow, 1) == pytest.approx(learning + read)
    assert (sampling > learning + read) == (members > 1)
    assert ahead.step_seconds(slow, 1) == pytest.approx(max(sampling, learning + read))
    whole = STEPS * ahead.step_seconds(slow, 1) + ahead.once_seconds(slow, 1, 100)
    assert whole == pytest.approx(sampling + (STEPS - 1) * max(sampling, learning + read) + learning + read)
    assert plain.once_seconds(slow, 1, 100) == 0


def test_the_time_of_a_step_is_a_field_on_the_wire() -> None:
    plan = client._plan(plan_to_proto(Plan((), 0, seconds=100.5, step_seconds=2.25), ""))
    assert (plan.estimated_seconds, plan.step_seconds) == (100.5, 2.25)
    assert client._plan(plan_to_proto(Plan((), 0), "")).step_seconds is None
