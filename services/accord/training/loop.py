"""The loop that every training run shares: set up, resume, step, evaluate, checkpoint, publish.

Plain PyTorch and PEFT rather than a trainer class of a library: soft labels, bit-exact resumption and rollouts through services are what
those do not do, and one loop of this size is easier to trust than four adapted ones (TRL stays as a test peer for the losses). What does
not belong here: what one step does (`sft`, `reward_model`, `dpo`, `ppo`, `groups` beside this file).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from accord.checkpoint import Checkpoint, latest_checkpoint, prune_checkpoints, read_checkpoint, write_checkpoint
from accord.errors import DataLossError, FailedPreconditionError
from accord.rundir import EXIT_DONE, EXIT_GUARDED, RunResult
from accord.training.context import RunContext
from accord.training.guards import Guards
from accord.training.optim import Optimizer
from accord.training.stopping import RunStopped, keeps_state
from accord.training.waiting import store_in_words, with_patience

ADAPTER_FOLDER = "adapter"
_OPTIMIZER_FILE = "optimizer.safetensors"
_ORIGIN = ("base_model_digest", "tokenizer_digest", "parents", "data_digest")
"""Of a publication: what must be the same from a run's first step to its last."""
PTX_DATA_DIGEST = "ptx_data_digest"
"""Among its facts, likewise, where a run learns from texts besides; older checkpoints do not say it."""
_OF_ROLLOUTS = ("score_mean", "held_out_score_mean", "kl")
"""Metrics of the last rollouts that a published policy is known by."""


