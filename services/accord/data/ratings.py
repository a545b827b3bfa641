"""Pairs out of ratings of single responses: two responses to one prompt that the same person rated.

Rated rows are kept in memory, since a row is compared with those of its prompt that came before. What does not belong here: formats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from accord.data.formats.row import Row
from accord.data.records import ANNOTATOR

FIRST = "the first rating of its prompt by this annotator, with nothing to compare"


class RatedRows:
    """The rated rows so far, by split, prompt and annotator."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str | None, str, str], list[tuple[str, Row]]] = {}

    def pairs(self, prompt_id: str, row_id: str, row: Row) -> Iterator[Row]:
        """The row's pairs with each earlier one of its split, prompt and annotator: the higher rating is chosen, equal ratings are a tie."""
        earlier = self._rows.setdefault((row.split, prompt_id, row.metadata.get(ANNOTATOR, "")), [])
        for other_id, other in earlier:
            yield _pair(hashlib.sha256(f"{other_id}+{row_id}".encode()).hexdigest()[:16], other, row)
        earlier.append((row_id, row))


def _pair(row_id: str, first: Row, second: Row) -> Row:
    gap = (first.rating or 0.0) - (second.rating or 0.0)
    better, worse = (first, second) if gap >= 0 else (second, first)
    preference = 0.5 if gap == 0 else 1.0
    shared = {key: value for key, value in better.metadata.items() if worse.metadata.get(key) == value}
    for name, row in (("policy_chosen", better), ("policy_rejected", worse)):
        if "policy" in row.metadata:
            shared[name] = row.metadata["policy"]
    return replace(
        better, row_id=row_id, chosen=better.response, rejected=worse.response, preference=preference, human_preference=preference,
        metadata=shared, rating_gap=abs(gap), rating=None,
    )  # fmt: skip
