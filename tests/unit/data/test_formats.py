"""Each format on rows made for the test: what is read, and what of a wrong row is said. No row is from a published set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from accord.data.formats import FORMATS
from accord.data.readers import read_demonstrations, read_pairs, read_prompts, read_texts
from accord.data.records import PreferencePair, digest_of
from accord.data.writers import write_pairs
from accord.errors import InvalidArgumentError
from accord.text.chat import Message
from accord.text.tasks import Task, summarization_prompt

USER = {"role": "user", "content": "How tall is it?"}
SAMPLE = {
    "id": "con-001", "subject": "towers", "tone": "plain", "reference": "It is 30 m tall.", "better": "About 30 m.", "worse": "It is blue.",
    "flaw": "off_topic", "flaw_note": "answers about the colour", "messages": [USER],
}  # fmt: skip
ACCORD = {
    "pair_id": "p1", "task": "conversation", "prompt": [USER], "chosen": [{"role": "assistant", "content": "30 m"}],
    "rejected": [{"role": "assistant", "content": "blue"}], "preference": 0.75, "human_preference": 1.0, "reference": None, "group": "g1",
    "split": "train", "metadata": {"judge": "a"},
}  # fmt: skip
HH = {"chosen": "\n\nHuman: How tall is it?\n\nAssistant: 30 m", "rejected": "\n\nHuman: How tall is it?\n\nAssistant: blue"}
COMPARISON = {
    "info": {"id": "t3_1", "post": "My dog ran away.", "title": "Lost", "subreddit": "dogs"}, "split": "train", "worker": "w9",
    "summaries": [{"text": " dog is gone"}, {"text": " cat is here"}], "choice": 0, "extra": {"confidence": 7},
}  # fmt: skip
SUMMARY = {"info": {"id": "t3_1", "post": "My dog ran away.", "title": "Lost"}, "split": "train", "summary": " dog is gone"}
AUTOJ = {"scenario": "post_summarization", "label": 1, "prompt": "How tall is it?", "response 1": "blue", "response 2": "30 m"}
TRL = {"prompt": [USER], "chosen": [{"role": "assistant", "content": "30 m"}], "rejected": [{"role": "assistant", "content": "blue"}]}
TEXT = {"text": "Towers are tall."}


def written(folder: Path, rows: Iterable[Mapping[str, Any]], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_the_nine_formats() -> None:
    assert set(FORMATS) == {"sample", "accord", "hh", "tldr", "autoj", "alpaca_eval", "argilla", "trl", "text"}


@pytest.mark.parametrize(
    ("name", "row"),
    [("sample", SAMPLE), ("accord", ACCORD), ("hh", HH), ("tldr", COMPARISON), ("tldr", SUMMARY), ("autoj", AUTOJ), ("trl", TRL), ("text", TEXT)],
)
def test_each_format_recognises_its_own_rows_and_no_other_takes_them_first(name: str, row: dict[str, Any]) -> None:
    assert next(each.name for each in FORMATS.values() if each.recognises(row)) == name


@pytest.mark.parametrize(
    ("row", "task"),
    [(SAMPLE, Task.CONVERSATION), (ACCORD, Task.CONVERSATION), (HH, Task.CONVERSATION), (AUTOJ, Task.SUMMARIZATION), (TRL, Task.CONVERSATION)],
)
def test_pairs_of_conversations(tmp_path: Path, row: dict[str, Any], task: Task) -> None:
    data = read_pairs(written(tmp_path, [row]), strict=True)
    (pair,) = data.rows
    assert pair.messages == (Message("user", "How tall is it?"),)
    assert (pair.chosen, pair.rejected) == (("About 30 m.", "It is blue.") if row is SAMPLE else ("30 m", "blue"))
    assert (pair.task, pair.split, pair.human_preference) == (task, "train", 1.0)
    assert pair.preference == (0.75 if row is ACCORD else 1.0)
    assert (data.report.seen, data.report.rows, dict(data.report.rejected)) == (1, 1, {})


def test_tldr_comparisons_of_one_post_are_pairs_of_one_group(tmp_path: Path) -> None:
    other = {**COMPARISON, "summaries": [{"text": " a dog"}, {"text": " my dog ran off"}], "choice": 1}
    pairs = read_pairs(written(tmp_path, [COMPARISON, other]), strict=True).rows
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("dog is gone", "cat is here"), ("my dog ran off", "a dog")]
    assert pairs[0].pair_id != pairs[1].pair_id
    assert [pair.group for pair in pairs] == ["t3_1", "t3_1"]
    assert pairs[0].messages == summarization_prompt("My dog ran away.", "Lost")
    assert pairs[0].task == Task.SUMMARIZATION
    assert pairs[0].metadata == {"annotator": "w9", "confidence": "7", "subreddit": "dogs"}


def test_tldr_summaries_are_demonstrations_with_a_reference(tmp_path: Path) -> None:
    uri = written(tmp_path, [SUMMARY])
    (row,) = read_demonstrations(uri, strict=True).rows
    (prompt,) = read_prompts(uri, strict=True).rows
    assert (row.response, row.prompt_id) == ("dog is gone", "t3_1")
    assert prompt.reference == "dog is gone"


@pytest.mark.parametrize(("label", "chosen", "preference"), [(0, "blue", 1.0), (1, "30 m", 1.0), (2, "blue", 0.5)])
def test_autoj_labels(tmp_path: Path, label: int, chosen: str, preference: float) -> None:
    (pair,) = read_pairs(written(tmp_path, [{**AUTOJ, "label": label}]), strict=True).rows
    assert (pair.chosen, pair.preference, pair.human_preference) == (chosen, preference, preference)


def test_hh_transcripts_of_several_turns(tmp_path: Path) -> None:
    lead = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nI help.\n\nHuman: How tall?\nHuman: is a word.\n\nAssistant: "
    (pair,) = read_pairs(written(tmp_path, [{"chosen": lead + "30 m", "rejected": lead + "blue"}]), strict=True).rows
    assert pair.messages == (
        Message("user", "Hi"),
        Message("assistant", "Hello!\n\nI help."),
        Message("user", "How tall?\nHuman: is a word."),
    )
    assert (pair.chosen, pair.rejected) == ("30 m", "blue")


@pytest.mark.parametrize(
    "row",
    [
        TRL,
        {"prompt": "How tall is it?", "chosen": "30 m", "rejected": "blue"},
        {"chosen": [USER, {"role": "assistant", "content": "30 m"}], "rejected": [USER, {"role": "assistant", "content": "blue"}]},
    ],
)
def test_trl_preferences_explicit_plain_and_implicit(tmp_path: Path, row: dict[str, Any]) -> None:
    (pair,) = read_pairs(written(tmp_path, [row]), strict=True).rows
    assert (pair.messages, pair.chosen, pair.rejected) == ((Message("user", "How tall is it?"),), "30 m", "blue")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, {"role": "assistant", "content": "30 m"}]},
        {"prompt": [USER], "completion": [{"role": "assistant", "content": "30 m"}]},
        {"prompt": "How tall is it?", "response": "30 m"},
        {"prompt": "How tall is it?", "summary": "30 m"},
    ],
)
def test_trl_demonstrations(tmp_path: Path, row: dict[str, Any]) -> None:
    (found,) = read_demonstrations(written(tmp_path, [row]), strict=True).rows
    assert (found.messages, found.response) == ((Message("user", "How tall is it?"),), "30 m")
    assert read_texts(written(tmp_path, [row]), strict=True).rows[0].text == "How tall is it?\n\n30 m"


@pytest.mark.parametrize("row", [
    {"prompt": "How tall is it?", "completion": "30 m"}, {"prompt": [USER], "completion": [{"role": "assistant", "content": "30 m"}]},
    {"messages": [USER, {"role": "assistant", "content": "30 m"}]},
])  # fmt: skip
def test_a_bad_response_of_unpaired_data_is_not_learnt(tmp_path: Path, row: dict[str, Any]) -> None:
    """KTO's data have good and bad responses in one file; as demonstrations the bad ones were learnt, too."""
    uri = written(tmp_path, [{**row, "label": True}, {**row, "label": False}])
    for read in (read_demonstrations, read_texts):
        data = read(uri)
        assert (len(data.rows), data.report.rejected, data.report.unread) == (1, {"label is false: the response is not one to learn": 1}, {})
    assert read_demonstrations(uri).rows[0].response == "30 m"
    with pytest.raises(InvalidArgumentError, match=r"rows\.jsonl:2: label is false"):
        read_demonstrations(uri, strict=True)
    (prompt,) = read_prompts(written(tmp_path, [{**row, "label": False}], "bad.jsonl"), strict=True).rows
    assert (prompt.messages, prompt.reference) == ((Message("user", "How tall is it?"),), None)


