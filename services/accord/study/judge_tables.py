"""The RLAIF paper's tables about judges, for one's own: which label jobs they are made of, and what these come to. Pure.

Lee et al. 2023 (arXiv:2309.00267): how agreement with people depends on the rubric, on the judge's size (with how often it prefers the same position
after a swap), and on self-consistency. Equal cells are one job, and the ledger answers again what it has, so that a repeated table costs nothing.
What does not belong here: running the jobs (`accord.cli.judges`) and drawing (`accord.study.plots`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from accord.client.feedback import Judge, LabelJobSpec, Rubric
from accord.client.label_cards import LabelCard, Share
from accord.text.judge import named

TITLES = {
    "rubrics": "Rubric and task: agreement with people",
    "judges": "Judge: agreement with people, and the same position after a swap",
    "samples": "Self-consistency: agreement with people by samples averaged",
}
BASELINES = (("always the longer response", "length_baseline"), ("a coin", "random_baseline"))


@dataclass(frozen=True, slots=True)
class Column:
    """A data set of the tables.

    Attributes:
        spec: a job without request id, output and judge; all else is taken from it.
        family: rubrics whose name begins with it and a hyphen are the column's, as `harmless` has `conversation/harmless-base/1` in the row
            `base/1`; empty for all rubrics of the task.
        rubric: under which the judges' table and self-consistency are measured; empty for the service's default.
    """

    spec: LabelJobSpec
    family: str = ""
    rubric: str = ""

    def variant(self, rubric: Rubric) -> str | None:
        """The row of a rubric, the same for the same idea in other columns; None for one that is not of this column."""
        begins = f"{self.spec.task.value}/" + (f"{self.family}-" if self.family else "")
        return rubric.id.removeprefix(begins) if rubric.task == self.spec.task and rubric.id.startswith(begins) else None


@dataclass(frozen=True, slots=True)
class Questions:
    """What the tables are made over.

    Attributes:
        data: the columns by name.
        judges: by the name that a row gets; the first one is that of the tables on rubrics and samples.
        rubrics: the rows of the first table.
        rationale: whether each rubric that is not about reasons also has a row in which the judge gives them first.
        samples: rows of the table on self-consistency besides the single greedy one, whose rationale they share; empty for no such table.
    """

    data: Mapping[str, Column]
    judges: Mapping[str, Judge]
    rubrics: Sequence[Rubric]
    rationale: bool = False
    samples: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure to be: the job that gives its card."""

    table: str
    row: str
    column: str
    spec: LabelJobSpec


