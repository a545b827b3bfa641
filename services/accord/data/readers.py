"""Reading data sets of any known format into records; nothing is dropped without being counted.

What does not belong here: files (`accord.data.sources`) and formats (`accord.data.formats`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class _Account:
    """What happened to the rows so far."""

    strict: bool
    seen: int = 0
    other_splits: int = 0
    repeated: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def reject(self, raw: RawRow, reason: str) -> None:
        if self.strict:
            raise InvalidArgumentError(f"{raw.place}: {reason}", field="data.uri")
        self.rejected[reason] += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{raw.place}: {reason}")


def read_prompts(
    uri: str, *, format: str = "", split: str = "train", limit: int = 0, strict: bool = False, seed: int = 0, task: Task | None = None
) -> Dataset[Prompt]:
    """The prompts of a data set, each once (rows that repeat one are counted), with a reference where its first row has one.

    Args:
        uri: ``sample:summarization``, ``sample:conversation``, a .jsonl, .jsonl.gz, .json or .parquet file, or ``hub:NAME``.
        format: a name of `accord.data.formats.FORMATS`; empty finds out from the first row that can be used.
        split: rows of other splits are left out; rows that name no split are in all of them.
        limit: most rows; those with the smallest hash of (seed, id), in the order of the file. 0 is no limit.
        strict: stop at the first row that cannot be used.
        task: for rows that do not say; conversation where it is None.

    Raises:
        NotFoundError, InvalidArgumentError, FailedPreconditionError: the source (see `accord.data.sources`), the format, or with `strict`
            a row, naming file, line and reason.
    """
    return _read(uri, _Options(format, split, limit, strict, seed, task), _prompt, each_once=True)


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


def _read(uri: str, options: _Options, build: Callable[[Row, str, str, Task], RecordT], *, each_once: bool = False) -> Dataset[RecordT]:
    source = rows(uri, options.split)
    account = _Account(options.strict)
    found: list[tuple[str, RecordT]] = []
    taken: set[str] = set()
    known: set[str] = set()
    for raw, row in _parsed(source, options, account):
        if row.split is not None and row.split != options.split:
            account.other_splits += 1
            continue
        row_id = row.row_id or _content_id(raw)
        try:
            record = build(row, row_id, row.split or options.split, row.task or options.task or Task.CONVERSATION)
        except BadRow as problem:
            account.reject(raw, str(problem))
            continue
        if row_id in taken:
            account.reject(raw, "occurs twice")
        elif each_once and _prompt_id(row, row_id) in known:
            account.repeated += 1
        else:
            found.append((row_id, record))
            known.add(_prompt_id(row, row_id))
        taken.add(row_id)
    kept = _limited(found, options)
    return Dataset(
        kept,
        ReadReport(
            account.seen, len(kept), account.other_splits, len(found) - len(kept), dict(account.rejected), tuple(account.examples),
            digest_of(kept), account.repeated,
        ),
    )  # fmt: skip


def _parsed(source: Iterator[RawRow], options: _Options, account: _Account) -> Iterator[tuple[RawRow, Row]]:
    """Rows that a format could read; the format is the one that was named, or the first that reads a row. The others are accounted for.

    Raises:
        InvalidArgumentError: no format has the name, or none recognises any row.
    """
    chosen: Format | None = None
    unknown: InvalidArgumentError | None = None
    for raw in source:
        account.seen += 1
        if raw.value is None:
            account.reject(raw, raw.problem)
            continue
        try:
            candidate = chosen or find_format(options.format, raw.value)
        except InvalidArgumentError as error:
            if options.format or options.strict:
                raise
            unknown = unknown or error
            account.reject(raw, "no format recognises the row")
            continue
        try:
            row = candidate.parse(raw.value)
        except BadRow as problem:
            account.reject(raw, str(problem))
            continue
        chosen = candidate
        yield raw, row
    if chosen is None and unknown is not None:
        raise unknown


def _limited(found: list[tuple[str, RecordT]], options: _Options) -> tuple[RecordT, ...]:
    if not options.limit or len(found) <= options.limit:
        return tuple(record for _, record in found)
    order = sorted(range(len(found)), key=lambda place: hashlib.sha256(f"{options.seed} {found[place][0]}".encode()).digest())
    return tuple(found[place][1] for place in sorted(order[: options.limit]))


def _content_id(raw: RawRow) -> str:
    """An id out of the content, so that the same row has the same id in a file of any kind (Parquet fills what is missing with nulls)."""
    values = {str(key): value for key, value in (raw.value or {}).items() if value is not None}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


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
        split, row.metadata, row.rating_gap,
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
