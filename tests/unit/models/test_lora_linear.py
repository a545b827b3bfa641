"""The layer's numbers and gradients, against PEFT's own layer and against finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from torch import nn

from accord.models.lora_linear import _LoraLinear, replace_forward


def layers(*, bias: bool = True, dropout: float = 0.0) -> tuple[Any, Any]:
    """PEFT's layer with an adapter that does something, and a second one that computes as this package does."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 20, bias=bias))
        layer: Any = LoraModel(
            model, LoraConfig(r=3, lora_alpha=5, target_modules=["0"], init_lora_weights=False, lora_dropout=dropout), "one"
        ).model[0]
        made.append(layer.eval())
    replace_forward(made[1])
    return made[0], made[1]


def outcome(layer: Any, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    out = layer(x)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [out.detach(), x.grad, layer.lora_A["one"].weight.grad, layer.lora_B["one"].weight.grad]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 7, 12), (5, 12)])
def test_numbers_and_gradients_are_pefts(shape: tuple[int, ...], bias: bool) -> None:
    theirs, ours = layers(bias=bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for expected, found in zip(outcome(theirs, x), outcome(ours, x), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert ours.base_layer.weight.grad is None


def test_gradients_are_finite_differences() -> None:
    generator = torch.Generator().manual_seed(2)
    x, a, b = (torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 4), (2, 4), (5, 2)))
    weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((5, 4), (5,)))
    assert torch.autograd.gradcheck(lambda x, a, b: _LoraLinear.apply(x, weight, bias, a, b, 0.7), (x, a, b))


def test_an_input_without_gradient_gets_none_and_the_factors_do() -> None:
    _, ours = layers()
    ours(torch.ones(2, 12)).sum().backward()
    assert ours.lora_A["one"].weight.grad.abs().sum() > 0


def test_an_adapter_that_is_off_leaves_the_base_bit_for_bit() -> None:
    theirs, ours = layers()
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(3))
    for layer in (theirs, ours):
        layer.enable_adapters(False)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours(x), ours.base_layer(x))


@pytest.mark.parametrize("change", ["dropout", "trained base", "another type of number"])
def test_what_it_does_not_know_is_left_to_peft(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("computed here")

    _, ours = layers(dropout=0.5 if change == "dropout" else 0.0)
    x = torch.ones(2, 12)
    if change == "dropout":
        ours.train()
    elif change == "trained base":
        ours.base_layer.weight.requires_grad_(True)
    else:
        ours.base_layer.bfloat16()
        x = x.bfloat16()
    monkeypatch.setattr(_LoraLinear, "apply", never)
    assert ours(x).shape == (2, 20)
