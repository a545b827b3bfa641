"""Keys and values of prompts' beginnings, kept so that a judge's template or a system prompt is computed once.

Blocks of 8 tokens are keyed by a chain of hashes over the adapter version and every token up to the block's end: two prompts share the blocks
up to the first difference. Bounded by bytes, least recently used first. What does not belong here: the slots of rows in compute
(`accord.models.kvpool`).
"""

from __future__ import annotations

import array
import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from prometheus_client import Counter, Gauge
from torch import Tensor

BLOCK = 8  # what a template has beyond whole blocks is computed again for each request: 24 tokens of 600 with 32
_REUSED = Counter("accord_policy_prefix_tokens_total", "Prompt tokens, by whether the prefix cache had them", ["found"])
_BYTES = Gauge("accord_policy_prefix_cache_bytes", "Bytes of the prefix cache")

Key = bytes


def block_keys(adapter: str, tokens: Sequence[int]) -> list[Key]:
    """A key for each whole block of a prompt."""
    keys: list[Key] = []
    chain = adapter.encode()
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        chain = hashlib.blake2b(chain + array.array("q", tokens[start : start + BLOCK]).tobytes(), digest_size=16).digest()
        keys.append(chain)
    return keys


class PrefixCache:
    """Blocks of shape (layers, 2, kv heads, 8, head size) by key.

    Args:
        max_bytes: 0 keeps nothing.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._blocks: OrderedDict[Key, Tensor] = OrderedDict()
        self._bytes = 0

    @property
    def enabled(self) -> bool:
        """Whether it keeps anything."""
        return self._max_bytes > 0

    @property
    def size_bytes(self) -> int:
        """Bytes of the blocks."""
        return self._bytes

    def get(self, key: Key) -> Tensor | None:
        """The block, now the most recently used, or None."""
        block = self._blocks.get(key)
        if block is not None:
            self._blocks.move_to_end(key)
        return block

    def put(self, key: Key, kv: Tensor) -> None:
        """Keeps a copy of a block's keys and values."""
        if key in self._blocks:
            return
        size = kv.numel() * kv.element_size()
        if size > self._max_bytes:
            return
        while self._bytes + size > self._max_bytes:
            _, oldest = self._blocks.popitem(last=False)
            self._bytes -= oldest.numel() * oldest.element_size()
        self._blocks[key] = kv.clone()
        self._bytes += size
        _BYTES.set(self._bytes)

    @staticmethod
    def count(*, reused: int, computed: int) -> None:
        """Counts a prompt's tokens for the hit rate."""
        _REUSED.labels("yes").inc(reused)
        _REUSED.labels("no").inc(computed)