def test_a_label_of_another_kind_beside_a_response_is_a_column_that_nobody_reads(tmp_path: Path) -> None:
    data = read_demonstrations(written(tmp_path, [{"prompt": "How tall is it?", "completion": "30 m", "label": 2}]), strict=True)
    assert (data.rows[0].response, data.report.unread) == ("30 m", {"label": 1})
    assert read_demonstrations(written(tmp_path, [{"prompt": "How tall is it?", "label": "30 m"}]), strict=True).rows[0].response == "30 m"
    assert read_demonstrations(written(tmp_path, [{"prompt": "How tall is it?", "label": True}])).report.rejected == {"response is missing": 1}


def test_prompts_alone_and_texts(tmp_path: Path) -> None:
    (prompt,) = read_prompts(written(tmp_path, [{"prompt": "How tall is it?"}]), strict=True, task=Task.SUMMARIZATION).rows
    assert (prompt.messages, prompt.reference, prompt.task) == ((Message("user", "How tall is it?"),), None, Task.SUMMARIZATION)
    assert read_texts(written(tmp_path, [TEXT]), strict=True).rows[0].text == "Towers are tall."


def test_pairs_that_accord_writes_come_back_as_they_were(tmp_path: Path) -> None:
    rows = read_pairs(written(tmp_path, [ACCORD, {**ACCORD, "pair_id": "p2", "preference": 0.5, "human_preference": None}]), strict=True).rows
    digest = write_pairs(tmp_path / "again.jsonl", rows)
    again = read_pairs(str(tmp_path / "again.jsonl"), strict=True)
    assert again.rows == rows
    assert digest == write_pairs(tmp_path / "twice.jsonl", again.rows)
    assert rows[1].human_preference is None


