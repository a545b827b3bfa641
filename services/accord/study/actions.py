"""Doing the steps of a study through the running services; each action returns the JSON that the step's result keeps.

What does not belong here: which steps there are (`accord.study.graph`) and their order (`accord.study.runner`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.client.feedback import FeedbackClient, Judge, LabelJob, LabelJobSpec
from accord.client.label_attempts import create_attempt, is_lost
from accord.client.label_cards import LabelCard
from accord.client.policy import Origin, PolicyClient
from accord.client.reward import RewardClient
from accord.client.trainer import Run, TrainerClient
from accord.errors import AccordError, FailedPreconditionError, InternalError, NotFoundError
from accord.rpc.channels import ChannelConfig
from accord.runspec import RunSpec, parse_spec
from accord.study.graph import Step
from accord.study.steps import StepResult
from accord.text.tasks import Task

if TYPE_CHECKING:
    from accord.workspace.layout import ServiceName

_RUN_SECONDS = 48 * 3600.0
_CHANGED_BY_RESUMING = ("failed", "cancelled")


@dataclass
class StepContext:
    """What an action works with.

    Args:
        services: clients of the running services.
        inputs: results of the steps before, by name.
        folder: for the step's files.
        label_folder: where a label job writes its own; the feedback service and the runs see it.
        key: the step's, which makes its calls idempotent.
        progress: takes a fraction in [0, 1] and what is being done.
        longest_prompt: most tokens of a held-out prompt that is measured; None for no limit.
    """

    services: Clients
    inputs: Mapping[str, StepResult]
    folder: Path
    label_folder: str
    key: str
    progress: Callable[[float, str], None]
    longest_prompt: int | None = None


@dataclass
class Clients:
    """Clients of the four services; a context manager."""

    channels: Mapping[ServiceName, ChannelConfig]
    policy: PolicyClient = field(init=False)
    reward: RewardClient = field(init=False)
    feedback: FeedbackClient = field(init=False)
    trainer: TrainerClient = field(init=False)

    def __enter__(self) -> Clients:
        self.policy = PolicyClient(self.channels["policy"], origin=Origin("labelling", "study"))
        self.reward = RewardClient(self.channels["reward"])
        self.feedback = FeedbackClient(self.channels["feedback"])
        self.trainer = TrainerClient(self.channels["trainer"])
        return self

    def __exit__(self, *_: object) -> None:
        for client in (self.policy, self.reward, self.feedback, self.trainer):
            client.close()


def train(step: Step, context: StepContext) -> dict[str, Any]:
    """Runs a training run to its end; one that an earlier call left unfinished goes on from its checkpoint."""
    spec = resolved_spec(step, context.inputs)
    run, curve, messages = follow_run(spec, context, f"study-{context.key}")
    return {
        "run": run.name, "adapter_version": run.adapter_version, "directory": run.directory, "metrics": dict(run.metrics), "curve": curve,
        "messages": messages, "algorithm": step.params["algorithm"], "steps": spec.steps,
        "seconds": sum(row["values"].get("seconds", 0.0) for row in curve), "tokens": sum(row["values"].get("tokens", 0.0) for row in curve),
    }  # fmt: skip


def evaluate(step: Step, context: StepContext, rows: str) -> dict[str, Any]:
    """Runs the evaluation of some rows (JSON Lines) to its end and returns what it wrote; both go through the trainer, wherever it runs.

    Rows that another folder's study measured on the same services may differ in the last bits of a logprob: they are another run.
    """
    trainer = context.services.trainer
    evaluation = {"uri": trainer.upload_rows(rows.encode()), "bootstrap_samples": step.params["bootstrap_samples"]}
    spec = parse_spec({"seed": step.params["seed"], "threads": 1, "evaluate": evaluation})
    run, _, messages = follow_run(spec, context, f"study-{context.key}-{hashlib.sha256(rows.encode()).hexdigest()[:16]}")
    report = json.loads(trainer.read_run_file(run.name, "evaluation.json"))
    return {"run": run.name, "directory": run.directory, "messages": messages, "evaluation": report}


def resolved_spec(step: Step, inputs: Mapping[str, StepResult]) -> RunSpec:
    """The run specification with what earlier steps gave: parent adapter, reward model, labelled data."""
    spec: dict[str, Any] = {**step.params["spec"]}
    algorithm, sources = step.params["algorithm"], step.params["sources"]
    part = dict(spec[algorithm])
    if "parent" in sources:
        spec["parent_adapter"] = inputs[sources["parent"]].values["adapter_version"]
    if "reward_model" in sources:
        part["reward_model"] = inputs[sources["reward_model"]].values["adapter_version"]
    if "labels" in sources:
        split = part["data"]["split"]  # labelled rows stay in theirs
        part["data"] = {"uri": inputs[sources["labels"]].values["dataset_uri"], "format": "accord", "split": split}
    spec[algorithm] = part
    return parse_spec(spec)


def follow_run(spec: RunSpec, context: StepContext, request_id: str) -> tuple[Run, list[dict[str, Any]], list[str]]:
    """Creates a run, or finds the one of an earlier call, and follows it; returns it with its curve and messages.

    Raises:
        InternalError: it failed, also after it was resumed once; the message names the run, its reason and a copy of its log.
    """
    trainer = context.services.trainer
    run = trainer.create_run(spec, request_id)
    if run.state in _CHANGED_BY_RESUMING:
        run = trainer.resume_run(run.name)
    curve: dict[int, dict[str, float]] = {}
    messages: list[str] = []
    for event in trainer.watch_run(run.name, timeout_seconds=_RUN_SECONDS):
        if event.metrics is not None:
            curve.setdefault(event.step, {}).update(event.metrics)
            context.progress(event.step / max(1, spec.steps), _newest(event.metrics))
        elif event.message:
            messages.append(event.message)
        elif event.run is not None:
            run = event.run
            waiting = f", waiting for {run.waiting_on}" if run.waiting_on else ""
            context.progress(run.step / max(1, run.total_steps or spec.steps), f"{run.phase or run.state}{waiting}")
    run = trainer.get_run(run.name)
    if run.state != "succeeded":
        raise InternalError(f"{run.name} {run.state}: {run.message or 'it left no reason'}; {_kept_log(run, context)}, then run the study again")
    return run, [{"step": number, "values": values} for number, values in sorted(curve.items())], list(dict.fromkeys(messages))


def _kept_log(run: Run, context: StepContext) -> str:
    """Where the run's log is: here, since its folder may be on another machine."""
    path = context.folder / "log.txt"
    try:
        path.write_bytes(context.services.trainer.read_run_file(run.name, "log.txt"))
    except NotFoundError:
        return "it has no log"
    return f"see {path}"


