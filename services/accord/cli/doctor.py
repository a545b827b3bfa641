"""`accord doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from accord.cli.options import DEFAULT_HOME, Home, Json
from accord.cli.output import print_json, print_line, print_table


def doctor(
    base_model: Annotated[
        str | None,
        typer.Option("--base-model", metavar="NAME", help="The base model that will be used; default: what the workspace had, else embedded."),
    ] = None,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Says what may keep Accord from working here.

    Looks before anything starts, and changes nothing. Exit code 1 where there is a problem; a warning is none.

    \b
    Example:
        accord doctor
        accord doctor --home work --json
    """
    from accord.workspace.doctor import check

    found = check(home, base_model=base_model or "")
    problems = [one for one in found if one.state == "problem"]
    if as_json:
        print_json({"problems": len(problems), "checks": found})
    else:
        print_table(("check", "state", "finding"), [(one.name, one.state, one.finding) for one in found])
        for one in found:
            if one.advice:
                print_line(f"{one.state}: {one.name}: {one.advice}")
        print_line("nothing stands in the way" if not problems else f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'}")
    if problems:
        raise typer.Exit(1)
