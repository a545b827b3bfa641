"""Curves, bars and the screen: what a person reads off them must be true."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.console import Console

from accord.cli.curves import Curves, sparkline
from accord.cli.metrics import held_out_line
from accord.cli.screen import Screen
from accord.client.trainer import Run, RunEvent, RunState
from accord.runspec import parse_spec


def text_of(screen: Screen, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    with console.capture() as captured:
        console.print(screen)
    return captured.get()


def run_of(part: dict[str, Any], *, step: int = 0, state: RunState = "running") -> Run:
    spec = parse_spec({"adapter": "a", "steps": 9, **part})
    return Run("runs/a", spec, state, "train", "", "", step, 9, {}, 0.0, 0.0, None, "", 1, "", None, None)


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([7, 0], 8, "█▁"),
        ([0, 0, 7, 7], 2, "▁█"),
        ([3, 3, 3], 8, "▄▄▄"),
        ([0, math.nan, 7], 8, "▁ █"),
        ([math.inf], 8, " "),
        ([], 8, ""),
    ],
)
def test_bars(values: list[float], width: int, line: str) -> None:
    assert sparkline(values, width) == line


def test_a_reward_model_s_worth_is_a_sentence_with_its_interval_and_the_length_baseline() -> None:
    metrics = {
        "eval_pairs": 40.0, "eval_accuracy": 0.875, "eval_accuracy_low": 0.739, "eval_accuracy_high": 0.945, "eval_length_baseline": 0.525,
        "eval_calibration_error": 0.081, "loss": 0.2,
    }  # fmt: skip
    assert held_out_line(metrics) == (
        "right on 88 % of 40 held-out pairs (95 % interval 74 to 94 %); always taking the longer response: 52 %; expected calibration error 0.08"
    )
    del metrics["eval_length_baseline"]
    assert held_out_line(metrics) == held_out_line({"loss": 1.0}) == ""


def test_bars_without_unicode() -> None:
    assert sparkline([0, 5], 8, ascii_only=True) == "_#"


def test_a_long_curve_is_the_means_of_its_parts() -> None:
    assert len(sparkline(range(1000), 60)) == 60
    assert sparkline([0, 10, 0, 10, 10, 10], 3) == "▁▁█"


def test_first_last_and_best_by_what_is_better() -> None:
    curves = Curves()
    for step, (loss, score, kl) in enumerate([(3.0, 0.1, 0.0), (1.0, 0.9, 2.0), (2.0, math.nan, 5.0)], 1):
        curves.add(step, {"loss": loss, "score_mean": score, "kl": kl})
    assert curves.extremes("loss") == curves.extremes("loss").__class__(3.0, 2.0, 1.0, 2)
    assert (curves.extremes("score_mean").last, curves.extremes("score_mean").best_step) == (0.9, 2), "what is no number is no value"
    assert curves.extremes("kl").best is None


@pytest.mark.parametrize(("ppo", "best"), [({}, 2), ({"normalize_scores": True}, None), ({"kl_controller": "adaptive"}, None)])
def test_a_reward_whose_scale_moves_has_no_best(ppo: dict[str, Any], best: int | None) -> None:
    screen = Screen("runs/a")
    screen.take(RunEvent("", 1.0, run=run_of({"ppo": {"data": {"uri": "x"}, "reward_model": "adapters/rm", **ppo}})))
    for step, reward in ((1, 0.0), (2, 2.0), (3, 1.0)):
        screen.take(RunEvent("", 1.0, step=step, metrics={"reward_mean": reward, "score_mean": reward}))
    assert screen.curves.extremes("reward_mean").best_step == best
    assert screen.curves.extremes("score_mean").best_step == 2


def test_a_step_that_is_done_again_replaces_what_was_known() -> None:
    curves = Curves()
    for step, loss, at in ((1, 3.0, 10.0), (2, 2.0, 12.0), (2, 1.5, 50.0), (3, 1.0, 14.0)):
        curves.add(step, {"loss": loss}, at=at)
    assert curves.line("loss") == [3.0, 1.5, 1.0]
    assert curves.seconds_per_step() == 2.0


def test_the_rate_is_that_of_the_last_steps_and_of_ordinary_ones() -> None:
    curves = Curves()
    at = 0.0
    for step in range(1, 41):
        at += 100.0 if step < 10 else 500.0 if step == 30 else 3.0
        curves.add(step, {"loss": 1.0}, at=at)
    assert curves.seconds_per_step() == 3.0


def test_the_screen_says_what_goes_on() -> None:
    screen = Screen("runs/a", algorithm="online_dpo", state="running", phase="rollouts", waiting_on="policy service at x", total=10)
    for step in range(1, 5):
        screen.take(
            RunEvent("", 100.0 + 30 * step, step=step, metrics={"score_mean": step / 4, "kl": 1.0, "seconds_rollout": 3.0, "seconds_train": 1.0})
        )
    text = text_of(screen)
    assert "runs/a  ONLINE DPO  running, rollouts" in text
    assert "step 4 of 10, 40%   30.0 s a step   3 min left" in text
    assert "waits for policy service at x" in text
    row = next(line.split() for line in text.splitlines() if line.startswith("score_mean"))
    assert row == ["score_mean", "▁▃▆█", "0.25", "1", "1", "at", "4"]
    assert "rollout 75%   train 25%" in text
    assert "no sign" not in text
    screen.take(RunEvent("", None, idle_seconds=40.0))
    assert "no sign of it for 40.0 s" in text_of(screen)


def test_after_a_kill_the_step_is_that_of_the_new_attempt() -> None:
    screen = Screen("runs/a", total=9)
    screen.take(RunEvent("", 1.0, step=7, metrics={"loss": 1.0}))
    screen.take(RunEvent("", 2.0, step=5, metrics={"loss": 1.0}))
    assert "step 5 of 9" in text_of(screen)
    assert screen.curves.line("loss") == [1.0, 1.0]


def test_alarms_of_a_kind_are_one_and_messages_are_the_latest() -> None:
    screen = Screen("runs/a")
    for step in range(1, 7):
        screen.take(RunEvent("", float(step), step=step, metrics={"kl": 1.0}))
        screen.take(RunEvent("", float(step), message=f"alarm: mean k1 is -0.{step}: look"))
        screen.take(RunEvent("", float(step), message=f"note {step}"))
    screen.take(RunEvent("", 9.0, message="alarm: responses grew\x1b[2J from 1 to 9 tokens"))
    text = text_of(screen)
    assert "! step 6, 6 times: mean k1 is -0.6: look" in text
    assert "responses grew�[2J from 1 to 9 tokens" in text, "a message cannot act on the terminal"
    assert [line.split()[-1] for line in text.splitlines() if "note" in line] == ["4", "5", "6"]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_it_fits_any_terminal(width: int) -> None:
    screen = Screen("runs/a-name-that-is-rather-long", algorithm="ppo", state="running", total=5)
    for step in range(1, 200):
        screen.take(RunEvent("", float(step), step=step, metrics={"eval_held_out_score_mean": -step / 7, "response_tokens": 1e5 * step}))
    screen.note("alarm: " + "words " * 60)
    assert max(len(line) for line in text_of(screen, width).splitlines()) <= width
