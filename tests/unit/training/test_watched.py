"""What `accord watch` shows of a run that samples nothing: how fast it is, and where its time goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.training.surroundings import WORDS, metrics_of, planted_pairs, run_here, write_rows

from accord.cli.curves import KEY_CURVES
from accord.cli.screen import Screen
from accord.client.trainer import RunEvent

pytestmark = pytest.mark.training


@pytest.mark.parametrize("kind", ["sft", "reward_model"])
def test_a_step_without_rollouts_is_time_that_it_learns(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    rows: Any = planted_pairs() if kind == "reward_model" else [{"prompt": f"say {word}", "response": word} for word in WORDS]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    values = {"steps": 4, "checkpoint_every_steps": 2, kind: {"data": data}}
    _, events = run_here(tmp_path, tiny_folder, values)
    screen = Screen("runs/a", total=4)
    for event in events:
        if event.kind == "metrics":
            screen.take(RunEvent("", event.time, step=event.step, metrics=event.values))
    seconds, rates, tokens = (metrics_of(events, name) for name in ("seconds", "tokens_per_second", "tokens"))
    phases = screen.curves.phase_seconds()
    assert phases["train"] == pytest.approx(sum(seconds))
    assert set(phases) <= {"train", "evaluate", "checkpoint"}
    assert rates == pytest.approx([count / taken for count, taken in zip(tokens, seconds, strict=True)])
    assert "tokens_per_second" in KEY_CURVES
    assert any("train" in str(part) for part in screen._phases())
