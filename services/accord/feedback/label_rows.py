"""Labels of the ledger as rows of a preference data set, each with where it comes from. Pure.

What does not belong here: files (`accord.data.writers`, `accord.data.parquet`) and reading the ledger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from accord.client.feedback import Label
from accord.client.ledger import HumanLabelRecord, LabelRecord
from accord.data.formats.row import fact
from accord.data.records import ANNOTATOR, CONFIDENCE, LABEL_JOB, LABELLED_AT, REASON, SECONDS, PreferencePair
from accord.feedback.records import digest_of
from accord.text.chat import Message

_GROUP_CHARACTERS = 16
PROVENANCE = (
    LABEL_JOB, "judge", "judge_digest", "judge_kind", "judge_options", "rubric", "rubric_digest", "ledger_keys", "content_key", "request_id",
    LABELLED_AT,
)  # fmt: skip
"""Keys of a row's metadata, in this order."""
OF_PEOPLE = (ANNOTATOR, REASON, SECONDS, CONFIDENCE, LABELLED_AT, "pair", "content_key")
"""The same for a label by a person."""


class LabelledRows:
    """Rows out of labels, one at a time. `left_out` counts by reason what makes none: abstentions, labels without text, pairs that were there before.

    Of several labels of a pair (of the same id and content) the first counts. Where another pair has an id already, as those of two data sets that
    count from 1, the end of its id is a digest of its content: whoever reads the rows would take it for the first one again. What stays in memory are
    some 200 bytes a row, for that.
    """

    def __init__(self, records: Iterable[LabelRecord]) -> None:
        self._records = records
        self._known: dict[bytes, bytes] = {}
        self.left_out: Counter[str] = Counter()

    def __iter__(self) -> Iterator[PreferencePair]:
        for record in self._records:
            row = labelled_row(record)
            if row is None:
                self.left_out["abstentions" if record.pair is not None else "whose text is not in the ledger"] += 1
                continue
            if not self._is_free(row.pair_id, record.content_key):
                row = replace(row, pair_id=f"{row.pair_id}-{record.content_key}")
            if self._take(row.pair_id, record.content_key):
                yield row
            else:
                self.left_out["of pairs that were there before"] += 1

    def _is_free(self, pair_id: str, content_key: str) -> bool:
        """Whether no other pair has the id."""
        return self._known.get(_digest(pair_id), _digest(content_key)) == _digest(content_key)

    def _take(self, pair_id: str, content_key: str) -> bool:
        """Notes a pair; whether it was not there."""
        known = len(self._known)
        self._known.setdefault(_digest(pair_id), _digest(content_key))
        return len(self._known) > known


def labelled_row(record: LabelRecord) -> PreferencePair | None:
    """The pair as the judge sees it: `chosen` is what it prefers, `preference` its P(chosen better), at least one half.

    A tie keeps A in front, with preference 0.5. `rating_gap` is the difference of the expected ratings where the judge rated. None on abstention, and
    where the ledger has no text of the pair.
    """
    label, pair = record.label, record.pair
    if label.preference is None or pair is None:
        return None
    a_wins = label.outcome != "b"
    preference = {"a": label.preference, "b": 1.0 - label.preference}.get(label.outcome, 0.5)
    chosen, rejected = (pair.response_a, pair.response_b) if a_wins else (pair.response_b, pair.response_a)
    human, gap = pair.human_preference, rating_gap(label)
    if not a_wins:
        human, gap = None if human is None else 1.0 - human, None if gap is None else -gap
    return PreferencePair(
        label.pair_id or record.content_key, pair.task, pair.messages, chosen, rejected, preference,
        group=_group(pair.messages), human_preference=human, metadata=provenance(record), rating_gap=gap,
    )  # fmt: skip


def rating_gap(label: Label) -> float | None:
    """A's expected rating less B's, out of a rating judge's answers; None where the judge was another or was not asked."""
    gaps = [
        judgement.evidence_a - judgement.evidence_b
        for judgement in (label.judgements if label.kind == "rating" else ())
        if judgement.evidence_a is not None and judgement.evidence_b is not None
    ]
    return sum(gaps) / len(gaps) if gaps else None


def provenance(record: LabelRecord) -> dict[str, str]:
    """Where a label comes from, as a row's metadata; what is empty is left out."""
    label = record.label
    keys = ",".join(judgement.ledger_key for judgement in label.judgements)
    values = (
        record.job, label.judge, label.judge_digest, label.kind, record.options, label.rubric, label.rubric_digest, keys, record.content_key,
        record.request_id, _moment(record.create_time),
    )  # fmt: skip
    return {name: value for name, value in zip(PROVENANCE, values, strict=True) if value}


def human_row(record: HumanLabelRecord) -> PreferencePair:
    """A person's label as a row: the response that the person took is `chosen`; a tie keeps A in front, with preference 0.5.

    The id is the label's key in the ledger, since a pair has as many rows as people labelled it; the pair's own id is in the metadata.
    """
    pair, tie = record.pair, record.outcome == "tie"
    chosen, rejected = (pair.response_b, pair.response_a) if record.outcome == "b" else (pair.response_a, pair.response_b)
    seconds = "" if record.duration_seconds is None else fact(record.duration_seconds, SECONDS)
    values = (record.annotator_id, record.reason, seconds, record.confidence, _moment(record.create_time), pair.pair_id, record.content_key)
    preference = 0.5 if tie else 1.0
    return PreferencePair(
        record.ledger_key, pair.task, pair.messages, chosen, rejected, preference, group=_group(pair.messages), human_preference=preference,
        metadata={name: value for name, value in zip(OF_PEOPLE, values, strict=True) if value},
    )  # fmt: skip


def _digest(text: str) -> bytes:
    return bytes.fromhex(digest_of(text))[:16]


def _group(messages: Sequence[Message]) -> str:
    """The same for all rows of a prompt."""
    return digest_of([[message.role, message.content] for message in messages])[:_GROUP_CHARACTERS]


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
