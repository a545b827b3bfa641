"""The configuration of a feedback server, and what its process may import."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from accord.errors import InvalidArgumentError
from accord.feedback.config import WATCH_METHOD, FeedbackConfig
from accord.rpc.config import parse_config

NEEDED = {"policy": "127.0.0.1:1", "ledger": "l.sqlite", "jobs": "jobs"}


def test_defaults_are_the_honest_ones() -> None:
    config = FeedbackConfig(**NEEDED)  # type: ignore[arg-type]
    assert config.default_judge == "likelihood"
    assert config.server.long_lived_methods == (WATCH_METHOD,)


def test_watching_has_no_deadline_whatever_the_file_says_of_others() -> None:
    other = "/some.Service/Other"
    for given, expected in (([], (WATCH_METHOD,)), ([other], (other, WATCH_METHOD)), ([WATCH_METHOD], (WATCH_METHOD,))):
        config = parse_config({**NEEDED, "server": {"long_lived_methods": given}}, FeedbackConfig, source="file")
        assert config.server.long_lived_methods == expected


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"default_judge": "verdicts"}, "default_judge"),
        ({"concurrency": 0}, "concurrency"),
        ({"batch_pairs": 500}, "batch_pairs"),
        ({"max_queue_pair": 1}, "did you mean max_queue_pairs"),
        ({"judge_timeout_seconds": 0}, "judge_timeout_seconds"),
        ({"ledger": ""}, "ledger"),
        ({"batch_pairs": 100, "max_text_bytes": 65_536}, "lower one of them"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        parse_config({**NEEDED, **values}, FeedbackConfig, source="file")


@pytest.mark.parametrize("name", NEEDED)
def test_what_is_needed_is_asked_for(name: str) -> None:
    with pytest.raises(ValidationError):
        FeedbackConfig(**{key: value for key, value in NEEDED.items() if key != name})  # type: ignore[arg-type]


def test_the_process_imports_no_torch() -> None:
    code = "import sys, accord.feedback.__main__; print(sorted({'torch', 'transformers', 'peft', 'sqlalchemy', 'datasets'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert found.stdout.strip() == "[]"
