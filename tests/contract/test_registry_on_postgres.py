"""The registry of runs on a real PostgreSQL, where the programs of one are at hand: what it promises on SQLite holds there, too."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sql

from accord.errors import AlreadyExistsError, NotFoundError, UnavailableError
from accord.runspec import RunSpec, parse_spec
from accord.trainer.registry import Registry, open_engine

PROGRAMS = next((path for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True) if (path / "initdb").exists()), None)
pytestmark = pytest.mark.skipif(
    PROGRAMS is None and shutil.which("initdb") is None, reason="no PostgreSQL is at hand: the registry was tried on SQLite alone"
)


class Database:
    """A PostgreSQL of one's own on the loopback, as the user postgres where root asks for it, which it refuses to be."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="accord-postgres-"))
        self._programs = PROGRAMS or Path(str(shutil.which("initdb"))).parent
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self.folder, self._user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._run("initdb", "--pgdata", "data", "--username", "accord", "--auth", "trust", "--no-sync")
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://accord@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self._run("pg_ctl", "start", "--pgdata", "data", "--log", "log", "--wait", "--options", f"-p {self.port} -h 127.0.0.1 -k {self.folder} -F")

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "--pgdata", "data", "--mode", "immediate")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run([str(self._programs / program), *arguments], cwd=self.folder, user=self._user, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, timeout=60, check=False, env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"})  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    made = Database()
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture
def registry(database: Database) -> Iterator[Registry]:
    found = Registry(database.url)
    yield found
    found.close()


def spec(seed: int = 1) -> RunSpec:
    return parse_spec({"adapter": "a", "steps": 3, "seed": seed, "sft": {"data": {"uri": "sample:conversation"}}})


def test_a_request_id_is_one_run_and_another_specification_is_refused(registry: Registry) -> None:
    first, new = registry.create("runs/one", "request-one", spec(), "/runs/one")
    again, made = registry.create("runs/one", "request-one", spec(), "/runs/one")
    assert (new, made) == (True, False)
    assert again == first
    assert first.spec == spec()
    with pytest.raises(AlreadyExistsError, match="used with another specification"):
        registry.create("runs/one", "request-one", spec(seed=2), "/runs/one")
    with pytest.raises(NotFoundError):
        registry.get("runs/none")


def test_runs_are_listed_newest_first_by_state_and_page(registry: Registry) -> None:
    made = [registry.create(f"runs/page-{index}", f"page-{index}", spec(), f"/runs/page-{index}")[0] for index in range(4)]
    failed = registry.update(made[2], state="FAILED", message="the disk is full", end_time=time.time(), exit_code=1)
    assert registry.get("runs/page-2") == failed
    assert [run.name for run in registry.find(["FAILED"])] == ["runs/page-2"]
    assert [run.name for run in registry.find(limit=2)] == ["runs/page-3", "runs/page-2"]
    assert [run.name for run in registry.find(before=made[2].sequence, limit=1)] == ["runs/page-1"]


def test_what_a_pod_said_is_kept_whatever_it_was(registry: Registry) -> None:
    """PostgreSQL takes no NUL in a text, SQLite does."""
    run, _ = registry.create("runs/noisy", "noisy", spec(), "/runs/noisy")
    updated = registry.update(run, message="its last words: \x00\x01 Grüße 🦊")
    assert updated.message == "its last words: \N{REPLACEMENT CHARACTER}\x01 Grüße 🦊"
    assert registry.get("runs/noisy") == updated


def test_a_registry_goes_on_after_its_database_was_started_again(database: Database, registry: Registry) -> None:
    registry.create("runs/kept", "kept", spec(), "/runs/kept")
    database.stop()
    with pytest.raises(Exception, match="connection"):
        registry.get("runs/kept")
    database.start()
    assert registry.get("runs/kept").name == "runs/kept"


def test_a_table_that_somebody_has_locked_is_not_waited_for_without_end(
    database: Database, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.create("runs/locked", "locked", spec(), "/runs/locked")
    with psycopg.connect(database.url.replace("+psycopg", "")) as other:
        other.execute("lock table runs, alembic_version in access exclusive mode")
        monkeypatch.setattr("accord.trainer.registry._STATEMENT_MILLISECONDS", 50)
        with pytest.raises(sql.exc.OperationalError, match="canceling statement due to statement timeout"):
            registry.get("runs/locked")
        with pytest.raises(UnavailableError, match="canceling statement due to statement timeout"):
            Registry(database.url)
    assert registry.get("runs/locked").name == "runs/locked"


def test_a_statement_timeout_of_the_url_is_kept(database: Database) -> None:
    for query, expected in (("", "30s"), ("?options=-c%20statement_timeout%3D7s", "7s"), ("?options=-c%20search_path%3Dpublic", "30s")):
        engine = open_engine(database.url + query)
        with engine.connect() as connection:
            assert connection.exec_driver_sql("show statement_timeout").scalar() == expected
        engine.dispose()


def test_a_second_start_finds_the_schema_and_what_is_in_it(database: Database, registry: Registry) -> None:
    registry.create("runs/found", "found", spec(), "/runs/found")
    second = Registry(database.url)
    assert second.get("runs/found") == registry.get("runs/found")
    second.close()
    with psycopg.connect(database.url.replace("+psycopg", "")) as connection:
        assert connection.execute("select count(*) from alembic_version").fetchone() == (1,)
