"""Memory for keys and values: slots of fixed length in banks, so that one attention call serves all rows of a bank.

A slot's length is known when it is taken (prompt and most tokens to generate), so a row that has begun never runs out of memory. On a CPU a
bank is as large as the whole budget, and only the slots that were ever opened count: the system gives memory to pages when they are written.
What does not belong here: which request gets a slot when (`accord.policy`).
"""

from __future__ import annotations

import heapq
import math
import mmap
from dataclasses import dataclass, field

import torch
from torch import Tensor

_SMALLEST, _BANK_TOKENS_ELSEWHERE = 64, 2048


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
    """Slots of one length; `kv` has shape (layers, 2, slots, kv heads, tokens, head size): what a layer attends to adjoins."""

    kv: Tensor
    tokens: int
    opened: int = 0
    free: list[int] = field(default_factory=list)

    @property
    def slots(self) -> int:
        """How many slots it can have."""
        return int(self.kv.shape[2])

    @property
    def idle(self) -> bool:
        """Whether no slot is taken."""
        return len(self.free) == self.opened


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One row's memory."""

    bank: Bank
    index: int

    @property
    def kv(self) -> Tensor:
        """Shape (layers, 2, kv heads, tokens, head size)."""
        return self.bank.kv[:, :, self.index]


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
        """Tokens of the slots that have been opened."""
        return self._held

    @property
    def held_bytes(self) -> int:
        """Bytes of the slots that have been opened."""
        return self._held * self.shape.bytes_per_token

    def slot_tokens(self, tokens: int) -> int:
        """Length of the slot that `tokens` need: a power of two."""
        return max(_SMALLEST, 1 << (tokens - 1).bit_length())

    def take(self, tokens: int) -> Slot | None:
        """A slot of at least that many tokens, or None while there is no room; a longer one where only such are left."""
        length = self.slot_tokens(tokens)
        for bank in self._banks.get(length, ()):
            if bank.free:
                return Slot(bank, heapq.heappop(bank.free))
        if self._held + length > self.max_tokens:
            for other in list(self._banks):
                self._drop_idle(other)
        if self._held + length <= self.max_tokens:
            return self._open(length)
        longer = (bank for size in sorted(self._banks) if size > length for bank in self._banks[size] if bank.free)
        found = next(longer, None)
        return None if found is None else Slot(found, heapq.heappop(found.free))

    def give_back(self, slot: Slot) -> None:
        """Frees a slot."""
        heapq.heappush(slot.bank.free, slot.index)

    def _open(self, length: int) -> Slot:
        banks = self._banks.setdefault(length, [])
        bank = next((bank for bank in banks if bank.opened < bank.slots), None)
        if bank is None:
            bank = Bank(self._memory(length), length)
            banks.append(bank)
        bank.opened += 1
        self._held += length
        return Slot(bank, bank.opened - 1)

    def _memory(self, length: int) -> Tensor:
        """Zeros: what no row has written is masked, and a masked NaN would still spoil the sum."""
        shape, on_cpu = self.shape, torch.device(self.shape.device).type == "cpu"
        slots = max(1, (self.max_tokens if on_cpu else _BANK_TOKENS_ELSEWHERE) // length)
        sizes = (shape.layers, 2, slots, shape.kv_heads, length, shape.head_size)
        if on_cpu:
            # Unlike torch.zeros it writes no page; and small pages, or every slot that is opened would bring megabytes of its neighbours along.
            pages = mmap.mmap(-1, math.prod(sizes) * shape.dtype.itemsize)
            if hasattr(mmap, "MADV_NOHUGEPAGE"):  # Linux
                pages.madvise(mmap.MADV_NOHUGEPAGE)
            return torch.frombuffer(pages, dtype=shape.dtype).view(sizes)
        return torch.zeros(sizes, dtype=shape.dtype, device=shape.device)

    def _drop_idle(self, length: int) -> None:
        kept = [bank for bank in self._banks[length] if not bank.idle]
        self._held -= sum(bank.opened * bank.tokens for bank in self._banks[length] if bank.idle)
        if kept:
            self._banks[length] = kept
        else:
            del self._banks[length]
