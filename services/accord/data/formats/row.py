"""One row of data in the shape that all formats give, and the checks that all share."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from accord.data.records import ANNOTATOR, CONFIDENCE, LABELLED_AT, REASON, SECONDS
from accord.text.chat import Message
from accord.text.tasks import Task

# What is kept of a label by a person, under one name each: where it may stand in a row.
_LABEL_FACTS = {
    ANNOTATOR: ("annotator", "annotator_id", "worker", "rater"),
    CONFIDENCE: ("confidence",),
    SECONDS: ("seconds", "duration_seconds", "time_spent"),
    REASON: ("reason", "comment"),
    LABELLED_AT: ("labelled_at", "timestamp"),
}
_LABELS = ("preference", "human_preference", "pair_id")
_GAPS = ("rating_gap", "margin")
_RATINGS = (("chosen_rating", "rejected_rating"), ("score_chosen", "score_rejected"))


class BadRow(Exception):
    """A row that cannot be used; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a row holds; what is not in it is None.

    `preference` is P(chosen better), `rating_gap` the rating of chosen less that of rejected, `rating` that of `response` where a row has one
    response alone: rows of one prompt by one annotator then make pairs (`accord.data.ratings`). `no_response` says why the row's response is none to
    learn; it is then not in the row.
    """

    messages: tuple[Message, ...]
    row_id: str = ""
    chosen: str | None = None
    rejected: str | None = None
    preference: float = 1.0
    human_preference: float | None = None
    response: str | None = None
    reference: str | None = None
    task: Task | None = None
    split: str | None = None
    group: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    rating_gap: float | None = None
    rating: float | None = None
    no_response: str = ""


@dataclass(frozen=True, slots=True)
class Format:
    """A format: does it recognise a row, and what is in it: one row, or several where several people or responses are in it.

    `parse` raises BadRow.
    """

    name: str
    recognises: Callable[[Mapping[str, Any]], bool]
    parse: Callable[[Mapping[str, Any]], Row | tuple[Row, ...]]


def text(row: Mapping[str, Any], key: str) -> str:
    """The text under a key, not empty, without NUL.

    Raises:
        BadRow: it is missing, of another type, empty, or holds NUL.
    """
    if key not in row or row[key] is None:
        raise BadRow(f"{key} is missing")
    return checked(row[key], key)


def optional_text(row: Mapping[str, Any], key: str) -> str | None:
    """The text under a key; None where it is missing or empty.

    Raises:
        BadRow: it is of another type or holds NUL.
    """
    value = row.get(key)
    return None if value is None or value == "" else checked(value, key)


def checked(value: object, name: str) -> str:
    """A text that can be used.

    Raises:
        BadRow: as `text`.
    """
    if not isinstance(value, str):
        raise BadRow(f"{name} is not text")
    if not value.strip():
        raise BadRow(f"{name} is empty")
    if "\x00" in value:
        raise BadRow(f"{name} holds a NUL character")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"{name} holds a lone surrogate") from None
    return value


def check_stored(row: Row) -> None:
    """Raises BadRow where what is kept of a row beside its texts cannot be written: it is not looked at before all is done with the row."""
    for name, value in (("id", row.row_id), ("split", row.split or ""), ("group", row.group), *_metadata(row)):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise BadRow(f"{name} holds a lone surrogate") from None


def _metadata(row: Row) -> Iterator[tuple[str, str]]:
    for key, value in row.metadata.items():
        yield "metadata", key
        yield "metadata", value


def rating_gap(row: Mapping[str, Any]) -> float | None:
    """How much better chosen is rated than rejected, None where the row does not say: `rating_gap`, TRL's `margin`, or a rating of each.

    Raises:
        BadRow: a rating is no finite number, or only one of the two is there.
    """
    for key in _GAPS:
        if row.get(key) is not None:
            return finite(row[key], key)
    for first, second in _RATINGS:
        given = [name for name in (first, second) if row.get(name) is not None]
        if len(given) == 1:
            raise BadRow(f"{given[0]} stands without {second if given[0] == first else first}")
        if given:
            return finite(row[first], first) - finite(row[second], second)
    return None


def split_of(row: Mapping[str, Any]) -> str | None:
    """The split that the row names; None where it names none, as if it were in all of them.

    Raises:
        BadRow: as `optional_text`.
    """
    return optional_text(row, "split")


def refuse_labels(row: Mapping[str, Any]) -> None:
    """For formats whose `chosen` is always the better response: raises BadRow where the row says something else of its label, or nearly does.

    Only the format accord has such fields; reading on would make a hard label of people out of whatever they say.
    """
    for key in _LABELS:
        if row.get(key) is not None:
            raise BadRow(f"{key} is a field of the format accord: read the row as accord, or leave the field out")
    for key in row:  # only names: a column whose value is looked at counts as read
        near = _near_label(str(key))
        if near and isinstance(row[key], int | float):
            raise BadRow(f"{key} is no field of any format: {near} is one of accord")


@lru_cache(maxsize=1024)
def _near_label(key: str) -> str:
    """The label that a key nearly is; empty where it is near none."""
    return next(iter(get_close_matches(key, _LABELS[:2], n=1, cutoff=0.85)), "")


def label_facts(row: Mapping[str, Any]) -> dict[str, str]:
    """Who labelled a row, how sure, in how many seconds, when and why, as metadata; what the row does not say in a plain value is left out."""
    found = {}
    for name, keys in _LABEL_FACTS.items():
        for key in keys:
            with contextlib.suppress(BadRow):
                found[name] = fact(row.get(key), key)
                break
    return found


def fact(value: object, name: str) -> str:
    """A plain value as metadata has it; numbers that Parquet wrote with a decimal point as they were.

    Raises:
        BadRow: it is no text, number, truth value or time, or text that cannot be used.
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, int | float) else checked(value, name)


def finite(value: object, name: str) -> float:
    """A number.

    Raises:
        BadRow: it is none, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRow(f"{name} is not a finite number")
    return float(value)


def messages(value: object, name: str) -> tuple[Message, ...]:
    """The turns of a list of {role, content}.

    Raises:
        BadRow: it is missing, no such list, or empty, or a role is not known.
    """
    if value is None:
        raise BadRow(f"{name} is missing")
    if not isinstance(value, list | tuple) or not value:
        raise BadRow(f"{name} is not a list of messages")
    turns = []
    for turn in value:
        if not isinstance(turn, Mapping) or turn.get("role") not in ("system", "user", "assistant"):
            raise BadRow(f"{name} has a turn without a role system, user or assistant")
        turns.append(Message(turn["role"], checked(turn.get("content"), f"{name} content")))
    return tuple(turns)
