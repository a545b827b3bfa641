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
