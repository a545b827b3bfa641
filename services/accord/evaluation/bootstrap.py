"""Percentile bootstrap over prompts: intervals of any statistic of weighted rows, and paired differences between two arms.

A statistic is a function of weights: shape (resamples, rows), how often each row was drawn, to shape (resamples,). Statistics over the
same prompts see the same resamples, so differences are paired. What does not belong here: which statistic a metric is (`summary`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
Key = TypeVar("Key", bound=Hashable)
COVERAGE = 0.95
_CELLS_AT_ONCE = 1_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A value over n prompts, with its 95 % percentile interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Contrast:
    """a - b over n shared prompts, with its 95 % interval, and the share of resamples in which a is higher (a tie counts half)."""

    difference: float
    low: float
    high: float
    share_a_better: float
    n: int


@dataclass(frozen=True, slots=True)
class Replicates:
    """A statistic of all rows, and of each resample, shape (resamples,)."""

    value: float
    n: int
    samples: Array

    def interval(self) -> Interval:
        """The value with its percentile interval (Efron & Tibshirani 1993, ch. 13)."""
        return Interval(self.value, *_percentiles(self.samples), self.n)

    def minus(self, other: Replicates) -> Contrast:
        """The paired difference; both must come from the same prompts, samples and seed."""
        difference = self.samples - other.samples
        share = float(np.mean((difference > 0) + 0.5 * (difference == 0)))
        return Contrast(self.value - other.value, *_percentiles(difference), share, self.n)


def replicate(prompts: Sequence[str], statistics: Mapping[Key, Statistic], *, samples: int, seed: int) -> dict[Key, Replicates]:
    """Each statistic over all prompts and over `samples` resamples of them, the same resamples for all.

    Args:
        prompts: their ids, one a row, in the order of the rows that the statistics were made of; rows of a prompt are drawn together.
        statistics: functions of weights of shape (resamples, len(prompts)).
        samples: how many resamples.
        seed: the resamples depend on it and on the prompts, on nothing else.

    Raises:
        ValueError: there is no prompt, or `samples` is below 1.
    """
    if not prompts or samples < 1:
        raise ValueError(f"{len(prompts)} prompts and {samples} resamples given; at least 1 of each is needed")
    parts: dict[Key, list[Array]] = {key: [] for key in statistics}
    for weights in _weights(prompts, samples, seed):
        for key, statistic in statistics.items():
            parts[key].append(statistic(weights))
    everything = np.ones((1, len(prompts)))
    n = len(set(prompts))
    return {key: Replicates(float(statistic(everything)[0]), n, np.concatenate(parts[key])) for key, statistic in statistics.items()}


def mean_statistic(values: Array) -> Statistic:
    """The mean of the rows' values, shape (rows,)."""

    def of(weights: Array) -> Array:
        means: Array = (weights @ values) / weights.sum(axis=1)
        return means

    return of


def _weights(prompts: Sequence[str], samples: int, seed: int) -> Iterator[Array]:
    """How often each row is drawn in each resample, in parts of bounded size: as often as its prompt (Cameron et al. 2008, the cluster bootstrap)."""
    digest = hashlib.sha256(json.dumps([seed, list(prompts)]).encode()).digest()
    generator = np.random.default_rng(list(digest))
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    rows = np.array([numbers[prompt] for prompt in prompts])
    count, done = len(numbers), 0
    while done < samples:
        part = min(samples - done, max(1, _CELLS_AT_ONCE // len(prompts)))
        drawn = generator.integers(0, count, size=(part, count)) + count * np.arange(part)[:, None]
        yield np.bincount(drawn.ravel(), minlength=part * count).reshape(part, count).astype(np.float64)[:, rows]
        done += part


def _percentiles(samples: Array) -> tuple[float, float]:
    tail = 50 * (1 - COVERAGE)
    low, high = np.percentile(samples, [tail, 100 - tail])
    return float(low), float(high)
