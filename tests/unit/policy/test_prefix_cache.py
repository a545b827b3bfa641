"""The prefix cache: what a key stands for, and what goes when it is full."""

from __future__ import annotations

import torch
from torch import Tensor

from accord.policy.prefix_cache import BLOCK, PrefixCache, block_keys

FIRST, SECOND = "adapters/a/versions/1", "adapters/a/versions/2"
TOKENS = tuple(range(5 * BLOCK + 3))


def block(value: float) -> Tensor:
    return torch.full((2, 2, 1, BLOCK, 4), float(value))


def test_a_key_stands_for_the_adapter_and_every_token_up_to_its_end() -> None:
    keys = block_keys(FIRST, TOKENS)
    assert len(keys) == 5, "what is no whole block has no key"
    assert block_keys(FIRST, TOKENS[: 3 * BLOCK + 1]) == keys[:3]
    changed = (*TOKENS[: 2 * BLOCK], 999, *TOKENS[2 * BLOCK + 1 :])
    assert block_keys(FIRST, changed)[:2] == keys[:2]
    everything = [keys, block_keys(FIRST, changed)[2:], block_keys(SECOND, TOKENS), block_keys("", TOKENS), block_keys(FIRST, TOKENS[BLOCK:])]
    found = [key for each in everything for key in each]
    assert len(set(found)) == len(found)
    assert len(set(block_keys("", (7,) * 4 * BLOCK))) == 4, "the same tokens at another place are another block"


def test_the_least_recently_used_block_goes_first_and_the_bound_holds() -> None:
    size = block(0).numel() * 4
    cache = PrefixCache(max_bytes=3 * size + size // 2)
    keys = block_keys("", TOKENS)
    for number, key in enumerate(keys[:3]):
        cache.put(key, block(number))
    assert cache.get(keys[0]) is not None
    cache.put(keys[3], block(3))
    assert cache.size_bytes == 3 * size
    assert cache.get(keys[1]) is None
    for number in (0, 2, 3):
        kept = cache.get(keys[number])
        assert kept is not None
        assert torch.equal(kept, block(number))


def test_what_is_kept_is_a_copy_and_stays_the_first() -> None:
    cache = PrefixCache(max_bytes=10_000)
    (key,) = block_keys("", TOKENS[:BLOCK])
    slot = block(1)
    cache.put(key, slot)
    slot.zero_()
    cache.put(key, slot)
    kept = cache.get(key)
    assert kept is not None
    assert torch.equal(kept, block(1))


def test_a_cache_without_room_keeps_nothing() -> None:
    cache = PrefixCache(max_bytes=0)
    (key,) = block_keys("", TOKENS[:BLOCK])
    cache.put(key, block(1))
    assert not cache.enabled
    assert cache.get(key) is None
