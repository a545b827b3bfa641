"""The compute thread: answers, failures that it survives, and the stall clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from accord.errors import DeadlineExceededError, InternalError, NotFoundError
from accord.rpc.worker import Worker, run_worker
from accord.rpc.workqueue import WorkItem, WorkQueue


@contextmanager
def working(compute: Callable[[list[WorkItem[Any, Any]]], Any]) -> Iterator[tuple[WorkQueue[Any, Any], Worker[Any, Any]]]:
    queue: WorkQueue[Any, Any] = WorkQueue(max_items=100, max_cost=1000, name="work")
    worker = run_worker(queue, compute, max_cost=100, max_items=10)
    try:
        yield queue, worker
    finally:
        assert worker.stop(5)


async def test_results_reach_their_items_in_order() -> None:
    with working(lambda batch: [item.payload * 2 for item in batch]) as (queue, _):
        assert [await queue.submit(number).result() for number in (1, 2, 3)] == [2, 4, 6]


async def test_an_error_of_ours_reaches_the_caller_as_it_is_and_the_worker_goes_on() -> None:
    def compute(batch: list[WorkItem[Any, Any]]) -> list[Any]:
        if batch[0].payload == "bad":
            raise NotFoundError("no such adapter", field="adapter")
        return [item.payload for item in batch]

    with working(compute) as (queue, worker):
        with pytest.raises(NotFoundError) as caught:
            await queue.submit("bad").result()
        assert caught.value.field == "adapter"
        assert await queue.submit("good").result() == "good"
        assert worker.alive


async def test_a_defect_is_an_internal_error_and_its_text_stays_out_of_the_log() -> None:
    def compute(batch: list[WorkItem[Any, Any]]) -> list[Any]:
        raise RuntimeError(f"cannot embed {batch[0].payload}")

    with capture_logs() as logs, working(compute) as (queue, worker):
        with pytest.raises(InternalError, match="compute failed in work, see server log"):
            await queue.submit("a confidential prompt").result()
        assert worker.alive
    assert [line["event"] for line in logs] == ["compute_failed"]
    assert "confidential" not in str(logs)
    assert "RuntimeError" in str(logs)
    assert "test_worker.py" in str(logs)


async def test_every_item_is_answered_whatever_compute_returns() -> None:
    def forgetful(batch: list[WorkItem[Any, Any]]) -> list[Any] | None:
        return [] if batch[0].payload == "short" else None

    with working(forgetful) as (queue, _):
        with pytest.raises(InternalError, match="0 results for 1 items"):
            await queue.submit("short").result()
        with pytest.raises(InternalError, match="ended without an answer"):
            await queue.submit("none").result()


async def test_work_that_compute_drops_because_its_deadline_passed_is_no_defect() -> None:
    def drops(batch: list[WorkItem[Any, Any]]) -> None:
        while not all(item.abandoned for item in batch):
            time.sleep(0.005)

    with working(drops) as (queue, _), pytest.raises(DeadlineExceededError, match="during compute"):
        await queue.submit("a", deadline=time.monotonic() + 0.05).result()


@pytest.mark.alone
async def test_the_stall_clock_runs_in_compute_restarts_with_a_beat_and_rests_when_idle() -> None:
    begun, beat, beaten, go_on = (threading.Event() for _ in range(4))

    def compute(batch: list[WorkItem[Any, Any]]) -> list[Any]:
        begun.set()
        beat.wait(5)
        worker.beat()
        beaten.set()
        go_on.wait(5)
        return [None for _ in batch]

    with working(compute) as (queue, worker):
        assert worker.stalled_seconds == 0
        item = queue.submit("a")
        begun.wait(5)
        time.sleep(0.15)
        assert worker.stalled_seconds >= 0.15
        assert worker.fault(60) is None
        assert "work has computed one step for" in str(worker.fault(0.1))
        beat.set()
        beaten.wait(5)
        assert worker.stalled_seconds < 0.1
        go_on.set()
        await item.result()
        time.sleep(0.05)
        assert worker.stalled_seconds == 0


async def test_a_worker_that_was_stopped_is_no_fault() -> None:
    with working(lambda batch: None) as (_, worker):
        assert worker.fault(1) is None
    assert not worker.alive
    assert worker.fault(1) is None
