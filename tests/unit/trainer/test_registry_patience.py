"""A database that is away or silent: how long the registry waits for it, what the trainer says at its start, and what its health says later."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql
import yaml

from accord.errors import UnavailableError
from accord.trainer import registry
from accord.trainer.__main__ import TrainerComponent
from accord.trainer.config import TrainerConfig
from accord.trainer.registry import Registry, open_engine

POSTGRES = "postgresql+psycopg://accord:not-a-secret@127.0.0.1:1/runs"


def connect_args(url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the engine of a URL would be made with."""
    seen: list[dict[str, Any]] = []

    def record(url: str, **values: Any) -> sql.Engine:
        seen.append(values["connect_args"])
        return sql.create_mock_engine("sqlite://", lambda *_: None)  # type: ignore[return-value]

    monkeypatch.setattr(registry.sql, "create_engine", record)
    open_engine(url)
    return seen[0]


def test_a_server_that_has_gone_is_waited_for_so_long_and_the_url_may_say_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.event, "listens_for", lambda *_: lambda function: function)
    given = connect_args(POSTGRES, monkeypatch)
    assert (given["connect_timeout"], given["keepalives"], given["tcp_user_timeout"]) == (10, 1, 30_000)
    assert given["keepalives_idle"] + given["keepalives_interval"] * given["keepalives_count"] <= 30
    own = connect_args(f"{POSTGRES}?connect_timeout=60&keepalives=0", monkeypatch)
    assert own == {name: value for name, value in given.items() if name not in ("connect_timeout", "keepalives")}
    for other in ("sqlite://", "postgresql+pg8000://accord@127.0.0.1/runs"):
        assert connect_args(other, monkeypatch) == {}


def test_a_database_that_is_away_at_the_start_is_one_sentence_without_its_password() -> None:
    with pytest.raises(UnavailableError) as caught:
        Registry(POSTGRES)
    assert caught.value.message.startswith("the registry's database postgresql+psycopg://127.0.0.1:1/runs cannot be used: ")
    assert "refused" in caught.value.message
    assert "\n" not in caught.value.message
    assert "not-a-secret" not in caught.value.message


def test_the_process_says_it_in_one_line(tmp_path: Path) -> None:
    config = tmp_path / "trainer.yaml"
    config.write_text(yaml.safe_dump({"runs": str(tmp_path / "runs"), "artefacts": str(tmp_path / "artefacts"), "database": POSTGRES}))
    done = subprocess.run([sys.executable, "-m", "accord.trainer", str(config)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the registry's database postgresql+psycopg://127.0.0.1:1/runs cannot be used: ")


async def test_health_says_that_a_look_at_the_runs_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen database answers nothing and raises nothing."""
    config = TrainerConfig(runs=str(tmp_path / "runs"), database=f"sqlite:///{tmp_path}/registry.sqlite", artefacts=str(tmp_path / "artefacts"))
    now = [1000.0]
    component = TrainerComponent(config, clock=lambda: now[0])
    hanging, go_on, looked = threading.Event(), threading.Event(), threading.Event()

    def hang() -> None:
        hanging.set()
        go_on.wait(30)

    def look() -> None:
        looked.set()

    monkeypatch.setattr(component._supervisor, "tick", hang)
    watch = asyncio.create_task(component._watch())
    try:
        assert await asyncio.to_thread(hanging.wait, 10)
        now[0] += 120.0
        assert component.fault() is None
        now[0] += 1.0
        assert component.fault() == (
            "runs cannot be looked after: the look at them that began 121 s ago waits for the database, the folder of runs or the cluster"
        )
        monkeypatch.setattr(component._supervisor, "tick", look)
        go_on.set()
        assert await asyncio.to_thread(looked.wait, 10)
        assert component.fault() is None
    finally:
        go_on.set()
        watch.cancel()
        await component.close()