@pytest.mark.parametrize(
    ("columns", "gap"),
    [
        ({"rating_gap": 2.5}, 2.5), ({"margin": 1}, 1.0), ({"chosen_rating": 7, "rejected_rating": 9.5}, -2.5),
        ({"score_chosen": 8.0, "score_rejected": 6.0}, 2.0), ({"margin": None, "score_chosen": None, "score_rejected": None}, None), ({}, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("row", [ACCORD, TRL], ids=["accord", "trl"])
def test_ratings_are_read_where_they_are(tmp_path: Path, row: dict[str, Any], columns: dict[str, Any], gap: float | None) -> None:
    """Also from Parquet, which fills with nulls what other rows have."""
    import pyarrow
    import pyarrow.parquet

    (pair,) = read_pairs(written(tmp_path, [{**row, **columns}]), strict=True).rows
    assert pair.rating_gap == gap
    write_pairs(tmp_path / "again.jsonl", [pair])
    assert read_pairs(str(tmp_path / "again.jsonl"), strict=True).rows[0].rating_gap == gap
    plain = {**row, "metadata": None} if "metadata" in row else row
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**plain, **columns}, {**plain, "prompt": [USER, USER]}]), tmp_path / "rows.parquet")
    assert read_pairs(str(tmp_path / "rows.parquet")).rows[0].rating_gap == gap


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"margin": "big"}, "margin is not a finite number"), ({"rating_gap": float("nan")}, "rating_gap is not a finite number"),
        ({"chosen_rating": True, "rejected_rating": 1}, "chosen_rating is not a finite number"),
        ({"score_chosen": 4}, "score_chosen stands without score_rejected"), ({"rejected_rating": 4}, "rejected_rating stands without chosen_rating"),
    ],
)  # fmt: skip
def test_a_rating_that_is_none_is_a_reason(tmp_path: Path, columns: dict[str, Any], reason: str) -> None:
    uri = written(tmp_path, [{**TRL, **columns}, TRL])
    assert read_pairs(uri).report.rejected == {reason: 1}