def wanted_judge(facts: Mapping[str, Any]) -> Judge:
    """The judge that a step asks, out of `StudyRecipe.judge_facts`."""
    return Judge(
        facts["kind"], rubric=facts.get("rubric", ""), adapter=facts.get("adapter", ""), rationale=facts.get("rationale") or None,
        tie_margin=facts.get("tie_margin") or None, name=facts.get("name", ""),
    )  # fmt: skip


def label(step: Step, context: StepContext) -> dict[str, Any]:
    """Runs a label job to its end; the ledger keeps what an earlier call paid for.

    Where the attempts of earlier calls are lost, a new one begins: at most one a call, so that a judge that is still away ends the study again.

    Raises:
        InternalError: the job was cancelled or has failed; the message names it and its reason.
        FailedPreconditionError: a judge whose labels are trained on has labelled no pair.
    """
    feedback = context.services.feedback

    def is_in_vain(job: LabelJob) -> bool:
        return is_lost(job) or (step.is_trained_on and _labelled_nothing(job))

    first = label_spec(step, context.key, context.label_folder)
    job = create_attempt(feedback, first, lost=is_in_vain, output_of=lambda attempt: _attempt_folder(context.label_folder, attempt))
    for seen in feedback.watch_label_job(job.name, timeout_seconds=_RUN_SECONDS):
        job = seen
        note = f"; {job.message}" if job.message else ""
        context.progress(job.done_pairs / max(1, job.total_pairs), f"{job.done_pairs} of {job.total_pairs} pairs{note}")
    if job.state != "succeeded":
        raise InternalError(f"{job.name} {job.state}: {job.message or 'it left no reason'}; mend that and run the study again")
    cards = feedback.label_cards(job=job.name)
    if step.is_trained_on and _labelled_nothing(job):
        raise FailedPreconditionError(_why_nothing(job, cards), field="judge")
    return {
        "job": job.name, "dataset_uri": job.dataset_uri, "dataset_digest": job.dataset_digest, "pairs": job.total_pairs,
        "abstained": job.abstained_pairs, "tokens": job.tokens, "cards": [_card(card) for card in cards],
    }  # fmt: skip


def label_spec(step: Step, key: str, folder: str, attempt: int = 1) -> LabelJobSpec:
    """An attempt of a step's label job, which writes to a folder of the step."""
    params = step.params
    return LabelJobSpec(
        f"study-{key}" if attempt == 1 else f"study-{key}-{attempt}", params["uri"], Task(params["task"]), _attempt_folder(folder, attempt),
        params["format"], params["split"], params["limit"], wanted_judge(params["judge"]), params["seed"],
    )  # fmt: skip


def _attempt_folder(folder: str, attempt: int) -> str:
    """One of its own for each: that of an attempt which has succeeded without a label is taken."""
    return folder if attempt == 1 else f"{folder}/attempt-{attempt}"


def _labelled_nothing(job: LabelJob) -> bool:
    return job.state == "succeeded" and job.abstained_pairs >= job.total_pairs


def _why_nothing(job: LabelJob, cards: Sequence[LabelCard]) -> str:
    reasons = ", ".join(f"{count} {reason}" for card in cards for reason, count in card.abstentions.items())
    return (
        f"{job.name}: the judge abstained from all {job.total_pairs} pairs ({reasons or 'it left no reason'}), so that there is nothing to train on; "
        "run the study again with another judge, kind or rubric, or once this judge is mended or has more room: what it said as it is now is in the "
        "ledger and stays its answer"
    )


def _card(card: LabelCard) -> dict[str, Any]:
    row = asdict(card)
    row["task"] = card.task.value if card.task else None
    row["abstentions"], row["notes"] = dict(card.abstentions), list(card.notes)
    return row


def raise_item(error: AccordError | None, what: str) -> None:
    """Stops where an item of a batch has an error; the study's own items have none.

    Raises:
        AccordError: it has, in the item's own class, which says whether a retry can help; the message says which and why.
    """
    if error is not None:
        raise type(error)(f"{what}: {error}", retry_after_seconds=error.retry_after_seconds, metadata=error.metadata) from error


def _newest(metrics: Mapping[str, float]) -> str:
    shown = [name for name in ("loss", "score_mean", "kl", "eval_accuracy", "eval_margin", "margin") if name in metrics]
    return ", ".join(f"{name} {metrics[name]:.3g}" for name in shown[:3])
