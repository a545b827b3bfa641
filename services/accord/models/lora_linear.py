"""A linear layer with frozen weights and one LoRA adapter as a single step of autograd.

PEFT's own layer makes three tensors of the output's size and their gradients where one is enough: the adapter's part is here added by the matrix
product itself, and the scale is applied to the few columns of the rank. Hu et al. 2021, "LoRA" (arXiv:2106.09685), eq. 3. What does not belong
here: which adapter counts (`accord.models.lora`), serving (`accord.models.kernels`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def replace_forward(layer: Any) -> None:
    """Lets a PEFT layer compute as this module does where it can (see `_plain`), and as PEFT elsewhere. A second call does nothing."""
    if not isinstance(layer.forward, partial):
        layer.forward = partial(_forward, layer, layer.forward)


def _forward(layer: Any, otherwise: Callable[..., Tensor], x: Tensor) -> Tensor:
    base = layer.base_layer
    if layer.disable_adapters or not layer.active_adapters:
        plain: Tensor = base(x)
        return plain
    (name,) = layer.active_adapters
    if name not in layer.lora_A or not _plain(layer, base, name, x):
        return otherwise(x)
    out: Tensor = _LoraLinear.apply(x, base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])  # type: ignore[no-untyped-call]
    return out


def _plain(layer: Any, base: Any, name: str, x: Tensor) -> bool:
    """Frozen weights, one type of number throughout, no dropout and no other kind of adapter."""
    factors = (layer.lora_A[name], layer.lora_B[name])
    return (
        type(base) is nn.Linear
        and not base.weight.requires_grad
        and {base.weight.dtype, x.dtype, *(factor.weight.dtype for factor in factors)} == {x.dtype}
        and all(factor.bias is None for factor in factors)
        and not torch.is_autocast_enabled(x.device.type)
        and not (layer.training and getattr(layer.lora_dropout[name], "p", 0))
        and name not in layer.lora_variant
        and not layer.merged
    )


class _LoraLinear(torch.autograd.Function):
    """x W' + bias + scale (x A') B' for x (..., in), W (out, in), A (rank, in), B (out, rank); gradients for x, A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = (rows @ a.T).mul_(scale)
        out = F.linear(rows, weight, bias).addmm_(low, b.T)
        ctx.save_for_backward(rows, weight, a, b, low)
        ctx.scale = scale
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, weight, a, b, low = ctx.saved_tensors
        of_x, _, _, of_a, of_b, _ = ctx.needs_input_grad
        above = gradient.reshape(-1, gradient.shape[-1])
        above_low = (above @ b).mul_(ctx.scale)
        grad_x = (above @ weight).addmm_(above_low, a).view(*gradient.shape[:-1], weight.shape[1]) if of_x else None
        return grad_x, None, None, above_low.T @ rows if of_a else None, above.T @ low if of_b else None, None
