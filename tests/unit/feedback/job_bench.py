"""Pairs, and waiting for label jobs, for the tests of jobs; the fixtures over them are in `conftest`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from accord.client.feedback import LabelJob
from accord.data.readers import read_pairs
from accord.data.records import PreferencePair
from accord.feedback.jobs import LabelJobs
from accord.text.chat import Message
from accord.text.tasks import Task

TASK = Task.CONVERSATION


def pairs(count: int, **changes: Any) -> list[PreferencePair]:
    """Pairs whose chosen response is better to the fake judge for even numbers, worse for odd ones."""
    made = []
    for number in range(count):
        better, worse = f"good good answer {number}", f"answer {number} of the other kind"
        chosen, rejected = (better, worse) if number % 2 == 0 else (worse, better)
        pair = PreferencePair(
            f"p{number:02}", TASK, (Message("user", f"question {number}"),), chosen, rejected, 1.0, f"g{number}", 1.0, "a reference", "train",
            {"subject": "tests"},
        )  # fmt: skip
        made.append(replace(pair, **changes))
    return made


async def ended(jobs: LabelJobs, name: str = "labelJobs/job-1") -> LabelJob:
    async with asyncio.timeout(20):
        seen = [job async for job in jobs.watch(name)]
    return seen[-1]


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not check():
            await asyncio.sleep(0.005)


def labelled(job: LabelJob) -> dict[str, PreferencePair]:
    return {pair.pair_id: pair for pair in read_pairs(job.dataset_uri, strict=True).rows}
