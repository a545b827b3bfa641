"""Reward against KL: which policy a point is of, which points there are, and that the picture has them."""

from __future__ import annotations

from typing import Any

from accord.study.frontier import FrontierPoint, frontier
from accord.study.plots import frontiers


def rows(count: int) -> dict[int, dict[str, float]]:
    return {step: {"kl": float(step - 1), "score_mean": 10.0 + step, "loss": 0.0} for step in range(1, count + 1)}


def test_a_policy_is_measured_on_the_rollouts_of_the_step_after_it() -> None:
    assert frontier({0: {"eval_score": 1.0}, **rows(3)}) == [
        FrontierPoint(0, 0.0, 11.0, None), FrontierPoint(1, 1.0, 12.0, None), FrontierPoint(2, 2.0, 13.0, None),
    ]  # fmt: skip


def test_one_step_ahead_it_is_the_policy_that_sampled() -> None:
    """The first two batches are both of the start, and the second one counts; the policies after the last two steps sampled nothing."""
    known = rows(5)
    for step, row in known.items():
        row["staleness"] = float(step > 1)
    assert [(point.step, point.kl) for point in frontier(known)] == [(0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0)]
    assert [point.step for point in frontier(known, {1, 3})] == [1, 3]


def test_checkpoints_and_evaluations_where_there_are_some() -> None:
    known = rows(9)
    known[6]["eval_score"] = 1.0
    known[4]["held_out_score_mean"] = 0.5
    found = frontier(known, {3, 9})
    assert [(point.step, point.held_out) for point in found] == [(3, 0.5), (6, None)], "the policy after the last step sampled nothing"


def test_long_runs_are_thinned_and_keep_their_ends() -> None:
    found = frontier(rows(1000), most=12)
    assert len(found) == 12
    assert (found[0].step, found[-1].step) == (0, 999)


def test_runs_without_rollouts_have_none() -> None:
    assert frontier({1: {"loss": 1.0}, 2: {"loss": 0.5}}) == []


def results(algorithm: str) -> dict[str, Any]:
    curve = [{"step": step, "values": values} for step, values in rows(6).items()]
    return {
        "tasks": [{"task": "conversation"}],
        "curves": [{"task": "conversation", "arm": f"{algorithm}-ai", "algorithm": algorithm, "curve": curve}],
    }


def test_the_picture_names_the_arm_and_its_steps() -> None:
    picture = frontiers(results("ppo"))
    assert "ppo-ai, 5" in picture
    assert frontiers(results("dpo")) == ""
