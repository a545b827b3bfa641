"""A workspace whose services are fakes in processes of their own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from accord.workspace import Workspace
from accord.workspace.layout import SERVICE_NAMES

FAKE = Path(__file__).with_name("fake_service.py")
COMMANDS = {name: (sys.executable, str(FAKE), name) for name in SERVICE_NAMES}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a space and a percent sign in its name, and with a tiny "model" beside it."""
    (tmp_path / "model").mkdir()
    (tmp_path / "other model").mkdir()
    return tmp_path / "my 100% work"


@pytest.fixture
def workspace(home: Path) -> Iterator[Workspace]:
    """Stopped at the end, whatever the test did."""
    found = Workspace(home, commands=COMMANDS)
    yield found
    found.down(timeout_seconds=5)


@pytest.fixture
def behave(home: Path) -> Callable[[Mapping[str, str]], None]:
    """Says how the services behave from their next start on."""

    def say(behaviours: Mapping[str, str]) -> None:
        home.mkdir(exist_ok=True)
        (home / "behaviour.json").write_text(json.dumps(behaviours))

    return say


@pytest.fixture
def starts(home: Path) -> Callable[[], list[str]]:
    """Names of the services in the order of their starts so far."""

    def read() -> list[str]:
        path = home / "starts.txt"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    return read
