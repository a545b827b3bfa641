"""Curves of a report: what is drawn of which runs, and that nothing is where nothing was measured."""

from __future__ import annotations

from typing import Any

from accord.study.plots import curves, health

ROLLOUTS = ("ppo", "grpo", "rloo", "online_dpo")
TIMES = {"seconds_rollout": 3.0, "seconds_score": 1.0, "seconds_train": 2.0}
WATCHED = {
    "entropy": "entropy", "clip_fraction": "clipped share", "explained_variance": "explained variance", "response_tokens": "tokens a response",
    "eos_rate": "share with an end", "tokens_per_second": "tokens a second",
}  # fmt: skip


def results(*runs: tuple[str, str, dict[str, float]]) -> dict[str, Any]:
    """Runs of (algorithm, arm, values of each step) on one task."""
    return {
        "tasks": [{"task": "conversation"}, {"task": "summarization"}],
        "curves": [
            {"task": "conversation", "arm": arm, "algorithm": algorithm, "curve": [{"step": step, "values": values} for step in (1, 2, 3)]}
            for algorithm, arm, values in runs
        ],
    }


def test_runs_with_rollouts_have_their_curves_whichever_algorithm_they_are() -> None:
    for algorithm in ROLLOUTS:
        picture = health(results((algorithm, f"{algorithm}-ai", {**dict.fromkeys(WATCHED, 0.5), **TIMES})))
        assert all(title in picture for title in (*WATCHED.values(), "seconds a step", "sampling", "scoring", "learning", f"{algorithm}-ai")), (
            algorithm
        )
        assert picture.count("Summarization") == 0, "a task whose runs have no rollouts takes no room"
        logged = curves(results((algorithm, f"{algorithm}-ai", {"score_mean": 1.0, "kl": 0.5, "margin": 0.1})))
        assert "KL to SFT, nats" in logged
        assert ("implicit margin" in logged) == (algorithm == "online_dpo")


def test_a_panel_is_there_where_a_run_has_the_metric() -> None:
    for missing, title in WATCHED.items():
        picture = health(results(("grpo", "grpo-ai", {name: 0.5 for name in WATCHED if name != missing})))
        assert title not in picture
        assert all(other in picture for name, other in WATCHED.items() if name != missing)
        assert "seconds a step" not in picture
    assert "seconds a step" in health(results(("rloo", "rloo-ai", TIMES)))


def test_without_rollouts_there_is_no_picture_of_their_health() -> None:
    only = results(("sft", "sft", {"loss": 2.0, "entropy": 1.0, "seconds_train": 1.0}))
    assert health(only) == ""
    assert "SFT" in curves(only)
    assert "With rollouts" not in curves(only)
    assert curves(results()) == ""
