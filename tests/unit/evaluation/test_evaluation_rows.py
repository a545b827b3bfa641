"""Reading rows: whatever is wrong with one is said with its line and the reason."""

import json
from pathlib import Path

import pytest

from accord.errors import InvalidArgumentError, NotFoundError
from accord.evaluation.rows import MOST_CHARACTERS, EvaluationRow, read_rows

GOOD = {
    "arm": "sft", "task": "summarization", "prompt_id": "p1", "response": "A cat.", "reference": "A cat sat.", "values": {"kl": 1.5, "score": None},
}  # fmt: skip


def write(path: Path, *rows: object) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_rows_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    other = {**GOOD, "prompt_id": "p2", "response": "", "reference": "Zoë 猫", "values": {}}
    rows = read_rows(write(tmp_path / "rows.jsonl", GOOD, "", other))
    assert rows == (
        EvaluationRow("sft", "summarization", "p1", "A cat.", "A cat sat.", {"kl": 1.5, "score": None}),
        EvaluationRow("sft", "summarization", "p2", "", "Zoë 猫", {}),
    )


def test_a_prompt_may_have_several_responses_of_an_arm(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "rows.jsonl", GOOD, {**GOOD, "sample": 1}))
    assert [row.sample for row in rows] == [0, 1]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('"' + "[" * 5000, "not JSON"),
        ({key: value for key, value in GOOD.items() if key != "reference"}, "reference is missing"),
        ({**GOOD, "value": {}}, "'value' is not known"),
        ({**GOOD, "sample": -1}, "sample is -1; allowed: an integer from 0"),
        ({**GOOD, "sample": True}, "sample is True; allowed: an integer from 0"),
        ({**GOOD, "task": "translation"}, "allowed: summarization, conversation"),
        ({**GOOD, "task": None}, "allowed: summarization, conversation"),
        ({**GOOD, "response": None}, "response is not text"),
        ({**GOOD, "response": "x" * (MOST_CHARACTERS + 1)}, f"allowed: {MOST_CHARACTERS}"),
        ({**GOOD, "response": "\ud800"}, "lone surrogate"),
        ({**GOOD, "reference": " \n"}, "reference is empty"),
        ({**GOOD, "arm": " "}, "arm is ' '"),
        ({**GOOD, "prompt_id": 7}, "prompt_id is not text"),
        ({**GOOD, "values": [1]}, "values is not an object"),
        ({**GOOD, "values": {"kl": "1"}}, "values.kl is '1'; allowed: a number or null"),
        ({**GOOD, "values": {"kl": True}}, "values.kl is True"),
        ({**GOOD, "values": {"kl": float("nan")}}, "values.kl is not a finite number"),
        ({**GOOD, "values": {"kl": 10**400}}, "values.kl is not a finite number"),
        ({**GOOD, "values": {"win_vs_sft": 1.5}}, "values.win_vs_sft is 1.5; allowed: 0 to 1"),
        ({**GOOD, "values": {"bleu_4": 0.5}}, "values.bleu_4 is computed"),
        ({**GOOD, "values": {" ": 0.5}}, "blank"),
        (GOOD, "occurs twice, first in line 1"),
        ({**GOOD, "arm": "ppo", "reference": "Another."}, "another reference than in line 1"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, bad: object, reason: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read_rows(write(tmp_path / "rows.jsonl", GOOD, bad), reserved=frozenset({"bleu_4"}))
    assert "rows.jsonl:2: " in str(caught.value)
    assert reason in str(caught.value)
    assert caught.value.field == "evaluate.uri"


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"arm": "\xff"}\n')
    with pytest.raises(InvalidArgumentError, match=r"rows\.jsonl:1: not UTF-8"):
        read_rows(str(tmp_path / "rows.jsonl"))


def test_no_file_and_no_rows(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there is no file .*rows\.jsonl") as caught:
        read_rows(str(tmp_path / "rows.jsonl"))
    assert caught.value.field == "evaluate.uri"
    with pytest.raises(InvalidArgumentError, match="holds no rows"):
        read_rows(write(tmp_path / "rows.jsonl", "", " "))


def test_the_same_prompt_in_another_arm_or_task_is_another_row(tmp_path: Path) -> None:
    uri = write(tmp_path / "rows.jsonl", GOOD, {**GOOD, "arm": "ppo"}, {**GOOD, "task": "conversation", "reference": "Other."})
    assert len(read_rows(uri)) == 3
