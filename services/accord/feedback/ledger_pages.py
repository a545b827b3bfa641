"""What the ledger lists, page by page in the order in which it was written: the SQL, and rows as the records that callers see.

What does not belong here: transactions (`accord.feedback.ledger`) and page tokens (`accord.feedback.paging`).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Any, cast

from accord.client.feedback import Judgement, Label, LabelPairItem, Outcome
from accord.client.ledger import HumanLabelRecord, LabelQuery, LabelRecord
from accord.feedback.labels import judgement_of
from accord.feedback.ledger_rows import answer_of, human_preference
from accord.feedback.records import Kind, LabelUse
from accord.text.chat import Message
from accord.text.tasks import Task

Run = Callable[..., sqlite3.Cursor]
_LABELS = """
    SELECT labels.*, pairs.prompt, pairs.low, pairs.high,
        (SELECT avg(preference_low) FROM human_labels WHERE human_labels.content_key = labels.content_key) AS preference_low
    FROM labels LEFT JOIN pairs ON pairs.content_key = labels.content_key WHERE {where} ORDER BY labels.id LIMIT :limit"""
_JUDGEMENTS = """
    SELECT label_judgements.label_id, label_judgements.a_first, label_judgements.cached, judgements.* FROM label_judgements
    JOIN judgements ON judgements.key = label_judgements.key WHERE label_id IN ({ids}) ORDER BY label_id, place"""
_HUMAN = "SELECT rowid AS place, human_labels.* FROM human_labels WHERE {where} ORDER BY rowid LIMIT :limit"


def read_labels(run: Run, query: LabelQuery, after: int, limit: int) -> list[tuple[int, LabelRecord]]:
    """The next labels of a query behind a place, each with its own place."""
    wanted: dict[str, tuple[str, Any]] = {
        "job": ("job = :job", query.job),
        "kind": ("kind = :kind", "" if query.kind == "default" else query.kind),
        "task": ("task = :task", query.task.value if query.task else ""),
        "judge_digest": ("judge_digest = :judge_digest", query.judge_digest),
        "rubric": ("rubric = :rubric", query.rubric),
        "outcome": ("outcome = :outcome", "" if query.outcome == "unspecified" else query.outcome),
        "content_key": ("content_key = :content_key", query.content_key),
        "pair_id": ("pair_id = :pair_id", query.pair_id),
        "pair_id_prefix": ("pair_id BETWEEN :pair_id_prefix AND :pair_id_prefix || char(1114111)", query.pair_id_prefix),  # U+10FFFF, the last
        "made_after": ("time >= :made_after", query.made_after),
        "made_before": ("time < :made_before", query.made_before),
    }
    given = {name: clause for name, clause in wanted.items() if clause[1] not in ("", None)}
    where = " AND ".join(["labels.id > :after", *(f"labels.{sql}" for sql, _ in given.values())])
    values = {name: value for name, (_, value) in given.items()} | {"after": after, "limit": limit}
    found = run(_LABELS.format(where=where), values).fetchall()
    uses: dict[int, list[Judgement]] = {row["id"]: [] for row in found}
    for row in run(_JUDGEMENTS.format(ids=",".join(map(str, uses)))):
        use = LabelUse(row["key"], bool(row["a_first"]), bool(row["cached"]))
        uses[row["label_id"]].append(judgement_of(answer_of(row), use, row["judge"], row["judge_digest"]))
    return [(row["id"], _record(row, tuple(uses[row["id"]]))) for row in found]


def read_human_labels(run: Run, content_key: str, annotator_id: str, after: int, limit: int) -> list[tuple[int, HumanLabelRecord]]:
    """The next labels by people behind a place, each with its own place; empty arguments ask for all."""
    given = {name: value for name, value in (("content_key", content_key), ("annotator_id", annotator_id)) if value}
    where = " AND ".join(["rowid > :after", *(f"{name} = :{name}" for name in given)])
    found = run(_HUMAN.format(where=where), given | {"after": after, "limit": limit})
    return [(row["place"], _human_record(row)) for row in found]


def _record(row: sqlite3.Row, judgements: tuple[Judgement, ...]) -> LabelRecord:
    label = Label(
        row["pair_id"], row["preference"], cast(Outcome, row["outcome"]), row["abstention_reason"], judgements, cast(Kind, row["kind"]),
        row["rubric"], row["rubric_digest"], row["judge"], row["judge_digest"], row["agreement"], bool(row["escalated"]),
    )  # fmt: skip
    return LabelRecord(label, _pair(row), row["content_key"], row["job"], row["request_id"], row["time"], row["options"])


def _pair(row: sqlite3.Row) -> LabelPairItem | None:
    if row["prompt"] is None:
        return None
    a, b = (row["low"], row["high"]) if row["a_is_low"] else (row["high"], row["low"])
    return LabelPairItem(Task(row["task"]), _messages(row["prompt"]), a, b, row["pair_id"], human_preference(row))


def _human_record(row: sqlite3.Row) -> HumanLabelRecord:
    pair = LabelPairItem(Task(row["task"]), _messages(row["prompt"]), row["response_a"], row["response_b"], row["pair_id"])
    return HumanLabelRecord(
        row["key"], pair, cast(Outcome, row["outcome"]), row["annotator_id"], row["reason"], row["duration_seconds"], row["content_key"], row["time"],
        row["confidence"],
    )  # fmt: skip


def _messages(prompt: str) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in json.loads(prompt))
