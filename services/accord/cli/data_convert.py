"""`accord data convert` and `accord data dedupe`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accord.cli.data_options import Format, Source, SplitName, Strict, pairs_of, refuse_source, show_nothing_written, shown
from accord.cli.options import Json
from accord.cli.output import print_json, print_line
from accord.errors import InvalidArgumentError

if TYPE_CHECKING:
    from accord.data.readers import PairStream
    from accord.data.writers import PairFile

Output = Annotated[Path, typer.Argument(metavar="OUTPUT", help="A file ending in .jsonl or .jsonl.gz; it is replaced where there are rows.")]


def convert(
    source: Source,
    output: Output,
    to: Annotated[str, typer.Option("--to", help="accord: TRL's form with soft label and origin; trl: TRL's columns alone.")] = "accord",
    merge: Annotated[bool, typer.Option("--merge", help="One row a pair, with the mean of its labels; reads twice.", show_default=False)] = False,
    data_format: Format = "",
    split: SplitName = "all",
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Writes preference pairs of any known format in TRL's conversational preference format.

    The form accord keeps soft label, labels of people, ratings, annotator and origin, and is read back without loss. The form trl has prompt, chosen,
    rejected and the margin of ratings alone, and not who labelled; ties have no place in it and are counted. Where several people labelled a pair,
    --merge makes one soft label of theirs.

    \b
    Example:
        accord data convert export.json pairs.jsonl --merge
        accord data convert hub:openai/summarize_from_feedback:comparisons pairs.jsonl.gz --to trl
    """
    from accord.data.merging import MeanLabels
    from accord.data.writers import FORMS, PairFile, unless_empty

    if to not in FORMS:
        raise InvalidArgumentError(f"{to!r} is not one of {', '.join(FORMS)}", field="--to")
    refuse_source(source, output, "OUTPUT")
    labels = MeanLabels(shown("reading labels", pairs_of(source, data_format, split))) if merge else None
    stream, left_out = pairs_of(source, data_format, split, strict=strict), Counter[str]()
    with unless_empty(PairFile(output, to)) as file:  # type: ignore[arg-type]
        for pair in shown("converting", stream):
            row = labels.merged(pair) if labels else pair
            if row is None:
                left_out["labels of a pair that is there with their mean"] += 1
            else:
                file.add(row)
    if file.left_out:
        left_out["ties, for which TRL has no place"] = file.left_out
    _end(stream, file, {"left_out": left_out}, as_json=as_json)


def dedupe(
    source: Source,
    output: Output,
    data_format: Format = "",
    split: SplitName = "all",
    as_json: Json = False,
) -> None:
    """Leaves out pairs that were there before: the same prompt and responses, in any order, by the same annotator.

    Texts are compared without case, punctuation and spaces; symbols, and signs between numbers or single letters, count. The first of several stays,
    whatever its label; how many say something else is counted.

    \b
    Example:
        accord data dedupe comparisons.jsonl.gz clean.jsonl
    """
    from accord.data.duplicates import Duplicates
    from accord.data.writers import PairFile, unless_empty

    refuse_source(source, output, "OUTPUT")
    stream, known = pairs_of(source, data_format, split), Duplicates()
    with unless_empty(PairFile(output)) as file:
        for pair in shown("comparing", stream):
            if not known.add(pair):
                file.add(pair)
    left_out = Counter({"exact duplicates": known.exact, "near duplicates": known.near})
    _end(stream, file, {"left_out": left_out, "with another label than the first": known.contradicting}, as_json=as_json)


def _end(stream: PairStream, file: PairFile, facts: Mapping[str, Counter[str] | int], *, as_json: bool) -> None:
    report = stream.report
    if not file.rows:
        show_nothing_written(file.path, report)
    if as_json:
        print_json({"file": file.path, "rows": file.rows, "sha256": file.digest, "seen": report.seen, "rejected": report.rejected, **facts})
        return
    print_line(report.account())
    for name, value in facts.items():
        counts = value if isinstance(value, Counter) else {name: value}
        for reason, count in counts.items():
            if count:
                print_line(f"{count} {reason}")
    print_line(f"{file.rows} rows, sha256 {file.digest}: {file.path}")
