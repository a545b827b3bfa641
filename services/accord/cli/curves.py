"""The metrics of a run as curves: what came first, last and best, and a line of bars for a terminal.

What does not belong here: layout (`accord.cli.screen`), and which metrics a line of text shows (`accord.cli.metrics`).
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

KEY_CURVES = (
    "loss", "eval_loss", "accuracy", "eval_accuracy", "margin", "eval_margin", "reward_mean", "score_mean", "held_out_score_mean", "eval_score",
    "eval_held_out_score_mean", "kl", "entropy", "clip_fraction", "explained_variance", "response_tokens", "eos_rate", "repetition",
    "tokens_per_second",
)  # fmt: skip
"""What a person wants to see, in this order, where a run has it. `tokens_per_second` counts what is sampled where a run samples, else what it learns
from, prompts included."""
PHASES = ("rollout", "score", "train", "evaluate", "checkpoint")
"""Of `seconds_{phase}`."""
_RISE = {
    "accuracy", "eval_accuracy", "margin", "eval_margin", "reward_mean", "score_mean", "held_out_score_mean", "eval_score",
    "eval_held_out_score_mean", "explained_variance",
}  # fmt: skip
_FALL = {"loss", "eval_loss", "policy_loss", "value_loss"}
_BARS, _ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=*#"
_RATE_STEPS = 20


@dataclass(frozen=True, slots=True)
class Extremes:
    """A curve in three numbers; `best` is None where neither high nor low is better."""

    first: float
    last: float
    best: float | None
    best_step: int | None


@dataclass
class Curves:
    """Values of each metric by step. A step that is told again, after a resumption, replaces what was known of it."""

    values: dict[str, dict[int, float]] = field(default_factory=dict)
    times: dict[int, float] = field(default_factory=dict)
    reward_moves: bool = False
    """Whether the reward's scale changes from step to step, so that none of its values is the best."""

    def add(self, step: int, metrics: Mapping[str, float], *, at: float | None = None) -> None:
        """Takes note of metrics after a step, with the Unix time at which they were told."""
        for name, value in metrics.items():
            self.values.setdefault(name, {})[step] = value
        if at is not None:
            self.times.setdefault(step, at)

    def latest(self) -> dict[str, float]:
        """The newest value of each metric."""
        return {name: points[max(points)] for name, points in self.values.items()}

    def by_step(self) -> dict[int, dict[str, float]]:
        """The metrics of each step."""
        found: dict[int, dict[str, float]] = {}
        for name, points in self.values.items():
            for step, value in points.items():
                found.setdefault(step, {})[name] = value
        return found

    def line(self, name: str) -> list[float]:
        """The values of a metric in the order of steps."""
        return [value for _, value in sorted(self.values.get(name, {}).items())]

    def extremes(self, name: str) -> Extremes:
        """First, last and best value of a metric that is there."""
        points = {step: value for step, value in sorted(self.values[name].items()) if math.isfinite(value)} or self.values[name]
        first, last = points[min(points)], points[max(points)]
        if name not in _RISE | _FALL or (name == "reward_mean" and self.reward_moves):
            return Extremes(first, last, None, None)
        best = (max if name in _RISE else min)(points, key=lambda step: points[step])
        return Extremes(first, last, points[best], best)

    def seconds_per_step(self) -> float | None:
        """The median of the last steps' durations, None before there are two."""
        steps = sorted(self.times)[-_RATE_STEPS - 1 :]
        spans = [(self.times[after] - self.times[before]) / (after - before) for before, after in itertools.pairwise(steps)]
        return statistics.median(spans) if spans else None

    def phase_seconds(self) -> dict[str, float]:
        """Seconds that each phase took in all, of phases that took any."""
        sums = {phase: math.fsum(self.line(f"seconds_{phase}")) for phase in PHASES}
        return {phase: seconds for phase, seconds in sums.items() if seconds > 0}


def sparkline(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """Bars between the lowest and the highest value, at most `width`: each the mean of its part of the curve; a space where none is finite."""
    bars = _ASCII_BARS if ascii_only else _BARS
    count = min(width, len(values))
    parts = [values[index * len(values) // count : (index + 1) * len(values) // count] for index in range(count)]
    means = [statistics.fmean(finite) if (finite := [value for value in part if math.isfinite(value)]) else None for part in parts]
    known = [mean for mean in means if mean is not None]
    if not known:
        return " " * count
    low, span = min(known), max(known) - min(known)
    middle = len(bars) // 2 - 1
    return "".join(" " if mean is None else bars[round((mean - low) / span * (len(bars) - 1)) if span > 0 else middle] for mean in means)
