"""The application: its commands, and how errors end it.

Exit codes: 0 done; 1 it was tried and did not work; 2 what was asked for is wrong (command line, configuration, names, or a state that
another command must change first); 130 interrupted. What does not belong here: what a command does (a module each, beside this file).
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import typer
from typer.core import TyperGroup

from accord.cli.connect import with_connection
from accord.cli.failures import exit_code_of, line_of

COMMANDS: tuple[str, ...] = (
    "up", "status", "down", "doctor",
    "generate", "score", "compare", "label", "judges",
    "train", "runs", "watch", "cancel", "resume", "lineage", "export",
    "study", "report", "version",
)  # fmt: skip
"""Each is a function of the module of its name, in the order of the help."""
GROUPS: tuple[str, ...] = ("data", "labels")
"""Each is a module with a function of its name, which has the help, and a table of its commands."""
_INTERRUPTED = 130


class OneLineErrors(TyperGroup):
    """A group of commands whose errors are one line on stderr, `error: what; do this`, and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command line; ends the process unless `standalone_mode` is False, as `TyperGroup.main`."""
        run = partial(super().main, args, prog_name, complete_var, False, windows_expand_args, **extra)
        if not standalone_mode:
            return run()
        try:
            code = run()
        except Exception as error:
            line = line_of(error)
            if line is None:
                raise
            sys.stderr.write(line + "\n")
            code = exit_code_of(error)
        except KeyboardInterrupt:
            code = _INTERRUPTED
        sys.exit(code if isinstance(code, int) else 0)


def build_app() -> typer.Typer:
    """The application with every command of the table whose module is there."""
    app = typer.Typer(
        cls=OneLineErrors,
        rich_markup_mode="rich",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True, help=_help_of(_accord))(_accord)
    for name in COMMANDS:
        path = f"accord.cli.{name}"
        if importlib.util.find_spec(path) is not None:
            command = getattr(importlib.import_module(path), name)
            app.command(name, help=_help_of(command))(with_connection(command))
    for name in GROUPS:
        app.add_typer(_build_group(name), name=name)
    return app


def _build_group(name: str) -> typer.Typer:
    module = importlib.import_module(f"accord.cli.{name}")
    group = typer.Typer(help=_help_of(getattr(module, name)), rich_markup_mode="rich", no_args_is_help=True)
    for command, file, function in module.COMMANDS:
        run = getattr(importlib.import_module(f"accord.cli.{file}"), function)
        group.command(command, help=_help_of(run))(with_connection(run))
    return group


def _help_of(command: Callable[..., object]) -> str:
    """The docstring with each paragraph in one line, so that it folds where the terminal does; examples (\\b) keep their lines."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(part if part.startswith("\b") else " ".join(part.split()) for part in paragraphs)


def _accord(context: typer.Context) -> None:
    """Aligns language models with preferences, human or AI: services on this machine, labels, training runs, the study.

    \b
    Example: the whole loop with the embedded model, in minutes
        accord doctor
        accord study --recipe quick --home demo
    \b
    Example: the services by themselves
        accord up
        accord generate "Name three rivers."
        accord down

    Exit codes: 0 done, 1 it did not work, 2 what was asked for is wrong, 130 interrupted.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
