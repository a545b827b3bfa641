"""The places that bulk work leaves to interactive calls, also once it has waited so long that it ranks with them."""

from __future__ import annotations

import pytest

from accord.policy.engine import INTERACTIVE, LABELLING, ROLLOUT
from accord.policy.places import Places
from accord.rpc.fairqueue import FairQueue, Verdict
from accord.rpc.workitem import WorkItem, WorkRequest


class World:
    """A queue whose work has all risen to the first class, over 32 places of which 2 are reserved."""

    def __init__(self, held: dict[int, int]) -> None:
        self.held = held
        self._places = Places(32, 2)
        self._queue: FairQueue[int, None] = FairQueue(
            max_items=99, max_cost=99, name="places", max_caller_cost=99, max_wait_seconds=60, aging_seconds=1e-9
        )

    def wait(self, priority: int, *asked: int, caller: str = "") -> None:
        self._queue.submit_all([WorkRequest(each, 1, None, None, priority, caller) for each in asked])

    def round(self) -> list[tuple[int, int]]:
        """Class and places of what comes in now."""
        self._places.begin()
        return [(item.priority, item.payload) for item in self._queue.admit(self._decide)]

    def _decide(self, item: WorkItem[int, None]) -> Verdict:
        if self._places.barred(item.priority):
            return "skip"
        verdict = self._places.verdict(item.priority, item.payload, held=sum(self.held.values()), interactive=self.held.get(INTERACTIVE, 0))
        if verdict == "take":
            self.held[item.priority] = self.held.get(item.priority, 0) + item.payload
        return verdict


@pytest.mark.parametrize("asked", [1, 8])
async def test_bulk_work_that_has_waited_long_leaves_the_reserve_to_interactive_calls(asked: int) -> None:
    world = World({ROLLOUT: 30})
    world.wait(ROLLOUT, asked)
    world.wait(INTERACTIVE, 1, 1, 1, caller="person")
    assert world.round() == [(INTERACTIVE, 1), (INTERACTIVE, 1)]
    assert world.round() == []


async def test_bulk_work_behind_one_that_waits_for_a_place_does_not_overtake_it() -> None:
    world = World({ROLLOUT: 24})
    world.wait(ROLLOUT, 8)
    world.wait(LABELLING, 1, caller="judge")
    assert world.round() == []
    world.held[ROLLOUT] = 22
    assert world.round() == [(ROLLOUT, 8)]


async def test_interactive_calls_beyond_the_reserve_do_not_shut_out_bulk_work_whose_turn_has_come() -> None:
    world = World({INTERACTIVE: 20, ROLLOUT: 11})
    world.wait(ROLLOUT, 1)
    world.wait(INTERACTIVE, *[1] * 5, caller="people")
    assert world.round() == []
    world.held[INTERACTIVE] = 19
    assert world.round() == [], "the place belongs to who waited longer"
    world.held[INTERACTIVE] = 18
    assert world.round() == [(ROLLOUT, 1), (INTERACTIVE, 1), (INTERACTIVE, 1)]


async def test_bulk_work_too_large_to_come_in_beside_a_reserve_in_use_has_everything_wait_for_it() -> None:
    world = World({ROLLOUT: 1})
    world.wait(LABELLING, 30)
    world.wait(INTERACTIVE, 1, caller="person")
    assert world.round() == []
    world.held.clear()
    assert world.round() == [(LABELLING, 30), (INTERACTIVE, 1)]
