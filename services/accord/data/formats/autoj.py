"""Auto-J's pairwise set: scenario, prompt, two responses and a label, 2 for a tie (Li et al. 2023, arXiv:2310.05470)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accord.data.formats.row import BadRow, Format, Row, label_facts, split_of, text
from accord.text.chat import Message
from accord.text.tasks import Task


def _parse(row: Mapping[str, Any]) -> Row:
    first, second, label = text(row, "response 1"), text(row, "response 2"), row.get("label")
    if isinstance(label, bool) or label not in (0, 1, 2):
        raise BadRow("label is not 0, 1 or 2")
    chosen, rejected = (second, first) if label == 1 else (first, second)
    preference = 0.5 if label == 2 else 1.0
    scenario = str(row.get("scenario", ""))
    facts = {**label_facts(row), "scenario": scenario}
    return Row(
        (Message("user", text(row, "prompt")),), chosen=chosen, rejected=rejected, preference=preference, human_preference=preference,
        response=chosen, task=Task.SUMMARIZATION if "summarization" in scenario else Task.CONVERSATION, metadata=facts,
        split=split_of(row),
    )  # fmt: skip


FORMAT = Format("autoj", lambda row: {"response 1", "response 2", "label"} <= row.keys(), _parse)
