"""Typed client of what the ledger of a FeedbackService has, listed page by page (blocking: its callers are commands and scripts).

What does not belong here: asking for labels (`accord.client.feedback`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from accord.api.feedback.v1 import feedback_pb2 as pb
from accord.api.feedback.v1 import feedback_pb2_grpc as rpc
from accord.client.connection import Target, connect
from accord.client.feedback_messages import JudgeKind, Label, LabelJob, LabelPairItem, Outcome
from accord.client.feedback_wire import JUDGE_KINDS, OUTCOMES, TASKS, job_from_proto, label_from_proto
from accord.client.messages import messages_from_proto
from accord.rpc.stubs import guard_stub
from accord.text.tasks import Task

T = TypeVar("T")
_TASKS = {number: task for task, number in TASKS.items()}
_OUTCOMES = {number: name for name, number in OUTCOMES.items()}


@dataclass(frozen=True, slots=True)
class LabelQuery:
    """Which labels; what is empty or None asks for nothing. Times are Unix seconds: made at or after `made_after`, and before `made_before`."""

    job: str = ""
    kind: JudgeKind = "default"
    task: Task | None = None
    judge_digest: str = ""
    rubric: str = ""
    outcome: Outcome = "unspecified"
    content_key: str = ""
    pair_id: str = ""
    made_after: float | None = None
    made_before: float | None = None
    pair_id_prefix: str = ""


@dataclass(frozen=True, slots=True)
class LabelRecord:
    """A label as the ledger keeps it.

    `pair` is None where the ledger has no text of it (some labels of ledgers from before version 2); its `human_preference` is that of the data, else
    the mean of the recorded labels. `content_key` is the same whichever response is A. `options` is JSON, `create_time` Unix seconds.
    """

    label: Label
    pair: LabelPairItem | None
    content_key: str
    job: str
    request_id: str
    create_time: float
    options: str


@dataclass(frozen=True, slots=True)
class HumanLabelRecord:
    """A label by a person as the ledger keeps it; `create_time` is Unix seconds."""

    ledger_key: str
    pair: LabelPairItem
    outcome: Outcome
    annotator_id: str
    reason: str
    duration_seconds: float | None
    content_key: str
    create_time: float
    confidence: str = ""


class LedgerClient:
    """A blocking client of one feedback service's ledger; use it as a context manager."""

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

    def labels(self, query: LabelQuery = LabelQuery(), *, page_size: int = 100, timeout_seconds: float | None = None) -> Iterator[LabelRecord]:
        """Yields labels in the order in which they were made; each page is a call with that timeout."""
        request = query_to_proto(query)
        request.page_size = page_size
        yield from _pages(lambda: self._stub.ListLabels(request, timeout=timeout_seconds), request, "labels", record_from_proto)

    def human_labels(
        self, *, content_key: str = "", annotator_id: str = "", page_size: int = 100, timeout_seconds: float | None = None
    ) -> Iterator[HumanLabelRecord]:
        """Yields labels by people in the order in which they were recorded; each page is a call with that timeout."""
        request = pb.ListHumanLabelsRequest(content_key=content_key, annotator_id=annotator_id, page_size=page_size)
        yield from _pages(lambda: self._stub.ListHumanLabels(request, timeout=timeout_seconds), request, "labels", human_record_from_proto)

    def label_jobs(self, *, dataset_digest: str = "", page_size: int = 100, timeout_seconds: float | None = None) -> Iterator[LabelJob]:
        """Yields label jobs, the newest first; with a digest, those whose labelled data set has it (of its file, or of its rows)."""
        request = pb.ListLabelJobsRequest(dataset_digest=dataset_digest, page_size=page_size)
        yield from _pages(lambda: self._stub.ListLabelJobs(request, timeout=timeout_seconds), request, "jobs", job_from_proto)


def query_to_proto(query: LabelQuery) -> pb.ListLabelsRequest:
    """The wire form of a query, without page."""
    return pb.ListLabelsRequest(
        job=query.job, kind=JUDGE_KINDS[query.kind], task=TASKS[query.task] if query.task else pb.TASK_UNSPECIFIED,
        judge_digest=query.judge_digest, rubric=query.rubric, outcome=OUTCOMES[query.outcome], content_key=query.content_key, pair_id=query.pair_id,
        made_after=_timestamp(query.made_after), made_before=_timestamp(query.made_before), pair_id_prefix=query.pair_id_prefix,
    )  # fmt: skip


def record_from_proto(wire: pb.LabelRecord) -> LabelRecord:
    """The label of an answer."""
    pair = pair_from_proto(wire.pair) if wire.HasField("pair") else None
    return LabelRecord(
        label_from_proto(wire.label), pair, wire.content_key, wire.job, wire.request_id, seconds_of(wire.create_time), wire.options,
    )  # fmt: skip


def human_record_from_proto(wire: pb.HumanLabelRecord) -> HumanLabelRecord:
    """A person's label of an answer."""
    duration = wire.duration_seconds if wire.HasField("duration_seconds") else None
    return HumanLabelRecord(
        wire.ledger_key, pair_from_proto(wire.pair), _OUTCOMES[wire.outcome], wire.annotator_id, wire.reason, duration, wire.content_key,
        seconds_of(wire.create_time), wire.confidence,
    )  # fmt: skip


def pair_from_proto(wire: pb.Pair) -> LabelPairItem:
    """The pair of an answer."""
    human = wire.human_preference if wire.HasField("human_preference") else None
    return LabelPairItem(_TASKS[wire.task], messages_from_proto(wire.prompt), wire.response_a, wire.response_b, wire.pair_id, human)


def seconds_of(moment: Timestamp) -> float:
    """A moment as Unix seconds."""
    return moment.seconds + moment.nanos / 1e9


def _timestamp(seconds: float | None) -> Timestamp | None:
    if seconds is None:
        return None
    found = Timestamp()
    found.FromNanoseconds(round(seconds * 1e9))
    return found


def _pages(call: Callable[[], Any], request: Any, field: str, read: Callable[[Any], T]) -> Iterator[T]:
    """All items of a listing; the request is sent again with each page's token."""
    while True:
        page = call()
        yield from (read(item) for item in getattr(page, field))
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
