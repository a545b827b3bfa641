"""A data card as tables, and as Markdown. Pure.

What does not belong here: counting (`accord.data.card`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from accord.data.agreement import Estimate
from accord.data.annotations import AgreementCard
from accord.data.card import DataCard, Lengths

_MOST_PEOPLE = 20


class Section(NamedTuple):
    """A titled table; columns whose name ends in `>` are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def sections(card: DataCard) -> list[Section]:
    """The card's tables in their order; those without a row are left out."""
    found = [
        Section("rows", ("rows", "number>"), _rows(card)),
        Section("splits", ("split", "rows>", "digest"), [(name, str(n), card.digests[name]) for name, n in card.splits.items()]),
        Section("lengths", ("characters", "least>", "10 %>", "median>", "90 %>", "most>"), _lengths(card)),
        Section("labels", ("labels", "share>", "95 % interval", "n>"), _labels(card)),
        Section("personal data and profanity", ("kind", "found>", "rows>"), _found(card)),
        *agreement_sections(card.agreement),
        Section("what rows tell of themselves", ("metadata", "rows>"), _counts(card.metadata)),
        Section("columns that were not read", ("column", "rows>"), _counts(card.unread)),
    ]
    return [section for section in found if section.rows]


def agreement_sections(card: AgreementCard | None) -> list[Section]:
    """How far annotators agree, and who agrees least; without rows where nobody is named."""
    return [
        Section("agreement between annotators", ("figure", "value>", "95 % interval", "pairs>"), _agreement(card)),
        Section("annotators", ("annotator", "labels>", "agrees with others>", "comparisons>"), _people(card)),
    ]


def markdown(card: DataCard) -> str:
    """The card as a Markdown page."""
    lines = [f"# Data card: {_cell(card.source)}", ""]
    for note in card.notes:
        lines += [f"- {note}"]
    for title, columns, rows in sections(card):
        marks = ("---:" if name.endswith(">") else "---" for name in columns)
        lines += ["", f"## {title.capitalize()}", "", _line(name.rstrip(">") for name in columns), _line(marks)]
        lines += [_line(_cell(cell) for cell in row) for row in rows]
    if card.examples:
        lines += ["", "## Rows that could not be used", "", *(f"- {_cell(example)}" for example in card.examples)]
    about = "Lengths are characters. Personal data is counted by form and check sums, not by meaning; swear words are a short English list."
    lines += ["", about, ""]
    return "\n".join(lines)


def _rows(card: DataCard) -> list[tuple[str, str]]:
    rows = [("in the source", str(card.seen)), ("read", str(card.rows)), ("different prompts", str(card.prompts))]
    rows += [(f"not used: {reason}", str(count)) for reason, count in card.rejected.items()]
    rows += [(f"of task {task}", str(count)) for task, count in card.tasks.items()]
    rows += [(f"with {turns} turns before the response", str(count)) for turns, count in card.turns.items() if turns > 1]
    more = (
        ("with identical responses (a tie)", card.identical_responses), ("exact duplicates", card.exact_duplicates),
        ("near duplicates", card.near_duplicates), ("duplicates with another label", card.contradicting_duplicates),
        ("with labels by people", card.human_labels), ("with ratings", card.rated_rows), ("very long", card.long_rows),
    )  # fmt: skip
    return rows + [(name, str(count)) for name, count in more if count]


def _lengths(card: DataCard) -> list[tuple[str, ...]]:
    named = (("prompt", card.prompt_characters), ("response", card.response_characters))
    return [(name, *_numbers(lengths)) for name, lengths in named if lengths is not None]


def _numbers(lengths: Lengths) -> tuple[str, ...]:
    return tuple(str(value) for value in (lengths.least, lengths.p10, lengths.median, lengths.p90, lengths.most))


def _labels(card: DataCard) -> list[tuple[str, ...]]:
    names = (("chosen", "chosen is better"), ("rejected", "rejected is better"), ("tie", "a tie"), ("soft", "soft"))
    rows: list[tuple[str, ...]] = [(text, f"{card.labels[name] / card.rows:.3f}", "", str(card.labels[name])) for name, text in names if card.rows]
    return [*rows, _estimate("the longer one is better", card.longer_is_better)] if card.longer_is_better else rows


def _found(card: DataCard) -> list[tuple[str, str, str]]:
    return [(kind, str(found.count), str(found.rows)) for kind, found in (*card.personal_data.items(), ("profanity", card.profanity)) if found.count]


def _agreement(card: AgreementCard | None) -> list[tuple[str, ...]]:
    if card is None:
        return []
    figures = (("equal labels", card.raw), ("Fleiss' kappa", card.fleiss_kappa), ("Krippendorff's alpha (nominal)", card.krippendorff_alpha))
    rows: list[tuple[str, ...]] = [("annotators", str(card.annotators), "", ""), ("labels", str(card.labels), "", "")]
    for name, figure in figures:
        rows.append(_estimate(name, figure) if figure else (name, "not defined", "", str(card.pairs)))
    return rows


def _people(card: AgreementCard | None) -> list[tuple[str, ...]]:
    """Those who agree least with the others, where there are any to compare with."""
    compared = [each for each in card.people if each.agreement is not None] if card else []
    return [(each.name, str(each.labels), f"{each.agreement:.3f}", str(each.comparisons)) for each in compared[:_MOST_PEOPLE]]


def _estimate(name: str, estimate: Estimate) -> tuple[str, ...]:
    return name, f"{estimate.value:.3f}", f"{estimate.low:.3f} to {estimate.high:.3f}", str(estimate.n)


def _counts(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    return [(name, str(count)) for name, count in counts.items()]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """Text that stays in its cell."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
