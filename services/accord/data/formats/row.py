"""One row of data in the shape that all formats give, and the checks that all share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from accord.text.chat import Message
from accord.text.tasks import Task


class BadRow(Exception):
    """A row that cannot be used; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a row holds; what is not in it is None. `preference` is P(chosen better)."""

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


@dataclass(frozen=True, slots=True)
class Format:
    """A format: does it recognise a row, and what is in it. `parse` raises BadRow."""

    name: str
    recognises: Callable[[Mapping[str, Any]], bool]
    parse: Callable[[Mapping[str, Any]], Row]


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


def messages(value: object, name: str) -> tuple[Message, ...]:
    """The turns of a list of {role, content}.

    Raises:
        BadRow: it is no such list, or empty, or a role is not known.
    """
    if not isinstance(value, list | tuple) or not value:
        raise BadRow(f"{name} is not a list of messages")
    turns = []
    for turn in value:
        if not isinstance(turn, Mapping) or turn.get("role") not in ("system", "user", "assistant"):
            raise BadRow(f"{name} has a turn without a role system, user or assistant")
        turns.append(Message(turn["role"], checked(turn.get("content"), f"{name} content")))
    return tuple(turns)
