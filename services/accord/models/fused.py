"""The fast path of a decoder of the Llama shape in float32 on a CPU: the plan of a pass for the kernels of `accord.models.fused_kernels`.

`fused_supported` compares the kernels with PyTorch once; where numba is not installed, does not find PyTorch's OpenMP or computes something else,
the plain path of `accord.models.llama_layer` gives the same numbers, slower. What does not belong here: which tokens are read when
(`accord.policy`), other shapes of models (`accord.models.ragged`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import structlog
import torch
from torch import Tensor
from torch.nn import functional as F

from accord.models.ragged import Chunk, Piece, attend_stored, make_chunk

_PROBE_TOLERANCE = 1e-4
_log = structlog.get_logger(__name__)

Token = tuple[int, int, int, int, int, int]


class FusedPlan:
    """How one pass over pieces is computed, the same for every layer.

    Args:
        pieces: in the order of the pass.
        angles: of the rotation, (rows, head size): half cosines, half sines; as many rows as the pass computes, at least the pieces' tokens.
        heads, kv_heads, size: query heads, key heads and head size.
    """

    def __init__(self, pieces: Sequence[Piece], angles: Tensor, *, heads: int, kv_heads: int, size: int) -> None:
        from accord.models.fused_kernels import attend, turn_and_store, use_threads

        use_threads()
        self._attend, self._store = attend(heads // kv_heads, size), turn_and_store(size)
        self._angles = angles.numpy()
        self._heads, self._kv_heads = heads, kv_heads
        singles: list[Token] = []
        chunked: list[Token] = []
        self._chunks: list[Chunk] = []
        row = 0
        for piece in pieces:
            if piece.single:
                singles.append(_token(piece, row, 0))
            else:
                chunked += [_token(piece, row, offset) for offset in range(len(piece.tokens))]
                self._chunks.append(make_chunk(piece, row))
            row += len(piece.tokens)
        self._singles, self._chunked = _balanced(singles), np.array(chunked, dtype=np.int64)
        places = max((token[-1] for token in singles), default=0) + 1
        self._scores = np.empty((len(singles) * kv_heads, heads // kv_heads, places + 1), dtype=np.float32)
        self._out = torch.zeros((angles.shape[0], heads, size))  # rows that no piece has must hold numbers

    def attend(self, layer: int, qkv: Tensor, scaling: float) -> Tensor:
        """Attention over (T, heads + 2 kv heads, D), which it changes: stores keys and values; (T, heads, D), good until the next call."""
        array = qkv.numpy()
        if len(self._singles):
            self._attend(array, self._angles, self._singles, layer, self._kv_heads, np.float32(scaling), self._scores, self._out.numpy())
        if self._chunks:
            self._store(array, self._angles, self._chunked, layer, self._heads, self._kv_heads)
        for chunk in self._chunks:
            attend_stored(chunk, layer, qkv[:, : self._heads], scaling, self._out)
        return self._out


def fused_norm(rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root mean square norm of (T, width)."""
    from accord.models.fused_kernels import norm

    out = torch.empty_like(rows)
    norm(rows.numpy(), weight.numpy(), np.float32(epsilon), out.numpy())
    return out


def fused_gate(both: Tensor) -> Tensor:
    """SiLU of the left half times the right half: (T, 2 n) to (T, n)."""
    from accord.models.fused_kernels import gate

    out = torch.empty((both.shape[0], both.shape[1] // 2))
    gate(both.numpy(), out.numpy())
    return out


@functools.cache
def fused_supported() -> bool:
    """Whether the kernels can be used here."""
    try:
        with torch.inference_mode():
            gap = _probe()
    except Exception as error:  # noqa: BLE001  whatever a compiler raises on a machine that it does not know, the plain path remains
        _log.info("fused kernels are not available", reason=f"{type(error).__name__}: {error}")
        return False
    if gap > _PROBE_TOLERANCE:
        _log.warning("fused kernels are not used: they compute something else than PyTorch", gap=gap)
    return gap <= _PROBE_TOLERANCE


def _probe() -> float:
    """The largest difference from PyTorch's own."""
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(shape, generator=generator) for shape in ((3, 32), (32,)))
    norm = fused_norm(rows, weight, 1e-5) - torch.rms_norm(rows, (32,), weight, 1e-5)
    gate = fused_gate(rows) - F.silu(rows[:, :16]) * rows[:, 16:]
    return float(torch.cat((norm, gate), dim=1).abs().max())


def _token(piece: Piece, row: int, offset: int) -> Token:
    kv = piece.slot.bank.kv
    layer, part, slot = (kv.element_size() * kv.stride(dimension) for dimension in range(3))
    keys = kv.data_ptr() + slot * piece.slot.index
    return row + offset, keys, keys + part, layer, piece.slot.bank.tokens, piece.store + offset


def _balanced(tokens: Sequence[Token]) -> Any:
    """A table whose two halves, which two threads take, have as many places to look at."""
    table = np.array(tokens, dtype=np.int64).reshape(-1, 6)
    order = np.argsort(table[:, -1], kind="stable")
    return table[np.concatenate((order[::2], order[1::2][::-1]))]
