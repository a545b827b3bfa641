"""`accord up`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from accord.cli.connect import command
from accord.cli.options import DEFAULT_HOME, Home, Json, Timeout
from accord.cli.output import print_json, print_table
from accord.cli.progress import ProgressBar

_PASSING = ("embedded model:", "waiting for")


def up(
    base_model: Annotated[
        str | None,
        typer.Option("--base-model", metavar="NAME", help="embedded, a folder or a hub id; default: what the workspace had, else embedded."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=1024, help="Threads of each service and run; default: what it had, else the cores.")
    ] = None,
    home: Home = DEFAULT_HOME,
    timeout: Timeout = 300.0,
    as_json: Json = False,
) -> None:
    """Starts the services and waits until all four serve.

    Does nothing where they do. They go on when this command has ended, and come back at the same addresses. The first start with the embedded model
    converts it, which takes a minute or two.

    \b
    Example:
        accord up
        accord up --home work --base-model ~/models/llama --threads 8
    """
    from accord.workspace import Workspace

    workspace = Workspace(home)
    with ProgressBar("starting services", 4) as bar:
        serving = 0

        def report(text: str) -> None:
            nonlocal serving
            if text.startswith(_PASSING):
                bar.set(text=text)
                return
            serving += " serves at " in text
            bar.set(serving, text="")
            bar.note(text)

        model = base_model or workspace.base_model or "embedded"
        services = workspace.up(base_model=model, threads=threads, report=report, timeout_seconds=timeout)
    if as_json:
        print_json({"home": workspace.home, "base_model": workspace.base_model, "services": services})
        return
    print_table(
        ("service", "address"), [(name, getattr(services, name)) for name in ("policy", "reward", "feedback", "trainer")],
        title=f"{workspace.base_model} in {workspace.home}",
    )  # fmt: skip
    sys.stderr.write(f"next: {command('generate ' + repr('Name three rivers.'), home)}, or stop with {command('down', home)}\n")
