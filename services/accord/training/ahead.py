"""The next batch of rollouts, sampled under the policy as it is while that policy learns from the batch before (`ppo.max_staleness` 1).

The policy that sampled stays as an adapter of its own: it says how likely it was to sample each token, which the importance correction
needs, and it is in each checkpoint, so that a run that is killed before the batch was on disk has it sampled again, by the same policy.
What does not belong here: the correction itself (`accord.algos.ppo`), and the calls (`accord.training.rollout`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from accord.checkpoint import Checkpoint
from accord.training.adapter_state import POLICY, load_adapter, save_adapter
from accord.training.context import RunContext
from accord.training.rollout import Rollout, write_rollouts

BEHAVIOUR = "behaviour"


class Ahead:
    """Samples one batch ahead.

    Args:
        context: of the run.
        sample: samples, scores and keeps the batch of a step under a version; it runs in a thread of its own, beside the learning.
    """

    def __init__(self, context: RunContext, sample: Callable[[int, str], list[Rollout]]) -> None:
        self._context = context
        self._sample = sample
        self._under: _Sampling | None = None
        self._writing = threading.Lock()
        self._abandoned = False
        self.updates: int | None = None
        """Updates that the behaviour policy had behind it; None before the first batch, which the policy itself samples."""

    def begin(self, step: int, version: str) -> None:
        """Starts to sample the batch of a step under a version."""
        self._under = _Sampling(step, lambda: self._sample(step, version))
        self._under.start()

    def take(self, step: int) -> list[Rollout] | None:
        """The batch of a step once it is there; None where nobody has begun it.

        Raises:
            Exception: what sampling raised; the batch can be begun again.
        """
        sampling, self._under = self._under, None
        if sampling is None or sampling.step != step:
            return None
        return sampling.result()

    def keep(self, path: Path, rollouts: Sequence[Rollout]) -> None:
        """Writes what was sampled ahead, unless it was abandoned meanwhile."""
        with self._writing:
            if not self._abandoned:
                write_rollouts(path, rollouts)

    def abandon(self) -> None:
        """Nothing that is sampled ahead is kept from now on, for the run ends; the file of the batch under way is whole then, or never comes."""
        with self._writing:
            self._abandoned = True

    def remember(self, updates: int, state: Mapping[str, Tensor]) -> None:
        """The policy of that state, with so many updates behind it, becomes the behaviour policy."""
        adapted = self._context.adapted
        if BEHAVIOUR not in adapted.names:
            adapted.copy(POLICY, BEHAVIOUR, trainable=False)
        adapted.load_state(BEHAVIOUR, state)
        self.updates = updates

    def save(self, folder: Path) -> None:
        """Writes the behaviour policy into a folder of a checkpoint, where there is one."""
        if self.updates is not None:
            save_adapter(self._context, BEHAVIOUR, folder / BEHAVIOUR)

    def state(self) -> dict[str, Any]:
        """Updates behind the behaviour policy."""
        return {"behaviour_updates": self.updates}

    def load(self, checkpoint: Checkpoint, state: Mapping[str, Any]) -> None:
        """Takes up the behaviour policy of a checkpoint."""
        if state["behaviour_updates"] is not None:
            self.remember(int(state["behaviour_updates"]), self._context.adapted.state(POLICY))
            load_adapter(self._context, BEHAVIOUR, checkpoint, BEHAVIOUR)


class _Sampling(threading.Thread):
    """A batch in the making."""

    def __init__(self, step: int, sample: Callable[[], list[Rollout]]) -> None:
        super().__init__(name=f"rollouts of step {step}", daemon=True)
        self.step = step
        self._make = sample
        self._made: list[Rollout] | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Samples; `result` has what came of it."""
        try:
            self._made = self._make()
        except BaseException as error:  # noqa: BLE001 - raised by `result`, RunStopped among them
            self._error = error

    def result(self) -> list[Rollout]:
        """What was sampled, once it is there."""
        self.join()
        if self._error is not None:
            raise self._error
        assert self._made is not None
        return self._made
