"""The rows of an evaluation, read from JSON Lines and checked; a row that cannot be used is an error, since every row was written for this run.

What does not belong here: metrics (`accord.evaluation.metrics`) and readers of data sets (`accord.data`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.errors import InvalidArgumentError, NotFoundError
from accord.text.tasks import Task

FIELD = "evaluate.uri"
WIN_VALUES = {"win_vs_sft": "log_length_ratio_sft", "win_vs_reference": "log_length_ratio_reference"}
# ROUGE-L's table has (words of response) x (words of reference) cells in pure Python: this is some seconds and 300 MB at the very most.
MOST_CHARACTERS = 32_768
_MOST_NAME, _MOST_SAMPLES = 256, 65_536
_KEYS = ("arm", "task", "prompt_id", "response", "reference", "values")


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One arm's response to one prompt, its reference, and what the study measured itself; `values` may lack a number.

    `sample` tells an arm's responses to a prompt apart.
    """

    arm: str
    task: str
    prompt_id: str
    response: str
    reference: str
    values: Mapping[str, float | None]
    sample: int = 0


class _BadRow(Exception):
    """A row that cannot be used; the message is the reason."""


def read_rows(uri: str, *, reserved: frozenset[str] = frozenset()) -> tuple[EvaluationRow, ...]:
    """The rows of a JSON Lines file, in its order.

    Args:
        uri: path of the file.
        reserved: names that `values` may not use, because they are computed.

    Raises:
        NotFoundError: there is no such file.
        InvalidArgumentError: there are no rows, a row cannot be used, a row occurs twice, or two rows of a prompt have different references;
            the message names the line and the reason.
    """
    path = Path(uri)
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}", field=FIELD)
    found: list[EvaluationRow] = []
    first_lines: dict[tuple[str, str, str, int], int] = {}
    references: dict[tuple[str, str], tuple[int, str]] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = _row(line, reserved)
                _check_once(row, number, first_lines)
                _check_reference(row, number, references)
            except _BadRow as problem:
                raise InvalidArgumentError(f"{path.name}:{number}: {problem}", field=FIELD) from problem
            found.append(row)
    if not found:
        raise InvalidArgumentError(f"{path.name} holds no rows", field=FIELD)
    return tuple(found)


def problem_of(prompt_id: str, reference: str) -> str:
    """Why `read_rows` would refuse each row of this prompt, whatever is responded to it; empty where it would not."""
    row = {"prompt_id": prompt_id, "reference": reference}
    try:
        _name(row, "prompt_id")
        _reference(row)
    except _BadRow as problem:
        return str(problem)
    return ""


def _row(line: bytes, reserved: frozenset[str]) -> EvaluationRow:
    try:
        row: Any = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise _BadRow("not UTF-8") from None
    except (ValueError, RecursionError):
        raise _BadRow("not JSON") from None
    if not isinstance(row, dict):
        raise _BadRow("not a JSON object")
    for key in _KEYS:
        if key not in row:
            raise _BadRow(f"{key} is missing; a row has {', '.join(_KEYS)}")
    for key in row:
        if key not in (*_KEYS, "sample"):
            raise _BadRow(f"{key!r} is not known; a row has {', '.join(_KEYS)}, and sample where a prompt has several responses")
    tasks = [task.value for task in Task]
    if row["task"] not in tasks:
        raise _BadRow(f"task is {row['task']!r}; allowed: {', '.join(tasks)}")
    reference = _reference(row)
    ids = _name(row, "arm"), row["task"], _name(row, "prompt_id")
    return EvaluationRow(*ids, _text(row, "response"), reference, _values(row["values"], reserved), _sample(row.get("sample", 0)))


def _reference(row: Mapping[str, Any]) -> str:
    value = _text(row, "reference")
    if not value.strip():
        raise _BadRow("reference is empty: there is nothing to compare with")
    return value


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise _BadRow(f"{key} is not text")
    if len(value) > MOST_CHARACTERS:
        raise _BadRow(f"{key} has {len(value)} characters; allowed: {MOST_CHARACTERS}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _BadRow(f"{key} holds a lone surrogate") from None
    return value


def _name(row: Mapping[str, Any], key: str) -> str:
    value = _text(row, key)
    if not value.strip() or len(value) > _MOST_NAME:
        raise _BadRow(f"{key} is {value[:40]!r}; allowed: 1 to {_MOST_NAME} characters, not blank")
    return value


def _values(values: object, reserved: frozenset[str]) -> Mapping[str, float | None]:
    if not isinstance(values, dict):
        raise _BadRow("values is not an object of numbers")
    return {name: _value(name, value, reserved) for name, value in values.items()}


def _value(name: str, value: object, reserved: frozenset[str]) -> float | None:
    if not name.strip():
        raise _BadRow("values has a name that is blank")
    if name in reserved:
        raise _BadRow(f"values.{name} is computed by the evaluation and may not be given")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _BadRow(f"values.{name} is {value!r}; allowed: a number or null")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _BadRow(f"values.{name} is not a finite number")
    if name in WIN_VALUES and not 0 <= number <= 1:
        raise _BadRow(f"values.{name} is {number:g}; allowed: 0 to 1")
    return number


def _sample(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MOST_SAMPLES:
        raise _BadRow(f"sample is {value!r}; allowed: an integer from 0 to {_MOST_SAMPLES - 1}")
    return value


def _check_once(row: EvaluationRow, number: int, first_lines: dict[tuple[str, str, str, int], int]) -> None:
    first = first_lines.setdefault((row.task, row.arm, row.prompt_id, row.sample), number)
    if first != number:
        raise _BadRow(f"arm {row.arm!r}, task {row.task}, prompt {row.prompt_id!r}, sample {row.sample} occurs twice, first in line {first}")


def _check_reference(row: EvaluationRow, number: int, references: dict[tuple[str, str], tuple[int, str]]) -> None:
    """Arms are compared prompt by prompt; a prompt with two references would compare the references."""
    first, reference = references.setdefault((row.task, row.prompt_id), (number, row.reference))
    if reference != row.reference:
        raise _BadRow(f"prompt {row.prompt_id!r} has another reference than in line {first}")
