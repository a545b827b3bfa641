"""Judges in the configuration: names, rules, prices, and keys that no message gives away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from accord.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from accord.feedback.config import FeedbackConfig
from accord.feedback.roster import make_roster
from accord.rpc.config import load_config, parse_config
from accord.rpc.secrets import Secret, read_secret

NEEDED = {"policy": "127.0.0.1:1", "ledger": "l.sqlite", "jobs": "jobs"}
SECRET = "sk-very-secret-0123"
BIG: dict[str, Any] = {"kind": "openai", "base_url": "https://judge.example/v1", "model": "m", "context_tokens": 8192}
PRICES = {"m": {"prompt_per_million": 0.15, "completion_per_million": 0.6}}
POLICY = {"kind": "policy", "address": "127.0.0.1:2"}


def config(**values: Any) -> FeedbackConfig:
    return parse_config({**NEEDED, **values}, FeedbackConfig, source="file")


def test_policy_alone_is_the_judge_named_default() -> None:
    plain = config(policy_balancing="prefix")
    (judge,) = plain.named_judges.values()
    assert (list(plain.named_judges), plain.default_judge_name) == (["default"], "default")
    assert (judge.kind, judge.address, judge.balancing) == ("policy", "127.0.0.1:1", "prefix")  # type: ignore[union-attr]


def test_named_judges_stand_beside_policy_or_without_it() -> None:
    both = config(judges={"big": BIG}, prices=PRICES, default_judge_name="big")
    assert sorted(both.named_judges) == ["big", "default"]
    alone = parse_config({"ledger": "l", "jobs": "j", "judges": {"small": POLICY}, "default_judge_name": "small"}, FeedbackConfig, source="file")
    assert list(alone.named_judges) == ["small"]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"judges": {"default": POLICY}}, "policy and judges.default are both given"),
        ({"default_judge_name": "big"}, "default_judge_name: 'big' is no judge; there are default"),
        ({"judges": {"Big One": POLICY}}, "judges"),
        ({"judges": {"x": {"kind": "oracle"}}}, "judges.x"),
        ({"judges": {"x": {"kind": "policy", "adress": "h:1"}}}, "did you mean address"),
        ({"judges": {"x": {"kind": "ensemble", "members": ["default"]}}}, "judges.x.ensemble.members"),
        ({"judges": {"x": {"kind": "ensemble", "members": ["default", "default"]}}}, "named twice"),
        ({"judges": {"x": {"kind": "ensemble", "members": ["default", "y"]}}}, "judges.x asks 'y'; there are default, x"),
        ({"judges": {"x": {"kind": "escalation", "first": "default", "then": "x", "threshold": 0.1}}}, "judges.x asks itself"),
        (
            {
                "judges": {
                    "x": {"kind": "ensemble", "members": ["default", "y"]},
                    "y": {"kind": "escalation", "first": "x", "then": "default", "threshold": 0.1},
                }
            },
            "judges.x asks itself",
        ),
        ({"judges": {"x": {"kind": "escalation", "first": "default", "then": "default", "threshold": 0.6}}}, "threshold"),
        ({"judges": {"big": BIG}}, "judges.big: prices has no entry 'm'; give its price, 0 where it costs nothing"),
        ({"judges": {"big": {**BIG, "price": "n"}}, "prices": PRICES}, "prices has no entry 'n'"),
        ({"judges": {"x": {**POLICY, "price": "n"}}, "prices": PRICES}, "judges.x: prices has no entry 'n'"),
        ({"policy_price": "n", "prices": PRICES}, "policy_price: prices has no entry 'n'"),
        ({"judges": {"big": {**BIG, "context_tokens": 0}}, "prices": PRICES}, "context_tokens"),
        ({"judges": {"big": {**BIG, "base_url": "judge.example"}}, "prices": PRICES}, "http"),
        ({"judges": {"big": {**BIG, "body": {"messages": []}}}, "prices": PRICES}, "messages cannot be set here"),
        ({"judges": {"big": {**BIG, "api_key_env": "A", "api_key_file": "/b"}}, "prices": PRICES}, "at most one"),
        ({"prices": {"m": {"prompt_per_million": -1, "completion_per_million": 0}}}, "prompt_per_million"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        config(**values)


def test_a_policy_is_billed_where_it_names_a_price_and_costs_nothing_elsewhere() -> None:
    judges = config(policy_price="m", judges={"free": POLICY, "dear": {**POLICY, "price": "m"}}, prices=PRICES).named_judges
    assert {name: judge.price for name, judge in judges.items()} == {"default": "m", "free": None, "dear": "m"}  # type: ignore[union-attr]


def test_a_judge_is_needed() -> None:
    with pytest.raises(InvalidArgumentError, match="policy: is required"):
        parse_config({"ledger": "l", "jobs": "j"}, FeedbackConfig, source="file")


@pytest.mark.parametrize(
    "change",
    [
        {"api_key": SECRET},
        {"api_key_env": SECRET},
        {"base_url": f"https://user:{SECRET}@judge.example/v1"},
        {"base_url": f"https://judge.example/v1?key={SECRET}"},
        {"proxy": f"http://user:{SECRET}@proxy:3128"},
    ],
)
def test_a_key_in_the_wrong_place_is_refused_and_not_quoted(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "feedback.yaml"
    path.write_text(json.dumps({**NEEDED, "judges": {"big": BIG | change}, "prices": PRICES}))
    with pytest.raises(InvalidArgumentError) as caught:
        load_config(path, FeedbackConfig)
    assert SECRET not in str(caught.value)
    assert "judges.big" in str(caught.value)


def test_a_secret_shows_itself_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text(f"{SECRET}\n")
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    for secret in (read_secret("JUDGE_KEY", None, "x"), read_secret(None, file, "x")):
        assert SECRET not in f"{secret} {secret!r} {[secret]}"
        assert secret.bearer() == {"Authorization": f"Bearer {SECRET}"}
        assert secret.blotted(f"no {SECRET}!") == "no ***!"
    assert (bool(Secret("")), Secret("").bearer(), Secret("").blotted("words")) == (False, {}, "words")


@pytest.mark.parametrize("content", [None, "", " \n", f"{SECRET}\nmore", "schlüssel"])
async def test_a_key_that_is_not_one_stops_the_server_and_is_not_quoted(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
    given = config(judges={"big": {**BIG, "api_key_file": str(file)}}, prices=PRICES)
    with pytest.raises(FailedPreconditionError) as caught:
        make_roster(given)
    assert caught.value.field == "judges.big.api_key_file"
    assert not content or not content.strip() or content.strip() not in str(caught.value)


async def test_certificates_that_are_not_there_stop_the_server(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    for file in ("none.pem", "empty.pem"):
        with pytest.raises(FailedPreconditionError, match="cannot be read") as caught:
            make_roster(config(judges={"big": {**BIG, "ca_file": str(tmp_path / file)}}, prices=PRICES))
        assert caught.value.field == "judges.big.ca_file"


async def test_what_a_judge_can_do_is_known_before_it_is_asked() -> None:
    judges = {
        "big": BIG,
        "mixed": {"kind": "ensemble", "members": ["default", "big"]},
        "policies": {"kind": "escalation", "first": "default", "then": "other", "threshold": 0.1},
        "other": POLICY,
    }
    roster = make_roster(config(judges=judges, prices=PRICES))
    assert {name: roster.default_kind(name) for name in ("default", "big", "mixed", "policies")} == {
        "default": "likelihood", "big": "verdict", "mixed": "verdict", "policies": "likelihood",
    }  # fmt: skip
    for name in ("big", "mixed"):
        with pytest.raises(FailedPreconditionError, match="does not score given texts; it can do verdict, rating") as caught:
            roster.check(name, "likelihood", "")
        assert caught.value.field == "judge.kind"
        roster.check(name, "rating", "")
    roster.check("policies", "likelihood", "")
    with pytest.raises(NotFoundError):
        roster.name_of("nobody")
    await roster.close()
