"""`python -m accord.training --config RUN.yaml [--directory FOLDER]`: one run as a process, or as several (`distribution.processes`).

The run's folder is the one of its run file, unless another is given, as in a Job, whose run file comes from a ConfigMap. Started by torchrun,
it is one of the processes that the environment says. Exit codes are in `accord.rundir`.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accord.checkpoint import checkpoint_folders
from accord.errors import AccordError, FailedPreconditionError, InvalidArgumentError, NotFoundError, UnavailableError, UnimplementedError
from accord.rundir import EXIT_AWAY, EXIT_CONFIGURATION, EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, RunDirectory, RunFile, RunResult, read_run_file
from accord.training.place import ALONE, Place, place_in_environment, tell_failure, told_failure
from accord.training.ranks import Ranks, end_with_parent, threads_each

if TYPE_CHECKING:
    from accord.training.context import EventLog, RunContext, StopSignal
    from accord.training.loop import Algorithm

_STARTED = time.time()
_CONFIGURATION_ERRORS = (InvalidArgumentError, NotFoundError, FailedPreconditionError, UnimplementedError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the file says; returns the exit code. Whatever goes wrong is in result.json, in one sentence."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options = _options(given)
        path = Path(options["--config"]).absolute()
        run, place = read_run_file(path), place_in_environment()
    except AccordError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_CONFIGURATION
    directory = RunDirectory(Path(options["--directory"]).absolute() if "--directory" in options else path.parent)
    processes = run.spec.distribution.processes
    if "--rank" in options:
        end_with_parent()
        rank = int(options["--rank"])
        place = Place(rank, processes, rank, processes, options["--rendezvous"], joined=True)
    elif place is None and processes > 1:
        return Ranks(path, directory, run).run()
    try:
        return _conclude(directory, place or ALONE, _run(run, directory, place or ALONE))
    except OSError as error:  # its folder is not there, as where a volume is missing, or cannot be written
        sys.stderr.write(f"error: the run's folder cannot be used: {error}\n")
        return EXIT_FAILED


def _options(given: Sequence[str]) -> dict[str, str]:
    """The options by name.

    Raises:
        InvalidArgumentError: one is missing, unknown, or has no value.
    """
    options = dict(zip(given[::2], given[1::2], strict=False))
    if len(given) % 2 or set(options) - {"--directory"} not in ({"--config"}, {"--config", "--rank", "--rendezvous"}):
        raise InvalidArgumentError("usage: python -m accord.training --config RUN.yaml [--directory FOLDER]")
    return options


def _conclude(directory: RunDirectory, place: Place, result: RunResult) -> int:
    """Says how the run ended; a process that is not the first one, only what went wrong with it, for the others."""
    if not place.leads and result.exit_code not in (EXIT_DONE, EXIT_STOPPED):
        tell_failure(directory, place.rank, result.message)
    if result.exit_code:
        sys.stderr.write(f"error: {result.message}\n" if place.size == 1 else f"process {place.rank} of {place.size}: error: {result.message}\n")
    return result.exit_code


def _run(run: RunFile, directory: RunDirectory, place: Place) -> RunResult:
    """Runs alone in its folder, which the first process holds; how an earlier process ended is forgotten once this one is alone."""
    early: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: early.append(number))  # torch is loaded next; a first process has no default handler
    from accord.training.claim import claimed
    from accord.training.context import EventLog, RunStopped, StopSignal

    events, stop = EventLog(directory, silent=not place.leads), StopSignal()
    stop.install()
    if early:
        stop.set()
    try:
        if not place.leads:
            return _work(run, directory, events, stop, place)
        with claimed(directory, events, stop):
            directory.clear_result()
            result = _work(run, directory, events, stop, place)
            try:
                directory.write_result(result)
            except OSError as error:  # the disk is full; the exit code still says how it ended
                sys.stderr.write(f"error: the result cannot be written: {error}\n")
            return result
    except RunStopped:  # only while it waited: the folder, and its result, are another process's
        return RunResult(EXIT_STOPPED, "stopped on request before it began", 0)


def _work(run: RunFile, directory: RunDirectory, events: EventLog, stop: StopSignal, place: Place) -> RunResult:
    from accord.training.context import Heartbeat, RunStopped

    events.step = directory.progress().step  # until a checkpoint says more
    events.state("starting")
    with Heartbeat(events):
        try:
            if not place.joined:  # several stop together, after their first step
                stop.check()
            if run.spec.evaluate is not None:
                return _evaluate(run, directory, stop)
            return _train(run, directory, events, stop, place)
        except RunStopped:
            return _stopped(directory)
        except UnavailableError as error:
            return RunResult(EXIT_AWAY, f"{error}; started again it goes on from its last checkpoint", events.step)
        except _CONFIGURATION_ERRORS as error:
            return RunResult(EXIT_CONFIGURATION, str(error), events.step)
        except (AccordError, OSError, MemoryError) as error:
            return RunResult(EXIT_FAILED, _peer_failure(directory, place, error) or f"{type(error).__name__}: {error}", events.step)
        except Exception as error:  # noqa: BLE001 - whoever watches the run reads its result; the traceback is for the log
            traceback.print_exc()
            return RunResult(EXIT_FAILED, _peer_failure(directory, place, error) or f"a defect: {type(error).__name__}: {error}", events.step)


def _stopped(directory: RunDirectory) -> RunResult:
    kept = checkpoint_folders(directory.checkpoints)
    if not kept:
        return RunResult(EXIT_STOPPED, "stopped on request before its first step; it begins anew when it is resumed", 0)
    step = int(kept[0].name)
    return RunResult(EXIT_STOPPED, f"stopped on request after step {step}, with a checkpoint", step)


def _peer_failure(directory: RunDirectory, place: Place, error: Exception) -> str:
    """What another process said before it ended, where the error is only its absence."""
    from accord.training.distribution import is_absence

    return told_failure(directory, place.size, since=_STARTED) if place.leads and place.size > 1 and is_absence(error) else ""


def _train(run: RunFile, directory: RunDirectory, events: EventLog, stop: StopSignal, place: Place) -> RunResult:
    from accord.training.tracking import Tracking

    distribution = run.spec.distribution
    if distribution.strategy == "fsdp" and place.size == 1:  # only here are the nodes known
        raise FailedPreconditionError(
            "distribution.strategy fsdp spreads weights over the processes of a run, and this one is alone: give it distribution.processes of at "
            "least 2, or several nodes",
            field="distribution.processes",
        )
    if not place.leads:
        return _learn(run, directory, events, stop, place)
    with Tracking(run, directory, events) as tracking:  # what is missing for it is said before a model is loaded
        return tracking.ended(_learn(run, directory, events, stop, place))


def _learn(run: RunFile, directory: RunDirectory, events: EventLog, stop: StopSignal, place: Place) -> RunResult:
    import torch

    from accord.artefacts.store import ArtefactStore
    from accord.models.base import load_base_model
    from accord.training.allocation import give_back_what_grows
    from accord.training.context import RunContext
    from accord.training.distribution import World, local_device, shard_base
    from accord.training.loop import train
    from accord.training.recomputation import recompute_activations

    torch.use_deterministic_algorithms(True)
    # Deterministic algorithms write all memory twice otherwise; nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    spec, device = run.spec, local_device(place)
    sharded = spec.distribution.strategy == "fsdp"
    world = World(place, stop, lockstep=sharded, device=device)
    world.join(place)
    try:
        dtype = getattr(torch, spec.dtype) if spec.dtype else None
        base = load_base_model(run.base_model, device=device, threads=threads_each(run.threads, place.local_size), dtype=dtype)
        give_back_what_grows(getattr(base.model, base.model.base_model_prefix))
        if sharded:
            shard_base(base.model, world)
        context = RunContext(run, directory, base, ArtefactStore(run.artefacts), world)
        context.events, context.stop = events, stop
        if spec.activation_checkpointing:
            recompute_activations(context.adapted)
        return train(context, build(context))
    finally:
        world.leave()


def _evaluate(run: RunFile, directory: RunDirectory, stop: StopSignal) -> RunResult:
    from accord.evaluation.job import run_evaluation
    from accord.training.context import RunStopped

    try:
        report = run_evaluation(run, directory, check=stop.check)
    except RunStopped:
        return RunResult(EXIT_STOPPED, "stopped on request; an evaluation keeps nothing and starts anew when it is resumed", run.spec.steps)
    return RunResult(0, f"{report.rows} rows of {len(report.arms)} arms evaluated", run.spec.steps, metrics=report.headline)


def build(context: RunContext) -> Algorithm:
    """The algorithm that the specification names."""
    spec = context.spec
    if spec.sft is not None:
        from accord.training.sft import SupervisedFineTuning

        return SupervisedFineTuning(context, spec.sft)
    if spec.reward_model is not None:
        from accord.training.reward_model import RewardModelTraining

        return RewardModelTraining(context, spec.reward_model)
    if spec.dpo is not None:
        from accord.training.dpo import DirectPreferenceOptimization

        return DirectPreferenceOptimization(context, spec.dpo)
    if spec.online_dpo is not None:
        from accord.training.online_dpo import OnlineDirectPreferenceOptimization

        return OnlineDirectPreferenceOptimization(context, spec.online_dpo)
    if spec.ppo is not None:
        from accord.training.ppo import ProximalPolicyOptimization

        return ProximalPolicyOptimization(context, spec.ppo)
    return _build_group_algorithm(context)


def _build_group_algorithm(context: RunContext) -> Algorithm:
    from accord.training.groups import GroupRelativePolicyOptimization, ReinforceLeaveOneOut

    if context.spec.grpo is not None:
        return GroupRelativePolicyOptimization(context, context.spec.grpo)
    if context.spec.rloo is not None:
        return ReinforceLeaveOneOut(context, context.spec.rloo)
    raise InvalidArgumentError("the specification names no algorithm", field="spec")


if __name__ == "__main__":
    sys.exit(main())
