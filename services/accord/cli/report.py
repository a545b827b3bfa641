"""`accord report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from accord.cli.options import Json
from accord.cli.output import print_json, print_line
from accord.cli.progress import ProgressBar


def report(
    home: Annotated[Path, typer.Option("--home", metavar="FOLDER", help="The workspace of a study that has ended.")] = Path("study"),
    as_json: Json = False,
) -> None:
    """Writes report.html again, out of the results.json of a study.

    \b
    Example:
        accord report --home demo
    """
    from accord.study.report import write_report

    with ProgressBar("drawing the report"):
        path = write_report(home)
    if as_json:
        print_json({"report_path": path})
        return
    print_line(str(path))
