"""`accord runs`."""

from __future__ import annotations

from typing import Annotated

import typer

from accord.cli.connect import reach
from accord.cli.options import DEFAULT_HOME, Home, Json, Timeout, TrainerAddress
from accord.cli.output import print_json, print_line, print_table, seconds_text, time_text
from accord.errors import InvalidArgumentError


def runs(
    states: Annotated[
        list[str] | None, typer.Option("--state", metavar="STATE", help="Only runs in this state, for example running; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Most runs, newest first; 0 is all.")] = 20,
    trainer: TrainerAddress = None,
    home: Home = DEFAULT_HOME,
    timeout: Timeout = 30.0,
    as_json: Json = False,
) -> None:
    """Lists training and evaluation runs, newest first.

    \b
    Example:
        accord runs
        accord runs --state running --state queued --json
    """
    from accord.client.trainer import RUN_STATES, TrainerClient

    for state in states or ():
        if state not in RUN_STATES or state == "unspecified":
            known = ", ".join(name for name in RUN_STATES if name != "unspecified")
            raise InvalidArgumentError(f"{state!r} is no state of a run; there are {known}", field="--state")
    with reach("trainer", home, trainer, timeout) as target, TrainerClient(target) as client:
        found = client.list_runs(states=tuple(states or ()), limit=limit, timeout_seconds=timeout)  # type: ignore[arg-type]
    if as_json:
        print_json(found)
    elif not found:
        print_line("there are no runs" + (" in that state" if states else ""))
    else:
        rows = [
            (
                run.name, run.spec.algorithm, run.state, f"{run.step}/{run.total_steps}", time_text(run.start_time or run.create_time),
                seconds_text(run.end_time - run.start_time) if run.end_time and run.start_time else "", run.adapter_version or run.message,
            )
            for run in found
        ]  # fmt: skip
        print_table(("run", "algorithm", "state", "steps>", "started", "took>", "result"), rows)
