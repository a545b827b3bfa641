"""`accord data import`."""

from __future__ import annotations

from typing import Annotated

import typer

from accord.cli.connect import reach
from accord.cli.data_options import Format, Source, SplitName, pairs_of
from accord.cli.failures import FAILED, advice
from accord.cli.options import DEFAULT_HOME, FeedbackAddress, Home, Json
from accord.cli.output import print_json, print_line, print_table
from accord.cli.progress import ProgressBar
from accord.errors import DeadlineExceededError, UnavailableError

_CALL_SECONDS = 60.0


def import_labels(
    source: Source,
    annotator: Annotated[str, typer.Option("--annotator", metavar="ID", help="Who labelled, where rows do not say.", show_default=False)] = "",
    data_format: Format = "",
    split: SplitName = "all",
    feedback: FeedbackAddress = None,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Records the labels that people gave in the ledger, beside those of judges, whose cards then say how far judges agree with people.

    Annotator, reason, time spent and how sure the person was come with each label where rows have them. The same command again goes on where it
    stopped: a label is never recorded twice.

    \b
    Example:
        accord data import comparisons.jsonl.gz
        accord data import pairs.jsonl --annotator anna
    """
    from accord.cli.human_labels import CONFIDENCE_CHARACTERS, Imported, import_human_labels
    from accord.client.feedback import FeedbackClient

    stream, done = pairs_of(source, data_format, split), Imported()
    again = "what was recorded is kept: the same command goes on from there"
    with (
        reach("feedback", home, feedback, _CALL_SECONDS) as target,
        advice(UnavailableError, DeadlineExceededError, text=again),
        FeedbackClient(target) as client,
        ProgressBar("recording") as bar,
    ):
        for done in import_human_labels(client, stream, annotator):
            bar.set(text=f"{done.recorded} labels by {len(done.annotators)} people")
    report = stream.report
    if as_json:
        print_json({"labels": done, "seen": report.seen, "rejected": report.rejected})
    else:
        print_table(("annotator", "labels>"), done.annotators.most_common())
        print_line(report.account())
        rows = [(done.recorded, "labels are in the ledger"), (done.unlabelled, "pairs have no label by people")]
        rows += [(done.long_confidences, f"of them are there without how sure the person was, which took over {CONFIDENCE_CHARACTERS} characters")]
        rows += [(done.conflicting, "are there with another label by the same person, which stays")]
        rows += [(count, f"were refused: {reason}") for reason, count in done.refused.items()]
        for count, text in rows:
            if count:
                print_line(f"{count} {text}")
        for note in (*done.examples, *report.misspellings()):
            print_line(f"note: {note}")
    if done.conflicting or done.refused or not done.recorded:
        raise typer.Exit(FAILED)
