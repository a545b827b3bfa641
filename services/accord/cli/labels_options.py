"""What the commands of `accord labels` share: which labels, and reading them with a line that says how far it is.

What does not belong here: options of one command.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accord.cli.connect import reach
from accord.cli.progress import ProgressBar
from accord.errors import InvalidArgumentError, NotFoundError
from accord.text.tasks import Task

if TYPE_CHECKING:
    from accord.client.ledger import LabelQuery, LabelRecord, LedgerClient

_CALL_SECONDS = 60.0
_PAGE = 500
_SHOW_EVERY = 500
_PLACED = re.compile(r"(\S.*?) at \S+")
_DIGEST_CHARACTERS, _LEAST_DIGEST, _SHOWN_DIGEST = 64, 6, 12
_HEX = frozenset("0123456789abcdef")
KINDS = ("likelihood", "verdict", "rating")
_OUTCOMES = ("a", "b", "tie", "abstain")

Job = Annotated[str, typer.Option("--job", metavar="NAME", help="Labels of this job: labelJobs/ID.", show_default=False)]
Judge = Annotated[
    str,
    typer.Option(
        "--judge", metavar="NAME|DIGEST", help="By this judge: its name, also without its host, or its digest's beginning.", show_default=False
    ),
]
Kind = Annotated[str, typer.Option("--kind", help="likelihood, verdict or rating.", show_default=False)]
TaskOption = Annotated[Task | None, typer.Option("--task", help="Of this task.", show_default=False)]
Rubric = Annotated[str, typer.Option("--rubric", metavar="ID", help="Under this rubric.", show_default=False)]
OutcomeOption = Annotated[str, typer.Option("--outcome", help="a, b, tie or abstain.", show_default=False)]
Pair = Annotated[str, typer.Option("--pair", metavar="ID|KEY", help="Of this pair: its id, or its content key.", show_default=False)]
Since = Annotated[str, typer.Option("--since", metavar="TIME", help="Made then or later: 2026-11-25, or 2026-11-25T14:00.", show_default=False)]
Until = Annotated[str, typer.Option("--until", metavar="TIME", help="Made before.", show_default=False)]


def query_of(
    *, job: str = "", judge: str = "", kind: str = "", task: Task | None = None, rubric: str = "", outcome: str = "", pair: str = "",
    since: str = "", until: str = "",
) -> LabelQuery:  # fmt: skip
    """The labels that options ask for, as far as the service can choose; `by_judge` does the rest.

    Raises:
        InvalidArgumentError: an option has a value that is not allowed.
    """
    from accord.client.ledger import LabelQuery

    _check(kind, KINDS, "--kind")
    _check(outcome, _OUTCOMES, "--outcome")
    by_content = len(pair) == _DIGEST_CHARACTERS and set(pair) <= _HEX
    return LabelQuery(
        job=job, kind=kind or "default", task=task, judge_digest=judge if len(judge) == _DIGEST_CHARACTERS else "", rubric=rubric,  # type: ignore[arg-type]
        outcome=outcome or "unspecified", content_key=pair if by_content else "", pair_id="" if by_content else pair,  # type: ignore[arg-type]
        made_after=_moment(since, "--since"), made_before=_moment(until, "--until"),
    )  # fmt: skip


def is_by(record: LabelRecord, judge: str) -> bool:
    """Whether a label is by the judge of this very name, or of a digest that begins so; an empty one is any."""
    return not judge or judge == record.label.judge or (len(judge) >= _LEAST_DIGEST and record.label.judge_digest.startswith(judge))


def is_by_one_placed(record: LabelRecord, judge: str) -> bool:
    """Whether a label is by a judge that has this name without the host that it is at; where labels are by one of this very name, that is meant."""
    return judge == _without_host(record.label.judge) != record.label.judge


class _Choice:
    """Which labels are by the judge that was meant; reads them ahead, until one decides, where a judge at a host could be."""

    def __init__(self, client: LedgerClient, query: LabelQuery, judge: str) -> None:
        self._client, self._query, self._judge = client, query, judge
        self._placed: bool | None = None

    def __contains__(self, record: LabelRecord) -> bool:
        if is_by(record, self._judge):
            self._placed = self._placed or False
            return True
        if not is_by_one_placed(record, self._judge):
            return False
        if self._placed is None:
            self._placed = not any(is_by(each, self._judge) for each in self._client.labels(self._query, page_size=_PAGE))
        return self._placed


def nobody_said(judge: str, others: Iterable[str]) -> str:
    """That no label is by this judge, and who there is."""
    short = f"; of a digest at least {_LEAST_DIGEST} characters are needed" if len(judge) < _LEAST_DIGEST and set(judge) <= _HEX else ""
    return f"there is no label by {judge!r}; judges of these labels: {', '.join(sorted(others)) or 'none'}{short}"


def _without_host(name: str) -> str:
    """ "big" of an endpoint's judge "big at 127.0.0.1:8471"."""
    placed = _PLACED.fullmatch(name)
    return placed.group(1) if placed else name


