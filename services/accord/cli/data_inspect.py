"""`accord data inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from accord.cli.data_options import Format, Source, SplitName, Strict, pairs_of, refuse_source, shown
from accord.cli.failures import FAILED
from accord.cli.options import Json
from accord.cli.output import plain, print_json, print_line, print_table
from accord.errors import InvalidArgumentError


def inspect(
    source: Source,
    data_format: Format = "",
    split: SplitName = "all",
    strict: Strict = False,
    card_file: Annotated[Path | None, typer.Option("--card", metavar="FILE", help="Write the card there: .md or .json.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Shows what a preference data set holds, and what to know before training on it.

    Rows read and rejected, with the reason; columns that were not read; tasks, lengths, labels; how often the longer response is the better one;
    duplicates; personal data and profanity; how far the annotators agree. The digest of a split is the one that a run's manifest and
    `accord lineage` name.

    \b
    Example:
        accord data inspect comparisons.jsonl.gz --card card.md
        accord data inspect hub:Anthropic/hh-rlhf --split test --json
    """
    from accord.data.card import CardMaker
    from accord.data.card_text import markdown, sections
    from accord.data.files import shown as shown_source
    from accord.data.writers import write_text

    if card_file is not None and card_file.suffix not in (".md", ".json"):
        raise InvalidArgumentError(f"{card_file} ends in neither .md nor .json", field="--card")
    if card_file is not None:
        refuse_source(source, card_file, "--card")
    stream, maker = pairs_of(source, data_format, split, strict=strict), CardMaker()
    for pair in shown("reading", stream):
        maker.add(pair)
    card = maker.card(shown_source(source), stream.report)
    if card_file is not None:
        write_text(card_file, markdown(card) if card_file.suffix == ".md" else json.dumps(plain(card), ensure_ascii=False, indent=1))
    if as_json:
        print_json(card)
    else:
        for section in sections(card):
            print_table(section.columns, section.rows, title=section.title)
        for note in (*card.notes, *(f"not used: {example}" for example in card.examples)):
            print_line(f"note: {note}")
    if not card.rows:
        raise typer.Exit(FAILED)
