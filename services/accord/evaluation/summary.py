"""From scored rows to what is reported: each metric of each arm with its interval, and the paired differences between arms of a task.

What does not belong here: scoring rows (`metrics`, `bertscore`) and files (`job`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from accord.evaluation.bleu import bleu_statistic
from accord.evaluation.bootstrap import Contrast, Interval, Replicates, Statistic, mean_statistic, replicate
from accord.evaluation.metrics import BLEU_NAMES, COMPUTED
from accord.evaluation.rows import WIN_VALUES, EvaluationRow
from accord.evaluation.win_rate import win_rate_statistic

Array = NDArray[np.float64]
_Place = tuple[str, int]  # a prompt, and which of an arm's responses to it
ADJUSTED = {f"{win}_length_adjusted": (win, ratio) for win, ratio in WIN_VALUES.items()}
RESERVED = frozenset((*COMPUTED, *ADJUSTED))


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A row with its numbers by metric name (None where it has none) and its counts for BLEU."""

    row: EvaluationRow
    numbers: Mapping[str, float | None]
    bleu_counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One arm of one task: n prompts, and the interval of each metric; None where no row has the metric."""

    task: str
    arm: str
    n: int
    metrics: Mapping[str, Interval | None]


@dataclass(frozen=True, slots=True)
class ArmContrast:
    """How arm a differs from arm b in one metric, over the prompts that both answered."""

    task: str
    metric: str
    a: str
    b: str
    contrast: Contrast


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: what a row contributes (None where it has nothing to), and the statistic of contributions of shape (rows, columns)."""

    name: str
    columns: Callable[[ScoredRow], tuple[float, ...] | None]
    statistic: Callable[[Array], Statistic]


def metrics_of(rows: Sequence[ScoredRow]) -> tuple[Metric, ...]:
    """The metrics of some rows: those that are computed, then those of `values` in order of appearance, then the length-adjusted ones."""
    given = dict.fromkeys(name for row in rows for name in row.row.values)
    means = [name for name in COMPUTED if name not in BLEU_NAMES]
    found = [Metric(name, partial(_number, name), _mean) for name in (*means, *given)]
    found[1:1] = [Metric(name, _counts, partial(bleu_statistic, order=order)) for name, order in BLEU_NAMES.items()]
    for name, (win, ratio) in ADJUSTED.items():
        if win in given and ratio in given:
            found.append(Metric(name, partial(_win, win, ratio), _win_rate))
    return tuple(found)


def summarise(
    rows: Sequence[ScoredRow], *, samples: int, seed: int, progress: Callable[[int], None]
) -> tuple[tuple[ArmSummary, ...], tuple[ArmContrast, ...]]:
    """The arms in order of appearance, and the contrasts of each two of a task that share a prompt.

    `progress` is told how many of `units(rows)` are done; what it raises ends the computation.
    """
    arms: list[ArmSummary] = []
    contrasts: list[ArmContrast] = []
    done = 0
    for task, by_arm in _by_task(rows).items():
        metrics = metrics_of([row for own in by_arm.values() for row in own])
        intervals: dict[str, dict[str, Interval | None]] = {arm: {} for arm in by_arm}
        for metric in metrics:
            own, differences = _compare(metric, by_arm, samples, seed)
            for arm, interval in own.items():
                intervals[arm][metric.name] = interval
            contrasts += [ArmContrast(task, metric.name, a, b, contrast) for (a, b), contrast in differences.items()]
            done += 1
            progress(done)
        arms += [ArmSummary(task, arm, len({row.row.prompt_id for row in by_arm[arm]}), intervals[arm]) for arm in by_arm]
    return tuple(arms), tuple(contrasts)


def units(rows: Sequence[ScoredRow]) -> int:
    """How many units `summarise` tells its progress in."""
    return sum(len(metrics_of([row for own in by_arm.values() for row in own])) for by_arm in _by_task(rows).values())


def _compare(
    metric: Metric, by_arm: Mapping[str, Sequence[ScoredRow]], samples: int, seed: int
) -> tuple[dict[str, Interval | None], dict[tuple[str, str], Contrast]]:
    """One metric of one task. Arms with the same prompts see the same resamples, so that each is computed once and differences are paired."""
    known = {arm: _contributions(metric, rows) for arm, rows in by_arm.items()}
    own = {arm: tuple(sorted(contributions)) for arm, contributions in known.items()}
    shared = {(a, b): tuple(sorted(known[a].keys() & known[b].keys())) for a, b in combinations(known, 2)}
    wanted: dict[tuple[_Place, ...], dict[str, None]] = {}
    for places, arms in [*((own[arm], (arm,)) for arm in known), *((shared[pair], pair) for pair in shared)]:
        if places:
            wanted.setdefault(places, {}).update(dict.fromkeys(arms))
    found: dict[tuple[_Place, ...], dict[str, Replicates]] = {}
    for places, names in wanted.items():
        statistics = {arm: metric.statistic(np.array([known[arm][place] for place in places], dtype=np.float64)) for arm in names}
        found[places] = replicate([prompt for prompt, _ in places], statistics, samples=samples, seed=seed)
    intervals = {arm: found[own[arm]][arm].interval() if own[arm] else None for arm in known}
    contrasts = {(a, b): found[places][a].minus(found[places][b]) for (a, b), places in shared.items() if places}
    return intervals, contrasts


def _contributions(metric: Metric, rows: Sequence[ScoredRow]) -> dict[_Place, tuple[float, ...]]:
    found = (((row.row.prompt_id, row.row.sample), metric.columns(row)) for row in rows)
    return {place: columns for place, columns in found if columns is not None}


def _by_task(rows: Sequence[ScoredRow]) -> dict[str, dict[str, list[ScoredRow]]]:
    found: dict[str, dict[str, list[ScoredRow]]] = {}
    for row in rows:
        found.setdefault(row.row.task, {}).setdefault(row.row.arm, []).append(row)
    return found


def _number(name: str, row: ScoredRow) -> tuple[float, ...] | None:
    value = row.numbers.get(name)
    return None if value is None else (value,)


def _mean(columns: Array) -> Statistic:
    return mean_statistic(columns[:, 0])


def _counts(row: ScoredRow) -> tuple[float, ...]:
    return tuple(float(count) for count in row.bleu_counts)


def _win(win: str, ratio: str, row: ScoredRow) -> tuple[float, ...] | None:
    won, longer = row.numbers.get(win), row.numbers.get(ratio)
    return None if won is None or longer is None else (won, longer)


def _win_rate(columns: Array) -> Statistic:
    return win_rate_statistic(columns[:, 0], columns[:, 1])
