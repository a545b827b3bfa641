"""Makes `tests.contract...` importable however pytest was started, and gives each service one shared server."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.contract.echo_proto import EchoStub
from tests.contract.entries import ECHO
from tests.contract.harness import ServerProcess, ServiceEntry


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[ServiceEntry], ServerProcess]]:
    """A function that gives the running server of an entry, started once; for tests that leave it as it was."""
    yield from _shared(tmp_path_factory, reflection=True)


@pytest.fixture(scope="module")
def limited_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[ServiceEntry], ServerProcess]]:
    """As `shared_server`, for two calls at once, with half a second for a call that brings no deadline; the last test that uses it ends it."""
    yield from _shared(tmp_path_factory, default_deadline_seconds=0.5, max_concurrent_calls=2, drain_seconds=60)


@pytest.fixture(scope="module")
def fresh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[ServiceEntry], ServerProcess]]:
    """As `shared_server`, with a queue of its own that is soon full; it need not be SERVING yet, and the last test that uses it ends it."""
    yield from _shared(tmp_path_factory, wait="announced", full=True, drain_seconds=60)


def _shared(
    tmp_path_factory: pytest.TempPathFactory, *, wait: str = "serving", full: bool = False, **server: Any
) -> Iterator[Callable[[ServiceEntry], ServerProcess]]:
    running: dict[str, ServerProcess] = {}

    def get(entry: ServiceEntry) -> ServerProcess:
        if entry.name not in running:
            folder = tmp_path_factory.mktemp(entry.name)
            config = entry.full_config if full and entry.full_config is not None else entry.config
            running[entry.name] = ServerProcess(entry.module, {**config(folder), "server": server}, folder, wait=wait).__enter__()
        return running[entry.name]

    yield get
    for process in running.values():
        process.kill()


@pytest.fixture(scope="module")
def echo(shared_server: Callable[[ServiceEntry], ServerProcess]) -> ServerProcess:
    """The shared echo server."""
    return shared_server(ECHO)


@pytest.fixture
def stub(echo: ServerProcess) -> Iterator[EchoStub]:
    """A plain stub of the shared echo server: RpcErrors, no retries."""
    with echo.channel() as channel:
        yield EchoStub(channel)
