"""The application as a person calls it, and services that behave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from accord.cli.app import build_app

Accord = Callable[..., Result]


@pytest.fixture
def accord(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Accord:
    """Calls `accord ARGUMENTS...` in an empty folder; an exception that nobody foresaw is raised."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    app = build_app()

    def call(*arguments: str, input: str | bytes | None = None) -> Result:
        result = CliRunner().invoke(app, list(arguments), input=input, prog_name="accord")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call