@contextlib.contextmanager
def ledger_at(home: Path, address: str | None) -> Iterator[LedgerClient]:
    """The ledger of a feedback service."""
    from accord.client.ledger import LedgerClient

    with reach("feedback", home, address, _CALL_SECONDS) as target, LedgerClient(target) as client:
        yield client


def records_of(client: LedgerClient, query: LabelQuery, judge: str = "") -> Iterator[LabelRecord]:
    """The labels, by a judge where one is given, as the ledger has them. A judge of the very name comes before those at hosts that have it.

    Raises:
        NotFoundError: there are such labels, and none is by this judge; or none is of the job, or under the rubric, at all; names those that are.
        InvalidArgumentError: judges at several hosts have the name; names them.
    """
    others: set[str] = set()
    named: set[str] = set()
    meant = _Choice(client, query, judge)
    found = any_label = False
    for record in client.labels(query, page_size=_PAGE):
        any_label = True
        if record in meant:
            found = True
            named.add(record.label.judge)
            if len(named) > 1 and all(_without_host(name) == judge for name in named):
                names = ", ".join(sorted(named))
                raise InvalidArgumentError(f"{judge!r} could be any of {names}; give one of these, or the beginning of a digest", field="--judge")
            yield record
        elif not found:
            others.add(f"{record.label.judge} {record.label.judge_digest[:_SHOWN_DIGEST]}")
    if others and not found:
        raise NotFoundError(nobody_said(judge, others), field="--judge")
    if not any_label:
        _check_there(client, query)


def _check_there(client: LedgerClient, query: LabelQuery) -> None:
    """Raises NotFoundError where no label at all is of the query's job, or under its rubric."""
    from accord.client.ledger import LabelQuery

    for name, what in (("job", "of a job"), ("rubric", "under a rubric")):
        wanted = getattr(query, name)
        if wanted and next(iter(client.labels(LabelQuery(**{name: wanted}), page_size=1)), None) is None:
            there = {record.job if name == "job" else record.label.rubric for record in client.labels(LabelQuery(), page_size=_PAGE)}
            known = ", ".join(sorted(there - {""})) or "none"
            raise NotFoundError(f"there is no label {what} {wanted!r}; {name}s with labels: {known}", field=f"--{name}")


def labels_by_one(client: LedgerClient, query: LabelQuery, judge: str = "") -> Iterator[LabelRecord]:
    """As `labels_of_data`, for files that are of one judge where one is asked for.

    Raises:
        InvalidArgumentError: several judges have the name, or digests that begin so.
    """
    names: dict[str, str] = {}
    for record in labels_of_data(client, query, judge):
        digest = record.label.judge_digest
        names[digest] = f"{record.label.judge} {digest[:_SHOWN_DIGEST]}"
        if judge and len(names) > 1:
            raise InvalidArgumentError(f"{judge!r} is more than one judge: {', '.join(sorted(names.values()))}", field="--judge")
        yield record


def labels_of_data(client: LedgerClient, query: LabelQuery, judge: str = "") -> Iterator[LabelRecord]:
    """As `records_of`, while a line says how many there were, without pairs that jobs add to measure a judge."""
    from accord.feedback.records import is_added

    with ProgressBar("reading the ledger") as bar:
        for number, record in enumerate(records_of(client, query, judge), start=1):
            if number % _SHOW_EVERY == 0:
                bar.set(text=f"{number} labels")
            if not is_added(record.label.pair_id):
                yield record


def shortened(text: str, width: int) -> str:
    """A text in one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def _moment(text: str, flag: str) -> float | None:
    """Unix seconds of a local time."""
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise InvalidArgumentError(f"{text!r} is no time such as 2026-11-25 or 2026-11-25T14:00", field=flag) from error


def _check(value: str, allowed: tuple[str, ...], flag: str) -> None:
    if value and value not in allowed:
        raise InvalidArgumentError(f"{value!r} is not one of {', '.join(allowed)}", field=flag)
