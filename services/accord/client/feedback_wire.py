"""Between feedback.proto and `accord.client.feedback_messages`.

What does not belong here: cards (`accord.client.label_cards`), and what only the service reads or writes (`accord.feedback.convert`).
"""

from __future__ import annotations

from dataclasses import asdict

from accord.api.feedback.v1 import feedback_pb2 as pb
from accord.client.feedback_messages import (
    JobState,
    Judge,
    JudgeKind,
    Judgement,
    Label,
    LabelJob,
    LabelJobSpec,
    LabelPairItem,
    LabelResult,
    Outcome,
    Rating,
    VerdictSource,
)
from accord.client.messages import error_or_none, messages_to_proto
from accord.errors import InvalidArgumentError
from accord.text.tasks import Task

JUDGE_KINDS: dict[JudgeKind, pb.JudgeKind] = {
    "default": pb.JUDGE_KIND_UNSPECIFIED,
    "verdict": pb.JUDGE_KIND_VERDICT,
    "rating": pb.JUDGE_KIND_RATING,
    "likelihood": pb.JUDGE_KIND_LIKELIHOOD,
}
KIND_NAMES = {number: name for name, number in JUDGE_KINDS.items()}
OUTCOMES: dict[Outcome, pb.Outcome] = {
    "unspecified": pb.OUTCOME_UNSPECIFIED,
    "a": pb.OUTCOME_A,
    "b": pb.OUTCOME_B,
    "tie": pb.OUTCOME_TIE,
    "abstain": pb.OUTCOME_ABSTAIN,
}
OUTCOME_NAMES = {number: name for name, number in OUTCOMES.items()}
TASKS: dict[Task, pb.Task] = {Task.SUMMARIZATION: pb.TASK_SUMMARIZATION, Task.CONVERSATION: pb.TASK_CONVERSATION}
TASK_NAMES = {number: task for task, number in TASKS.items()}
VERDICT_SOURCES: dict[VerdictSource, pb.VerdictSource] = {
    "": pb.VERDICT_SOURCE_UNSPECIFIED,
    "logprobs": pb.VERDICT_SOURCE_LOGPROBS,
    "text": pb.VERDICT_SOURCE_TEXT,
}
_JOB_STATES: dict[int, JobState] = {
    pb.LABEL_JOB_STATE_UNSPECIFIED: "unspecified",
    pb.LABEL_JOB_STATE_RUNNING: "running",
    pb.LABEL_JOB_STATE_SUCCEEDED: "succeeded",
    pb.LABEL_JOB_STATE_FAILED: "failed",
    pb.LABEL_JOB_STATE_CANCELLED: "cancelled",
}


def judge_to_proto(judge: Judge) -> pb.JudgeOptions:
    """Returns the wire form.

    Raises:
        InvalidArgumentError: the kind or the verdict's source is not known.
    """
    if judge.kind not in JUDGE_KINDS:
        raise InvalidArgumentError(f"kind {judge.kind!r} is not one of {', '.join(JUDGE_KINDS)}", field="judge.kind")
    if judge.verdict_source not in VERDICT_SOURCES:
        raise InvalidArgumentError(f"verdict source {judge.verdict_source!r} is neither logprobs nor text", field="judge.verdict_source")
    return pb.JudgeOptions(
        kind=JUDGE_KINDS[judge.kind],
        rubric=judge.rubric,
        adapter=judge.adapter,
        both_orders=judge.both_orders,
        rationale=judge.rationale,
        max_rationale_tokens=judge.max_rationale_tokens,
        tie_margin=judge.tie_margin,
        judge=judge.name,
        consistency_samples=judge.consistency_samples,
        consistency_temperature=judge.consistency_temperature,
        verdict_source=VERDICT_SOURCES[judge.verdict_source],
    )


def pair_to_proto(item: LabelPairItem) -> pb.Pair:
    """The wire form of a pair."""
    return pb.Pair(
        pair_id=item.pair_id,
        task=TASKS[item.task],
        prompt=messages_to_proto(item.messages),
        response_a=item.response_a,
        response_b=item.response_b,
        human_preference=item.human_preference,
    )


def _judgement(wire: pb.Judgement) -> Judgement:
    return Judgement(
        wire.a_first,
        wire.probability_a if wire.HasField("probability_a") else None,
        wire.evidence_a if wire.HasField("evidence_a") else None,
        wire.evidence_b if wire.HasField("evidence_b") else None,
        wire.rationale,
        wire.parsed,
        wire.abstention_reason,
        wire.prompt_tokens,
        wire.response_tokens,
        wire.ledger_key,
        wire.cached,
        wire.cost,
        wire.judge,
        wire.judge_digest,
        wire.sample,
        wire.latency_seconds or None,
    )


def label_from_proto(wire: pb.Label) -> Label:
    """The label of an answer."""
    return Label(
        wire.pair_id,
        wire.preference if wire.HasField("preference") else None,
        OUTCOME_NAMES[wire.outcome],
        wire.abstention_reason,
        tuple(_judgement(item) for item in wire.judgements),
        KIND_NAMES[wire.kind],
        wire.rubric,
        wire.rubric_digest,
        wire.judge,
        wire.judge_digest,
        wire.agreement if wire.HasField("agreement") else None,
        wire.escalated,
    )


def rating_from_proto(wire: pb.RateResponseResponse) -> Rating:
    """The rating of an answer."""
    return Rating(tuple(wire.distribution), wire.expected_rating, wire.score, wire.rubric, wire.rubric_digest)


def label_result_from_proto(wire: pb.LabelPairResult) -> LabelResult:
    """What came of one pair of an answer."""
    error = error_or_none(wire.status)
    return LabelResult(wire.pair_id, error, None if error else label_from_proto(wire.label))


def job_request(spec: LabelJobSpec) -> pb.CreateLabelJobRequest:
    """The wire form of a job to create."""
    limits, candidates = spec.limits, spec.candidates
    return pb.CreateLabelJobRequest(
        request_id=spec.request_id,
        dataset_uri=spec.dataset_uri,
        dataset_format=spec.dataset_format,
        split=spec.split,
        limit=spec.limit,
        task=TASKS[spec.task],
        judge=judge_to_proto(spec.judge),
        output_uri=spec.output_uri,
        seed=spec.seed,
        candidates=None if candidates is None else pb.CandidateOptions(**asdict(candidates)),
        max_cost=limits.max_cost,
        max_tokens=limits.max_tokens,
        max_judgements_per_second=limits.max_judgements_per_second,
        concurrency=limits.concurrency,
        attacks=spec.attacks,
        repeats=spec.repeats,
    )


def job_from_proto(wire: pb.LabelJob) -> LabelJob:
    """The job of an answer."""
    return LabelJob(
        wire.name,
        _JOB_STATES[wire.state],
        wire.total_pairs,
        wire.done_pairs,
        wire.abstained_pairs,
        wire.cached_judgements,
        wire.tokens,
        wire.message,
        wire.dataset_uri,
        wire.dataset_digest,
        wire.card_uri,
        wire.create_time.seconds + wire.create_time.nanos / 1e9,
        dict(wire.rejected_rows),
        source_uri=wire.source_uri,
        rows_digest=wire.rows_digest,
        cost=wire.cost,
        at_limit=wire.at_limit,
        escalated_pairs=wire.escalated_pairs,
    )
