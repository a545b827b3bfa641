"""Five steps of DPO on the tiny model: the curve may not move by more than 1e-5 unless somebody meant it to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.unit.training.surroundings import make_context, planted_pairs, write_rows

from accord.models.testing import tiny_model_folder
from accord.training.__main__ import build
from accord.training.loop import train

KEPT = ("loss", "margin", "accuracy", "grad_norm", "chosen_reward", "rejected_reward", "learning_rate", "tokens")


def test_five_steps_of_dpo(golden: Callable[[str, str], str], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = tiny_model_folder(tmp_path / "model")
    spec = {
        "steps": 5, "seed": 3, "optimizer": {"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 2, "weight_decay": 0.01},
        "dpo": {"data": write_rows(tmp_path / "rows.jsonl", planted_pairs()), "beta": 0.2},
    }  # fmt: skip
    context = make_context(tmp_path, model, spec)
    result = train(context, build(context))
    torch.set_num_threads(threads)
    steps = [{name: event.values[name] for name in KEPT} for event in context.directory.events() if "loss" in event.values]
    weights = load_file(context.store.fetch(result.adapter_version) / "adapter_model.safetensors")
    norms = {name: float(tensor.double().norm()) for name, tensor in sorted(weights.items())}
    now = {"steps": steps, "norms": norms}
    stored = json.loads(golden("dpo-trajectory.json", json.dumps(now, indent=1) + "\n"))
    assert len(steps) == len(stored["steps"]) == 5
    for mine, before in zip(steps, stored["steps"], strict=True):
        assert mine == pytest.approx(before, rel=1e-5, abs=1e-5)
    assert norms == pytest.approx(stored["norms"], rel=1e-4, abs=1e-5)
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert steps[-1]["loss"] < steps[1]["loss"]
