"""What the commands of `accord data` share: where pairs come from, and showing how far reading is.

What does not belong here: options of one command.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from accord.cli.failures import FAILED
from accord.cli.progress import ProgressBar
from accord.errors import InvalidArgumentError

if TYPE_CHECKING:
    from accord.data.readers import PairStream
    from accord.data.records import PreferencePair, ReadReport

_SHOW_EVERY = 200

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="A file, a URL (s3://, gs://, https://), hub:NAME[:CONFIG][@REVISION] or sample:NAME.")]
Format = Annotated[str, typer.Option("--format", help="Format of the data; default: found out.", show_default=False)]
SplitName = Annotated[str, typer.Option("--split", help="Rows of this split alone; all takes every split.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first row that cannot be used.", show_default=False)]


def pairs_of(source: str, data_format: str, split: str, *, strict: bool = False) -> PairStream:
    """The pairs of a source, one at a time."""
    from accord.data.readers import PairStream

    return PairStream(source, format=data_format, split=split, strict=strict)


def refuse_source(source: str, output: Path, field: str) -> None:
    """Raises InvalidArgumentError where a file to write is what is read: what the file to write has no place for would be lost."""
    from accord.data.files import is_this_file

    if is_this_file(source, output):
        raise InvalidArgumentError(f"{output} would take the place of what is read, {source}; give another place", field=field)


def show_nothing_written(path: Path, report: ReadReport) -> NoReturn:
    """Says why there is no row to write, and ends the command as failed."""
    sys.stderr.write(f"error: {report.account()}: there is no row to write, and {path} is left as it was\n")
    for example in report.examples:
        sys.stderr.write(f"note: {example}\n")
    raise typer.Exit(FAILED)


def shown(title: str, pairs: Iterable[PreferencePair]) -> Iterator[PreferencePair]:
    """The pairs, while a line says how many there were."""
    with ProgressBar(title) as bar:
        for number, pair in enumerate(pairs, start=1):
            if number % _SHOW_EVERY == 0:
                bar.set(text=f"{number} pairs")
            yield pair
