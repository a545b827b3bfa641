"""Typed client of FeedbackService (blocking: its callers are commands and scripts).

What does not belong here: listings of the ledger (`accord.client.ledger`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

from accord.api.feedback.v1 import feedback_pb2 as pb
from accord.api.feedback.v1 import feedback_pb2_grpc as rpc
from accord.client.connection import Target, connect
from accord.client.feedback_messages import (
    ABSTENTION,
    Candidates,
    JobState,
    Judge,
    JudgeKind,
    Judgement,
    Label,
    LabelJob,
    LabelJobSpec,
    LabelLimits,
    LabelPairItem,
    LabelResult,
    Outcome,
    Rating,
    Ratings,
    Rubric,
    VerdictSource,
)
from accord.client.feedback_wire import (
    JUDGE_KINDS,
    KIND_NAMES,
    OUTCOMES,
    TASK_NAMES,
    TASKS,
    job_from_proto,
    job_request,
    judge_to_proto,
    label_from_proto,
    label_result_from_proto,
    pair_to_proto,
    rating_from_proto,
)
from accord.client.label_cards import LabelCard, card_from_proto
from accord.client.messages import error_or_none, messages_to_proto
from accord.rpc.stubs import guard_stub
from accord.text.chat import Message
from accord.text.tasks import Task

__all__ = [
    "ABSTENTION",
    "Candidates",
    "FeedbackClient",
    "JobState",
    "Judge",
    "JudgeKind",
    "Judgement",
    "Label",
    "LabelJob",
    "LabelJobSpec",
    "LabelLimits",
    "LabelPairItem",
    "LabelResult",
    "Outcome",
    "Rating",
    "Ratings",
    "Rubric",
    "VerdictSource",
]

_DEFAULT, _RATING = Judge(), Judge("rating")


class FeedbackClient:
    """A blocking client of one feedback service; use it as a context manager."""

    def __init__(self, target: Target) -> None:
        self._channel, default_timeout = connect(target)
        self._stub = guard_stub(rpc.FeedbackServiceStub(self._channel), default_timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def label_pair(self, pair: LabelPairItem, judge: Judge = _DEFAULT, *, timeout_seconds: float | None = None) -> Label:
        """Returns the label of one pair; see FeedbackService.LabelPair for the errors."""
        request = pb.LabelPairRequest(pair=pair_to_proto(pair), judge=judge_to_proto(judge))
        return label_from_proto(self._stub.LabelPair(request, timeout=timeout_seconds).label)

    def label_pairs(
        self,
        pairs: Sequence[LabelPairItem],
        judge: Judge = _DEFAULT,
        *,
        timeout_seconds: float | None = None,
    ) -> tuple[LabelResult, ...]:
        """Returns a label or an error for each pair, in their order."""
        request = pb.LabelPairsRequest(pairs=[pair_to_proto(pair) for pair in pairs], judge=judge_to_proto(judge))
        reply = self._stub.LabelPairs(request, timeout=timeout_seconds)
        return tuple(label_result_from_proto(item) for item in reply.results)

    def label_stream(
        self,
        pairs: Iterable[LabelPairItem],
        judge: Judge = _DEFAULT,
        *,
        timeout_seconds: float | None = None,
    ) -> Iterator[LabelResult]:
        """Yields labels as they come, out of order."""
        options = judge_to_proto(judge)
        requests = (pb.LabelStreamRequest(pair=pair_to_proto(pair), judge=options) for pair in pairs)
        for wire in self._stub.LabelStream(requests, timeout=timeout_seconds):
            yield label_result_from_proto(wire.result)

    def rate_response(
        self,
        task: Task,
        messages: Sequence[Message],
        response: str,
        *,
        rubric: str = "",
        adapter: str = "",
        judge: str = "",
        timeout_seconds: float | None = None,
    ) -> Rating:
        """Returns the rating of one response."""
        request = pb.RateResponseRequest(
            task=TASKS[task], prompt=messages_to_proto(messages), response=response, rubric=rubric, adapter=adapter, judge=judge
        )
        return rating_from_proto(self._stub.RateResponse(request, timeout=timeout_seconds))

    def rate_responses(
        self, task: Task, items: Sequence[tuple[Sequence[Message], str]], judge: Judge = _RATING, *, timeout_seconds: float | None = None
    ) -> Ratings:
        """Returns a rating or an error for each prompt and response, in their order; of the judge count rubric, adapter and name."""
        request = pb.RateResponsesRequest(
            task=TASKS[task], rubric=judge.rubric, adapter=judge.adapter, judge=judge.name,
            items=[pb.RateItem(prompt=messages_to_proto(messages), response=response) for messages, response in items],
        )  # fmt: skip
        wire = self._stub.RateResponses(request, timeout=timeout_seconds)
        results = tuple(error_or_none(item.status) or rating_from_proto(item.rating) for item in wire.results)
        return Ratings(results, wire.judge, wire.judge_digest)

    def list_rubrics(self, *, timeout_seconds: float | None = None) -> tuple[Rubric, ...]:
        """Returns the rubrics by id."""
        wire = self._stub.ListRubrics(pb.ListRubricsRequest(), timeout=timeout_seconds)
        return tuple(
            Rubric(item.id, item.digest, TASK_NAMES[item.task], KIND_NAMES[item.kind], item.template, item.rationale) for item in wire.rubrics
        )

    def create_label_job(self, spec: LabelJobSpec, *, timeout_seconds: float | None = None) -> LabelJob:
        """Starts labelling a data set in the background."""
        return job_from_proto(self._stub.CreateLabelJob(job_request(spec), timeout=timeout_seconds).job)

    def get_label_job(self, name: str, *, timeout_seconds: float | None = None) -> LabelJob:
        """Returns a job."""
        return job_from_proto(self._stub.GetLabelJob(pb.GetLabelJobRequest(name=name), timeout=timeout_seconds).job)

    def watch_label_job(self, name: str, *, timeout_seconds: float | None = None) -> Iterator[LabelJob]:
        """Yields the job each time that it changed, until it ends."""
        request = pb.WatchLabelJobRequest(name=name)
        for wire in self._stub.WatchLabelJob(request, timeout=timeout_seconds):
            yield job_from_proto(wire.job)

    def cancel_label_job(self, name: str, *, timeout_seconds: float | None = None) -> LabelJob:
        """Cancels a job."""
        return job_from_proto(self._stub.CancelLabelJob(pb.CancelLabelJobRequest(name=name), timeout=timeout_seconds).job)

    def record_human_label(
        self,
        request_id: str,
        pair: LabelPairItem,
        outcome: Outcome,
        annotator_id: str,
        *,
        reason: str = "",
        duration_seconds: float | None = None,
        confidence: str = "",
        timeout_seconds: float | None = None,
    ) -> str:
        """Records a person's label; returns its key in the ledger. `confidence` is a number on the asker's scale, or a word."""
        request = pb.RecordHumanLabelRequest(
            request_id=request_id,
            pair=pair_to_proto(pair),
            outcome=OUTCOMES[outcome],
            annotator_id=annotator_id,
            reason=reason,
            duration_seconds=duration_seconds,
            confidence=confidence,
        )
        return str(self._stub.RecordHumanLabel(request, timeout=timeout_seconds).ledger_key)

    def label_cards(
        self, *, job: str = "", kind: JudgeKind = "default", task: Task | None = None, timeout_seconds: float | None = None
    ) -> tuple[LabelCard, ...]:
        """Returns one card for each judge, kind, rubric and task among the chosen labels."""
        request = pb.GetLabelCardRequest(job=job, kind=JUDGE_KINDS[kind], task=TASKS[task] if task else pb.TASK_UNSPECIFIED)
        return tuple(card_from_proto(card) for card in self._stub.GetLabelCard(request, timeout=timeout_seconds).cards)
