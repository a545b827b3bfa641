"""Options that several commands have, each with one meaning everywhere.

What does not belong here: options of one command.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_HOME = Path(".accord")
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(\d{1,5})")


def check_address(value: str | None) -> str | None:
    """The address itself, if it is ``host:port`` with a port from 1 to 65535, ``dns:///host:port`` or ``unix:/path``."""
    if value is None or value.startswith("unix:/"):
        return value
    match = _HOST_PORT.fullmatch(value.removeprefix("dns:///"))
    if match is None:
        raise typer.BadParameter(f"{value!r} is not host:port, for example 127.0.0.1:50051")
    if not 1 <= int(match[2]) <= 65535:
        raise typer.BadParameter(f"port {match[2]} of {value!r} is not in 1..65535")
    return value


def check_timeout(value: float) -> float:
    """The seconds themselves, if they are more than 0."""
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"{value:g} is not a number of seconds above 0")
    return value


Home = Annotated[Path, typer.Option("--home", metavar="FOLDER", help="The workspace.", show_default=True)]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, for scripts; progress stays on stderr.", show_default=False)]
Timeout = Annotated[float, typer.Option("--timeout", metavar="SECONDS", callback=check_timeout, help="Longest wait.")]


def _address(flag: str) -> typer.models.OptionInfo:
    text = f"Address of the {flag} service, instead of the workspace's."
    option: typer.models.OptionInfo = typer.Option(f"--{flag}", metavar="HOST:PORT", callback=check_address, help=text, show_default=False)
    return option


PolicyAddress = Annotated[str | None, _address("policy")]
RewardAddress = Annotated[str | None, _address("reward")]
FeedbackAddress = Annotated[str | None, _address("feedback")]
TrainerAddress = Annotated[str | None, _address("trainer")]
