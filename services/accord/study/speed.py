"""How long the steps of a study take: learnt from those that are done, else guessed.

What does not belong here: how much a step computes (`accord.study.costs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from accord.study.graph import Step
from accord.study.steps import StepResult

_TOKENS_PER_SECOND = 500.0
"""Of the embedded model on two cores, counted as in `Step.tokens`."""
_START_SECONDS = {"train": 7.0, "evaluate": 12.0, "label": 1.0, "generate": 0.5, "measure": 0.5, "judge": 0.5}
_TELLING_SECONDS = 30
"""What took less says little of the rest."""


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast this machine is, and the judge with a name, where that is known."""

    tokens_per_second: float = _TOKENS_PER_SECOND
    seconds_per_pair: float | None = None

    @classmethod
    def of(cls, done: Sequence[tuple[Step, StepResult]], seconds_per_pair: float | None) -> Speed:
        """Out of the steps that are done, as far as they took long enough to tell; else what the recipe says of its judge."""
        tokens, seconds, pairs, asking = 0, 0.0, 0, 0.0
        for step, result in done:
            took = _took(step, result)
            if took is None:
                continue
            if step.asked_pairs:
                pairs, asking = pairs + step.asked_pairs, asking + took
            else:
                tokens, seconds = tokens + step.tokens, seconds + took
        return cls(
            tokens / seconds if seconds > _TELLING_SECONDS else _TOKENS_PER_SECOND, asking / pairs if asking > _TELLING_SECONDS else seconds_per_pair
        )

    def seconds(self, step: Step) -> float:
        """About how long a step takes."""
        if step.asked_pairs and self.seconds_per_pair is not None:
            return _START_SECONDS[step.kind] + step.asked_pairs * self.seconds_per_pair
        return _START_SECONDS[step.kind] + step.tokens / self.tokens_per_second


def _took(step: Step, result: StepResult) -> float | None:
    """Seconds without the start; None where nobody knows, since an earlier call had begun it. A run knows how long it trained, whoever waited."""
    trained = result.values.get("seconds", 0.0) if step.kind == "train" else 0.0
    if result.resumed:
        return trained or None
    return max(0.1, result.seconds - _START_SECONDS[step.kind], trained)
