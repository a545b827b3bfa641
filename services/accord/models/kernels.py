"""Linear layers for inference: several that read one input are computed as one, on a CPU with weights that oneDNN has packed beforehand.

The packed kernel is a private operator of PyTorch: it is used only where a probe finds it and it equals `F.linear`; elsewhere `F.linear` is. LoRA
adapters are added per group of rows (`Routing`), so that one pass serves many of them. What does not belong here: attention and caches
(`accord.models.ragged`), training (`accord.models.lora`).
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
import torch
from torch import Tensor, nn
from torch.nn import functional as F

_PROBE_TOLERANCE = 1e-4
_log = structlog.get_logger(__name__)

LoraFactors = tuple[Tensor, Tensor]


@dataclass(slots=True)
class Routing:
    """Which rows of the pass that is being computed belong to which adapter: (first row, end row, adapter); rows of none are left out."""

    groups: Sequence[tuple[int, int, str]] = field(default=())


@functools.cache
def packing_supported() -> bool:
    """Whether this PyTorch has oneDNN's prepacked linear and it computes what `F.linear` does."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    rows, weight, bias = (torch.randn(shape, generator=generator) for shape in ((5, 48), (32, 48), (32,)))
    try:
        found = torch.ops.mkldnn._linear_pointwise(rows, _pack(weight), bias, "none", [], "")
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        _log.info("prepacked linear layers are not available", reason=type(error).__name__)
        return False
    return bool((found - F.linear(rows, weight, bias)).abs().max() < _PROBE_TOLERANCE)


class Linears(nn.Module):
    """Linear layers of one input, computed as one; forward maps (rows, in) to (rows, sum of out).

    Args:
        layers: by full name, in order of their outputs. They are not kept: a packed layer lets go of its plain weight.
        routing: shared by all layers of a model.
        pack: whether to use oneDNN's packed weights where they are supported.
    """

    def __init__(self, layers: Mapping[str, nn.Linear], routing: Routing, *, pack: bool = True) -> None:
        super().__init__()
        self.names = tuple(layers)
        self.widths = tuple(layer.out_features for layer in layers.values())
        self.in_features = next(iter(layers.values())).in_features
        self._routing = routing
        self._adapters: dict[str, LoraFactors] = {}
        weight = torch.cat([layer.weight.detach() for layer in layers.values()]) if len(layers) > 1 else next(iter(layers.values())).weight.detach()
        biases = [layer.bias.detach() for layer in layers.values() if layer.bias is not None]
        if len(biases) not in (0, len(layers)):
            raise ValueError(f"{self.names}: all of these layers or none must have a bias")
        self._bias = torch.cat(biases) if biases else None
        self.packed = pack and weight.device.type == "cpu" and weight.dtype == torch.float32 and packing_supported()
        self._item_bytes = weight.element_size()
        self._weight = _pack(weight) if self.packed else weight.contiguous()
        if self.packed:  # looked up once, not at every call
            self._packed_linear = torch.ops.mkldnn._linear_pointwise.default
            self._packed_sum = torch.ops.mkldnn._linear_pointwise.binary

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return sum(self.widths)

    def forward(self, rows: Tensor) -> Tensor:
        """The layers' outputs side by side, with each row's adapter."""
        if self.packed:
            out: Tensor = self._packed_linear(rows, self._weight, self._bias, "none", [], "")
        else:
            out = F.linear(rows, self._weight, self._bias)
        return self._adapt(rows, out)

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        """`residual` + forward(rows), in one pass over memory where the kernel can."""
        if self.packed:
            out: Tensor = self._packed_sum(rows, residual, self._weight, self._bias, "add")
        else:
            out = F.linear(rows, self._weight, self._bias) + residual
        return self._adapt(rows, out)

    def set_adapter(self, adapter: str, parts: Mapping[str, LoraFactors], scale: float) -> None:
        """Installs an adapter's factors, by layer name: A of shape (rank, in) and B of shape (out, rank). Layers without any are not changed."""
        found = [(index, *parts[name]) for index, name in enumerate(self.names) if name in parts]
        if not found:
            return
        down = torch.cat([a for _, a, _ in found]).t().contiguous()
        up = torch.zeros((down.shape[1], self.out_features), dtype=down.dtype, device=down.device)
        row = 0
        for index, a, b in found:
            column = sum(self.widths[:index])
            up[row : row + a.shape[0], column : column + self.widths[index]] = b.t() * scale
            row += a.shape[0]
        self._adapters[adapter] = (down, up)

    def remove_adapter(self, adapter: str) -> None:
        """Forgets an adapter, where it has a part here."""
        self._adapters.pop(adapter, None)

    def adapter_bytes(self, rank: int, layers: Collection[str]) -> int:
        """Bytes that the part of an adapter of that rank for those layers takes here: B is as wide as all layers together."""
        ranks = rank * sum(name in layers for name in self.names)
        return ranks * (self.in_features + self.out_features) * self._item_bytes

    def _adapt(self, rows: Tensor, out: Tensor) -> Tensor:
        for start, end, adapter in self._routing.groups:
            factors = self._adapters.get(adapter)
            if factors is not None:
                out[start:end].addmm_(rows[start:end] @ factors[0], factors[1])
        return out


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return packed