class Algorithm(Protocol):
    """What one kind of run does. Methods are called in this order; `step` and `evaluate` may repeat."""

    def setup(self) -> None:
        """Reads data, adds adapters; what a checkpoint overwrites starts from the seed."""
        ...

    def parameters(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """What learns, by names that stay the same over restarts."""
        ...

    def evaluate(self, *, final: bool) -> dict[str, float]:
        """Metrics on held-out data; empty where there is none."""
        ...

    def step(self, step: int, optimizer: Optimizer) -> dict[str, float]:
        """Does a step, counted from 0, and returns its metrics."""
        ...

    def save(self, folder: Path) -> None:
        """Writes weights: the adapter to publish into `folder / "adapter"`, the rest beside it."""
        ...

    def load(self, checkpoint: Checkpoint) -> None:
        """Takes up weights and state of a checkpoint."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON that a checkpoint needs besides weights."""
        ...

    def publication(self) -> dict[str, Any]:
        """kind, parents, data_digest and facts of the adapter to publish."""
        ...


@dataclass
class Progress:
    """How far a run is: steps done, metrics of the last one, whether the evaluation that is due after it was made, and what the guards saw."""

    guards: Guards
    done: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    evaluated: bool = True
    checkpoint_seconds: float = 0.0
    saved: int = -1  # step of the last checkpoint that this process read or wrote

    def ended(self, steps: int) -> bool:
        """Whether nothing is left to do of so many steps."""
        return bool(self.guards.tripped) or (self.done == steps and self.evaluated)


def train(context: RunContext, algorithm: Algorithm) -> RunResult:
    """Runs to the end, or until a guard stops it, from the newest whole checkpoint where there is one, and publishes the adapter.

    Raises:
        RunStopped: after a checkpoint, when the run was asked to stop.
        UnavailableError: after a checkpoint, when a service stayed away for too long.
        OtherPolicyError: after a checkpoint, when the policy service does not compute this run's policy.
        BrokenGradientError: when a gradient is no number; after a checkpoint, where it is the first one of its step.
        AccordError: whatever else makes it impossible to go on; after a checkpoint, where a service said it.
    """
    spec, events = context.spec, context.events
    events.state("loading")
    algorithm.setup()
    optimizer = Optimizer(
        algorithm.parameters(), spec.optimizer, learning_rate=spec.learning_rate, total_steps=spec.steps, world=context.world
    )  # fmt: skip
    context.world.check_same("what the run learns from", json.dumps(algorithm.publication(), sort_keys=True))
    progress = _resume(context, algorithm, optimizer)
    if progress.done == 0:
        events.state("evaluate")
        before = algorithm.evaluate(final=False)
        if before:
            events.metrics(0, before)
    while not progress.ended(spec.steps):
        try:
            _advance(context, algorithm, optimizer, progress)
        except Exception as error:
            if keeps_state(error):
                _checkpoint(context, algorithm, optimizer, progress)
            raise
        events.metrics(progress.done, progress.metrics | _taken(progress))
        for alarm in progress.guards.observe(progress.done, progress.metrics):
            events.message(alarm)
        stopping = context.world.agree(context.stop.is_set)
        due = spec.checkpoint_every_steps and progress.done % spec.checkpoint_every_steps == 0
        if due or progress.ended(spec.steps) or stopping:
            _checkpoint(context, algorithm, optimizer, progress)
        if stopping and not progress.ended(spec.steps):
            raise RunStopped
    return RunResult(**context.world.from_first(lambda: asdict(_conclude(context, progress))))


def publish(context: RunContext, step: int, more_facts: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Publishes the adapter of a step's checkpoint as the next version; the same one again where it was published before a kill. Waits for a store
    that is away."""
    context.events.state("publish")
    return with_patience(context, "publish", store_in_words(context), lambda: _publish(context, step, more_facts))


def _publish(context: RunContext, step: int, more_facts: Mapping[str, Any]) -> str:
    checkpoint = read_checkpoint(context.directory.checkpoints / f"{step:08d}", spec=context.spec.learning_values)
    facts = checkpoint.publish
    return context.store.publish(
        context.spec.adapter,
        checkpoint.path / ADAPTER_FOLDER,
        kind=facts["kind"],
        base_model_digest=facts["base_model_digest"],
        tokenizer_digest=facts["tokenizer_digest"],
        parents=facts["parents"],
        run=context.run.name,
        data_digest=facts["data_digest"],
        step=step,
        facts={**facts["facts"], **more_facts},
    )


def _conclude(context: RunContext, progress: Progress) -> RunResult:
    """Publishes what the run is to give: its last step; or, where a guard stopped it, its best one or nothing."""
    guards, steps, done = progress.guards, context.spec.steps, progress.done
    if not guards.tripped:
        return RunResult(EXIT_DONE, f"{steps} steps done", done, publish(context, done), progress.metrics)
    why = f"a guard stopped the run after step {done} of {steps}, with a checkpoint: {guards.tripped}"
    best = _best_checkpoint(context, guards) if guards.rolls_back else None
    if best is None:
        nothing = f"; {guards.without_best}, so nothing is published" if guards.rolls_back else ""
        return RunResult(EXIT_GUARDED, why + nothing, done, metrics=progress.metrics)
    step, measure = best
    version = publish(context, step, {"rolled_back_from_step": done, "guard": guards.tripped})
    message = f"{why}. Rolled back: step {step} is published, the best by {guards.measure} ({measure:.3g})"
    context.events.message(message)
    return RunResult(EXIT_DONE, message, done, version, progress.metrics)


def _best_checkpoint(context: RunContext, guards: Guards) -> tuple[int, float] | None:
    """The best checkpoint that is there and whole, with its measure."""
    for step, measure in guards.ranked():
        try:
            read_checkpoint(context.directory.checkpoints / f"{step:08d}", spec=context.spec.learning_values)
        except DataLossError as error:
            context.events.message(f"{error}; the next best one is looked at")
            continue
        return step, measure
    return None


def _advance(context: RunContext, algorithm: Algorithm, optimizer: Optimizer, progress: Progress) -> None:
    """Does a step and what is due after it, or only the latter where a stop came between them."""
    if progress.evaluated:
        progress.metrics = _step(context, algorithm, optimizer, progress.done)
        progress.done, progress.evaluated = progress.done + 1, False
    progress.metrics |= _maybe_evaluate(context, algorithm, progress.done)
    progress.evaluated = True


def _step(context: RunContext, algorithm: Algorithm, optimizer: Optimizer, step: int) -> dict[str, float]:
    if context.events.phase != "train":
        context.events.state("train")
    started = time.monotonic()
    rate = optimizer.set_step(step)
    metrics = algorithm.step(step, optimizer)
    seconds = time.monotonic() - started
    return _timed(metrics, seconds) | {"learning_rate": rate, "seconds": seconds}


def _timed(metrics: Mapping[str, float], seconds: float) -> dict[str, float]:
    """The metrics of a step with its phases and its rate. One that samples nothing learns all the time, and its tokens are those that it has read,
    prompts counted; steps with rollouts say their own, which are of sampled tokens alone."""
    if "seconds_train" in metrics or "tokens" not in metrics:
        return dict(metrics)
    return {**metrics, "seconds_train": seconds, "tokens_per_second": metrics["tokens"] / seconds}


def _maybe_evaluate(context: RunContext, algorithm: Algorithm, done: int) -> dict[str, float]:
    spec = context.spec
    due = done == spec.steps or (spec.eval_every_steps > 0 and done % spec.eval_every_steps == 0)
    if not due:
        return {}
    context.events.state("evaluate")
    started = time.monotonic()
    metrics = algorithm.evaluate(final=done == spec.steps)
    return metrics | {"seconds_evaluate": time.monotonic() - started} if metrics else {}


def _checkpoint(context: RunContext, algorithm: Algorithm, optimizer: Optimizer, progress: Progress) -> None:
    """Writes a checkpoint, in the first process, once all agree on the weights."""
    started = time.monotonic()
    context.events.state("checkpoint")
    context.world.check_same("weights", (parameter for _, group in sorted(algorithm.parameters().items()) for parameter in group))
    context.world.from_first(lambda: _write(context, algorithm, optimizer, progress))
    progress.saved = progress.done
    progress.checkpoint_seconds = time.monotonic() - started


def _taken(progress: Progress) -> dict[str, float]:
    """Seconds of the checkpoint before a step, told with the step: one event a step."""
    seconds, progress.checkpoint_seconds = progress.checkpoint_seconds, 0.0
    return {"seconds_checkpoint": seconds} if seconds else {}


def _write(context: RunContext, algorithm: Algorithm, optimizer: Optimizer, progress: Progress) -> None:
    def fill(folder: Path) -> None:
        try:
            algorithm.save(folder)
            save_file({name: tensor.contiguous() for name, tensor in optimizer.state().items()}, folder / _OPTIMIZER_FILE)
        except SafetensorError as error:  # a full disk, in words of its own
            raise OSError(f"weights cannot be written: {error}") from error

    state = {
        "algorithm": algorithm.state(), "metrics": progress.metrics, "evaluated": progress.evaluated,
        "guards": progress.guards.state(), "torch_threads": torch.get_num_threads(), "processes": context.world.size,
    }  # fmt: skip
    folder, spec = context.directory.checkpoints, context.spec
    publication = _measured(_publication(context, algorithm), progress)
    write_checkpoint(folder, progress.done, fill, spec=spec.learning_values, state=state, publish=publication)
    prune_checkpoints(folder, spec.checkpoints_kept, progress.done, wanted=progress.guards.kept_steps(), behind=progress.saved)


def _publication(context: RunContext, algorithm: Algorithm) -> dict[str, Any]:
    digests = context.base.digests
    return algorithm.publication() | {"base_model_digest": digests.base_model, "tokenizer_digest": digests.tokenizer}


def _measured(publication: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """A publication, with what a policy's last step measured: `eval_*` of the policy itself where it was evaluated, `rollout_*` of the last rollouts,
    which an earlier one sampled. A reward model's own facts say more."""
    if publication["kind"] != "policy":
        return dict(publication)
    facts = {name: value for name, value in progress.metrics.items() if name.startswith("eval_")}
    facts |= {f"rollout_{name}": progress.metrics[name] for name in _OF_ROLLOUTS if name in progress.metrics}
    return {**publication, "facts": facts | publication["facts"]}


def _check_origin(found: Checkpoint, now: Mapping[str, Any]) -> None:
    """Raises FailedPreconditionError where this process has other data, parents or base model than the checkpoint was learnt from: what goes on would
    be neither the one run nor the other, and nothing would say so."""
    texts = found.publish["facts"].get(PTX_DATA_DIGEST)
    pairs = {name: (found.publish[name], now[name]) for name in _ORIGIN}
    pairs |= {PTX_DATA_DIGEST: (texts, now["facts"].get(PTX_DATA_DIGEST))} if texts else {}
    for name, both in pairs.items():
        if both[0] != both[1]:
            was, has = (", ".join(value) if isinstance(value, list) else value for value in both)
            raise FailedPreconditionError(
                f"checkpoint {found.path.name} was learnt with {name} {was or 'none'}, and now it is {has or 'none'}; bring the former back, or "
                "start a new run",
                field=name,
            )


def _resume(context: RunContext, algorithm: Algorithm, optimizer: Optimizer) -> Progress:
    """Takes up the newest whole checkpoint, which the first process looks for; a beginning where there is none."""
    name, guards = context.world.from_first(lambda: _newest(context)), Guards(context.spec)
    if name is None:
        context.events.step = 0
        return Progress(guards)
    found = read_checkpoint(context.directory.checkpoints / name, spec=context.spec.learning_values)
    _check_origin(found, _publication(context, algorithm))
    guards.load_state(found.state["guards"])
    algorithm.load(found)
    optimizer.load_state(load_file(found.path / _OPTIMIZER_FILE))
    context.events.step = found.step
    context.events.message(f"resumed after step {found.step}")
    _say_what_differs(context, found)
    return Progress(guards, found.step, dict(found.state["metrics"]), bool(found.state["evaluated"]), saved=found.step)


def _say_what_differs(context: RunContext, found: Checkpoint) -> None:
    """Says so where the run goes on as another number of processes or threads: bits depend on both, the rest on neither."""
    processes, threads = int(found.state.get("processes", 1)), int(found.state["torch_threads"])
    go_on = "go on: the same data in the same order, results equal to rounding (1e-6), not bit for bit"
    if processes != context.world.size:
        context.events.message(f"the checkpoint is of {processes} processes, and {context.world.size} {go_on}")
    elif threads != torch.get_num_threads():
        context.events.message(f"the checkpoint is of {threads} threads, and {torch.get_num_threads()} {go_on}")


def _newest(context: RunContext) -> str | None:
    found = latest_checkpoint(context.directory.checkpoints, spec=context.spec.learning_values, report=context.events.message)
    return None if found is None else found.path.name
