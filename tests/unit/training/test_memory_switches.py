"""Activation checkpointing and bfloat16 as switches of a run: the same gradients, and gradients that are near."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.training.surroundings import run_here, write_rows
from tests.unit.training.test_algorithms import ALGORITHMS, gradients, grouped_rows, prepared
from tests.unit.training.test_ppo_steps import one_step, ready

from accord.models.base import load_base_model
from accord.models.lora import AdaptedModel
from accord.runspec_parts import LoraSpec
from accord.training.recomputation import recompute_activations


@pytest.mark.parametrize("name", ["sft", "reward_model", "dpo"])
def test_activation_checkpointing_gives_the_same_bits(tmp_path: Path, tiny_folder: Path, name: str) -> None:
    (kept, metrics), (again, same) = (
        gradients(prepared(tmp_path, tiny_folder, ALGORITHMS[name], name=f"run-{on:d}", activation_checkpointing=on)[1]) for on in (False, True)
    )
    assert max(float(each.abs().max()) for each in kept) > 1e-3
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
    assert metrics == same


def test_activation_checkpointing_in_ppo_with_two_adapters(tmp_path: Path, tiny_folder: Path) -> None:
    """Policy and critic on one base, each layer computed again under the adapter of its own pass."""
    kept, again = (one_step(ready(tmp_path, tiny_folder, {}, name=f"run-{on:d}", activation_checkpointing=on)[1])[0] for on in (False, True))
    assert all(torch.equal(one, other) for first, second in zip(kept, again, strict=True) for one, other in zip(first, second, strict=True))


class _Saved:
    """Elements of tensors that autograd keeps for the backward pass, each storage once."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        self.storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor


def test_layers_keep_their_input_alone(tiny_folder: Path) -> None:
    kept = []
    for on in (False, True):
        adapted = AdaptedModel(load_base_model(str(tiny_folder), threads=1))
        adapted.add("policy", LoraSpec(rank=4), seed=1)
        if on:
            recompute_activations(adapted)
        ids, saved = torch.arange(3, 103).reshape(2, 50), _Saved()
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            hidden = adapted.hidden(ids, torch.ones_like(ids), adapter="policy")
        weights = {each.untyped_storage().data_ptr() for each in adapted.module.parameters()}
        kept.append(sum(size for pointer, size in saved.storages.items() if pointer not in weights))
        hidden.sum().backward()
    assert kept[1] < 0.5 * kept[0], kept


@pytest.mark.parametrize("name", ["sft", "reward_model", "dpo"])
def test_bfloat16_holds_the_base_and_nothing_else(tmp_path: Path, tiny_folder: Path, name: str) -> None:
    """Adapters, gradients and the loss are float32; the gradient points where that of float32 does."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        context, algorithm = prepared(tmp_path, tiny_folder, ALGORITHMS[name], name=f"run-{dtype}", dtype=dtype)
        frozen = {each.dtype for each in context.base.model.parameters() if not each.requires_grad}
        assert frozen == {getattr(torch, dtype)}
        learning = [each for group in algorithm.parameters().values() for each in group]
        assert {each.dtype for each in learning} == {torch.float32}
        found[dtype] = gradients(algorithm)
    (exact, metrics), (near, rounded) = found["float32"], found["bfloat16"]
    assert {each.dtype for each in near} == {torch.float32}
    one, other = (torch.cat([each.reshape(-1) for each in part]) for part in (exact, near))
    assert not torch.equal(one, other)
    assert float(torch.cosine_similarity(one, other, dim=0)) > 0.98
    assert rounded["loss"] == pytest.approx(metrics["loss"], rel=0.05)


def test_logprobs_of_a_bfloat16_base_are_float32(tmp_path: Path, tiny_folder: Path) -> None:
    _, algorithm, _ = ready(tmp_path, tiny_folder, {}, dtype="bfloat16")
    rollouts = algorithm._rollouts(0)
    logprobs, _, entropy = algorithm._model.logprobs_and_entropy(rollouts, "policy")
    assert {logprobs.dtype, entropy.dtype, algorithm._critic.values(rollouts).dtype} == {torch.float32}


def test_a_run_learns_with_both_switches(tmp_path: Path, tiny_folder: Path) -> None:
    spec: dict[str, Any] = {
        "steps": 8, "batch_size": 6, "dtype": "bfloat16", "activation_checkpointing": True, "optimizer": {"learning_rate": 1e-2},
        "sft": {"data": write_rows(tmp_path / "rows.jsonl", grouped_rows())},
    }  # fmt: skip
    result, events = run_here(tmp_path, tiny_folder, spec)
    losses = [event.values["loss"] for event in events if event.kind == "metrics" and "loss" in event.values]
    assert result.step == 8
    assert losses[-1] < 0.8 * losses[0]
