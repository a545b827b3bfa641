"""Makes `tests.unit.feedback.fakes` importable however pytest was started, and gives a labeller over a fake judge."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.unit.feedback.fakes import Bench, FakePolicy
from tests.unit.feedback.job_bench import TASK, pairs

from accord.client.feedback import Judge, LabelJobSpec
from accord.data.writers import write_pairs
from accord.feedback.candidates import CandidateSource
from accord.feedback.config import FeedbackConfig
from accord.feedback.jobs import LabelJobs
from accord.feedback.ledger import Ledger

MakeBench = Callable[..., Bench]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def make_bench(ledger: Ledger, tmp_path: Path) -> MakeBench:
    """A function that makes a bench over the test's ledger: a policy (unbiased by default), judges beside it, and fields of the configuration."""

    def make(policy: FakePolicy | None = None, others: Mapping[str, FakePolicy] | None = None, **fields: Any) -> Bench:
        values = {"policy": "fake:1", "ledger": str(ledger.path), "jobs": str(tmp_path / "jobs"), **fields}
        return Bench(ledger, policy or FakePolicy(), FeedbackConfig(**values), others or {})

    return make


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "pairs.jsonl"
    write_pairs(path, pairs(12))
    return path


@pytest.fixture
def spec(data: Path, tmp_path: Path) -> LabelJobSpec:
    return LabelJobSpec("job-1", str(data), TASK, str(tmp_path / "out"), judge=Judge("verdict"), seed=3)


@pytest.fixture
async def make_jobs(make_bench: MakeBench) -> AsyncIterator[Callable[..., Any]]:
    """A function that starts a server's jobs over a bench, as a restart would."""
    started: list[tuple[LabelJobs, Bench]] = []

    async def make(
        policy: FakePolicy | None = None, source: CandidateSource | None = None, others: Mapping[str, FakePolicy] | None = None, **fields: Any
    ) -> tuple[LabelJobs, Bench]:
        bench = make_bench(policy, others, **{"batch_pairs": 2, "concurrency": 1, **fields})
        jobs = LabelJobs(bench.labeller, bench.ledger, bench.config, source)
        started.append((jobs, bench))
        await jobs.start()
        return jobs, bench

    yield make
    for jobs, bench in started:
        await jobs.close()
        await bench.desk.close()
