"""TRL's models beside ours: our adapter merged into plain weights, and gradients of those weights as gradients of the adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from accord.training.context import RunContext


def merged(context: RunContext, adapter: str) -> nn.Module:
    """A plain copy of the base model with the adapter's update added to its weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(context.base.folder)
    state = context.adapted.state(adapter)
    scale = context.spec.lora.scale_alpha / context.spec.lora.rank
    with torch.no_grad():
        for key in (key for key in state if key.endswith("lora_A.weight")):
            module = model.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            module.weight += scale * state[key.replace("lora_A", "lora_B")] @ state[key]
    return model


@dataclass
class Ours:
    """A run whose adapter is shaken, with loss and gradients of its first step."""

    context: RunContext
    algorithm: Any
    loss: float
    gradients: dict[str, Tensor]

    def assert_equals(self, peer: nn.Module, loss: float, *, factor: float = 1.0) -> None:
        """Whether loss and gradients are `factor` times the peer's, whose gradients its parameters hold."""
        assert factor * loss == pytest.approx(self.loss, abs=1e-5), (loss, self.loss)
        name, scale = self.context.adapted.names[0], factor * self.context.spec.lora.scale_alpha / self.context.spec.lora.rank
        state, largest = self.context.adapted.state(name), 0.0
        for key in (key for key in state if key.endswith("lora_A.weight")):
            gradient = peer.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")).weight.grad
            other = key.replace("lora_A", "lora_B")
            torch.testing.assert_close(self.gradients[key], scale * state[other].T @ gradient, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(self.gradients[other], scale * gradient @ state[key].T, rtol=1e-4, atol=1e-5)
            largest = max(largest, float(self.gradients[key].abs().max()))
        assert largest > 1e-2, "gradients of nothing prove nothing"


def arguments(root: Path, rows: int) -> dict[str, Any]:
    """What all of TRL's configurations need here, with so many rows at once."""
    return {
        "output_dir": str(root / "trl"), "report_to": [], "use_cpu": True, "bf16": False, "fp16": False, "gradient_checkpointing": False,
        "disable_dropout": True, "per_device_train_batch_size": rows,
    }  # fmt: skip
