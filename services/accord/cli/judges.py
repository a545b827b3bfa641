"""`accord judges`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from accord.cli.connect import reach
from accord.cli.failures import FAILED
from accord.cli.labelling import absolute_source, create_job, job_states, request_id_of
from accord.cli.options import DEFAULT_HOME, FeedbackAddress, Home, Json
from accord.cli.output import plain, print_json, print_line, print_table
from accord.cli.progress import ProgressBar
from accord.errors import AccordError, InvalidArgumentError
from accord.text.tasks import Task

if TYPE_CHECKING:
    from accord.client.feedback import FeedbackClient, Judge, LabelJobSpec, Rubric
    from accord.study.judge_tables import Cell, Column, Found

_CALL_SECONDS = 120.0
_DEFAULT = "default"
_COLUMN = "COLUMN=DATASET"


def judges(
    datasets: Annotated[
        list[str],
        typer.Argument(metavar="COLUMN=DATASET...", help="Pairs that people labelled: TASK=DATASET, NAME=TASK:DATASET or NAME=TASK/FAMILY:DATASET."),
    ],
    judge: Annotated[
        list[str] | None, typer.Option("--judge", metavar="NAME[:KIND]", help="A row of the judges' table; the first has the others.")
    ] = None,
    rubric: Annotated[
        list[str] | None, typer.Option("--rubric", metavar="ID", help="A row of the rubrics' table; default: all that there are.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", metavar="FOLDER", help="For the tables and the jobs' labels.")] = Path("judges"),
    rationale: Annotated[bool, typer.Option("--rationale", help="Also a row of each rubric with reasons before the verdict.")] = False,
    samples: Annotated[
        list[int] | None, typer.Option("--samples", min=2, max=64, metavar="N", help="Self-consistency over N samples, against none.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Most pairs of each data set; 0 is all.")] = 0,
    split: Annotated[str, typer.Option("--split", help="Split of the data.")] = "train",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which pairs a limit takes, and which response is A.")] = 0,
    feedback: FeedbackAddress = None,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Compares judges, rubrics and self-consistency by how often they agree with people.

    The tables of the RLAIF paper for your own judges, as judges.md, judges.json and judges.png. Each figure is a label job; what is in the
    ledger is not judged again, so that the same command a second time costs nothing. Where another judge answers by now, it says so, and the figures
    are of the first. A column of a FAMILY has the rubrics whose names begin with it, as conversation/harmless has conversation/harmless-base/1, and
    its other tables are under the family's detailed one.

    \b
    Example:
        accord judges summarization=sample:summarization conversation=sample:conversation --limit 40
        accord judges conversation=pairs.jsonl --judge small --judge large --rationale --samples 8
        accord judges summarization=tldr.jsonl helpful=conversation/helpful:hh-helpful.jsonl harmless=conversation/harmless:hh-harmless.jsonl
    """
    from accord.client.feedback import FeedbackClient
    from accord.study.judge_tables import Column, Questions, notes_of, plan_cells, tables_of

    output = output.expanduser().absolute()
    data = {name: Column(_spec(task, source, limit, split, seed), family) for name, task, family, source in map(_dataset, datasets)}
    if len(data) < len(datasets):
        raise InvalidArgumentError("each column has a name of its own: NAME=TASK:DATASET", field=_COLUMN)
    named = dict(map(_judge, judge or [_DEFAULT]))
    with reach("feedback", home, feedback, _CALL_SECONDS) as target, FeedbackClient(target) as client:
        known = {each.id: each for each in client.list_rubrics() if each.kind == "verdict"}
        data = {name: _with_rubric(column, known) for name, column in data.items()}
        questions = Questions(data, named, _rubrics(known, rubric or ()), rationale, tuple(samples or ()))
        found = _run(client, plan_cells(questions), output)
    tables = tables_of(found)
    files = _write(output, tables, tuple(data))
    if as_json:
        print_json({"tables": tables, "files": files})
    else:
        _show(tables, tuple(data))
        for file in files:
            print_line(str(file))
    for note in notes_of(tables):
        sys.stderr.write(f"{note}; another --output has them labelled as it is now\n")
    if any(each.error for each in found):
        raise typer.Exit(FAILED)


def _dataset(text: str) -> tuple[str, Task, str, str]:
    """Name, task, family of rubrics and source of a column."""
    name, _, source = text.partition("=")
    task, family = name, ""
    if name not in set(Task):
        place, _, source = source.partition(":")
        task, _, family = place.partition("/")
    if task not in set(Task) or not source or not name:
        raise InvalidArgumentError(
            f"{text!r} is not TASK=DATASET, or NAME=TASK:DATASET or NAME=TASK/FAMILY:DATASET, with a task of {', '.join(Task)}", field=_COLUMN
        )
    return name, Task(task), family, absolute_source(source)


