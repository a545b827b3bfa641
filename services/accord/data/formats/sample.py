"""The sample written for Accord: posts or conversations with a reference, a better and a worse response and the flaw of the worse one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accord.data.formats.row import BadRow, Format, Row, messages, text
from accord.text.tasks import Task, summarization_prompt


def split_of(row_id: str) -> str:
    """train, validation or test as a pure function of the id's number: 7, 1 and 2 of every 10."""
    digit = int(row_id[-1])
    return "test" if digit in (3, 8) else "validation" if digit == 6 else "train"


def _parse(row: Mapping[str, Any]) -> Row:
    row_id = text(row, "id")
    if row_id[-1] not in "0123456789":
        raise BadRow("id does not end in a digit")
    if "post" in row:
        turns, task = summarization_prompt(text(row, "post"), text(row, "title")), Task.SUMMARIZATION
    else:
        turns, task = messages(row.get("messages"), "messages"), Task.CONVERSATION
    return Row(
        turns, row_id, chosen=text(row, "better"), rejected=text(row, "worse"), human_preference=1.0, response=text(row, "reference"),
        reference=text(row, "reference"), task=task, split=split_of(row_id), group=row_id,
        metadata={key: text(row, key) for key in ("subject", "tone", "flaw", "flaw_note")},
    )  # fmt: skip


FORMAT = Format("sample", lambda row: {"better", "worse", "flaw"} <= row.keys(), _parse)
