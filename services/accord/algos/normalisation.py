"""Running mean and variance of scores, mergeable and exact to resume."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping


class RunningMoments:
    """Mean and variance of all numbers seen so far. Chan et al. 1983 (pairwise merging of Welford's update); 0 and 1 at the start."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0

    @property
    def std(self) -> float:
        """Population standard deviation; 1 until it is positive."""
        return math.sqrt(self._squares / self.count) if self.count > 1 and self._squares > 0 else 1.0

    def update(self, values: Iterable[float]) -> None:
        """Takes note of some numbers.

        Raises:
            ValueError: one is not finite.
        """
        numbers = list(values)
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("a number that is not finite has no place in running moments")
        if not numbers:
            return
        count = len(numbers)
        mean = math.fsum(numbers) / count
        squares = math.fsum((number - mean) ** 2 for number in numbers)
        delta, total = mean - self.mean, self.count + count
        self._squares += squares + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint needs."""
        return {"count": self.count, "mean": self.mean, "squares": self._squares}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continues from a checkpoint."""
        self.count, self.mean, self._squares = int(state["count"]), float(state["mean"]), float(state["squares"])
