"""Which columns of a row a format reads, so that those that nobody read can be named, and a field that is missing with what stands in its place.

Columns are those of the row itself; what is inside of one is not looked at. What does not belong here: reading (`accord.data.readers`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

_NEAR = 0.8
_MOST = 100
_MISSING = " is missing"


class WatchedRow(Mapping[str, Any]):
    """A row that remembers what it was asked for, whether it has it or not."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.unwatched = row
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return self.unwatched[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.unwatched)

    def __len__(self) -> int:
        return len(self.unwatched)

    def unread(self) -> list[str]:
        """Columns that hold something and were not asked for."""
        return [str(key) for key, value in self.unwatched.items() if key not in self.asked and value is not None]

    def explained(self, reason: str, format_name: str) -> str:
        """Why the row cannot be used; of a field that is missing with the column that nearly has its name."""
        near = get_close_matches(reason.removesuffix(_MISSING), self.unread(), n=1, cutoff=_NEAR) if reason.endswith(_MISSING) else []
        return f"{reason}: {near[0]} is no field of the format {format_name}" if near else reason


def glance(row: Mapping[str, Any], key: str) -> Any:
    """What stands under a key, None where nothing does, without that the column counts as read."""
    return row.unwatched.get(key) if isinstance(row, WatchedRow) else row.get(key)


@dataclass(slots=True)
class Columns:
    """The columns of all rows so far that nobody read, by the rows that have them; of more than a hundred the first."""

    unread: Counter[str] = field(default_factory=Counter)
    _asked: set[str] = field(default_factory=set)

    def add(self, row: WatchedRow) -> None:
        """Takes the next row, after its format has read it."""
        self._asked |= row.asked
        for name in row.unread():
            if name in self.unread or len(self.unread) < _MOST:
                self.unread[name] += 1

    def misspelt(self) -> dict[str, str]:
        """Columns that nobody read and that nearly have the name of a field, with that field."""
        found = {name: get_close_matches(name, sorted(self._asked - self.unread.keys()), n=1, cutoff=_NEAR) for name in self.unread}
        return {name: near[0] for name, near in found.items() if near}
