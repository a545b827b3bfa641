"""What a step gave, kept and found again."""

from __future__ import annotations

from pathlib import Path

from accord.study.steps import StepStore


def test_a_result_is_the_same_in_the_call_that_made_it_and_in_later_ones(tmp_path: Path) -> None:
    """Also its tuples, which are lists in JSON: tables of the two calls are compared."""
    store = StepStore(tmp_path)
    kept = store.write("task/labels-ai", "k", {"cards": [{"reliability": (), "bins": ({"low": 0.5},)}]}, 3.0, resumed=True)
    assert kept == StepStore(tmp_path).read("task/labels-ai", "k")
    assert kept.values["cards"][0]["reliability"] == []
