"""`accord labels reaggregate`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from accord.cli.failures import FAILED
from accord.cli.labels_export import show_written, write_labels
from accord.cli.labels_options import Job, Judge, Kind, Rubric, Since, TaskOption, Until, labels_by_one, ledger_at, query_of
from accord.cli.options import DEFAULT_HOME, FeedbackAddress, Home, Json
from accord.cli.output import print_json, print_line, print_table
from accord.errors import InvalidArgumentError

if TYPE_CHECKING:
    from accord.client.ledger import LabelRecord
    from accord.feedback.reaggregate import Changes, Rules

_OUTCOMES = ("a", "b", "tie", "abstain")
Output = Annotated[Path | None, typer.Option("--output", metavar="FILE", help="Write the labels as `accord labels export` does.", show_default=False)]


def reaggregate(
    orders: Annotated[str, typer.Option("--orders", help="both: averaged; first: as a judge that is asked in one order.")] = "both",
    combine: Annotated[str, typer.Option("--combine", help="Over samples and judges: mean, or majority of votes; default: as it was.")] = "",
    tie_margin: Annotated[float | None, typer.Option("--tie-margin", help="Within this of one half is a tie; default: as it was.")] = None,
    hard: Annotated[bool, typer.Option("--hard", help="Preferences become 1, 0 or one half.", show_default=False)] = False,
    output: Output = None,
    job: Job = "",
    judge: Judge = "",
    kind: Kind = "",
    task: TaskOption = None,
    rubric: Rubric = "",
    since: Since = "",
    until: Until = "",
    feedback: FeedbackAddress = None,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Makes labels anew out of their judgements under other rules; no judge is called, and the ledger stays as it is.

    Shows how many labels say something else then, and writes them with --output.

    \b
    Example:
        accord labels reaggregate --job labelJobs/x --orders first
        accord labels reaggregate --tie-margin 0.1 --hard --output hard.jsonl
    """
    from accord.feedback.reaggregate import Changes, Rules

    for value, allowed, flag in ((orders, ("both", "first"), "--orders"), (combine, ("", "mean", "majority"), "--combine")):
        if value not in allowed:
            raise InvalidArgumentError(f"{value!r} is not one of {', '.join(filter(None, allowed))}", field=flag)
    rules, changes = Rules(orders, combine or None, tie_margin, hard), Changes()  # type: ignore[arg-type]
    query = query_of(job=job, judge=judge, kind=kind, task=task, rubric=rubric, since=since, until=until)
    with ledger_at(home, feedback) as client:
        made = _made(labels_by_one(client, query, judge), rules, changes)
        written = None if output is None else write_labels(output, made)
        for _ in made:  # nothing is left of it where a file was written
            pass
    if as_json:
        file = written and {"file": written[0].path, "rows": written[0].rows, "sha256": written[0].digest, "left_out": written[1]}
        print_json({"rules": rules, "written": file, **_facts(changes)})
    else:
        _show(changes)
        if written is not None:
            show_written(*written)
    if not changes.labels:
        raise typer.Exit(FAILED)


def _made(records: Iterable[LabelRecord], rules: Rules, changes: Changes) -> Iterator[LabelRecord]:
    """The labels under other rules; those whose rule is not known as they were."""
    from accord.feedback.reaggregate import options_under, reaggregated

    for record in records:
        label = reaggregated(record.label, rules, record.options)
        changes.add(record.label, label)
        yield record if label is None else replace(record, label=label, options=options_under(record.options, rules))


def _facts(changes: Changes) -> dict[str, Any]:
    moves = [{"before": before, "after": after, "labels": count} for (before, after), count in sorted(changes.moves.items())]
    facts = {"labels": changes.labels, "changed": changes.changed, "unchangeable": changes.unchangeable, "mean_move": changes.mean_move}
    return {**facts, "moves": moves}


def _show(changes: Changes) -> None:
    rows = [(before, *(changes.moves[before, after] for after in _OUTCOMES)) for before in _OUTCOMES]
    print_table(("was", *(f"{after}>" for after in _OUTCOMES)), rows)
    moved = "" if changes.mean_move is None else f"; preferences move by {changes.mean_move:.3f} on average"
    print_line(f"{changes.changed} of {changes.labels} labels say something else{moved}")
    if changes.unchangeable:
        print_line(f"{changes.unchangeable} labels stay as they were: the ledger does not say how they came out of their judgements")
