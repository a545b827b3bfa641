"""Anthropic's HH: `chosen` and `rejected` are whole transcripts that share their beginning (Bai et al. 2022, arXiv:2204.05862)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from accord.data.formats.row import BadRow, Format, Row, checked, label_facts, refuse_labels, split_of, text
from accord.text.chat import Message
from accord.text.tasks import Task

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def transcript(value: str, name: str) -> tuple[Message, ...]:
    """The turns of a transcript.

    Raises:
        BadRow: it does not start with a turn, or a turn is empty.
    """
    parts = _TURN.split(value.lstrip())
    if parts[0].strip() or len(parts) < 3:
        raise BadRow(f"{name} is not a transcript")
    turns = []
    for speaker, content in zip(parts[1::2], parts[2::2], strict=True):
        turns.append(Message("user" if speaker == "Human" else "assistant", checked(content, f"{name} turn").strip()))
    return tuple(turns)


def _parse(row: Mapping[str, Any]) -> Row:
    chosen, rejected = transcript(text(row, "chosen"), "chosen"), transcript(text(row, "rejected"), "rejected")
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise BadRow("a transcript does not end with the assistant")
    if chosen[:-1] != rejected[:-1]:
        raise BadRow("the transcripts differ before the last turn")
    if len(chosen) < 2:
        raise BadRow("there is no prompt before the response")
    refuse_labels(row)
    return Row(
        chosen[:-1], chosen=chosen[-1].content, rejected=rejected[-1].content, response=chosen[-1].content, human_preference=1.0,
        task=Task.CONVERSATION, metadata=label_facts(row), split=split_of(row),
    )  # fmt: skip


def _recognises(row: Mapping[str, Any]) -> bool:
    chosen = row.get("chosen")
    return isinstance(chosen, str) and chosen.lstrip().startswith("Human:") and "rejected" in row


FORMAT = Format("hh", _recognises, _parse)
