"""One forward pass over pieces of many sequences: single tokens of rows that decode beside chunks of prompts, without padding.

The tokens of all pieces stand in one row of T tokens; linear layers see (T, hidden), and attention is computed per bank of key-value slots
(`accord.models.kvpool`) for single tokens and per piece for chunks. It hooks into transformers' attention interface, so every decoder that
transformers runs with pluggable attention works; layers of the Llama shape are replaced by leaner ones (`accord.models.llama_layer`). What does
not belong here: what is computed when (`accord.policy`), sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from accord.models.kvpool import Bank, KvPool, KvShape, Slot

ATTENTION = "accord_ragged"


@dataclass(frozen=True, slots=True)
class Piece:
    """Some consecutive tokens of one sequence, to be read into its slot.

    `position` is that of the first token; it is stored at `store` in the slot. A token sees the first `shared` places of the slot and those
    from `own` up to its own: for a plain sequence `shared` and `own` are 0 and `store` is `position`. Several responses to one prompt lie one
    after the other behind it, each with `shared` the prompt's length and `own` its first place.
    """

    slot: Slot
    tokens: Sequence[int]
    position: int
    store: int
    shared: int = 0
    own: int = 0
    adapter: str = ""

    @property
    def single(self) -> bool:
        """One token that sees all that lies before it."""
        return len(self.tokens) == 1 and self.own == 0


@dataclass(frozen=True, slots=True)
class _Singles:
    """The decoding rows of one bank: rows of the pass, their slots and places, and the mask over `length` places for each slot and key head."""

    bank: Bank
    rows: Tensor
    index: Tensor
    places: Tensor
    spread: Tensor | None  # for each slot a row of the pass; None where rows and slots are the same run
    first: int
    slots: int
    length: int
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of several tokens: rows first to end of the pass, their slot (layers, 2, kv heads, places, D), and what they see of it."""

    first: int
    end: int
    kv: Tensor
    store: int
    shared: int
    own: int
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class Plan:
    """How the attention of one pass is computed, the same for every layer."""

    singles: tuple[_Singles, ...]
    chunks: tuple[Chunk, ...]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Stores keys and values (T, kv heads, D) and returns what the queries (T, heads, D) attend to, of their shape."""
        out = torch.empty_like(query)
        for singles in self.singles:
            _attend_singles(singles, layer, query, key, value, scaling, out)
        for chunk in self.chunks:
            _attend_chunk(chunk, layer, query, key, value, scaling, out)
        return out


def make_plan(pieces: Sequence[Piece]) -> Plan:
    """The plan for pieces in the order of the pass."""
    by_bank: dict[int, list[tuple[int, Piece]]] = {}
    chunks: list[Chunk] = []
    row = 0
    for piece in pieces:
        if piece.single:
            by_bank.setdefault(id(piece.slot.bank), []).append((row, piece))
        else:
            chunks.append(make_chunk(piece, row))
        row += len(piece.tokens)
    return Plan(tuple(_singles(members) for members in by_bank.values()), tuple(chunks))


def _singles(members: Sequence[tuple[int, Piece]]) -> _Singles:
    bank = members[0][1].slot.bank
    rows = [row for row, _ in members]
    index = [piece.slot.index for _, piece in members]
    places = [piece.store for _, piece in members]
    first, slots = min(index), max(index) + 1 - min(index)
    length = max(places) + 1
    ends = torch.ones(slots, dtype=torch.long)  # a slot without a row here looks at its first place; its result is not used
    ends[torch.tensor(index) - first] = torch.tensor(places) + 1
    mask = torch.zeros((slots, 1, length), dtype=bank.kv.dtype)
    mask.masked_fill_(torch.arange(length) >= ends[:, None, None], float("-inf"))
    mask = mask.repeat_interleave(bank.kv.shape[3], dim=0)
    spread = None
    if index != list(range(first, first + slots)) or rows != list(range(rows[0], rows[0] + slots)):
        spread = torch.full((slots,), rows[0])
        spread[torch.tensor(index) - first] = torch.tensor(rows)
    device = bank.kv.device
    return _Singles(
        bank, torch.tensor(rows, device=device), torch.tensor(index, device=device), torch.tensor(places, device=device),
        None if spread is None else spread.to(device), first, slots, length, mask.to(device),
    )  # fmt: skip


def make_chunk(piece: Piece, row: int) -> Chunk:
    """The chunk of a piece whose first token is that row of the pass."""
    count = len(piece.tokens)
    end = piece.store + count
    visible = piece.shared + end - piece.own if piece.own else end
    mask = None
    if visible != count:
        mask = torch.zeros((count, visible), dtype=piece.slot.bank.kv.dtype)
        mask[:, visible - count :].masked_fill_(torch.ones((count, count), dtype=torch.bool).triu(1), float("-inf"))
        mask = mask.to(piece.slot.bank.kv.device)
    return Chunk(row, row + count, piece.slot.kv, piece.store, piece.shared, piece.own, mask)


def _attend_singles(singles: _Singles, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, out: Tensor) -> None:
    kv = singles.bank.kv[layer]
    heads, size = query.shape[1:]
    kv_heads = key.shape[1]
    first, last = singles.first, singles.first + singles.slots
    if singles.spread is None:
        run = slice(int(singles.rows[0]), int(singles.rows[0]) + singles.slots)
        kv[:, singles.index, :, singles.places] = torch.stack((key[run], value[run]), dim=1)
        asked = query[run]
    else:
        kv[:, singles.index, :, singles.places] = torch.stack((key[singles.rows], value[singles.rows]), dim=1)
        asked = query[singles.spread]
    # The query heads that share a key head are queries at one position: no key is copied for them. With so few queries two plain products
    # beat the fused kernel.
    batch = singles.slots * kv_heads
    keys, values = (part.reshape(batch, -1, size)[:, : singles.length] for part in kv[:, first:last])
    scores = torch.baddbmm(singles.mask, asked.reshape(batch, heads // kv_heads, size), keys.transpose(1, 2), alpha=scaling)
    found = torch.bmm(torch.softmax(scores, dim=-1), values).view(singles.slots, heads, size)
    if singles.spread is None:
        out[run] = found
    else:
        out[singles.rows] = found[singles.index - first]


def _attend_chunk(chunk: Chunk, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, out: Tensor) -> None:
    kv = chunk.kv[layer]
    rows = slice(chunk.first, chunk.end)
    end = chunk.store + chunk.end - chunk.first
    kv[0, :, chunk.store : end] = key[rows].transpose(0, 1)
    kv[1, :, chunk.store : end] = value[rows].transpose(0, 1)
    attend_stored(chunk, layer, query, scaling, out)


def attend_stored(chunk: Chunk, layer: int, query: Tensor, scaling: float, out: Tensor) -> None:
    """What the chunk's queries, of (T, heads, D) of the pass, attend to once its keys and values are stored, into out of the same shape."""
    kv = chunk.kv[layer]
    rows = slice(chunk.first, chunk.end)
    end = chunk.store + chunk.end - chunk.first
    seen = kv[:, :, :end] if not chunk.own else torch.cat((kv[:, :, : chunk.shared], kv[:, :, chunk.own : end]), dim=2)
    found = F.scaled_dot_product_attention(
        query[rows].transpose(0, 1)[None], seen[0][None], seen[1][None], attn_mask=chunk.mask, is_causal=chunk.mask is None, scale=scaling,
        enable_gqa=True,
    )  # fmt: skip
    out[rows] = found[0].transpose(0, 1)


def ragged_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, *, scaling: float, ragged: Plan, **_: object
) -> tuple[Tensor, None]:
    """transformers' attention interface: (1, heads, T, D) in, (1, T, heads, D) out."""
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    out = ragged.attend(layer, query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), scaling)
    return out[None], None


def kv_shape(model: Any) -> KvShape:
    """Geometry of a transformers model's cache."""
    config = model.config
    heads = int(config.num_attention_heads)
    return KvShape(
        layers=int(config.num_hidden_layers),
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_size=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        dtype=model.dtype,
        device=model.device,
    )


def hook_attention(model: Any) -> None:
    """Makes a transformers model compute its attention by the `ragged` plan that its forward is given."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, ragged_attention)
    AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)
    model.set_attn_implementation(ATTENTION)


__all__ = ["Bank", "Chunk", "KvPool", "KvShape", "Piece", "Plan", "Slot", "attend_stored", "hook_attention", "kv_shape", "make_chunk", "make_plan"]
