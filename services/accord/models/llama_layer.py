"""A decoder layer of the Llama shape for inference: the same numbers as transformers' layer, in a third of the operations.

What does not belong here: other shapes of layers (they keep transformers' code), and training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from accord.models.fused import FusedPlan, fused_gate, fused_norm
from accord.models.kernels import Linears, Routing
from accord.models.ragged import Plan

_KNOWN = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer")
_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")


def is_llama_layer(layer: nn.Module) -> bool:
    """Whether transformers' layer is one of those that `LlamaLayer` computes."""
    sliding = getattr(getattr(layer, "self_attn", None), "sliding_window", None)
    silu = getattr(getattr(layer, "mlp", None), "act_fn", None)
    return type(layer).__name__ in _KNOWN and sliding is None and type(silu).__name__ in ("SiLU", "SiLUActivation")


class LlamaLayer(nn.Module):
    """Takes transformers' layer over; called in its place, with the `ragged` plan.

    Args:
        layer: for which `is_llama_layer` holds.
        name: full name of the layer in the model, for adapters' keys.
        routing: shared by all layers of a model.
        pack: as in `Linears`.
    """

    def __init__(self, layer: Any, name: str, routing: Routing, *, pack: bool = True) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.layer_idx = int(attention.layer_idx)
        self._head_size = int(attention.head_dim)
        self._heads = attention.q_proj.out_features // self._head_size
        self._kv_heads = attention.k_proj.out_features // self._head_size
        self._scaling = float(attention.scaling)
        self._width = attention.q_proj.in_features
        self._before, self._after = layer.input_layernorm.weight.detach().clone(), layer.post_attention_layernorm.weight.detach().clone()
        self._epsilon = float(layer.input_layernorm.variance_epsilon)
        self.qkv = Linears(_named(attention, f"{name}.self_attn", _ATTENTION), routing, pack=pack)
        self.out = Linears(_named(attention, f"{name}.self_attn", ("o_proj",)), routing, pack=pack)
        self.gate_up = Linears(_named(mlp, f"{name}.mlp", _MLP), routing, pack=pack)
        self.down = Linears(_named(mlp, f"{name}.mlp", ("down_proj",)), routing, pack=pack)
        self._inner = mlp.gate_proj.out_features
        self._mean = torch.full((self._width, 1), 1 / self._width, dtype=self._before.dtype, device=self._before.device)

    @property
    def geometry(self) -> dict[str, int]:
        """Query heads, key heads and head size."""
        return {"heads": self._heads, "kv_heads": self._kv_heads, "size": self._head_size}

    def fused(self, rows: Tensor, plan: FusedPlan) -> Tensor:
        """Maps (T, hidden) to the same shape by compiled kernels."""
        qkv = self.qkv.forward(fused_norm(rows, self._before, self._epsilon))
        found = plan.attend(self.layer_idx, qkv.view(rows.shape[0], -1, self._head_size), self._scaling)
        rows = self.out.plus(found.view(rows.shape[0], -1), rows)
        inner = fused_gate(self.gate_up.forward(fused_norm(rows, self._after, self._epsilon)))
        return self.down.plus(inner, rows)

    def forward(self, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], ragged: Plan, **_: object) -> Tensor:
        """Maps (1, T, hidden) to the same shape."""
        rows = hidden_states[0]
        count, heads, kv_heads = rows.shape[0], self._heads, self._kv_heads
        qkv = self.qkv.forward(self._norm(rows, self._before)).view(count, heads + 2 * kv_heads, self._head_size)
        turned = _rotate(qkv[:, : heads + kv_heads], *position_embeddings)
        found = ragged.attend(self.layer_idx, turned[:, :heads], turned[:, heads:], qkv[:, heads + kv_heads :], self._scaling)
        rows = self.out.plus(found.view(count, -1), rows)
        both = self.gate_up.forward(self._norm(rows, self._after))
        inner = F.silu(both[:, : self._inner]).mul_(both[:, self._inner :])
        return self.down.plus(inner, rows)[None]

    def _norm(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Root mean square norm (Zhang and Sennrich 2019, arXiv:1910.07467). In float32 by a product: PyTorch's own takes four times as long here."""
        if rows.dtype != torch.float32:
            return torch.rms_norm(rows, (self._width,), weight, self._epsilon)
        scale = torch.mm(rows * rows, self._mean).add_(self._epsilon).rsqrt_()
        return torch.mul(rows, scale).mul_(weight)


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (T, heads, D) with cos and sin of (1, T, D), whose halves are equal (Su et al. 2021, arXiv:2104.09864)."""
    half = states.shape[-1] // 2
    left, right = states[..., :half], states[..., half:]
    cos, sin = cos[0, :, None, :half], sin[0, :, None, :half]
    out = torch.empty_like(states, memory_format=torch.contiguous_format)
    torch.mul(left, cos, out=out[..., :half]).addcmul_(right, sin, value=-1)
    torch.mul(right, cos, out=out[..., half:]).addcmul_(left, sin)
    return out


def _named(module: Any, prefix: str, names: tuple[str, ...]) -> Mapping[str, nn.Linear]:
    return {f"{prefix}.{name}": getattr(module, name) for name in names}
