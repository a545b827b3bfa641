"""`accord watch`."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accord.cli.connect import command, reach
from accord.cli.failures import FAILED, advice
from accord.cli.following import follow, run_name
from accord.cli.options import DEFAULT_HOME, Home, Json, TrainerAddress
from accord.cli.output import harmless, print_line
from accord.cli.train import finish
from accord.errors import NotFoundError

if TYPE_CHECKING:
    from accord.client.trainer import TrainerClient

_LOG_SECONDS = 30.0
RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's name, with or without runs/.", show_default=False)]


def watch(
    run: RunName,
    trainer: TrainerAddress = None,
    home: Home = DEFAULT_HOME,
    timeout: Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", min=1, help="Longest wait; the run goes on.")] = None,
    log: Annotated[bool, typer.Option("--log", help="Print what the run's process or pods have printed so far, and end.")] = False,
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
        accord watch sft-sft-1a2b3c4d5e --log
    """
    from accord.client.trainer import TrainerClient

    name = run_name(run)
    with reach("trainer", home, trainer, 30.0) as target, TrainerClient(target) as client, advice_on_unknown_run(home):
        client.get_run(name)
        if log:
            _print_log(client, name)
            return
        found = follow(client, name, home, events_as_json=as_json, timeout_seconds=timeout)
    if not as_json:
        finish(found, home, as_json=False)
    elif found.run.state != "succeeded":
        raise typer.Exit(FAILED)


def advice_on_unknown_run(home: Path) -> AbstractContextManager[None]:
    """Says of a run that is not there which command lists those that are."""
    return advice(NotFoundError, text=f"`{command('runs', home)}` lists the runs")


def _print_log(client: TrainerClient, name: str) -> None:
    try:
        text = client.read_run_file(name, "log.txt", timeout_seconds=_LOG_SECONDS).decode(errors="replace")
    except NotFoundError:
        text = ""
    if text:
        print_line(harmless(text.rstrip("\n")))
    else:
        sys.stderr.write(f"{name} has printed nothing yet\n")
