"""`accord labels people`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accord.cli.failures import FAILED
from accord.cli.labels_export import show_written
from accord.cli.labels_options import ledger_at
from accord.cli.options import DEFAULT_HOME, FeedbackAddress, Home, Json
from accord.cli.output import print_json, print_line, print_table
from accord.cli.progress import ProgressBar

if TYPE_CHECKING:
    from accord.client.ledger import HumanLabelRecord
    from accord.data.annotations import Annotations
    from accord.data.parquet import ParquetFile
    from accord.data.records import PreferencePair
    from accord.data.writers import PairFile

_PAGE, _SHOW_EVERY = 500, 500
Output = Annotated[
    Path | None, typer.Argument(metavar="OUTPUT", help="Write them there: .jsonl, .jsonl.gz or .parquet; it is replaced.", show_default=False)
]


def people(
    output: Output = None,
    annotator: Annotated[str, typer.Option("--annotator", metavar="ID", help="By this person alone.", show_default=False)] = "",
    feedback: FeedbackAddress = None,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Shows how far the people agree whose labels are in the ledger, and writes these as preference data.

    Each label is a row with who gave it, how sure, why, when and in how many seconds; several people's labels of a pair are rows of one prompt.
    `accord data split` and `accord train reward-model` take the file as it is.

    \b
    Example:
        accord labels people
        accord labels people people.jsonl --annotator anna
    """
    from accord.data.annotations import Annotations
    from accord.data.card_text import agreement_sections

    annotations = Annotations()
    with ledger_at(home, feedback) as client, ProgressBar("reading the ledger") as bar:
        rows = _rows(client.human_labels(annotator_id=annotator, page_size=_PAGE), annotations, bar)
        count, file = (sum(1 for _ in rows), None) if output is None else _written(output, rows)
    card = annotations.card()
    if as_json:
        print_json({"labels": count, "agreement": card, "file": None if file is None else {"path": file.path, "sha256": file.digest}})
    else:
        for section in agreement_sections(card):
            print_table(section.columns, section.rows, title=section.title)
        print_line(f"{count} labels by people")
        if file is not None:
            show_written(file, {})
    if not count:
        raise typer.Exit(FAILED)


def _rows(records: Iterable[HumanLabelRecord], annotations: Annotations, bar: ProgressBar) -> Iterator[PreferencePair]:
    """The labels as rows, each counted on its way."""
    from accord.feedback.label_rows import human_row

    for number, record in enumerate(records, start=1):
        if number % _SHOW_EVERY == 0:
            bar.set(text=f"{number} labels")
        row = human_row(record)
        annotations.add(row)
        yield row


def _written(output: Path, rows: Iterable[PreferencePair]) -> tuple[int, PairFile | ParquetFile]:
    from accord.data.parquet import ParquetFile
    from accord.data.writers import PairFile, unless_empty
    from accord.feedback.label_rows import OF_PEOPLE

    file = ParquetFile(output, OF_PEOPLE) if output.name.endswith(".parquet") else PairFile(output)
    with unless_empty(file):
        for row in rows:
            file.add(row)
    return file.rows, file
