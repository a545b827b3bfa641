"""`python -m accord.training --config RUN.yaml [--directory FOLDER]`: one run as a process. Exit codes are in `accord.rundir`.

The run's folder is the one of its run file, unless another is given, as in a Job, whose run file comes from a ConfigMap.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accord.checkpoint import checkpoint_folders
from accord.errors import AccordError, FailedPreconditionError, InvalidArgumentError, NotFoundError, UnavailableError, UnimplementedError
from accord.rundir import EXIT_AWAY, EXIT_CONFIGURATION, EXIT_FAILED, EXIT_STOPPED, RunDirectory, RunFile, RunResult, read_run_file
from accord.runspec import check_built

if TYPE_CHECKING:
    from accord.training.context import EventLog, RunContext, StopSignal
    from accord.training.loop import Algorithm

_CONFIGURATION_ERRORS = (InvalidArgumentError, NotFoundError, FailedPreconditionError, UnimplementedError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the file says; returns the exit code. Whatever goes wrong is in result.json, in one sentence."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(given) not in (2, 4) or given[0] != "--config" or given[2:3] not in ([], ["--directory"]):
        sys.stderr.write("usage: python -m accord.training --config RUN.yaml [--directory FOLDER]\n")
        return EXIT_CONFIGURATION
    path = Path(given[1]).absolute()
    try:
        run = read_run_file(path)
    except AccordError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_CONFIGURATION
    try:
        result = _run(run, RunDirectory(Path(given[3]).absolute() if given[2:] else path.parent))
    except OSError as error:  # its folder is not there, as where a volume is missing, or cannot be written
        sys.stderr.write(f"error: the run's folder cannot be used: {error}\n")
        return EXIT_FAILED
    if result.exit_code:
        sys.stderr.write(f"error: {result.message}\n")
    return result.exit_code


def _run(run: RunFile, directory: RunDirectory) -> RunResult:
    """Runs alone in its folder; how an earlier process of the run ended is forgotten once this one is alone."""
    early: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: early.append(number))  # torch is loaded next; a first process has no default handler
    from accord.training.claim import claimed
    from accord.training.context import EventLog, RunStopped, StopSignal

    events, stop = EventLog(directory), StopSignal()
    stop.install()
    if early:
        stop.set()
    try:
        with claimed(directory, events, stop):
            directory.clear_result()
            result = _work(run, directory, events, stop)
            try:
                directory.write_result(result)
            except OSError as error:  # the disk is full; the exit code still says how it ended
                sys.stderr.write(f"error: the result cannot be written: {error}\n")
            return result
    except RunStopped:  # only while it waited: the folder, and its result, are another process's
        return RunResult(EXIT_STOPPED, "stopped on request before it began", 0)


def _work(run: RunFile, directory: RunDirectory, events: EventLog, stop: StopSignal) -> RunResult:
    from accord.training.context import Heartbeat, RunStopped

    events.state("starting")
    with Heartbeat(events):
        try:
            stop.check()
            check_built(run.spec)
            if run.spec.evaluate is not None:
                return _evaluate(run, directory, stop)
            return _train(run, directory, events, stop)
        except RunStopped:
            return _stopped(directory)
        except UnavailableError as error:
            return RunResult(EXIT_AWAY, f"{error}; started again it goes on from its last checkpoint", events.step)
        except _CONFIGURATION_ERRORS as error:
            return RunResult(EXIT_CONFIGURATION, str(error), events.step)
        except (AccordError, OSError, MemoryError) as error:
            return RunResult(EXIT_FAILED, f"{type(error).__name__}: {error}", events.step)
        except Exception as error:  # noqa: BLE001 - whoever watches the run reads its result; the traceback is for the log
            traceback.print_exc()
            return RunResult(EXIT_FAILED, f"a defect: {type(error).__name__}: {error}", events.step)


def _stopped(directory: RunDirectory) -> RunResult:
    kept = checkpoint_folders(directory.checkpoints)
    if not kept:
        return RunResult(EXIT_STOPPED, "stopped on request before its first step; it begins anew when it is resumed", 0)
    step = int(kept[0].name)
    return RunResult(EXIT_STOPPED, f"stopped on request after step {step}, with a checkpoint", step)


def _train(run: RunFile, directory: RunDirectory, events: EventLog, stop: StopSignal) -> RunResult:
    from accord.training.tracking import Tracking

    with Tracking(run, directory, events):  # what is missing for it is said before a model is loaded
        import torch

        from accord.artefacts.store import ArtefactStore
        from accord.models.base import load_base_model
        from accord.training.allocation import give_back_before_learning
        from accord.training.context import RunContext
        from accord.training.loop import train

        torch.use_deterministic_algorithms(True)
        base = load_base_model(run.base_model, threads=run.threads)
        give_back_before_learning(getattr(base.model, base.model.base_model_prefix))
        context = RunContext(run, directory, base, ArtefactStore(run.artefacts))
        context.events, context.stop = events, stop
        return train(context, build(context))


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
