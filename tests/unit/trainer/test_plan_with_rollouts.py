"""What a plan counts for the algorithms with rollouts: prompts, all data they read, adapters of policy and reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from accord.models.testing import tiny_model_folder
from accord.runspec import RunSpec, parse_spec
from accord.trainer.planner import data_specs, make_plan


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
