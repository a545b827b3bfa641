"""`accord watch`."""

from __future__ import annotations

from typing import Annotated

import typer

from accord.cli.connect import reach
from accord.cli.failures import FAILED, advice
from accord.cli.following import follow, run_name
from accord.cli.options import DEFAULT_HOME, Home, Json, TrainerAddress
from accord.cli.train import finish
from accord.errors import NotFoundError

UNKNOWN_RUN = "`accord runs` lists the runs"
RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's name, with or without runs/.", show_default=False)]


def watch(
    run: RunName,
    trainer: TrainerAddress = None,
    home: Home = DEFAULT_HOME,
    timeout: Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", min=1, help="Longest wait; the run goes on.")] = None,
    as_json: Json = False,
) -> None:
    """Shows a run as it goes on.

    From its first event to its end: state, phase and what it waits for, steps and time left, curves with their first, last and best values, where
    the time goes, alarms and messages; lines where stderr is no terminal. Goes on over a restart of the trainer. With --json, each event is a
    line. Exit code 1 where the run does not succeed.

    \b
    Example:
        accord watch runs/sft-sft-1a2b3c4d5e
        accord watch sft-sft-1a2b3c4d5e --json
    """
    from accord.client.trainer import TrainerClient

    name = run_name(run)
    with reach("trainer", home, trainer, 30.0) as target, TrainerClient(target) as client, advice(NotFoundError, text=UNKNOWN_RUN):
        client.get_run(name)
        found = follow(client, name, events_as_json=as_json, timeout_seconds=timeout)
    if not as_json:
        finish(found, home, as_json=False)
    elif found.run.state != "succeeded":
        raise typer.Exit(FAILED)
