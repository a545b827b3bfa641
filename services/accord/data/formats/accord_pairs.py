"""Accord's own preference files: TRL's conversational preference format with the soft label and where it came from (`data.writers`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accord.data.formats.row import BadRow, Format, Row, checked, messages
from accord.text.tasks import Task


def _parse(row: Mapping[str, Any]) -> Row:
    preference, human = row["preference"], row.get("human_preference")
    for name, value in (("preference", preference), ("human_preference", human)):
        if value is not None and (not isinstance(value, int | float) or not 0 <= value <= 1):
            raise BadRow(f"{name} is not in [0, 1]")
    chosen, rejected = messages(row.get("chosen"), "chosen"), messages(row.get("rejected"), "rejected")
    if len(chosen) != 1 or len(rejected) != 1:
        raise BadRow("chosen and rejected are not one turn each")
    try:
        task = Task(str(row.get("task")))
    except ValueError:
        raise BadRow("task is not known") from None
    reference, metadata = row.get("reference"), row.get("metadata") or {}
    return Row(
        messages(row.get("prompt"), "prompt"), checked(row["pair_id"], "pair_id"), chosen=chosen[0].content, rejected=rejected[0].content,
        preference=float(preference), human_preference=None if human is None else float(human), response=chosen[0].content,
        reference=None if reference is None else checked(reference, "reference"), task=task, split=row.get("split"),
        group=str(row.get("group", "")), metadata={str(key): str(value) for key, value in metadata.items()},
    )  # fmt: skip


FORMAT = Format("accord", lambda row: {"pair_id", "preference", "chosen", "rejected", "prompt"} <= row.keys(), _parse)
