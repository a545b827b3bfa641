"""The RLAIF paper's tables about judges, for one's own: which label jobs they are made of, and what these come to. Pure.

Lee et al. 2023 (arXiv:2309.00267): how agreement with people depends on the rubric, on the judge's size (with how often it prefers the same position
after a swap), and on self-consistency. Equal cells are one job, and the ledger answers again what it has, so that a repeated table costs nothing.
What does not belong here: running the jobs (`accord.cli.judges`) and drawing (`accord.study.plots`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from accord.client.feedback import Judge, LabelJobSpec, Rubric
from accord.client.label_cards import LabelCard, Share
from accord.text.tasks import Task

TITLES = {
    "rubrics": "Rubric and task: agreement with people",
    "judges": "Judge: agreement with people, and the same position after a swap",
    "samples": "Self-consistency: agreement with people by samples averaged",
}
BASELINES = (("always the longer response", "length_baseline"), ("a coin", "random_baseline"))


@dataclass(frozen=True, slots=True)
class Questions:
    """What the tables are made over.

    Attributes:
        data: a job without request id, output and judge for each task; all else is taken from it.
        judges: by the name that a row gets; the first one is that of the tables on rubrics and samples.
        rubrics: the rows of the first table.
        rationale: whether each rubric that is not about reasons also has a row in which the judge gives them first.
        samples: rows of the table on self-consistency besides the single greedy one, whose rationale they share; empty for no such table.
    """

    data: Mapping[Task, LabelJobSpec]
    judges: Mapping[str, Judge]
    rubrics: Sequence[Rubric]
    rationale: bool = False
    samples: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure to be: the job that gives its card."""

    table: str
    row: str
    task: Task
    spec: LabelJobSpec


@dataclass(frozen=True, slots=True)
class Found:
    """What came of a cell: a card, or why there is none."""

    cell: Cell
    job: str = ""
    card: LabelCard | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table; cells are by task."""

    name: str
    cells: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def plan_cells(questions: Questions) -> tuple[Cell, ...]:
    """The cells of all tables, row by row; a rubric that a task does not have gives no cell."""
    first = next(iter(questions.judges.values()))
    cells = _rubric_cells(questions, first)
    for name, judge in questions.judges.items():
        cells += [Cell("judges", name, task, _with(spec, judge)) for task, spec in questions.data.items()]
    for count in (1, *questions.samples) if questions.samples else ():
        judge = replace(first, rationale=True, consistency_samples=None if count == 1 else count)
        row = "off" if count == 1 else f"{count} samples"
        cells += [Cell("samples", row, task, _with(spec, judge)) for task, spec in questions.data.items()]
    return tuple(cells)


def _rubric_cells(questions: Questions, judge: Judge) -> list[Cell]:
    """A row for each rubric, the same one over several tasks, and where they are asked for one with reasons first."""
    rows: dict[str, list[Rubric]] = {}
    for rubric in questions.rubrics:
        if rubric.kind == "verdict" and rubric.task in questions.data:
            rows.setdefault(_variant(rubric), []).append(rubric)
    cells = []
    for variant, rubrics in sorted(rows.items()):
        with_reasons = questions.rationale and not any(rubric.rationale for rubric in rubrics)
        for name, rationale in ((variant, None), (f"{variant}, reasons first", True))[: 1 + with_reasons]:
            for rubric in rubrics:
                asked = replace(judge, kind="verdict", rubric=rubric.id, rationale=rationale)
                cells.append(Cell("rubrics", name, rubric.task, _with(questions.data[rubric.task], asked)))
    return cells


def tables_of(found: Sequence[Found]) -> dict[str, Any]:
    """The tables as JSON has them, each with a title and rows of cells by task: `agreement`, `same_position`, `longer_preferred`, `pairs`, `job`.

    A cell without a card has its `error`. The rows end with what taking the longer response and a coin would agree, on the pairs that the
    first row with a card decided.
    """
    tables = {}
    for name, title in TITLES.items():
        own = [each for each in found if each.cell.table == name]
        if own:
            rows = {row: Row(row, {each.cell.task.value: _cell(each) for each in own if each.cell.row == row}) for row in _in_order(own)}
            first = {each.cell.task.value: each.card for each in reversed(own) if each.card is not None}
            baselines = [
                Row(words, {task: {"agreement": _share(getattr(card, share))} for task, card in first.items()}) for words, share in BASELINES
            ]
            tables[name] = {"title": title, "rows": [asdict(row) for row in (*rows.values(), *baselines)]}
    return tables


def markdown(tables: Mapping[str, Any], tasks: Sequence[Task]) -> str:
    """The tables for people: shares in per cent with their 95 % intervals."""
    parts = []
    for name, table in tables.items():
        columns = [task.value for task in tasks]
        if name == "judges":
            columns += [f"{task.value}, same position" for task in tasks]
        lines = [f"## {table['title']}", "", f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
        for row in table["rows"]:
            cells = [_words(row["cells"].get(task.value), "agreement") for task in tasks]
            if name == "judges":
                cells += [_words(row["cells"].get(task.value), "same_position") for task in tasks]
            lines.append(f"| {_escaped(row['name'])} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n\nShares in per cent of the decided pairs that people labelled, with 95 % intervals over their prompts.\n"


def output_name(spec: LabelJobSpec) -> str:
    """The folder of a cell's job, the same for the same question."""
    return hashlib.sha256(json.dumps(asdict(replace(spec, request_id="", output_uri="")), sort_keys=True).encode()).hexdigest()[:16]


def _with(spec: LabelJobSpec, judge: Judge) -> LabelJobSpec:
    return replace(spec, judge=judge)


def _variant(rubric: Rubric) -> str:
    """A rubric's id without its task, the same for the same idea over several tasks."""
    return rubric.id.removeprefix(f"{rubric.task.value}/")


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
