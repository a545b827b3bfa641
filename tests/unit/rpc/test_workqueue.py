"""The bounded queue: admission, order, batches of one key, and work that nobody waits for any more."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from accord.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from accord.rpc import boundedqueue
from accord.rpc.workqueue import WorkItem, WorkQueue, WorkRequest


def make_queue(name: str = "test", **limits: Any) -> WorkQueue[str, str]:
    values: dict[str, Any] = {"max_items": 10, "max_cost": 100, "name": name, "retry_after_seconds": 0.5} | limits
    return WorkQueue(**values)


def taken(queue: WorkQueue[str, str], *, max_cost: int = 100, max_items: int = 10, **options: Any) -> list[str]:
    batch = queue.take_batch(max_cost=max_cost, max_items=max_items, **{"timeout_seconds": 0} | options)
    return [item.payload for item in batch]


def sample(name: str, queue: str) -> float:
    return REGISTRY.get_sample_value(name, {"queue": queue}) or 0.0


async def test_batches_are_first_in_first_out_within_limits_of_items_and_cost() -> None:
    queue = make_queue()
    for payload, cost in (("a", 4), ("b", 4), ("c", 4), ("d", 1)):
        queue.submit(payload, cost=cost)
    assert taken(queue, max_cost=9) == ["a", "b"]
    assert taken(queue, max_items=1) == ["c"]
    assert taken(queue) == ["d"]
    assert taken(queue) == []


async def test_a_first_item_over_the_batch_cost_is_taken_alone_and_not_starved() -> None:
    queue = make_queue()
    queue.submit("big", cost=50)
    queue.submit("small", cost=1)
    assert taken(queue, max_cost=10) == ["big"]
    assert taken(queue, max_cost=10) == ["small"]


async def test_a_batch_holds_one_key_and_the_key_that_waited_longest_comes_first() -> None:
    queue = make_queue()
    for payload, key in (("x1", "x"), ("y1", "y"), ("x2", "x"), ("z1", "z"), ("y2", "y")):
        queue.submit(payload, key=key)
    assert [taken(queue) for _ in range(3)] == [["x1", "x2"], ["y1", "y2"], ["z1"]]


async def test_a_full_queue_says_when_to_come_back() -> None:
    queue = make_queue(max_items=2)
    queue.submit("a")
    queue.submit("b")
    with pytest.raises(ResourceExhaustedError, match="test is full: 2 of 2 items") as caught:
        queue.submit("c")
    assert caught.value.retry_after_seconds == 0.5
    assert len(queue) == 2


async def test_the_wait_is_estimated_from_recent_throughput() -> None:
    queue = make_queue(max_cost=100, max_items=1000, retry_after_seconds=0.01)
    first = queue.submit("a", cost=50)
    await asyncio.sleep(0.2)
    queue.take_batch(max_cost=100, max_items=1)[0].complete("done")
    await first.result()
    await asyncio.sleep(0.2)  # cost 50 in about 0.2 s since it was completed
    queue.submit("b", cost=90)
    with pytest.raises(ResourceExhaustedError) as caught:
        queue.submit("c", cost=60)  # 50 too many
    assert 0.1 < (caught.value.retry_after_seconds or 0) < 1.0


async def test_an_idle_hour_is_no_slow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now, queue = time.monotonic(), make_queue(max_items=1)
    monkeypatch.setattr(boundedqueue, "time", SimpleNamespace(monotonic=lambda: now))
    queue.submit("a")
    queue.take_batch(max_cost=100, max_items=1, timeout_seconds=0)[0].complete("done")
    now += 3600
    queue.submit("b")
    with pytest.raises(ResourceExhaustedError) as caught:
        queue.submit("c")
    assert caught.value.retry_after_seconds == 0.5


async def test_what_can_never_fit_is_the_callers_mistake_and_not_overload() -> None:
    queue = make_queue(max_items=3, max_cost=100)
    with pytest.raises(InvalidArgumentError, match="a cost of 101 at once; test holds at most 100"):
        queue.submit("a", cost=101)
    with pytest.raises(InvalidArgumentError, match="4 items at once; test holds at most 3"):
        queue.submit_all([WorkRequest("a")] * 4)
    with pytest.raises(InvalidArgumentError, match="cost is 0; at least 1"):
        queue.submit("a", cost=0)


async def test_a_batch_is_accepted_whole_or_not_at_all() -> None:
    queue = make_queue(max_items=3)
    queue.submit("a")
    with pytest.raises(ResourceExhaustedError):
        queue.submit_all([WorkRequest(payload) for payload in "bcd"])
    assert len(queue) == 1
    queue.submit_all([WorkRequest(payload) for payload in "bc"])
    assert taken(queue) == ["a", "b", "c"]


async def test_expired_work_never_reaches_compute_and_its_caller_is_told() -> None:
    queue = make_queue("expiry")
    late = queue.submit("late", deadline=time.monotonic() - 0.001)
    queue.submit("in time", deadline=time.monotonic() + 60)
    assert taken(queue) == ["in time"]
    with pytest.raises(DeadlineExceededError, match="before compute"):
        await late.result()
    assert sample("accord_queue_expired_before_compute_total", "expiry") == 1


async def test_expired_work_makes_room() -> None:
    queue = make_queue(max_items=1)
    queue.submit("late", deadline=time.monotonic() - 0.001)
    queue.submit("next")
    assert taken(queue) == ["next"]


async def test_a_cancelled_handler_takes_its_work_out_of_the_queue() -> None:
    queue = make_queue("cancels")
    item = queue.submit("gone", cost=7)
    queue.submit("kept")
    handler = asyncio.create_task(item.result())
    await asyncio.sleep(0)
    handler.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handler
    assert item.cancelled
    assert (len(queue), sample("accord_queue_depth", "cancels"), sample("accord_queue_cost", "cancels")) == (1, 1, 1)
    assert sample("accord_queue_cancelled_before_compute_total", "cancels") == 1
    assert taken(queue) == ["kept"]


async def test_work_in_compute_sees_that_its_caller_has_gone() -> None:
    queue = make_queue()
    items = queue.submit_all([WorkRequest("cancelled"), WorkRequest("expired", deadline=time.monotonic() + 0.05), WorkRequest("wanted")])
    handler = asyncio.gather(*(item.result() for item in items[:1]))
    batch = queue.take_batch(max_cost=100, max_items=10)
    assert [item.abandoned for item in batch] == [False, False, False]
    await asyncio.sleep(0.06)
    handler.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await handler
    assert [item.abandoned for item in batch] == [True, True, False]
    batch[0].complete("too late")  # harmless
    batch[2].complete("answer")
    assert await items[2].result() == "answer"


async def test_the_first_answer_counts() -> None:
    queue = make_queue()
    item = queue.submit("a")
    (same,) = queue.take_batch(max_cost=1, max_items=1)
    same.complete("first")
    same.fail(InternalError("second"))
    assert await item.result() == "first"


async def test_streamed_values_arrive_in_order_before_the_result_from_another_thread() -> None:
    queue = make_queue()
    item = queue.submit("a")

    def compute() -> None:
        (work,) = queue.take_batch(max_cost=1, max_items=1)
        for number in range(1000):
            work.emit(number)
        work.complete("end")
        work.emit("after the end")

    thread = threading.Thread(target=compute)
    thread.start()
    assert [value async for value in item.values()] == list(range(1000))
    assert await item.result() == "end"
    thread.join()


async def test_a_stream_that_fails_gives_what_came_and_then_the_error() -> None:
    queue = make_queue()
    item = queue.submit("a")
    (work,) = queue.take_batch(max_cost=1, max_items=1)
    work.emit(1)
    work.fail(NotFoundError("no such adapter"))
    values = item.values()
    assert await anext(values) == 1
    with pytest.raises(NotFoundError):
        await anext(values)


async def test_leaving_a_stream_early_abandons_the_work() -> None:
    queue = make_queue()
    item = queue.submit("a")
    (work,) = queue.take_batch(max_cost=1, max_items=1)
    work.emit(1)
    values = item.values()
    assert await anext(values) == 1
    assert not work.abandoned
    await values.aclose()  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    assert work.abandoned


def in_thread(function: Any) -> Any:
    return asyncio.get_running_loop().run_in_executor(None, function)


@pytest.mark.alone
async def test_lingering_waits_for_company_and_is_counted_from_the_submission() -> None:
    queue = make_queue()
    began = time.monotonic()
    taking = in_thread(lambda: taken(queue, linger_seconds=0.3, timeout_seconds=None))
    queue.submit("a")
    await asyncio.sleep(0.1)
    queue.submit("b")
    assert await taking == ["a", "b"]
    assert 0.25 < time.monotonic() - began < 0.6
    queue.submit("c")
    await asyncio.sleep(0.31)
    began = time.monotonic()
    assert taken(queue, linger_seconds=0.3) == ["c"]
    assert time.monotonic() - began < 0.1


async def test_lingering_ends_as_soon_as_the_batch_is_full() -> None:
    queue = make_queue()
    began = time.monotonic()
    taking = in_thread(lambda: taken(queue, max_items=2, linger_seconds=30, timeout_seconds=None))
    queue.submit("a")
    queue.submit("b")
    assert await taking == ["a", "b"]
    assert time.monotonic() - began < 5


async def test_nothing_in_time_is_an_empty_batch() -> None:
    began = time.monotonic()
    assert taken(make_queue(), timeout_seconds=0.2) == []
    assert 0.15 < time.monotonic() - began < 1


async def test_closing_unblocks_the_taker_fails_the_rest_and_refuses_more() -> None:
    empty = make_queue()
    taking = in_thread(lambda: taken(empty, timeout_seconds=None))
    await asyncio.sleep(0.05)
    empty.close()
    assert await taking == []
    queue = make_queue()
    item = queue.submit("a")
    queue.close("going away")
    with pytest.raises(UnavailableError, match="test: going away"):
        await item.result()
    with pytest.raises(UnavailableError):
        queue.submit("b")
    assert (len(queue), taken(queue, timeout_seconds=None)) == (0, [])


async def test_nothing_is_lost_or_doubled_between_many_handlers_and_the_taker() -> None:
    queue: WorkQueue[str, str] = make_queue(max_items=50, max_cost=1000)
    seen: list[str] = []

    def compute() -> None:
        while batch := queue.take_batch(max_cost=20, max_items=8, linger_seconds=0.001):
            assert len({item.key for item in batch}) == 1
            for item in batch:
                seen.append(item.payload)
                item.complete(item.payload.upper())

    async def handler(number: int) -> str | None:
        while True:
            try:
                item: WorkItem[str, str] = queue.submit(f"n{number}", cost=1 + number % 5, key=number % 3)
                return await asyncio.wait_for(item.result(), 0.0005 if number % 10 == 0 else 30)
            except ResourceExhaustedError:
                await asyncio.sleep(0.02)
            except TimeoutError:
                return None

    thread = threading.Thread(target=compute)
    thread.start()
    results = await asyncio.gather(*(handler(number) for number in range(500)))
    queue.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(seen) == len(set(seen))
    assert all(result in (f"N{number}", None if number % 10 == 0 else f"N{number}") for number, result in enumerate(results))
    assert sample("accord_queue_depth", "test") == 0
