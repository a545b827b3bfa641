"""Reward against KL along a run: how much of the one was bought for how much of the other (Gao et al. 2023, arXiv:2210.10760).

What does not belong here: pictures (`accord.study.plots`), tables (`accord.cli`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """A policy of a run, after `step` steps: KL to the reference in nats a response, mean score, and the held-out score where there is one."""

    step: int
    kl: float
    score: float
    held_out: float | None


def frontier(rows: Mapping[int, Mapping[str, float]], marks: Collection[int] = (), *, most: int = 12) -> list[FrontierPoint]:
    """The policies of a run by step, of checkpoints and evaluations where there are two or more, else of all steps; at most so many.

    A step reports the rollouts that it learned from, so those of the policy after n steps are in the metrics of step n + 1, or of a later one by the
    row's `staleness`; where two batches are of one policy the later one counts, and policies that sampled nothing are left out.

    Args:
        rows: metrics by step.
        marks: steps with a checkpoint or an evaluation.
        most: points, evenly chosen; the first and the last stay.
    """
    sampled = [(step, row) for step, row in sorted(rows.items()) if step > 0 and "kl" in row and "score_mean" in row]
    known = {step - 1 - int(row.get("staleness", 0)): row for step, row in sampled}
    evaluated = {step for step, row in rows.items() if "eval_score" in row}
    wanted = sorted(known.keys() & ({*marks} | evaluated))
    steps = wanted if len(wanted) > 1 else sorted(known)
    if len(steps) > most:
        steps = sorted({steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)})
    return [FrontierPoint(step, known[step]["kl"], known[step]["score_mean"], known[step].get("held_out_score_mean")) for step in steps]
