"""Makes `tests.unit.feedback.fakes` importable however pytest was started, and gives a labeller over a fake judge."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.unit.feedback.fakes import Bench, FakePolicy

from accord.feedback.config import FeedbackConfig
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
