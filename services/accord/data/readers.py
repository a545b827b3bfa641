"""Reading data sets of any known format into records; nothing is dropped without being counted.

What does not belong here: files (`accord.data.sources`) and formats (`accord.data.formats`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

from accord.data.formats import find_format
from accord.data.formats.row import BadRow, Format, Row
from accord.data.records import Dataset, Demonstration, PreferencePair, Prompt, ReadReport, RecordT, Text, digest_of
from accord.data.sources import RawRow, check_source, rows
from accord.errors import InvalidArgumentError
from accord.text.tasks import Task

__all__ = ["check_source", "read_demonstrations", "read_pairs", "read_prompts", "read_texts"]
_EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class _Options:
    format: str
    split: str
    limit: int
    strict: bool
    seed: int
    task: Task | None


def read_prompts(
    uri: str, *, format: str = "", split: str = "train", limit: int = 0, strict: bool = False, seed: int = 0, task: Task | None = None
) -> Dataset[Prompt]:
    """The prompts of a data set, each once, with a reference where the data has one.

    Args:
        uri: ``sample:summarization``, ``sample:conversation``, a .jsonl, .jsonl.gz, .json or .parquet file, or ``hub:NAME``.
        format: a name of `accord.data.formats.FORMATS`; empty finds out from the first row.
        split: rows of other splits are left out; rows that name no split are in all of them.
        limit: most rows; those with the smallest hash of (seed, id), in the order of the file. 0 is no limit.
        strict: stop at the first row that cannot be used.
        task: for rows that do not say; conversation where it is None.

    Raises:
        NotFoundError, InvalidArgumentError, FailedPreconditionError: the source (see `accord.data.sources`), the format, or with `strict`
            a row, naming file, line and reason.
    """
    return _read(uri, _Options(format, split, limit, strict, seed, task), _prompt)


def read_pairs(
    uri: str, *, format: str = "", split: str = "train", limit: int = 0, strict: bool = False, seed: int = 0, task: Task | None = None
) -> Dataset[PreferencePair]:
    """The preference pairs of a data set. Identical responses are a tie (preference 0.5). Arguments as `read_prompts`."""
    return _read(uri, _Options(format, split, limit, strict, seed, task), _pair)


def read_demonstrations(
    uri: str, *, format: str = "", split: str = "train", limit: int = 0, strict: bool = False, seed: int = 0, task: Task | None = None
) -> Dataset[Demonstration]:
    """Prompts with a response to learn: the reference where there is one, else the chosen response. Arguments as `read_prompts`."""
    return _read(uri, _Options(format, split, limit, strict, seed, task), _demonstration)


def read_texts(
    uri: str, *, format: str = "", split: str = "train", limit: int = 0, strict: bool = False, seed: int = 0, task: Task | None = None
) -> Dataset[Text]:
    """Running text: a `text` column, or the last user turn and the response of a row. Arguments and errors as `read_prompts`."""
    return _read(uri, _Options(format, split, limit, strict, seed, task), _text)


def _read(uri: str, options: _Options, build: Callable[[Row, str, str, Task], RecordT]) -> Dataset[RecordT]:
    source = rows(uri, options.split)
    found: list[tuple[str, RecordT]] = []
    rejected: Counter[str] = Counter()
    examples: list[str] = []
    seen = other_splits = 0
    chosen: Format | None = None
    taken: set[str] = set()
    for raw in source:
        seen += 1
        try:
            if raw.value is None:
                raise BadRow(raw.problem)
            chosen = chosen or find_format(options.format, raw.value)
            row = chosen.parse(raw.value)
            if row.split is not None and row.split != options.split:
                other_splits += 1
                continue
            row_id = row.row_id or _content_id(raw)
            record = build(row, row_id, row.split or options.split, row.task or options.task or Task.CONVERSATION)
            if row_id in taken:
                raise BadRow("occurs twice")
            taken.add(row_id)
            found.append((row_id, record))
        except BadRow as problem:
            if options.strict:
                raise InvalidArgumentError(f"{raw.place}: {problem}", field="data.uri") from problem
            rejected[str(problem)] += 1
            examples.append(f"{raw.place}: {problem}")
    kept = _limited(found, options)
    report = ReadReport(seen, len(kept), other_splits, len(found) - len(kept), dict(rejected), tuple(examples[:_EXAMPLES]), digest_of(kept))
    return Dataset(kept, report)


def _limited(found: list[tuple[str, RecordT]], options: _Options) -> tuple[RecordT, ...]:
    if not options.limit or len(found) <= options.limit:
        return tuple(record for _, record in found)
    order = sorted(range(len(found)), key=lambda place: hashlib.sha256(f"{options.seed} {found[place][0]}".encode()).digest())
    return tuple(found[place][1] for place in sorted(order[: options.limit]))


def _content_id(raw: RawRow) -> str:
    """An id out of the content, so that the same row has the same id in any file."""
    items = sorted((raw.value or {}).items(), key=lambda item: str(item[0]))
    return hashlib.sha256(repr(items).encode("utf-8", "replace")).hexdigest()[:16]


def _prompt_id(row: Row, row_id: str) -> str:
    """The same for rows of one prompt."""
    if row.group:
        return row.group
    text = "\n".join(chain.from_iterable((message.role, message.content) for message in row.messages))
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16] if row.messages else row_id


def _with_prompt(row: Row) -> None:
    if not row.messages:
        raise BadRow("prompt is missing")
    if row.messages[-1].role != "user":
        raise BadRow("the prompt does not end with the user")


def _prompt(row: Row, row_id: str, split: str, task: Task) -> Prompt:
    _with_prompt(row)
    return Prompt(_prompt_id(row, row_id), task, row.messages, row.reference, split, row.metadata)


def _pair(row: Row, row_id: str, split: str, task: Task) -> PreferencePair:
    _with_prompt(row)
    if row.chosen is None or row.rejected is None:
        raise BadRow("chosen or rejected is missing")
    preference = 0.5 if row.chosen == row.rejected else row.preference
    return PreferencePair(
        row_id, task, row.messages, row.chosen, row.rejected, preference, _prompt_id(row, row_id), row.human_preference, row.reference,
        split, row.metadata,
    )  # fmt: skip


def _demonstration(row: Row, row_id: str, split: str, task: Task) -> Demonstration:
    _with_prompt(row)
    response = row.reference or row.response
    if response is None:
        raise BadRow("response is missing")
    return Demonstration(_prompt_id(row, row_id), task, row.messages, response, split, row.metadata)


def _text(row: Row, row_id: str, split: str, _: Task) -> Text:
    parts = [row.messages[-1].content] if row.messages else []
    parts += [part for part in (row.reference or row.response,) if part]
    if not parts:
        raise BadRow("text is missing")
    return Text(row_id, "\n\n".join(parts), split)
