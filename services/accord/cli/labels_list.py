"""`accord labels list`."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

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
    ledger_at,
    query_of,
    records_of,
    shortened,
)
from accord.cli.options import DEFAULT_HOME, FeedbackAddress, Home, Json
from accord.cli.output import print_json, print_line, print_table, time_text

if TYPE_CHECKING:
    from accord.client.ledger import LabelRecord

_TEXT = 32
_DIGEST = 8
_COLUMNS = ("made", "pair", "task", "kind", "judge", "rubric", "outcome", "P(A)>", "people>", "tokens>", "job", "prompt")


def list_labels(
    job: Job = "",
    judge: Judge = "",
    kind: Kind = "",
    task: TaskOption = None,
    rubric: Rubric = "",
    outcome: OutcomeOption = "",
    pair: Pair = "",
    since: Since = "",
    until: Until = "",
    limit: Annotated[int, typer.Option("--limit", min=0, help="Most labels; 0 is all.")] = 50,
    feedback: FeedbackAddress = None,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Lists labels in the order in which they were made.

    With --json each label is a line of its own, with its pair, its judgements, rationales, tokens, cost and time.

    \b
    Example:
        accord labels list --task summarization --outcome tie
        accord labels list --pair p17 --json
        accord labels list --judge embedded --since 2026-11-25 --limit 0
    """
    query = query_of(job=job, judge=judge, kind=kind, task=task, rubric=rubric, outcome=outcome, pair=pair, since=since, until=until)
    with ledger_at(home, feedback) as client:
        found = islice(records_of(client, query, judge), limit or None)
        if as_json:
            for record in found:
                print_json(record, indent=None)
            return
        rows = [_row(record) for record in found]
    print_table(_COLUMNS, rows)
    print_line(f"{len(rows)} labels" + (", the first that match; --limit 0 lists all" if limit and len(rows) == limit else ""))


def _row(record: LabelRecord) -> tuple[str, ...]:
    label, pair = record.label, record.pair
    human = pair.human_preference if pair else None
    tokens = sum(judgement.prompt_tokens + judgement.response_tokens for judgement in label.judgements)
    return (
        time_text(record.create_time), shortened(label.pair_id or record.content_key[:_DIGEST], _TEXT), pair.task.value if pair else "", label.kind,
        f"{shortened(label.judge, _TEXT)} {label.judge_digest[:_DIGEST]}", label.rubric, label.outcome,
        "" if label.preference is None else f"{label.preference:.3f}", "" if human is None else f"{human:.2f}", str(tokens), record.job,
        shortened(pair.messages[-1].content, _TEXT) if pair else "not in the ledger",
    )  # fmt: skip
