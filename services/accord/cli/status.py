"""`accord status`."""

from __future__ import annotations

import sys

import typer

from accord.cli.connect import command
from accord.cli.options import DEFAULT_HOME, Home, Json
from accord.cli.output import print_json, print_table, seconds_text, size_text


def status(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Shows how each service is: health, address, process, memory, log.

    Exit code 0 where all four serve, else 1.

    \b
    Example:
        accord status
        accord status --json
    """
    from accord.workspace import Workspace

    workspace = Workspace(home)
    found = workspace.status()
    runs = workspace.running_runs()
    serving = all(service.health == "serving" for service in found)
    if as_json:
        print_json({"home": workspace.home, "base_model": workspace.base_model, "serving": serving, "services": found, "running_runs": runs})
    else:
        rows = [
            (
                service.name, service.health, service.address, service.pid or "", size_text(service.memory_bytes) if service.pid else "",
                seconds_text(service.uptime_seconds) if service.pid else "", service.log,
            )
            for service in found
        ]  # fmt: skip
        print_table(("service", "health", "address", "pid>", "memory>", "up for>", "log"), rows, title=f"{workspace.home}")
        for service in found:
            if service.note:
                sys.stderr.write(f"{service.name}: {service.note}\n")
        if runs:
            sys.stderr.write(f"runs that go on: {', '.join(runs)}\n")
        if not serving:
            sys.stderr.write(f"{command('up', home)} starts what does not run\n")
    if not serving:
        raise typer.Exit(1)
