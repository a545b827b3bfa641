"""Reading data sets of any known format into records; nothing is dropped without being counted.

`read_*` return all records, in memory, as training needs them; `PairStream` gives pairs one at a time. What does not belong here: files
(`accord.data.sources`) and formats (`accord.data.formats`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain

from accord.data.columns import Columns, WatchedRow
from accord.data.formats import find_format
from accord.data.formats.row import BadRow, Format, Row, check_stored
from accord.data.ratings import FIRST, RatedRows
from accord.data.records import Dataset, Demonstration, PreferencePair, Prompt, ReadReport, RecordT, RunningDigest, Text, digest_of
from accord.data.sources import ALL_SPLITS, RawRow, check_source, rows
from accord.errors import InvalidArgumentError
from accord.text.tasks import Task

__all__ = ["ALL_SPLITS", "PairStream", "check_source", "read_demonstrations", "read_pairs", "read_prompts", "read_texts"]
_TRAIN = "train"
_EXAMPLES = 10


Build = Callable[[Row, str, str, Task], RecordT]
"""Row, id, split and task to a record; raises BadRow."""


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
    splits: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    columns: Columns = field(default_factory=Columns)
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def reject(self, raw: RawRow, reason: str) -> None:
        if self.strict:
            raise InvalidArgumentError(f"{raw.place}: {reason}", field="data.uri")
        self.rejected[reason] += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{raw.place}: {reason}")

    def report(self, rows: int, over_limit: int, digest: str) -> ReadReport:
        """The account so far."""
        return ReadReport(
            self.seen, rows, self.splits.total(), over_limit, dict(self.rejected), tuple(self.examples), digest, self.repeated,
            dict(self.columns.unread), self.columns.misspelt(), dict(self.splits),
        )  # fmt: skip


def read_prompts(
    uri: str, *, format: str = "", split: str = "train", limit: int = 0, strict: bool = False, seed: int = 0, task: Task | None = None
) -> Dataset[Prompt]:
    """The prompts of a data set, each once (rows that repeat one are counted), with a reference where its first row has one.

    Args:
        uri: ``sample:summarization``, ``sample:conversation``, a .jsonl, .jsonl.gz, .json or .parquet file, here or behind a URL that fsspec
            knows (``s3://``, ``gs://``, ``https://``), or ``hub:NAME[:CONFIG][@REVISION]``.
        format: a name of `accord.data.formats.FORMATS`; empty finds out from the first row that can be used.
        split: rows of other splits are left out; rows that name no split are in all of them. "all" is every split; a row that names none is then in
            that of the hub where it is from one, else in "train".
        limit: most rows; those with the smallest hash of (seed, id), in the order of the file. 0 is no limit.
        strict: stop at the first row that cannot be used.
        task: for rows that do not say; conversation where it is None.

    Raises:
        NotFoundError, InvalidArgumentError, FailedPreconditionError, PermissionDeniedError, UnavailableError: the source (see
            `accord.data.sources`), the format, or with `strict` a row, naming file, line and reason.
    """
    return _read(uri, _Options(format, split, limit, strict, seed, task), _prompt, each_once=True)


def read_pairs(
    uri: str, *, format: str = "", split: str = "train", limit: int = 0, strict: bool = False, seed: int = 0, task: Task | None = None
) -> Dataset[PreferencePair]:
    """The preference pairs of a data set. Identical responses are a tie (preference 0.5, of people too). Arguments as `read_prompts`.

    Where several people labelled a pair there is a pair for each of them. Rows that rate one response make pairs with each other, see
    `accord.data.ratings`.
    """
    return _read(uri, _Options(format, split, limit, strict, seed, task), _pair)


def read_demonstrations(
    uri: str, *, format: str = "", split: str = "train", limit: int = 0, strict: bool = False, seed: int = 0, task: Task | None = None,
    each_once: bool = False,
) -> Dataset[Demonstration]:  # fmt: skip
    """Prompts with a response to learn: the reference where there is one, else the chosen response. Arguments as `read_prompts`.

    A response that its row calls a bad one (TRL's unpaired data) is rejected; its prompt is still one of `read_prompts`. With `each_once` each prompt
    has its first row alone, before the limit; rows that repeat one are counted.
    """
    return _read(uri, _Options(format, split, limit, strict, seed, task), _demonstration, each_once=each_once)


def read_texts(
    uri: str, *, format: str = "", split: str = "train", limit: int = 0, strict: bool = False, seed: int = 0, task: Task | None = None
) -> Dataset[Text]:
    """Running text: a `text` column, or the last user turn and the response of a row. Arguments and errors as `read_prompts`."""
    return _read(uri, _Options(format, split, limit, strict, seed, task), _text)


class PairStream:
    """The preference pairs of a data set one at a time, as `read_pairs` gives them; what stays in memory are some 100 bytes a row, for its id.

    Iterate over it once; `report` is the account of what was read so far, and its digest that of `read_pairs`. Arguments and errors as
    `read_prompts`, without a limit, which needs all rows.
    """

    def __init__(self, uri: str, *, format: str = "", split: str = _TRAIN, strict: bool = False, task: Task | None = None) -> None:
        check_source(uri)
        self._uri = uri
        self._options = _Options(format, split, 0, strict, 0, task)
        self._account = _Account(strict)
        self._digest = RunningDigest()
        self._rows = 0

    def __iter__(self) -> Iterator[PreferencePair]:
        for _, pair in _records(self._uri, self._options, self._account, _pair):
            self._digest.add(pair)
            self._rows += 1
            yield pair

    @property
    def seen(self) -> int:
        """Rows of the source so far."""
        return self._account.seen

    @property
    def report(self) -> ReadReport:
        """The account so far."""
        return self._account.report(self._rows, 0, self._digest.hexdigest())


def _read(uri: str, options: _Options, build: Build[RecordT], *, each_once: bool = False) -> Dataset[RecordT]:
    account = _Account(options.strict)
    found = list(_records(uri, options, account, build, each_once=each_once))
    kept = _limited(found, options)
    return Dataset(kept, account.report(len(kept), len(found) - len(kept), digest_of(kept)))


def _records(uri: str, options: _Options, account: _Account, build: Build[RecordT], *, each_once: bool = False) -> Iterator[tuple[str, RecordT]]:
    """Records with their ids; the rest is accounted for. Of ids that occur twice in a split the first stays."""
    taken: set[bytes] = set()
    known: set[str] = set()
    for raw, row, row_id in _compared(rows(uri, options.split), options, account, pairs=build is _pair):
        split = row.split or (_TRAIN if options.split == ALL_SPLITS else options.split)
        try:
            record = build(row, row_id, split, row.task or options.task or Task.CONVERSATION)
        except BadRow as problem:
            account.reject(raw, str(problem))
            continue
        key = hashlib.sha256(f"{split}\n{row_id}".encode("utf-8", "replace")).digest()[:16]
        if key in taken:
            account.reject(raw, "occurs twice")
        elif each_once and _prompt_id(row, row_id) in known:
            account.repeated += 1
        else:
            if each_once:
                known.add(_prompt_id(row, row_id))
            yield row_id, record
        taken.add(key)


def _compared(source: Iterator[RawRow], options: _Options, account: _Account, *, pairs: bool) -> Iterator[tuple[RawRow, Row, str]]:
    """Rows with their ids; where pairs are asked for, rows that rate one response as the pairs that they make with earlier ones."""
    rated = RatedRows()
    for raw, row, row_id in _parsed(source, options, account):
        if not pairs or row.rating is None or not row.messages:
            yield raw, row, row_id
            continue
        made = list(rated.pairs(_prompt_id(row, row_id), row_id, row))
        account.seen += max(0, len(made) - 1)
        if not made:
            account.rejected[FIRST] += 1
        yield from ((raw, pair, pair.row_id) for pair in made)


def _parsed(source: Iterator[RawRow], options: _Options, account: _Account) -> Iterator[tuple[RawRow, Row, str]]:
    """Rows of the asked split that a format could read, with their ids; the others are accounted for. The format is the one that was named, or
    the first that reads a row.

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
        watched = WatchedRow(raw.value)
        try:
            found = candidate.parse(watched)
            several = found if isinstance(found, tuple) else (found,)
            several = tuple(replace(row, split=row.split or raw.split) for row in several) if raw.split else several
            for row in several:
                check_stored(row)
        except BadRow as problem:
            account.reject(raw, watched.explained(str(problem), candidate.name))
            continue
        chosen = candidate
        account.columns.add(watched)
        account.seen += len(several) - 1
        for place, row in enumerate(several):
            if options.split not in (ALL_SPLITS, row.split or options.split):
                account.splits[row.split or ""] += 1
                continue
            yield raw, row, row.row_id or (_content_id(raw) if len(several) == 1 else f"{_content_id(raw)}-{place}")
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
    preference, human = row.preference, row.human_preference
    if row.chosen == row.rejected:  # whoever chose has chosen nothing
        preference, human = 0.5, None if human is None else 0.5
    return PreferencePair(
        row_id, task, row.messages, row.chosen, row.rejected, preference, _prompt_id(row, row_id), human, row.reference, split, row.metadata,
        row.rating_gap,
    )  # fmt: skip


def _demonstration(row: Row, row_id: str, split: str, task: Task) -> Demonstration:
    _with_prompt(row)
    response = row.reference or row.response
    if response is None:
        raise BadRow(row.no_response or "response is missing")
    return Demonstration(_prompt_id(row, row_id), task, row.messages, response, split, row.metadata)


def _text(row: Row, row_id: str, split: str, _: Task) -> Text:
    if row.no_response:
        raise BadRow(row.no_response)
    parts = [row.messages[-1].content] if row.messages else []
    parts += [part for part in (row.reference or row.response,) if part]
    if not parts:
        raise BadRow("text is missing")
    return Text(row_id, "\n\n".join(parts), split)
