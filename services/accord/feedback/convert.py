"""Between feedback.proto and what the service works with, which are the dataclasses of `accord.client.feedback`.

What does not belong here: rules that the proto states itself (protovalidate has checked those) and limits of a server.
"""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from accord.api.feedback.v1 import feedback_pb2 as pb
from accord.client.feedback import (
    Candidates,
    Judge,
    Judgement,
    Label,
    LabelJob,
    LabelJobSpec,
    LabelLimits,
    LabelPairItem,
    Outcome,
    Rating,
)
from accord.client.feedback_wire import JUDGE_KINDS, KIND_NAMES, OUTCOME_NAMES, OUTCOMES, TASK_NAMES, TASKS, VERDICT_SOURCES
from accord.client.messages import messages_from_proto
from accord.errors import AccordError
from accord.feedback.records import HumanLabel, Kind
from accord.prompts import Rubric
from accord.rpc.status import item_status
from accord.text.tasks import Task

_VERDICT_SOURCES = {number: name for name, number in VERDICT_SOURCES.items()}


def read_judge(wire: pb.JudgeOptions) -> Judge:
    """The options of a request; what is not set is None."""
    return Judge(
        kind=KIND_NAMES[wire.kind],
        rubric=wire.rubric,
        adapter=wire.adapter,
        both_orders=wire.both_orders if wire.HasField("both_orders") else None,
        rationale=wire.rationale if wire.HasField("rationale") else None,
        max_rationale_tokens=wire.max_rationale_tokens if wire.HasField("max_rationale_tokens") else None,
        tie_margin=wire.tie_margin if wire.HasField("tie_margin") else None,
        name=wire.judge,
        consistency_samples=wire.consistency_samples if wire.HasField("consistency_samples") else None,
        consistency_temperature=wire.consistency_temperature if wire.HasField("consistency_temperature") else None,
        verdict_source=_VERDICT_SOURCES[wire.verdict_source],
    )


def read_pair(wire: pb.Pair) -> LabelPairItem:
    """The pair of a request."""
    return LabelPairItem(
        TASK_NAMES[wire.task],
        messages_from_proto(wire.prompt),
        wire.response_a,
        wire.response_b,
        wire.pair_id,
        wire.human_preference if wire.HasField("human_preference") else None,
    )


def read_task(wire: pb.Task) -> Task:
    """The task, which validation has made sure is one."""
    return TASK_NAMES[wire]


def read_any_task(wire: pb.Task) -> Task | None:
    """The task, None where it is not said."""
    return TASK_NAMES.get(wire)


def read_kind(wire: pb.JudgeKind) -> Kind | None:
    """The kind, None where it is not said."""
    name = KIND_NAMES[wire]
    return None if name == "default" else name


def read_job_spec(wire: pb.CreateLabelJobRequest) -> LabelJobSpec:
    """The job that a request asks for."""
    return LabelJobSpec(
        request_id=wire.request_id,
        dataset_uri=wire.dataset_uri,
        task=TASK_NAMES[wire.task],
        output_uri=wire.output_uri,
        dataset_format=wire.dataset_format,
        split=wire.split or "train",
        limit=wire.limit,
        judge=read_judge(wire.judge),
        seed=wire.seed,
        limits=LabelLimits(
            wire.max_cost, wire.max_tokens, wire.max_judgements_per_second, wire.concurrency if wire.HasField("concurrency") else None
        ),
        candidates=_read_candidates(wire.candidates) if wire.HasField("candidates") else None,
        attacks=wire.attacks,
        repeats=wire.repeats,
    )


def _read_candidates(wire: pb.CandidateOptions) -> Candidates:
    given = {field.name: value for field, value in wire.ListFields()}
    return Candidates(**given)


