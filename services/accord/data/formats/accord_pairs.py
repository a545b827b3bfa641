"""Accord's own preference files: TRL's conversational preference format with the soft label and where it came from (`data.writers`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accord.data.formats.row import BadRow, Format, Row, checked, fact, messages, optional_text, rating_gap, split_of, text
from accord.data.records import ANNOTATOR, CONFIDENCE, SECONDS
from accord.text.tasks import Task

_OF_A_LABEL = (ANNOTATOR, CONFIDENCE, SECONDS)
_TASKS = tuple(task.value for task in Task)


def probability(value: object, name: str) -> float:
    """The value as a probability.

    Raises:
        BadRow: it is missing, or no number in [0, 1].
    """
    if value is None:
        raise BadRow(f"{name} is missing")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise BadRow(f"{name} is not in [0, 1]")
    return float(value)


def _parse(row: Mapping[str, Any]) -> Row:
    preference, human = probability(row.get("preference"), "preference"), row.get("human_preference")
    chosen, rejected = messages(row.get("chosen"), "chosen"), messages(row.get("rejected"), "rejected")
    if len(chosen) != 1 or len(rejected) != 1:
        raise BadRow("chosen and rejected are not one turn each")
    task = row.get("task")
    if task is None:
        raise BadRow("task is missing")
    if task not in _TASKS:
        raise BadRow("task is not known")
    reference, metadata = row.get("reference"), row.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise BadRow("metadata is no mapping")
    return Row(
        messages(row.get("prompt"), "prompt"), text(row, "pair_id"), chosen=chosen[0].content, rejected=rejected[0].content,
        preference=preference, human_preference=None if human is None else probability(human, "human_preference"), response=chosen[0].content,
        reference=None if reference is None else checked(reference, "reference"), task=Task(task), split=split_of(row),
        group=optional_text(row, "group") or "", metadata=_kept(metadata),
        rating_gap=rating_gap(row),
    )  # fmt: skip


def _kept(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Metadata as texts. What is said of a label is written as by every format: 4.0, which is 4 in Parquet, would be another one in the ledger."""
    found = {str(key): str(value) for key, value in metadata.items() if value is not None}
    return found | {name: fact(metadata[name], name) for name in _OF_A_LABEL if isinstance(metadata.get(name), float)}


def _recognises(row: Mapping[str, Any]) -> bool:
    """Any field that only this format has is enough: TRL's reader would take the row for a hard label of people."""
    return {"chosen", "rejected", "prompt"} <= row.keys() and any(row.get(key) is not None for key in ("pair_id", "preference", "human_preference"))


FORMAT = Format("accord", _recognises, _parse)
