"""Where a command finds the services: an address, an endpoints file, the workspace; and which options for it every command has."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.cli.conftest import Accord
from tests.unit.cli.fakes import FakePolicy, FakeReward, add_policy, add_reward, serving

from accord.cli.app import build_app
from accord.cli.connect import Connection, command, local_command, with_connection

ADDRESSES = {"policy", "reward", "feedback", "trainer"}
REWARD_MODEL = "adapters/x/versions/1"


@pytest.fixture
def policy() -> Iterator[str]:
    with serving(add_policy(FakePolicy())) as address:
        yield address


@pytest.fixture
def reward() -> Iterator[str]:
    with serving(add_reward(FakeReward())) as address:
        yield address


def test_every_command_with_an_address_can_be_told_of_tls_and_of_a_file() -> None:
    app = build_app()
    commands = [
        *app.registered_commands,
        *(each for group in app.registered_groups if group.typer_instance for each in group.typer_instance.registered_commands),
    ]
    taken = [set(inspect.signature(each.callback).parameters) for each in commands if each.callback is not None]
    calling = [parameters for parameters in taken if ADDRESSES & parameters]
    assert len(calling) >= 10
    for parameters in calling:
        assert parameters >= {"endpoints", "tls_ca", "tls_cert", "tls_key", "tls_server_name"}


def test_a_command_that_calls_nobody_is_left_as_it_is() -> None:
    def report(home: Path) -> None: ...

    assert with_connection(report) is report


def test_addresses_come_from_the_file_unless_one_is_given(accord: Accord, policy: str, reward: str, tmp_path: Path) -> None:
    file = tmp_path / "endpoints.yaml"
    file.write_text(f"policy: {policy}\nreward: 127.0.0.1:1\n")
    assert accord("generate", "hi", "--endpoints", str(file)).stdout == "base <hi> #0\n"
    score = ("score", "hi", "four", "--reward-model", REWARD_MODEL, "--json", "--timeout", "3")
    assert accord(*score, "--endpoints", str(file)).exit_code == 1
    assert '"score": 4.0' in accord(*score, "--endpoints", str(file), "--reward", reward).stdout


def test_the_environment_names_the_file(accord: Accord, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "endpoints.yaml"
    file.write_text(f"policy: {policy}\n")
    monkeypatch.setenv("ACCORD_ENDPOINTS", str(file))
    assert accord("generate", "hi").stdout == "base <hi> #0\n"


@pytest.mark.parametrize(
    ("text", "arguments", "says"),
    [
        ("policy: 127.0.0.1:1\n", ("runs",), "has no address of the trainer service; add it, or give --trainer"),
        ("polcy: 127.0.0.1:1\n", ("generate", "x"), "polcy: unknown key; did you mean policy?"),
        ("shared_folder: labels\n", ("runs",), "shared_folder"),
        ("trainer: 127.0.0.1:1\n", ("runs", "--tls-cert", "cert.pem"), "--tls-cert and --tls-key are given together or not at all"),
        ("trainer: 127.0.0.1:1\n", ("runs", "--tls-ca", "missing.pem"), "missing.pem cannot be read"),
    ],
)
def test_a_file_or_a_certificate_that_is_no_use_is_refused_by_name(
    accord: Accord, tmp_path: Path, text: str, arguments: tuple[str, ...], says: str
) -> None:
    file = tmp_path / "endpoints.yaml"
    file.write_text(text)
    result = accord(*arguments, "--endpoints", str(file))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert says in result.stderr


def test_the_next_command_names_the_file(tmp_path: Path) -> None:
    seen: list[str] = []

    def call(trainer: str | None) -> None:
        seen.extend([command("watch runs/x", tmp_path), local_command("lineage", tmp_path)])

    wrapped = with_connection(call)
    nothing = {name: None for name in inspect.signature(Connection).parameters}
    wrapped(trainer=None, **nothing)
    wrapped(trainer=None, **{**nothing, "endpoints": Path("a file.yaml")})
    local = f"accord lineage --home {tmp_path}"
    assert seen == [f"accord watch runs/x --home {tmp_path}", local, "accord watch runs/x --endpoints 'a file.yaml'", local]
