"""`accord labels export`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accord.cli.failures import FAILED
from accord.cli.labels_options import (
    Job,
    Judge,
    Kind,
    OutcomeOption,
    Pair,
    Rubric,
    Since,
    TaskOption,
    Until,
    labels_by_one,
    ledger_at,
    query_of,
)
from accord.cli.options import DEFAULT_HOME, FeedbackAddress, Home, Json
from accord.cli.output import print_json, print_line

if TYPE_CHECKING:
    from accord.client.ledger import LabelRecord
    from accord.data.parquet import ParquetFile
    from accord.data.writers import PairFile

Output = Annotated[
    Path, typer.Argument(metavar="OUTPUT", help="A file ending in .jsonl, .jsonl.gz or .parquet; it is replaced where there are rows.")
]


def export_labels(
    output: Output,
    job: Job = "",
    judge: Judge = "",
    kind: Kind = "",
    task: TaskOption = None,
    rubric: Rubric = "",
    outcome: OutcomeOption = "",
    pair: Pair = "",
    since: Since = "",
    until: Until = "",
    feedback: FeedbackAddress = None,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Writes labels as preference data: TRL's conversational format with soft labels and where each comes from.

    `chosen` is what the judge prefers, `preference` its probability; the metadata name job, judge, rubric and judgements by name and digest.
    Abstentions are left out; of several labels of a pair the first counts. The file is there when it is whole, and not before;
    without a label to write, an earlier one stays.

    \b
    Example:
        accord labels export labels.jsonl --job labelJobs/x
        accord labels export ties.parquet --judge 4be1c0 --outcome tie
    """
    query = query_of(job=job, judge=judge, kind=kind, task=task, rubric=rubric, outcome=outcome, pair=pair, since=since, until=until)
    with ledger_at(home, feedback) as client:
        file, left_out = write_labels(output, labels_by_one(client, query, judge))
    if as_json:
        print_json({"file": file.path, "rows": file.rows, "sha256": file.digest, "left_out": left_out})
    else:
        show_written(file, left_out)
    if not file.rows:
        raise typer.Exit(FAILED)


def write_labels(output: Path, records: Iterable[LabelRecord]) -> tuple[PairFile | ParquetFile, dict[str, int]]:
    """Writes rows out of labels at once, and nothing where there are none; returns the file and what made no row, by reason.

    Raises:
        InvalidArgumentError: the name has no ending of a format.
        OSError: it cannot be written there.
    """
    from accord.data.parquet import ParquetFile
    from accord.data.writers import PairFile, unless_empty
    from accord.feedback.label_rows import PROVENANCE, LabelledRows

    rows = LabelledRows(records)
    file = ParquetFile(output, PROVENANCE) if output.name.endswith(".parquet") else PairFile(output)
    with unless_empty(file):
        for row in rows:
            file.add(row)
    return file, dict(rows.left_out)


def show_written(file: PairFile | ParquetFile, left_out: dict[str, int]) -> None:
    """Prints what a file holds and what it does not; of one without rows, that it is not written."""
    for reason, count in left_out.items():
        print_line(f"{count} labels left out: {reason}")
    if not file.rows:
        print_line(f"there is no row to write: {file.path} is left as it was")
        return
    print_line(f"{file.rows} rows, sha256 {file.digest}: {file.path}")
