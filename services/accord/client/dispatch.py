"""The life of one call to a service with replicas: its parts, where each goes and goes next, and the one reply that they make.

Nothing here does input or output: `accord.client.replicas` sends what is due and reports what came. What does not belong here: which replica
is chosen (`accord.client.replica_set`), and how replies of several replicas become one (`accord.client.merging`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from accord.client.merging import Answer, disagreement, item_keys, merge, part_of, renumber
from accord.client.replica_set import Replica, ReplicaSet
from accord.errors import AccordError, DeadlineExceededError, FailedPreconditionError, NotFoundError, ResourceExhaustedError, UnavailableError


@dataclass(frozen=True)
class _Part:
    """Items that have no answer yet. `reasons`: by name, why each replica did not answer. `version`: of the adapter, asked for after `older`."""

    places: tuple[int, ...]
    version: str = ""
    older: str = ""
    tried: frozenset[str] = frozenset()
    round: int = 0
    due: float = 0.0
    reasons: Mapping[str, AccordError] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Send:
    """One request that goes to one replica now."""

    replica: Replica
    request: Any
    timeout_seconds: float
    weight: int
    part: _Part


class Dispatch:
    """One call. A part that finds its replica away or full goes to another at once, to each at most once in a round; then it waits.

    Only UNAVAILABLE, and RESOURCE_EXHAUSTED with RetryInfo (without it, it is gRPC's own: a message too large for every replica), are tried
    again: all that comes here only computes, so a replica that did the work before it was lost did no harm. With `prefix` the items of a call
    are grouped by replica; where the replicas answer with different versions of an adapter asked for by its bare name (one was published
    meanwhile), the groups with older ones are asked again for the newest that answered, by its full name.

    Args:
        replicas: the replicas.
        request: a wire message; its `items`, where it has such a field, may go to several replicas.
        timeout_seconds: to the caller's deadline.
        whole: whether all items go to one replica, chosen by the first.
    """

    def __init__(self, replicas: ReplicaSet, request: Any, timeout_seconds: float, *, whole: bool = False) -> None:
        self._replicas = replicas
        self._request = request
        self._timeout_seconds = timeout_seconds
        self._deadline = time.monotonic() + timeout_seconds
        self._count = len(request.items) if "items" in request.DESCRIPTOR.fields_by_name else 0
        by_prefix = replicas.config.load_balancing == "prefix" and self._count > 0
        self._keys = item_keys(request, replicas.config.prefix_characters) if by_prefix else None
        self._whole = whole or not by_prefix
        self._waiting = [_Part(tuple(range(self._count)))]
        self._answers: dict[Send, Answer] = {}
        self._flying = 0

    def seconds_left(self) -> float:
        """To the caller's deadline."""
        return max(0.0, self._deadline - time.monotonic())

    def due(self) -> list[Send]:
        """What to send now. Each is to be given back to one of the methods that take a `Send`.

        Raises:
            AccordError: the attempts or the time are used up; names each replica with its reason.
        """
        self._replicas.refresh()
        now = time.monotonic()
        ready = [part for part in self._waiting if part.due <= now]
        if ready and now >= self._deadline:
            raise self._failure(ready[0])
        self._waiting = [part for part in self._waiting if part.due > now]
        sends: list[Send] = []
        try:
            for part in ready:
                sends += self._place(part)
        except AccordError:
            for send in sends:  # nobody learns of these
                self._land(send)
            raise
        return sends

    def wait_seconds(self) -> float | None:
        """How long nothing is due; None where only answers are waited for."""
        if not self._waiting:
            return None
        return max(0.0, min(part.due for part in self._waiting) - time.monotonic())

    @property
    def complete(self) -> bool:
        """Whether every item is answered, so that there is a `reply`."""
        return not self._waiting and not self._flying

    def answered(self, send: Send, reply: Any) -> None:
        """A replica answered."""
        self._land(send)
        self._replicas.answered(send.replica)
        self._answers[send] = Answer(send.replica.name, send.part.places, reply)
        if self.complete:
            self._agree()

    def failed(self, send: Send, error: AccordError) -> None:
        """A replica did not answer: its items wait for another, or the call fails.

        Raises:
            AccordError: another try would not help, or the attempts or the time are used up.
        """
        self._land(send)
        if not can_move(error):
            raise self._refused(send, error)
        self._replicas.failed(send.replica, error)
        part = replace(send.part, tried=send.part.tried | {send.replica.address}, reasons={**send.part.reasons, send.replica.name: error})
        self._waiting.append(part if self._untried(part) else self._next_round(part))

    def abandoned(self, send: Send) -> None:
        """Nobody waits for the answer any more."""
        self._land(send)

    def ended(self, send: Send) -> None:
        """A stream came to its good end."""
        self._land(send)
        self._replicas.answered(send.replica)

    def broken(self, send: Send, error: AccordError) -> None:
        """A stream broke off after it had begun: it is not sent again, and its replica is avoided where that is the reason."""
        self._land(send)
        if can_move(error):
            self._replicas.failed(send.replica, error)

    def reply(self) -> Any:
        """The one reply, its items in the order of the request's."""
        return merge(self._request, list(self._answers.values()))

    def _place(self, part: _Part) -> list[Send]:
        keys, weight = None, max(1, len(part.places))
        if self._keys is not None:
            keys, weight = ([self._keys[0]], weight) if self._whole else ([self._keys[place] for place in part.places], 1)
        placed = self._replicas.place(keys, weight, part.tried)
        if not placed:
            self._waiting.append(self._next_round(part))
            return []
        self._flying += len(placed)
        return [self._send(part, replica, positions) for replica, positions in placed]

    def _send(self, part: _Part, replica: Replica, positions: list[int]) -> Send:
        places = part.places if self._whole else tuple(part.places[position] for position in positions)
        request = self._request if len(places) == self._count else part_of(self._request, places, part.version)
        return Send(replica, request, self.seconds_left(), max(1, len(places)), replace(part, places=places))

    def _land(self, send: Send) -> None:
        self._flying -= 1
        self._replicas.release(send.replica, send.weight)

    def _untried(self, part: _Part) -> bool:
        return any(address not in part.tried for address in self._replicas.addresses())

    def _next_round(self, part: _Part) -> _Part:
        """The part after the wait that the replicas ask for, all replicas allowed again."""
        config = self._replicas.config
        backoff = min(config.initial_backoff_seconds * 2**part.round, config.max_backoff_seconds) * random.uniform(0.8, 1.2)
        asked = [error.retry_after_seconds or 0.0 for error in part.reasons.values()]
        wait = max(backoff, min(asked, default=0.0))
        if part.round + 1 >= config.attempts or wait >= self.seconds_left():
            raise self._failure(part)
        return replace(part, tried=frozenset(), round=part.round + 1, due=time.monotonic() + wait)

    def _failure(self, part: _Part) -> AccordError:
        """The error of a call that no replica took."""
        address = self._replicas.config.address
        if not part.reasons:
            unknown = self._replicas.resolver.error
            if unknown is not None or not self._replicas.addresses():
                return unknown or UnavailableError(f"{address} has no address within {self._timeout_seconds:g} s", metadata={"address": address})
            return DeadlineExceededError(f"the deadline passed before a replica of {address} was asked")
        full = [error for error in part.reasons.values() if isinstance(error, ResourceExhaustedError)]
        asked = [error.retry_after_seconds for error in part.reasons.values() if error.retry_after_seconds is not None]
        return (ResourceExhaustedError if full else UnavailableError)(
            f"no replica of {address} took the call in {part.round + 1} of {self._replicas.config.attempts} attempts: "
            + "; ".join(f"{name}: {error.code}: {error.message}" for name, error in sorted(part.reasons.items())),
            retry_after_seconds=min(asked, default=None),
            metadata={"address": address},
        )

    def _refused(self, send: Send, error: AccordError) -> AccordError:
        """The error in the caller's numbering of items."""
        if send.part.version and isinstance(error, NotFoundError):
            return _versions(self._request.adapter, send, f"does not find the newer: {error.message}")
        return renumber(error, send.part.places) if len(send.part.places) < self._count else error

    def _agree(self) -> None:
        """One model and one version answer a call, else the items of older versions wait again, for the newest.

        Raises:
            FailedPreconditionError: the replicas serve different models, or one answers with another version than it was asked for by its
                full name; names both.
        """
        newest = disagreement(list(self._answers.values()))
        for send, answer in list(self._answers.items()):
            found = str(answer.reply.adapter_version) if newest else ""
            if newest and found != newest:
                if send.part.version:
                    raise _versions(self._request.adapter, send, f"answers with {found}")
                del self._answers[send]
                self._waiting.append(_Part(answer.places, newest, found))


def _versions(adapter: str, send: Send, words: str) -> FailedPreconditionError:
    part = send.part
    return FailedPreconditionError(
        f"replicas answer with different versions of {adapter}, {part.older} and {part.version}, and {send.replica.name} {words}", field="adapter"
    )


def can_move(error: AccordError) -> bool:
    """Whether another replica, or the same one later, may take a call that failed so."""
    return isinstance(error, UnavailableError) or (isinstance(error, ResourceExhaustedError) and error.retry_after_seconds is not None)
