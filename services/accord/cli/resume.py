"""`accord resume`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from accord.cli.connect import command, reach
from accord.cli.following import follow, run_name
from accord.cli.options import DEFAULT_HOME, Home, Json, TrainerAddress
from accord.cli.output import print_json, print_line
from accord.cli.train import finish
from accord.cli.watch import RunName, advice_on_unknown_run


def resume(
    run: RunName,
    processes: Annotated[
        int | None,
        typer.Option("--processes", metavar="N", min=1, max=1024, help="As many processes from here on; equal to rounding, not bits."),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait; the run goes on by itself.")] = False,
    trainer: TrainerAddress = None,
    home: Home = DEFAULT_HOME,
    timeout: Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", min=1, help="Longest wait; the run goes on.")] = None,
    as_json: Json = False,
) -> None:
    """Takes up a failed or cancelled run from its last whole checkpoint.

    \b
    Example:
        accord resume runs/sft-sft-1a2b3c4d5e
        accord resume runs/sft-sft-1a2b3c4d5e --processes 1   # it had 2, and one machine is gone
    """
    from accord.client.trainer import TrainerClient

    name = run_name(run)
    with reach("trainer", home, trainer, 30.0) as target, TrainerClient(target) as client, advice_on_unknown_run(home):
        found = client.resume_run(name, processes=processes)
        if not detach:
            finish(follow(client, name, home, timeout_seconds=timeout), home, as_json=as_json)
            return
    if as_json:
        print_json(found)
    else:
        print_line(f"{found.name} is {found.state}")
        sys.stderr.write(f"next: {command(f'watch {found.name}', home)}\n")
