"""The order in which waiting work is admitted: classes, turns, ageing, and what is refused."""

from __future__ import annotations

import asyncio
import time

import pytest

from accord.errors import DeadlineExceededError, ResourceExhaustedError
from accord.rpc.fairqueue import FairQueue, Verdict
from accord.rpc.workitem import WorkItem, WorkRequest

Queue = FairQueue[str, str]


def make(**changes: float) -> Queue:
    settings = {"max_items": 100, "max_cost": 1000, "max_caller_cost": 1000, "max_wait_seconds": 60.0, "aging_seconds": 60.0} | changes
    return FairQueue(name="fair", **settings)  # type: ignore[arg-type]


def put(queue: Queue, *names: str, priority: int = 0, caller: str = "", cost: int = 10, deadline: float | None = None) -> list[WorkItem[str, str]]:
    return queue.submit_all([WorkRequest(name, cost, None, deadline, priority, caller) for name in names])


def taken(queue: Queue, count: int = 100, *, skip: str = "") -> list[str]:
    left = count

    def decide(item: WorkItem[str, str]) -> Verdict:
        nonlocal left
        if skip and item.payload.startswith(skip):
            return "skip"
        if left == 0:
            return "stop"
        left -= 1
        return "take"

    return [item.payload for item in queue.admit(decide)]


async def test_classes_go_in_order_and_within_a_class_first_in_first_out() -> None:
    queue = make()
    put(queue, "label", priority=2)
    put(queue, "rollout-1", "rollout-2", priority=1)
    put(queue, "person")
    assert taken(queue, 2) == ["person", "rollout-1"]
    assert taken(queue) == ["rollout-2", "label"]
    assert len(queue) == 0


async def test_callers_of_a_class_take_turns_by_what_they_were_given() -> None:
    queue = make()
    put(queue, "a1", "a2", "a3", "a4", caller="a")
    put(queue, "b1", "b2", caller="b", cost=20)
    assert taken(queue) == ["a1", "b1", "a2", "a3", "b2", "a4"]


async def test_who_was_away_has_no_credit() -> None:
    queue = make()
    put(queue, *(f"a{number}" for number in range(10)), caller="a")
    assert taken(queue, 6) == [f"a{number}" for number in range(6)]
    put(queue, "b0", "b1", "b2", "b3", caller="b")
    assert taken(queue, 4) == ["a6", "b0", "a7", "b1"]


async def test_what_waits_long_rises_and_then_goes_before_what_came_later() -> None:
    queue = make(aging_seconds=0.05)
    put(queue, "label", priority=2, caller="a")
    time.sleep(0.12)
    put(queue, "person", caller="b")
    assert taken(queue, 1) == ["label"]


async def test_what_is_skipped_stays_and_does_not_hold_up_the_others() -> None:
    queue = make()
    put(queue, "wait", "go", "on")
    assert taken(queue, skip="wait") == ["go", "on"]
    assert taken(queue) == ["wait"]


async def test_a_stop_keeps_the_order_for_the_next_time() -> None:
    queue = make()
    put(queue, "large", "small")
    assert taken(queue, 0) == []
    assert taken(queue) == ["large", "small"]


async def test_one_caller_cannot_fill_the_queue_for_all() -> None:
    queue = make(max_caller_cost=50)
    put(queue, "a1", "a2", "a3", "a4", caller="a")
    with pytest.raises(ResourceExhaustedError, match="caller a has a cost of 40 waiting and asks for 20; at most 50") as caught:
        put(queue, "a5", "a6", caller="a")
    assert caught.value.retry_after_seconds is not None
    put(queue, "b1", "b2", caller="b")
    assert len(queue) == 6
    put(queue, *(f"c{number}" for number in range(20)), caller="c")  # nothing of it waits yet: one large call is no crowd
    assert len(queue) == 26


async def test_a_wait_has_a_limit_and_says_when_to_come_back() -> None:
    queue = make(max_wait_seconds=0.05)
    (item,) = put(queue, "late")
    time.sleep(0.1)
    put(queue, "fresh")
    assert taken(queue) == ["fresh"]
    with pytest.raises(ResourceExhaustedError, match=r"waited longer than 0\.05 s") as caught:
        await item.result()
    assert caught.value.retry_after_seconds is not None


async def test_expired_and_cancelled_work_is_never_offered() -> None:
    queue = make()
    (expired,) = put(queue, "expired", deadline=time.monotonic() - 1)
    (cancelled,) = put(queue, "cancelled")
    put(queue, "kept")
    cancelled.cancel()
    await asyncio.sleep(0)
    assert taken(queue) == ["kept"]
    with pytest.raises(DeadlineExceededError):
        await expired.result()


async def test_a_wait_for_work_ends_when_some_comes_is_there_or_never_comes() -> None:
    queue = make()
    began = time.monotonic()
    queue.wait(0.05)
    assert 0.04 < time.monotonic() - began < 2
    put(queue, "here")
    began = time.monotonic()
    queue.wait(10)
    assert time.monotonic() - began < 1
    assert taken(queue, skip="here") == []
    began = time.monotonic()
    queue.wait(0.05)
    assert time.monotonic() - began > 0.04, "what was skipped waits for something else: nobody is to turn round and round meanwhile"
    put(queue, "more")
    taken(queue, skip="here")
    queue.wake()
    began = time.monotonic()
    queue.wait(10)
    assert time.monotonic() - began < 1
    queue.close()
    queue.wait(10)
    assert time.monotonic() - began < 1
