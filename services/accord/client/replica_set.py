"""The replicas of a service as one client sees them: how much each has to do for it, which to avoid for a while, which is next.

Nothing here does input or output; links are opened and closed by functions that are given. What does not belong here: the life of one call
(`accord.client.dispatch`).
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from accord.client.resolving import Resolver
from accord.errors import AccordError, ResourceExhaustedError
from accord.rpc.channels import ChannelConfig

_UNBOUNDED_ITEMS = 8
"""So few outstanding items are no load: a prefix is not computed on a second replica because of them."""


class Replica:
    """One replica: the link to it, the items of calls that it has not answered, and until when it is avoided."""

    def __init__(self, address: str, link: Any) -> None:
        self.address = address
        self.link = link
        self.items = 0
        self.failures = 0
        self.avoided_until = 0.0
        self.removed = False

    @property
    def name(self) -> str:
        """The address for people: without the scheme."""
        return self.address.partition(":")[2]


class ReplicaSet:
    """The replicas behind one address. Thread-safe.

    Args:
        config: address, backoff and `prefix_load_factor`.
        resolver: of the address.
        open_link: opens what carries the calls to one address.
        close_link: closes it; called once no call uses it.
    """

    def __init__(self, config: ChannelConfig, resolver: Resolver, open_link: Callable[[str], Any], close_link: Callable[[Any], None]) -> None:
        self.config = config
        self.resolver = resolver
        self._open, self._close = open_link, close_link
        self._lock = threading.Lock()
        self._replicas: dict[str, Replica] = {}
        self._turn = 0
        self._closed = False

    def refresh(self) -> None:
        """Takes over the addresses that the resolver knows by now; a replica that is gone keeps its link until its calls are over.

        Raises:
            ValueError: `close` was called, as gRPC's channels do.
        """
        if self._closed:
            raise ValueError("the client is closed")
        self.resolver.refresh()
        addresses = self.resolver.addresses
        if addresses == tuple(self._replicas):
            return
        with self._lock:
            gone = [replica for address, replica in self._replicas.items() if address not in addresses]
            self._replicas = {address: self._replicas.get(address) or Replica(address, self._open(address)) for address in addresses}
            for replica in gone:
                replica.removed = True
                self._close_unused(replica)

    def close(self) -> None:
        """Closes every link, calls or not."""
        with self._lock:
            self._closed = True
            for replica in self._replicas.values():
                self._close(replica.link)
            self._replicas = {}

    def addresses(self) -> Collection[str]:
        """Of all replicas."""
        return self._replicas.keys()

    def place(self, keys: Sequence[bytes] | None, weight: int, tried: Collection[str]) -> list[tuple[Replica, list[int]]]:
        """Chooses replicas for items and counts the items as theirs until `release`.

        Args:
            keys: of beginnings of prompts: equal keys go to the same replica; None chooses the one with the fewest items.
            weight: items that one key stands for, or all of them without keys.
            tried: addresses to leave out.

        Returns:
            Each replica chosen, with the positions of its keys (none without keys); nothing where all were tried.
        """
        now = time.monotonic()
        with self._lock:
            rest = [replica for replica in self._replicas.values() if replica.address not in tried]
            if not rest:
                return []
            live = [replica for replica in rest if replica.avoided_until <= now]
            # All are avoided: the one that is soonest over it, rather than none.
            candidates = live or [min(rest, key=lambda replica: replica.avoided_until)]
            if keys is None:
                chosen = self._least_loaded(candidates)
                chosen.items += weight
                return [(chosen, [])]
            return self._by_key(candidates, keys, weight)

    def release(self, replica: Replica, items: int) -> None:
        """The replica is done with so many items, one way or another."""
        with self._lock:
            replica.items -= items
            self._close_unused(replica)

    def answered(self, replica: Replica) -> None:
        """The replica is well."""
        replica.failures = 0

    def failed(self, replica: Replica, error: AccordError) -> None:
        """The replica is avoided for as long as it asked for, or for a backoff that doubles with each failure, at most `max_backoff_seconds`.

        A full replica is not ill: its backoff does not grow.
        """
        full = isinstance(error, ResourceExhaustedError)
        backoff = self.config.initial_backoff_seconds * 2 ** min(0 if full else replica.failures, 20)
        with self._lock:
            replica.failures += not full
            replica.avoided_until = time.monotonic() + min(max(backoff, error.retry_after_seconds or 0.0), self.config.max_backoff_seconds)
        self.resolver.refresh(after_failure=True)

    def _least_loaded(self, candidates: Sequence[Replica]) -> Replica:
        fewest = min(replica.items for replica in candidates)
        tied = [replica for replica in candidates if replica.items == fewest]
        self._turn += 1
        return tied[self._turn % len(tied)]

    def _by_key(self, candidates: Sequence[Replica], keys: Sequence[bytes], weight: int) -> list[tuple[Replica, list[int]]]:
        """Rendezvous hashing (Thaler and Ravishankar 1998) with bounded loads (Mirrokni, Thorup and Zadimoghaddam 2018)."""
        mean = (sum(replica.items for replica in candidates) + weight * len(keys)) / len(candidates)
        bound = max(_UNBOUNDED_ITEMS, math.ceil(self.config.prefix_load_factor * mean))
        orders = {key: _order(key, candidates) for key in set(keys)}
        groups: dict[str, tuple[Replica, list[int]]] = {}
        for position, key in enumerate(keys):
            chosen = next((replica for replica in orders[key] if replica.items < bound), orders[key][0])
            chosen.items += weight
            groups.setdefault(chosen.address, (chosen, []))[1].append(position)
        return list(groups.values())

    def _close_unused(self, replica: Replica) -> None:
        if replica.removed and replica.items <= 0:
            self._close(replica.link)


def _order(key: bytes, candidates: Sequence[Replica]) -> list[Replica]:
    """The replicas in the order in which a key prefers them: the same in every process, and the same without one that is away."""

    def score(replica: Replica) -> bytes:
        return hashlib.blake2b(key + b"\0" + replica.address.encode(), digest_size=8).digest()

    return sorted(candidates, key=score, reverse=True)