@dataclass(frozen=True, slots=True)
class Found:
    """What came of a cell: a card, or why there is none; `note` says who would judge now, where its labels are of before."""

    cell: Cell
    job: str = ""
    card: LabelCard | None = None
    error: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table; cells are by column."""

    name: str
    cells: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def plan_cells(questions: Questions) -> tuple[Cell, ...]:
    """The cells of all tables, row by row; a rubric that a column does not have gives no cell."""
    first = next(iter(questions.judges.values()))
    cells = _rubric_cells(questions, first)
    for name, judge in questions.judges.items():
        cells += [_cell_of("judges", name, column, judge, questions) for column in questions.data]
    for count in (1, *questions.samples) if questions.samples else ():
        judge = replace(first, rationale=True, consistency_samples=None if count == 1 else count)
        row = "off" if count == 1 else f"{count} samples"
        cells += [_cell_of("samples", row, column, judge, questions) for column in questions.data]
    return tuple(cells)


def _cell_of(table: str, row: str, name: str, judge: Judge, questions: Questions) -> Cell:
    column = questions.data[name]
    asked = replace(judge, rubric=column.rubric) if column.rubric and judge.kind == "verdict" else judge
    return Cell(table, row, name, replace(column.spec, judge=asked))


def _rubric_cells(questions: Questions, judge: Judge) -> list[Cell]:
    """A row for each rubric, the same one over several columns, and where they are asked for one with reasons first."""
    rows: dict[str, list[tuple[str, Rubric]]] = {}
    for rubric in questions.rubrics:
        for name, column in questions.data.items():
            if rubric.kind == "verdict" and (variant := column.variant(rubric)) is not None:
                rows.setdefault(variant, []).append((name, rubric))
    cells = []
    for variant, found in sorted(rows.items()):
        with_reasons = questions.rationale and not any(rubric.rationale for _, rubric in found)
        for row, rationale in ((variant, None), (f"{variant}, reasons first", True))[: 1 + with_reasons]:
            for name, rubric in found:
                asked = replace(judge, kind="verdict", rubric=rubric.id, rationale=rationale)
                cells.append(Cell("rubrics", row, name, replace(questions.data[name].spec, judge=asked)))
    return cells


def tables_of(found: Sequence[Found]) -> dict[str, Any]:
    """The tables as JSON has them, each with a title and rows of cells by column: `agreement`, `same_position`, `longer_preferred`, `pairs`, `job`,
    `judge`, `judge_digest`.

    A cell without a card has its `error`, one whose labels are of before a `note` of what is another now. The rows end with what taking the longer
    response and a coin would agree, on the pairs that the first row with a card decided.
    """
    tables = {}
    for name, title in TITLES.items():
        own = [each for each in found if each.cell.table == name]
        if own:
            rows = {row: Row(row, {each.cell.column: _cell(each) for each in own if each.cell.row == row}) for row in _in_order(own)}
            first = {each.cell.column: each.card for each in reversed(own) if each.card is not None}
            baselines = [
                Row(words, {name: {"agreement": _share(getattr(card, share))} for name, card in first.items()}) for words, share in BASELINES
            ]
            tables[name] = {"title": title, "rows": [asdict(row) for row in (*rows.values(), *baselines)]}
    return tables


def judges_of(tables: Mapping[str, Any]) -> list[str]:
    """Who judged, by name and digest, with how many figures: where there are two digests of a name, some figures are of another one."""
    who = Counter((cell["judge"], cell["judge_digest"]) for cell in _cells(tables) if cell.get("judge"))
    return [f"{named(judge, digest)}: {_figures(count)}" for (judge, digest), count in who.items()]


def notes_of(tables: Mapping[str, Any]) -> list[str]:
    """What is another now than when figures were labelled, with how many they are."""
    notes = Counter(cell["note"] for cell in _cells(tables) if cell.get("note"))
    return [f"{_figures(count)} made before: {note}" for note, count in notes.items()]


def markdown(tables: Mapping[str, Any], names: Sequence[str]) -> str:
    """The tables for people: shares in per cent with their 95 % intervals."""
    parts = []
    for name, table in tables.items():
        columns = [_escaped(each) for each in names]
        if name == "judges":
            columns += [f"{_escaped(each)}, same position" for each in names]
        lines = [f"## {table['title']}", "", f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
        for row in table["rows"]:
            cells = [_words(row["cells"].get(each), "agreement") for each in names]
            if name == "judges":
                cells += [_words(row["cells"].get(each), "same_position") for each in names]
            lines.append(f"| {_escaped(row['name'])} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    parts += [f"Judged by {_escaped(who)}." for who in judges_of(tables)] + [f"{_escaped(note)}." for note in notes_of(tables)]
    return "\n\n".join(parts) + "\n\nShares in per cent of the decided pairs that people labelled, with 95 % intervals over their prompts.\n"


def _cells(tables: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [cell for table in tables.values() for row in table["rows"] for cell in row["cells"].values()]


def _figures(count: int) -> str:
    return f"{count} figure{'s' if count > 1 else ''}"


def _in_order(found: Iterable[Found]) -> list[str]:
    return list(dict.fromkeys(each.cell.row for each in found))


def _cell(found: Found) -> dict[str, Any]:
    if found.card is None:
        return {"job": found.job, "error": found.error}
    card = found.card
    return {
        "job": found.job, "pairs": card.pairs, "agreement": _share(card.human_agreement), "same_position": _share(card.same_position_after_swap),
        "longer_preferred": _share(card.longer_preferred), "abstentions": sum(card.abstentions.values()), "tokens": card.tokens,
        "calibration_error": card.calibration_error, "cost_per_thousand_pairs": card.cost_per_thousand_pairs,
        "judge": card.judge, "judge_digest": card.judge_digest, **({"note": found.note} if found.note else {}),
    }  # fmt: skip


def _share(share: Share | None) -> dict[str, Any] | None:
    return None if share is None else asdict(share)


def _words(cell: Mapping[str, Any] | None, figure: str) -> str:
    if cell is None:
        return "–"
    if cell.get("error"):
        return f"failed: {_escaped(cell['error'])}" if figure == "agreement" else ""
    share = cell.get(figure)
    return f"{100 * share['value']:.1f} ({100 * share['low']:.1f} to {100 * share['high']:.1f}, n={share['n']})" if share else "–"


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
