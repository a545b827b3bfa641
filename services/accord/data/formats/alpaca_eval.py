"""alpaca_eval's annotations (Dubois et al. 2023, arXiv:2305.14387): an instruction, two outputs, and a preference from 1 to 2.

The preference is 1 where output_1 is better, 2 where output_2 is, 1.5 (0 in old files) for a tie, and between them 1 + P(output_2 better). It counts
as a person's where no judge is named: rows of people have an `annotator_index`, or an `annotator` with "human" in its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accord.data.formats.row import BadRow, Format, Row, fact, label_facts, optional_text, split_of, text
from accord.data.records import ANNOTATOR, SECONDS
from accord.text.chat import Message
from accord.text.tasks import Task

_KEPT = ("dataset", "datasplit")


def _parse(row: Mapping[str, Any]) -> Row:
    instruction, more = text(row, "instruction"), optional_text(row, "input")
    second_better = _preference(row.get("preference"))
    better, worse = (2, 1) if second_better > 0.5 else (1, 2)
    chosen, preference = text(row, f"output_{better}"), max(second_better, 1.0 - second_better)
    facts = label_facts(row) | {key: fact(row[key], key) for key in _KEPT if row.get(key) not in (None, "")}
    if row.get("time_per_example") is not None:
        facts[SECONDS] = fact(row["time_per_example"], "time_per_example")
    for name, number in (("policy_chosen", better), ("policy_rejected", worse)):
        if row.get(f"generator_{number}"):
            facts[name] = fact(row[f"generator_{number}"], f"generator_{number}")
    by_person = ANNOTATOR not in facts or "human" in facts[ANNOTATOR].lower()
    if row.get("annotator_index") is not None:
        by_person, facts[ANNOTATOR] = True, fact(row["annotator_index"], "annotator_index")
    prompt = (Message("user", f"{instruction}\n\n{more}" if more else instruction),)
    return Row(
        prompt, chosen=chosen, rejected=text(row, f"output_{worse}"), preference=preference, human_preference=preference if by_person else None,
        response=chosen, task=Task.CONVERSATION, metadata=facts, split=split_of(row),
    )  # fmt: skip


def _preference(value: object) -> float:
    """P(output_2 better)."""
    if not isinstance(value, bool) and isinstance(value, int | float):
        if value == 0:
            return 0.5
        if 1 <= value <= 2:
            return float(value) - 1.0
    raise BadRow("preference is not 1, 2, a number between them, or 0 for a tie")


FORMAT = Format("alpaca_eval", lambda row: {"instruction", "output_1", "output_2", "preference"} <= row.keys(), _parse)