def _with_rubric(column: Column, known: Mapping[str, Rubric]) -> Column:
    """A column of a family, measured under the family's detailed rubric, or the first where there is none."""
    if not column.family:
        return column
    own = [name for name, rubric in known.items() if column.variant(rubric) is not None]
    if not own:
        families = {
            name.split("/")[1].partition("-")[0] for name, rubric in known.items() if rubric.task == column.spec.task and "-" in name.split("/")[1]
        }
        raise InvalidArgumentError(
            f"no rubric of {column.spec.task.value} begins with {column.family!r}; there are {', '.join(sorted(families)) or 'no families'}",
            field=_COLUMN,
        )
    detailed = [name for name in own if name.startswith(f"{column.spec.task.value}/{column.family}-detailed/")]
    return replace(column, rubric=(detailed or own)[-1 if detailed else 0])


def _spec(task: Task, source: str, limit: int, split: str, seed: int) -> LabelJobSpec:
    from accord.client.feedback import LabelJobSpec

    return LabelJobSpec("", source, task, "", split=split, limit=limit, seed=seed)


def _judge(text: str) -> tuple[str, Judge]:
    """A judge of the service's configuration, by the name of its row."""
    from accord.client.feedback import Judge, JudgeKind

    name, _, kind = text.partition(":")
    kind = kind or "verdict"
    kinds = [known for known in get_args(JudgeKind) if known != "default"]
    if kind not in kinds:
        raise InvalidArgumentError(f"{text!r} is not NAME[:KIND] with a kind of {', '.join(kinds)}", field="--judge")
    return text, Judge(kind, name="" if name == _DEFAULT else name)  # type: ignore[arg-type]


def _rubrics(known: Mapping[str, Rubric], wanted: Sequence[str]) -> list[Rubric]:
    """The service's rubrics for verdicts, or those of them that are wanted."""
    for name in wanted:
        if name not in known:
            raise InvalidArgumentError(f"{name!r} is not one of {', '.join(known)}", field="--rubric")
    return [known[name] for name in wanted or known]


def _run(client: FeedbackClient, cells: Sequence[Cell], output: Path) -> list[Found]:
    """What came of each cell; cells that ask the same share a job, and a job that fails leaves the others alone.

    A job's folder is named by question and data, as its id is: after a change of the data another job asks, and the first keeps its folder.
    """
    from accord.study.judge_tables import Found

    known: dict[str, Found] = {}
    names = [request_id_of(cell.spec) for cell in cells]
    with ProgressBar("judging", len(cells)) as bar:
        for done, (name, cell) in enumerate(zip(names, cells, strict=True)):
            if name not in known:
                bar.set(done, text=f"{cell.table}: {cell.row}, {cell.column}")
                try:
                    known[name] = _label(client, cell, output / "jobs" / name, bar, done)
                except AccordError as error:
                    known[name] = Found(cell, error=str(error))
        bar.set(len(cells), text="")
    return [replace(known[name], cell=cell) for name, cell in zip(names, cells, strict=True)]


def _label(client: FeedbackClient, cell: Cell, folder: Path, bar: ProgressBar, done: int) -> Found:
    from accord.study.judge_tables import Found

    spec = replace(cell.spec, output_uri=str(folder))
    job = create_job(client, spec, request_id_of(spec))
    note = job.message if job.state == "succeeded" else ""
    for now in job_states(client, job):
        job = now
        bar.set(done, text=f"{cell.table}: {cell.row}, {cell.column}, {now.done_pairs} of {now.total_pairs} pairs")
    if job.state != "succeeded":
        return Found(cell, job.name, error=job.message or job.state)
    (card,) = client.label_cards(job=job.name)
    return Found(cell, job.name, card, note=note)


def _write(output: Path, tables: dict[str, Any], columns: Sequence[str]) -> list[Path]:
    from accord.rundir import write_atomically
    from accord.study.judge_tables import markdown
    from accord.study.plots import draw_judge_tables

    output.mkdir(parents=True, exist_ok=True)
    files = [output / f"judges.{ending}" for ending in ("md", "json", "png")]
    write_atomically(files[0], markdown(tables, columns))
    write_atomically(files[1], json.dumps(plain(tables), indent=1, ensure_ascii=False))
    draw_judge_tables(tables, files[2])
    return files


def _show(tables: dict[str, Any], columns: Sequence[str]) -> None:
    from accord.study.judge_tables import judges_of

    for table in tables.values():
        rows = [(row["name"], *(_words(row["cells"].get(name)) for name in columns)) for row in table["rows"]]
        print_table(("", *columns), rows, title=table["title"])
    for who in judges_of(tables):
        print_line(f"judged by {who}")


def _words(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    if cell.get("error"):
        return f"failed: {cell['error']}"
    share, position = cell.get("agreement"), cell.get("same_position")
    agrees = f"{share['value']:.2f} ({share['low']:.2f} to {share['high']:.2f}, n={share['n']})" if share else "not measured"
    return f"{agrees}, same position {position['value']:.2f}" if position else agrees
