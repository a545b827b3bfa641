"""What goes to stdout: JSON for scripts, tables and text for people. Progress goes to stderr (`accord.cli.progress`).

What does not belong here: what is shown.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.errors import AccordError

if TYPE_CHECKING:
    from rich.console import Console

_PIPE_COLUMNS = 200


def print_json(value: object, *, indent: int | None = 1) -> None:
    """Writes one JSON value; `indent=None` makes it one line, for streams."""
    sys.stdout.write(json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent) + "\n")
    sys.stdout.flush()


def plain(value: object) -> Any:
    """The value as JSON has it: dataclasses, models, errors and paths become what they hold; numbers that JSON lacks become null."""
    if isinstance(value, AccordError):
        return {"code": value.code, "message": value.message, "field": value.field}
    if hasattr(value, "model_dump"):  # pydantic's, which is slow to import
        return plain(value.model_dump(mode="json"))
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return _simple(value)


def print_line(text: str) -> None:
    """Writes a line of text, without characters that would act on a terminal where it goes to one."""
    print_text(text + "\n")


def print_text(text: str) -> None:
    """Writes text without a line end, at once."""
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> None:
    """Writes a table; columns whose name ends in `>` are numbers, to the right. Into a pipe it is not folded, nor is its title by a narrow table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.rstrip(">"), justify="right" if column.endswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(harmless(str(cell))) for cell in row))
    screen = console()
    if title:
        screen.print(Text(harmless(title), style="italic"))
    screen.print(table)


def console() -> Console:
    """A console on stdout as it is now, wide where it is a pipe."""
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else _PIPE_COLUMNS, highlight=False, soft_wrap=False)


def harmless(text: str) -> str:
    """The text with control characters (which could act on a terminal) shown as a replacement."""
    return "".join(character if character.isprintable() or character in "\n\t" else "�" for character in text)


def seconds_text(seconds: float | None) -> str:
    """A duration for people: 4.2 s, 3 min 5 s, 2 h 10 min."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def time_text(moment: float | None) -> str:
    """A Unix time as local date and time; empty where there is none."""
    return "" if moment is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def number_text(value: float) -> str:
    """A metric for people: four significant digits, whole numbers whole."""
    if value == int(value) if math.isfinite(value) else False:
        return f"{int(value)}"
    return f"{value:.4g}"


def size_text(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _simple(value: object) -> Any:
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
