"""Files of rows that a run samples: written before they are used, whole or not there, and put aside where they must be sampled anew.

What does not belong here: what a row is (`accord.training.rollout`, `sampled_pairs`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from accord.errors import DataLossError
from accord.rundir import write_atomically
from accord.training.distribution import World

RowT = TypeVar("RowT")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows at once, the sha256 of their lines behind them: a reader sees all of them or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(path, text + json.dumps({"sha256": _digest(text)}) + "\n")


def read_rows(path: Path, parse: Callable[[Mapping[str, Any]], RowT]) -> list[RowT] | None:
    """Rows as they were written, None where there are none.

    Raises:
        DataLossError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        *lines, last = path.read_text().splitlines(keepends=True)
        if json.loads(last)["sha256"] != _digest("".join(lines)):
            raise ValueError("its lines do not match their sha256")
        return [parse(json.loads(line)) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise DataLossError(f"rollout file {path.name} is damaged: {error}") from error


def kept_rows(path: Path, parse: Callable[[Mapping[str, Any]], RowT], report: Callable[[str], None]) -> list[RowT] | None:
    """As `read_rows`; a damaged file is reported, put aside and counts as none: seeds decide what is sampled, so nothing is lost with it."""
    try:
        return read_rows(path, parse)
    except DataLossError as error:
        report(f"{error}; they are sampled again")
        path.replace(path.with_suffix(".damaged"))
        return None


def put_aside(folder: Path, first: int, world: World) -> None:
    """Lets the rollouts of a step, and of later ones, be sampled anew when they are asked for next: what sampled them was not what it should be."""

    def rename() -> None:
        for path in folder.glob("*.jsonl"):
            if path.stem.isdecimal() and int(path.stem) >= first:
                path.replace(path.with_suffix(".refused"))

    world.from_first(rename)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
