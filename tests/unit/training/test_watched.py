"""What `accord watch` shows of a run that samples nothing: how fast it is, where its time goes, and its step after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.training.surroundings import WORDS, dying_in, make_context, metrics_of, planted_pairs, run_here, write_rows

from accord.cli.curves import KEY_CURVES
from accord.cli.screen import Screen
from accord.client.trainer import RunEvent
from accord.training import __main__ as entry
from accord.training.context import StopSignal
from accord.training.loop import train

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


@pytest.mark.parametrize(("dies_in", "known", "goes_on"), [(3, 3, 2), (1, 1, 0)], ids=["with a checkpoint", "without one"])
def test_after_a_kill_the_step_is_the_lost_one_until_a_checkpoint_says_more(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, dies_in: int, known: int, goes_on: int
) -> None:
    """It stayed the lost attempt's until the new one had come as far; and 0 while a run is loaded would be as wrong."""
    monkeypatch.setattr(StopSignal, "install", lambda self: None)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode: None)
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"say {word}", "response": word} for word in WORDS])
    context = make_context(tmp_path, tiny_folder, {"steps": 4, "checkpoint_every_steps": 2, "sft": {"data": data}})
    with pytest.raises(KeyboardInterrupt):
        train(context, dying_in(entry.build(context), dies_in))
    lost = context.directory.progress()
    assert lost.step == known
    assert entry.main(["--config", str(context.directory.path / "run.yaml")]) == 0
    steps = [(event.phase or event.kind, event.step) for event in context.directory.events(lost.offset) if event.kind in ("state", "metrics")]
    assert steps[:2] == [("starting", known), ("loading", known)]
    assert steps[2][1] == goes_on
    assert next(step for kind, step in steps if kind == "metrics") == goes_on + 1
    assert context.directory.progress(lost).step == 4
