"""Runs whose adapters leave the lower layers alone: what is computed once for a step does not change what is learnt, nor its bits after a kill."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.training.surroundings import make_ppo, planted_pairs, write_rows
from torch import Tensor

from accord.models.lora import AdaptedModel
from accord.training.optim import Optimizer
from accord.training.rollout import Rollout


def step(root: Path, model: Path, name: str, rollouts: Path | None = None, *, last_layers: int = 1) -> tuple[dict[str, Tensor], Path]:
    """The policy after a step of PPO, and the file of its rollouts; with `rollouts`, from those that a killed process left."""
    data = write_rows(root / "rows.jsonl", planted_pairs())
    values: dict[str, Any] = {
        "steps": 2, "batch_size": 6, "micro_batch_size": 2, "lora": {"rank": 4, "last_layers": last_layers},
    }  # fmt: skip
    context, algorithm, source = make_ppo(root, model, values, {"data": data, "epochs": 2, "minibatch_size": 3}, name=name)
    source.spread = 3
    algorithm.setup()
    path = algorithm._rollout_path(0)
    if rollouts is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(rollouts, path)
    algorithm.step(0, Optimizer(algorithm.parameters(), context.spec.optimizer, learning_rate=1e-2, total_steps=2))
    assert len(source.calls) == (rollouts is None)
    return context.adapted.state("policy"), path


def test_a_step_after_a_kill_has_the_bits_of_the_undisturbed_one(tmp_path: Path, tiny_folder: Path) -> None:
    """The killed process's sampling and scoring had put other companies of rows into what is shared."""
    whole, rollouts = step(tmp_path, tiny_folder, "whole")
    again, _ = step(tmp_path, tiny_folder, "again", rollouts)
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_what_is_shared_changes_nothing_but_rounding(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, rollouts = step(tmp_path, tiny_folder, "shared")
    monkeypatch.setattr(AdaptedModel, "shared_trunk", lambda self: contextlib.nullcontext())
    apart, _ = step(tmp_path, tiny_folder, "apart", rollouts)
    for key in shared:
        torch.testing.assert_close(shared[key], apart[key], rtol=1e-3, atol=1e-4)
    assert any(tensor.abs().max() > 1e-3 for key, tensor in shared.items() if "lora_B" in key)


def test_responses_with_other_end_tokens_share_it_too(tmp_path: Path, tiny_folder: Path) -> None:
    """Reward models read them with the end of the turn in its place, the policy as they were sampled: once computed, nothing is computed again."""
    data = write_rows(tmp_path / "rows.jsonl", planted_pairs())
    values: dict[str, Any] = {"batch_size": 6, "micro_batch_size": 2, "lora": {"rank": 4, "last_layers": 1}}
    context, algorithm, _ = make_ppo(tmp_path, tiny_folder, values, {"data": data})
    algorithm.setup()
    rollouts = [
        Rollout(f"p{n}", (1, 9 + n), (20 + n, 0 if n % 2 else 2), (-0.5, -0.5), 1.0, True, n, "v", (1.0,)) for n in range(6)
    ]  # fmt: skip
    with context.shared_trunk(), torch.no_grad():
        algorithm._prepare_trunk(rollouts)
        trunk = context.adapted.trunk
        assert trunk is not None
        computed = len(trunk._groups)
        algorithm._tensors(rollouts)
        algorithm._critic.values(rollouts)
        assert len(trunk._groups) == computed
