"""`accord down`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from accord.cli.connect import local_command
from accord.cli.options import DEFAULT_HOME, Home, Json, Timeout
from accord.cli.output import print_json, print_line
from accord.cli.progress import ProgressBar


def down(
    stop_runs: Annotated[bool, typer.Option("--stop-runs", help="Have runs checkpoint and stop first; without it they go on.")] = False,
    home: Home = DEFAULT_HOME,
    timeout: Timeout = 60.0,
    as_json: Json = False,
) -> None:
    """Stops the services.

    Only those that `accord up` has started; it is no error where none runs. Each finishes the calls in flight; what has not ended after --timeout
    is killed. Data stays in the workspace.

    \b
    Example:
        accord down
        accord down --stop-runs
    """
    from accord.workspace import Workspace

    workspace = Workspace(home)
    with ProgressBar("stopping services") as bar:
        stopped = workspace.down(timeout_seconds=timeout, stop_runs=stop_runs, report=lambda text: bar.set(text=text))
    runs = workspace.running_runs()
    if as_json:
        print_json({"home": workspace.home, "stopped": stopped, "running_runs": runs})
        return
    print_line(f"stopped {', '.join(stopped)}" if stopped else f"no services ran in {workspace.home}")
    if runs:
        sys.stderr.write(f"runs that go on: {', '.join(runs)}; `{local_command('down --stop-runs', home)}` stops them\n")