def test_pairs_without_ratings_keep_the_digests_that_they_had() -> None:
    """Steps of studies are keyed by them: these are digests from before there were ratings."""
    pair = PreferencePair("p1", Task.CONVERSATION, (Message("user", "How tall?"),), "30 m", "blue", 0.75, "g1", 1.0, None, "train", {"a": "b"})
    assert digest_of((pair,)) == "f3d8600d8668bcb5ae90c2b4e67cc710bb339db71f77e5640782de0a3a0991fc"
    assert len({digest_of((replace(pair, rating_gap=gap),)) for gap in (None, 0.0, 1.0)}) == 3
    found = read_pairs("sample:conversation", split="test").report.digest
    assert found == "7f4019b903c79b751ebb858a95855b4615fc08f6fef34752aeb75c19b2c56a75"


@pytest.mark.parametrize("before", [[], [{"role": "system", "content": "Be brief."}]])
def test_a_prompt_that_the_turns_hold_already_is_asked_once(tmp_path: Path, before: list[dict[str, str]]) -> None:
    """As in ultrafeedback_binarized, whose rows have the prompt as text and again as the first turn of both responses."""
    turns = [*before, USER, {"role": "assistant", "content": "30 m"}]
    row = {"prompt": f"{USER['content']} ", "chosen": turns, "rejected": [*turns[:-1], {"role": "assistant", "content": "blue"}]}
    (pair,) = read_pairs(written(tmp_path, [row]), strict=True).rows
    assert [(message.role, message.content) for message in pair.messages] == [(turn["role"], turn["content"]) for turn in turns[:-1]]
    assert (pair.chosen, pair.rejected) == ("30 m", "blue")
    (other,) = read_pairs(written(tmp_path, [{**row, "prompt": "Look at this tower."}]), strict=True).rows
    assert other.messages[0].content == "Look at this tower."
    assert len(other.messages) == len(turns)


def test_a_missing_group_is_the_prompt_and_not_one_group_for_all(tmp_path: Path) -> None:
    other = {**ACCORD, "pair_id": "p2", "prompt": [{"role": "user", "content": "How old is it?"}]}
    first, second = read_pairs(written(tmp_path, [{**row, "group": None} for row in (ACCORD, other)]), strict=True).rows
    assert first.group
    assert second.group
    assert first.group != second.group


def test_identical_responses_are_a_tie(tmp_path: Path) -> None:
    """Also where people called one of them the better one: their labels would count against every judge that rightly sees a tie."""
    plain = {"prompt": "x", "chosen": "same", "rejected": "same"}
    unlabelled = {**ACCORD, "rejected": ACCORD["chosen"], "human_preference": None}
    (pair,) = read_pairs(written(tmp_path, [plain]), strict=True).rows
    assert (pair.preference, pair.human_preference) == (0.5, 0.5)
    (pair,) = read_pairs(written(tmp_path, [unlabelled]), strict=True).rows
    assert (pair.preference, pair.human_preference) == (0.5, None)


def without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


