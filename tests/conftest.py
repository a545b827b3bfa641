"""What all tests share: one compute thread a process, reproducible property tests, importable helpers, and golden files."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.sharing import shared

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; servers that tests start inherit it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; commands that tests start and interrupt would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("accord", deadline=None, derandomize=True, database=None)
settings.load_profile("accord")
GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write what the golden tests see into tests/golden instead of comparing")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if share := os.environ.get("ACCORD_TEST_SHARE", ""):
        terminalreporter.write_line(f"share {share} of the files ran (ACCORD_TEST_SHARE); the tests of the others DID NOT RUN")


@pytest.hookimpl(trylast=True)  # after the choice of tests by their marks: every third file of those that are chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """End-to-end files first: processes that share the files (`make test`) then end together, because the last files are short.

    ACCORD_TEST_TIMEOUT_FACTOR multiplies the time that each test may take, for slow machines and those that others work on too (.ci/run).
    ACCORD_TEST_SHARE leaves out what is not of a share of the files (`tests.sharing`).
    """
    items.sort(key=lambda item: "e2e" not in item.path.parts)
    if share := os.environ.get("ACCORD_TEST_SHARE", ""):
        kept = set(shared(list(dict.fromkeys(item.path for item in items)), share))
        config.hook.pytest_deselected(items=[item for item in items if item.path not in kept])
        items[:] = [item for item in items if item.path in kept]
    factor = float(os.environ.get("ACCORD_TEST_TIMEOUT_FACTOR", "1"))
    for item in items if factor != 1 else ():
        own = item.get_closest_marker("timeout")
        item.add_marker(pytest.mark.timeout(factor * (own.args[0] if own else float(config.getini("timeout")))), append=False)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], str]:
    """A function of (file name, text now) that returns the text to compare with: the stored one, or with --update-golden this one, stored."""

    def stored(name: str, now: str) -> str:
        path = GOLDEN / "files" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(now, encoding="utf-8")
        assert path.exists(), f"{path.name} is not there: run pytest --update-golden and look at what it writes"
        return path.read_text(encoding="utf-8")

    return stored
