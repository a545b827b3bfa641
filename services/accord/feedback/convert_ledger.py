"""Between feedback.proto and the records that listings of the ledger give, which are the dataclasses of `accord.client.ledger`.

What does not belong here: labels and jobs themselves (`accord.feedback.convert`).
"""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from accord.api.feedback.v1 import feedback_pb2 as pb
from accord.client.feedback_wire import KIND_NAMES, OUTCOME_NAMES, OUTCOMES, pair_to_proto
from accord.client.ledger import HumanLabelRecord, LabelQuery, LabelRecord, seconds_of
from accord.feedback.convert import label_to_proto, read_any_task


def read_label_query(wire: pb.ListLabelsRequest) -> LabelQuery:
    """Which labels a request asks for."""
    return LabelQuery(
        job=wire.job, kind=KIND_NAMES[wire.kind], task=read_any_task(wire.task), judge_digest=wire.judge_digest, rubric=wire.rubric,
        outcome=OUTCOME_NAMES[wire.outcome], content_key=wire.content_key, pair_id=wire.pair_id,
        made_after=seconds_of(wire.made_after) if wire.HasField("made_after") else None,
        made_before=seconds_of(wire.made_before) if wire.HasField("made_before") else None,
        pair_id_prefix=wire.pair_id_prefix,
    )  # fmt: skip


def label_record_to_proto(record: LabelRecord) -> pb.LabelRecord:
    """The wire form of a label of the ledger."""
    return pb.LabelRecord(
        label=label_to_proto(record.label), pair=None if record.pair is None else pair_to_proto(record.pair), content_key=record.content_key,
        job=record.job, request_id=record.request_id, create_time=_timestamp(record.create_time), options=record.options,
    )  # fmt: skip


def human_record_to_proto(record: HumanLabelRecord) -> pb.HumanLabelRecord:
    """The wire form of a person's label of the ledger."""
    return pb.HumanLabelRecord(
        ledger_key=record.ledger_key, pair=pair_to_proto(record.pair), outcome=OUTCOMES[record.outcome], annotator_id=record.annotator_id,
        reason=record.reason, duration_seconds=record.duration_seconds, content_key=record.content_key, create_time=_timestamp(record.create_time),
        confidence=record.confidence,
    )  # fmt: skip


def _timestamp(seconds: float) -> Timestamp:
    found = Timestamp()
    found.FromNanoseconds(round(seconds * 1e9))
    return found
