"""Whether work finds a place in compute, and the places that rollouts and labelling leave to interactive calls.

What does not belong here: whose turn it is (`accord.rpc.fairqueue`), memory, adapters.
"""

from __future__ import annotations

from accord.policy.engine import INTERACTIVE
from accord.rpc.fairqueue import Verdict


class Places:
    """Decides over sequences computed together, or requests in flight to another server.

    Bulk work whose turn has come and that finds no place waits for one, other bulk work behind it; interactive calls go on in the reserve meanwhile,
    and there alone: rollouts that have waited so long that they rank with interactive calls neither shut these out, nor are shut out by them.

    Args:
        total: places.
        reserved: of these for interactive calls.
    """

    def __init__(self, total: int, reserved: int) -> None:
        self._total = total
        self._reserved = reserved
        self._bulk_waits = False

    def begin(self) -> None:
        """A new round over the waiting work begins."""
        self._bulk_waits = False

    def barred(self, priority: int) -> bool:
        """Whether work of a class is not to be looked at in this round any more."""
        return self._bulk_waits and priority > INTERACTIVE

    def verdict(self, priority: int, asked: int, *, held: int, interactive: int) -> Verdict:
        """Whether work comes in that asks for so many places, where `held` are taken, `interactive` of them by interactive calls."""
        if priority > INTERACTIVE:
            if not held or held + asked <= self._total - self._reserved:
                return "take"
            # Beside a reserve that is always in use, a larger one would never come in.
            self._bulk_waits = asked <= self._total - 2 * self._reserved
            return "skip" if self._bulk_waits else "stop"
        if held and held + asked > self._total:
            return "stop"
        return "stop" if self._bulk_waits and interactive + asked > self._reserved else "take"
