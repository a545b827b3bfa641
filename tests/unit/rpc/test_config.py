"""Configuration files: what is read, and the one clear sentence for each way of getting them wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from accord.errors import InvalidArgumentError
from accord.rpc.config import FrozenModel, ServerConfig, load_config, parse_config


class Cat(FrozenModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(FrozenModel):
    kind: Literal["dog"]
    tricks: tuple[str, ...] = ()


class Keeper(FrozenModel):
    """Every shape that a service's configuration may nest."""

    server: ServerConfig = ServerConfig()
    temperature: float = Field(default=1.0, ge=0, le=2)
    pets: list[Annotated[Cat | Dog, Field(discriminator="kind")]] = Field(default=[])
    rooms: dict[str, Cat] = Field(default={})
    favourite: Cat | None = None


def write(folder: Path, text: str) -> Path:
    path = folder / "keeper.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def message(folder: Path, text: str) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        load_config(write(folder, text), Keeper)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{folder}/keeper.yaml: ")


def test_a_good_file_becomes_a_frozen_model(tmp_path: Path) -> None:
    path = write(tmp_path, "server: {listen: '0.0.0.0:50051', drain_seconds: 5}\npets: [{kind: dog, tricks: [roll]}]\nfavourite: {kind: cat}\n")
    keeper = load_config(path, Keeper)
    assert keeper.server.drain_seconds == 5.0
    assert keeper.pets == [Dog(kind="dog", tricks=("roll",))]
    assert keeper.favourite == Cat(kind="cat", lives=9)
    with pytest.raises(ValidationError):
        keeper.temperature = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty; a mapping of configuration keys is needed"),
        ("# only a comment\n", "is empty; a mapping of configuration keys is needed"),
        ("- a\n- b\n", "holds a list; a mapping of configuration keys is needed"),
        ("just words", "holds a str; a mapping of configuration keys is needed"),
        ("1: one", "the key 1 is a int; keys are strings"),
        ("a: [1, 2\nb: 3\n", "is not valid YAML: line 2, column 2: expected ',' or ']', but got ':'"),
        ("tempreature: 1", "tempreature: unknown key; did you mean temperature?"),
        ("zzz: 1", "zzz: unknown key; allowed are server, temperature, pets, rooms, favourite"),
        ("server: {drain_second: 1}", "server.drain_second: unknown key; did you mean drain_seconds?"),
        ("server: {tls: {cert: a, key: b, clientca: c}}", "server.tls.clientca: unknown key; did you mean client_ca?"),
        ("rooms: {hall: {kind: cat, live: 3}}", "rooms.hall.live: unknown key; did you mean lives?"),
        ("favourite: {kind: cat, livs: 3}", "favourite.livs: unknown key; did you mean lives?"),
        ("temperature: 3", "temperature: input should be less than or equal to 2, got 3"),
        ("temperature: warm", "temperature: input should be a valid number, unable to parse string as a number, got 'warm'"),
        ("rooms: {hall: {lives: 3}}", "rooms.hall.kind: is required and was not given"),
        ("server: {log_level: loud}", "server.log_level: input should be 'debug', 'info', 'warning' or 'error', got 'loud'"),
        (
            "server: {default_deadline_seconds: 50, max_deadline_seconds: 9}",
            "server: default_deadline_seconds is 50, at most max_deadline_seconds (9) is allowed",
        ),
    ],
)
def test_each_mistake_is_one_sentence(tmp_path: Path, text: str, expected: str) -> None:
    assert message(tmp_path, text) == expected


def test_a_typo_in_a_tagged_alternative_suggests_that_alternatives_keys(tmp_path: Path) -> None:
    assert message(tmp_path, "pets: [{kind: dog, trick: [roll]}]").endswith("trick: unknown key; did you mean tricks?")


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"nothing\.yaml: no such file"):
        load_config(tmp_path / "nothing.yaml", Keeper)
    with pytest.raises(InvalidArgumentError, match="cannot be read: Is a directory"):
        load_config(tmp_path, Keeper)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keeper.yaml"
    path.write_bytes(b"temperature: \xff\xfe")
    with pytest.raises(InvalidArgumentError, match="it is not UTF-8 text"):
        load_config(path, Keeper)


def test_all_mistakes_come_at_once_up_to_five_and_the_first_names_the_field(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_config({"temperature": 9, **{f"zz{number}": 1 for number in range(6)}}, Keeper, source="the request")
    assert caught.value.field == "temperature"
    assert str(caught.value).startswith("the request: temperature: input should be")
    assert str(caught.value).endswith("; and 2 more")


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    text = message(tmp_path, f"temperature: {'x' * 500}")
    assert len(text) < 200
    assert text.endswith("...")
