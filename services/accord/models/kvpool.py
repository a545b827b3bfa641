"""Memory for keys and values: slots of fixed length in banks, so that one attention call serves all rows of a bank.

A slot's length is known when it is taken (prompt and most tokens to generate), so a row that has begun never runs out of memory. What does
not belong here: which request gets a slot when (`accord.policy`).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import torch
from torch import Tensor

_SMALLEST, _BANK_TOKENS = 64, 2048


@dataclass(frozen=True, slots=True)
class KvShape:
    """Geometry of one token's keys and values."""

    layers: int
    kv_heads: int
    head_size: int
    dtype: torch.dtype
    device: torch.device | str

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token over all layers."""
        return self.layers * 2 * self.kv_heads * self.head_size * torch.finfo(self.dtype).bits // 8


@dataclass(eq=False, slots=True)
class Bank:
    """Slots of one length; `kv` has shape (slots, layers, 2, kv heads, tokens, head size)."""

    kv: Tensor
    tokens: int
    free: list[int] = field(default_factory=list)

    @property
    def slots(self) -> int:
        """How many slots it has."""
        return int(self.kv.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One row's memory."""

    bank: Bank
    index: int

    @property
    def kv(self) -> Tensor:
        """Shape (layers, 2, kv heads, tokens, head size)."""
        return self.bank.kv[self.index]


class KvPool:
    """Hands out slots within a budget.

    Args:
        shape: of one token.
        max_tokens: most tokens of all banks together.
    """

    def __init__(self, shape: KvShape, *, max_tokens: int) -> None:
        self.shape = shape
        self.max_tokens = max_tokens
        self._banks: dict[int, list[Bank]] = {}
        self._held = 0

    @property
    def held_tokens(self) -> int:
        """Tokens of the banks that exist now."""
        return self._held

    @property
    def held_bytes(self) -> int:
        """Bytes of the banks that exist now."""
        return self._held * self.shape.bytes_per_token

    def slot_tokens(self, tokens: int) -> int:
        """Length of the slot that `tokens` need: a power of two."""
        return max(_SMALLEST, 1 << (tokens - 1).bit_length())

    def take(self, tokens: int) -> Slot | None:
        """A slot of at least that many tokens, or None while there is no room; a longer one where only such are left."""
        length = self.slot_tokens(tokens)
        for bank in self._banks.get(length, ()):
            if bank.free:
                return _lowest(bank)
        grown = self._grow(length)
        if grown is not None:
            return _lowest(grown)
        longer = (bank for size in sorted(self._banks) if size > length for bank in self._banks[size] if bank.free)
        found = next(longer, None)
        return None if found is None else _lowest(found)

    def give_back(self, slot: Slot) -> None:
        """Frees a slot."""
        heapq.heappush(slot.bank.free, slot.index)

    def clear(self) -> None:
        """Drops every bank without a row."""
        for length in list(self._banks):
            self._drop_empty(length)

    def _grow(self, length: int) -> Bank | None:
        slots = max(1, _BANK_TOKENS // length)
        if self._held + slots * length > self.max_tokens:
            for other in list(self._banks):
                if other != length:
                    self._drop_empty(other)
        slots = min(slots, (self.max_tokens - self._held) // length)
        if slots < 1:
            return None
        # Zeros, not empty: what no row has written is masked, and a masked NaN would still spoil the sum. Pages are touched when written.
        shape = (slots, self.shape.layers, 2, self.shape.kv_heads, length, self.shape.head_size)
        bank = Bank(torch.zeros(shape, dtype=self.shape.dtype, device=self.shape.device), length, list(range(slots)))
        self._banks.setdefault(length, []).append(bank)
        self._held += slots * length
        return bank

    def _drop_empty(self, length: int) -> None:
        kept = [bank for bank in self._banks[length] if len(bank.free) < bank.slots]
        self._held -= sum(bank.slots * bank.tokens for bank in self._banks[length] if bank not in kept)
        if kept:
            self._banks[length] = kept
        else:
            del self._banks[length]


def _lowest(bank: Bank) -> Slot:
    """Lowest first, so that the rows of a bank stay close together."""
    return Slot(bank, heapq.heappop(bank.free))