@pytest.mark.parametrize(
    ("format", "row", "reason"),
    [
        ("sample", {**SAMPLE, "better": 7}, "better is not text"),
        ("sample", {**SAMPLE, "id": "con-x"}, "id does not end in a digit"),
        ("sample", {**SAMPLE, "id": "con-²"}, "id does not end in a digit"),
        ("sample", without(SAMPLE, "messages"), "messages is missing"),
        ("sample", {**SAMPLE, "messages": [{"role": "robot", "content": "x"}]}, "messages has a turn without a role"),
        ("sample", {**SAMPLE, "messages": [USER, {"role": "assistant", "content": "x"}]}, "does not end with the user"),
        ("accord", {**ACCORD, "preference": None}, "preference is missing"),
        ("accord", {**ACCORD, "preference": "0.5"}, "preference is not in"),
        ("accord", {**ACCORD, "preference": 1.5}, "preference is not in"),
        ("accord", {**ACCORD, "preference": float("nan")}, "preference is not in"),
        ("accord", {**ACCORD, "human_preference": -1}, "human_preference is not in"),
        ("accord", {**ACCORD, "task": "cooking"}, "task is not known"),
        ("accord", {**ACCORD, "metadata": [1]}, "metadata is no mapping"),
        ("accord", {**ACCORD, "split": 3}, "split is not text"),
        ("accord", {**ACCORD, "group": 3}, "group is not text"),
        ("accord", {**ACCORD, "pair_id": 3}, "pair_id is not text"),
        ("accord", {**ACCORD, "chosen": []}, "chosen is not a list of messages"),
        ("accord", {**ACCORD, "chosen": ACCORD["chosen"] * 2}, "not one turn each"),
        ("accord", {**ACCORD, "preference": True}, "preference is not in"),
        ("accord", without(ACCORD, "task"), "task is missing"),
        ("accord", without(ACCORD, "preference"), "preference is missing"),
        ("accord", without({**ACCORD, "preferance": 0.3}, "preference"), "preference is missing: preferance is no field of the format accord"),
        ("trl", {**TRL, "preference": 0.3}, "preference is a field of the format accord: read the row as accord, or leave the field out"),
        ("trl", {**TRL, "human_preference": 0.3}, "human_preference is a field of the format accord"),
        ("trl", ACCORD, "preference is a field of the format accord"),
        ("trl", {**TRL, "preferance": 0.3}, "preferance is no field of any format: preference is one of accord"),
        ("trl", {**TRL, "split": 3}, "split is not text"),
        ("trl", without({**TRL, "rejectd": "blue"}, "rejected"), "rejected is missing: rejectd is no field of the format trl"),
        ("hh", {**HH, "preference": 0.3}, "preference is a field of the format accord"),
        ("hh", without({**HH, "rejectd": HH["rejected"]}, "rejected"), "rejected is missing: rejectd is no field of the format hh"),
        ("hh", {**HH, "rejected": None}, "rejected is missing"),
        ("hh", {**HH, "rejected": "Just text"}, "rejected is not a transcript"),
        ("hh", {**HH, "rejected": "\n\nHuman: Another?\n\nAssistant: blue"}, "differ before the last turn"),
        ("hh", {**HH, "rejected": "\n\nHuman: How tall is it?\n\nAssistant:"}, "rejected turn is empty"),
        ("hh", {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"}, "does not end with the assistant"),
        ("hh", {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}, "no prompt before the response"),
        ("tldr", {**COMPARISON, "info": 3}, "info is missing"),
        ("tldr", {**COMPARISON, "info": {"post": ""}}, "info.post is missing"),
        ("tldr", {**COMPARISON, "info": {"post": "a", "title": "b\x00"}}, "title holds a NUL character"),
        ("tldr", {**COMPARISON, "choice": 2}, "choice is not 0 or 1"),
        ("tldr", {**COMPARISON, "choice": True}, "choice is not 0 or 1"),
        ("autoj", {**AUTOJ, "label": True}, "label is not 0, 1 or 2"),
        ("tldr", {**COMPARISON, "choice": None}, "choice is not 0 or 1"),
        ("tldr", {**COMPARISON, "summaries": [{"text": "a"}]}, "summaries are not two"),
        ("tldr", {**COMPARISON, "summaries": [{"text": "a"}, "b"]}, "summaries are not two"),
        ("tldr", {**COMPARISON, "summaries": [{"text": "a"}, {}]}, "summaries text is not text"),
        ("autoj", {**AUTOJ, "label": 3}, "label is not 0, 1 or 2"),
        ("autoj", {**AUTOJ, "label": "1"}, "label is not 0, 1 or 2"),
        ("autoj", {**AUTOJ, "response 2": ""}, "response 2 is empty"),
        ("trl", {**TRL, "chosen": 3}, "chosen is not a list of messages"),
        ("trl", {**TRL, "chosen": [USER]}, "chosen does not end with the assistant"),
        ("trl", {**TRL, "prompt": []}, "prompt is not a list of messages"),
        ("trl", {**TRL, "prompt": ""}, "prompt is empty"),
        ("trl", {"chosen": "a", "rejected": "b"}, "prompt is missing"),
        ("trl", {"prompt": "a", "response": "b"}, "chosen or rejected is missing"),
        ("trl", {**TRL, "chosen": "a\x00b"}, "chosen holds a NUL character"),
        ("trl", {"prompt": "\ud800", "chosen": "a", "rejected": "b"}, "prompt holds a lone surrogate"),
        ("text", {"text": 1}, "text is not text"),
        ("text", TEXT, "prompt is missing"),
    ],
)
def test_a_wrong_row_is_counted_with_its_reason_and_its_place(tmp_path: Path, format: str, row: dict[str, Any], reason: str) -> None:
    good = {"sample": SAMPLE, "accord": ACCORD, "hh": HH, "tldr": COMPARISON, "autoj": AUTOJ, "trl": TRL, "text": None}[format]
    uri = written(tmp_path, [row] if good is None else [good, row])
    report = read_pairs(uri, format=format).report
    assert report.rows == (0 if good is None else 1)
    assert sum(report.rejected.values()) == 1
    assert reason in next(iter(report.rejected))
    assert report.examples == (f"rows.jsonl:{report.seen}: {next(iter(report.rejected))}",)
    with pytest.raises(InvalidArgumentError, match=rf"rows\.jsonl:{report.seen}: ") as error:
        read_pairs(uri, format=format, strict=True)
    assert reason in str(error.value)


@pytest.mark.parametrize("choice", [0.0, 1.0])
def test_numbers_as_parquet_and_others_write_them(tmp_path: Path, choice: float) -> None:
    (pair,) = read_pairs(written(tmp_path, [{**COMPARISON, "choice": choice}]), strict=True).rows
    assert pair.chosen == ("dog is gone" if choice == 0 else "cat is here")


def test_a_file_of_both_formats_makes_no_hard_label_of_a_soft_one(tmp_path: Path) -> None:
    """Whichever row stands first: as TRL's, a row with a preference of 0.75 was a person's label of 1."""
    found = read_pairs(written(tmp_path, [TRL, ACCORD]))
    assert (found.report.rows, sum(found.report.rejected.values())) == (1, 1)
    assert "preference is a field of the format accord" in found.report.examples[0]
    found = read_pairs(written(tmp_path, [ACCORD, TRL]))
    assert [row.preference for row in found.rows] == [0.75]


@pytest.mark.parametrize("key", ["pair_id", "preference", "human_preference"])
def test_one_field_that_only_accord_has_makes_a_row_of_accord(tmp_path: Path, key: str) -> None:
    """And what it does not have is missing, rather than a certainty."""
    report = read_pairs(written(tmp_path, [{**TRL, key: ACCORD[key]}])).report
    assert (report.rows, [reason.endswith(" is missing") for reason in report.rejected]) == (0, [True])


ALPACA = {"instruction": "How tall is it?", "output_1": "30 m", "output_2": "blue", "preference": 1}
ARGILLA = {
    "fields": {"prompt": "How tall is it?", "response_1": "30 m", "response_2": "blue"},
    "responses": {"better": [{"value": "response_1", "user_id": "u"}]},
}


@pytest.mark.parametrize("row", [TRL, HH, AUTOJ, ALPACA, ARGILLA, {"prompt": "How tall is it?"}, TEXT], ids=str)
def test_a_row_of_any_format_may_name_its_split(tmp_path: Path, row: dict[str, Any]) -> None:
    read = read_texts if row is TEXT else read_prompts if len(row) == 1 else read_pairs
    uri = written(tmp_path, [{**row, "split": "test"}])
    assert (len(read(uri, split="test").rows), len(read(uri, split="all").rows)) == (1, 1)  # type: ignore[operator]
    left_out = read(uri, split="train")  # type: ignore[operator]
    assert (left_out.rows, left_out.report.other_splits) == ((), 1)
    assert len(read(written(tmp_path, [row]), split="train").rows) == 1  # type: ignore[operator]


def test_a_record_of_argilla_may_name_its_split_in_its_metadata(tmp_path: Path) -> None:
    assert read_pairs(written(tmp_path, [{**ARGILLA, "metadata": {"split": "test"}}]), split="all").rows[0].split == "test"


def test_a_task_of_accords_is_read_and_another_ones_is_not(tmp_path: Path) -> None:
    rows = read_pairs(written(tmp_path, [{**TRL, "task": "summarization"}, {**TRL, "task": "cooking"}]), strict=True).rows
    assert [row.task for row in rows] == [Task.SUMMARIZATION, Task.CONVERSATION]


def test_columns_that_nobody_read_are_counted_and_near_misses_named(tmp_path: Path) -> None:
    rows = [{**ACCORD, "human_preferance": 0.2, "colour": "red"}, {**ACCORD, "pair_id": "p2", "colour": None}]
    report = read_pairs(written(tmp_path, rows)).report
    assert report.unread == {"human_preferance": 1, "colour": 1}
    assert report.misspelt == {"human_preferance": "human_preference"}
    assert report.misspellings() == ["The column human_preferance was not read, of 1 rows: is it meant to be human_preference?"]
    for row in (TRL, HH, COMPARISON, AUTOJ, ALPACA):
        assert read_pairs(written(tmp_path, [{**row, "colour": 3}])).report.unread == {"colour": 1}