def read_human_label(wire: pb.RecordHumanLabelRequest) -> HumanLabel:
    """The label of a request."""
    pair = read_pair(wire.pair)
    outcome: Outcome = OUTCOME_NAMES[wire.outcome]
    duration = wire.duration_seconds if wire.HasField("duration_seconds") else None
    return HumanLabel(
        wire.request_id, pair.pair_id, pair.task, pair.messages, pair.response_a, pair.response_b, outcome, wire.annotator_id, wire.reason, duration,
        wire.confidence,
    )  # fmt: skip


def label_to_proto(label: Label) -> pb.Label:
    """The wire form of a label."""
    return pb.Label(
        pair_id=label.pair_id,
        preference=label.preference,
        outcome=OUTCOMES[label.outcome],
        abstention_reason=label.abstention_reason,
        judgements=[_judgement(judgement) for judgement in label.judgements],
        kind=JUDGE_KINDS[label.kind],
        rubric=label.rubric,
        rubric_digest=label.rubric_digest,
        judge=label.judge,
        judge_digest=label.judge_digest,
        agreement=label.agreement,
        escalated=label.escalated,
    )


def result_to_proto(pair_id: str, result: Label | AccordError) -> pb.LabelPairResult:
    """The wire form of what came of a pair."""
    if isinstance(result, AccordError):
        return pb.LabelPairResult(pair_id=pair_id, status=item_status(result))
    return pb.LabelPairResult(pair_id=pair_id, label=label_to_proto(result))


def rating_to_proto(rating: Rating) -> pb.RateResponseResponse:
    """The wire form of a rating."""
    return pb.RateResponseResponse(
        distribution=rating.distribution,
        expected_rating=rating.expected_rating,
        score=rating.score,
        rubric=rating.rubric,
        rubric_digest=rating.rubric_digest,
    )


def rate_result_to_proto(result: Rating | AccordError) -> pb.RateResult:
    """The wire form of what came of a response."""
    return pb.RateResult(status=item_status(result)) if isinstance(result, AccordError) else pb.RateResult(rating=rating_to_proto(result))


def rubric_to_proto(rubric: Rubric) -> pb.Rubric:
    """The wire form of a rubric."""
    return pb.Rubric(
        id=rubric.id,
        digest=rubric.digest,
        task=TASKS[rubric.task],
        kind=JUDGE_KINDS[rubric.kind],
        template=rubric.template,
        rationale=rubric.rationale,
    )


def job_to_proto(job: LabelJob) -> pb.LabelJob:
    """The wire form of a job."""
    created = Timestamp()
    created.FromNanoseconds(round(job.create_time * 1e9))
    return pb.LabelJob(
        name=job.name,
        state=getattr(pb, f"LABEL_JOB_STATE_{job.state.upper()}"),
        total_pairs=job.total_pairs,
        done_pairs=job.done_pairs,
        abstained_pairs=job.abstained_pairs,
        cached_judgements=job.cached_judgements,
        tokens=job.tokens,
        message=job.message,
        dataset_uri=job.dataset_uri,
        dataset_digest=job.dataset_digest,
        card_uri=job.card_uri,
        create_time=created,
        rejected_rows=dict(job.rejected_rows),
        source_uri=job.source_uri,
        rows_digest=job.rows_digest,
        cost=job.cost,
        at_limit=job.at_limit,
        escalated_pairs=job.escalated_pairs,
    )


def _judgement(judgement: Judgement) -> pb.Judgement:
    return pb.Judgement(
        a_first=judgement.a_first,
        probability_a=judgement.probability_a,
        evidence_a=judgement.evidence_a,
        evidence_b=judgement.evidence_b,
        rationale=judgement.rationale,
        parsed=judgement.parsed,
        abstention_reason=judgement.abstention_reason,
        prompt_tokens=judgement.prompt_tokens,
        response_tokens=judgement.response_tokens,
        ledger_key=judgement.ledger_key,
        cached=judgement.cached,
        cost=judgement.cost,
        judge=judgement.judge,
        judge_digest=judgement.judge_digest,
        sample=judgement.sample,
        latency_seconds=judgement.latency_seconds or 0.0,
    )
