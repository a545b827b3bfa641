"""Comparisons by people: who said what, how sure, why and when. All rows are made for the test."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from tests.unit.data.test_formats import written

from accord.data.formats import FORMATS
from accord.data.parquet import ParquetFile
from accord.data.ratings import FIRST
from accord.data.readers import read_demonstrations, read_pairs
from accord.data.records import PreferencePair
from accord.data.writers import PairFile
from accord.text.chat import Message
from accord.text.tasks import Task

COMPARISON = {
    "info": {"id": "t3_1", "post": "My dog ran away.", "title": "Lost", "subreddit": "dogs"}, "split": "valid2", "worker": "w9", "batch": "b4",
    "summaries": [{"text": " dog is gone", "policy": "ref", "note": ""}, {"text": " cat is here", "policy": "sup2", "note": ""}], "choice": 1,
    "extra": {"confidence": 7},
}  # fmt: skip


def axis(worker: str, text: str, overall: float | None, policy: str = "ref", post: str = "t3_1", **more: Any) -> dict[str, Any]:
    info = {"id": post, "post": f"My dog {post} ran away.", "title": "Lost", "subreddit": "dogs"}
    axes = {"overall": overall, "accuracy": 6, "coverage": None, "coherence": 7}
    return {
        "info": info,
        "split": "test",
        "summary": {"text": text, "policy": policy, "note": "fine", "axes": axes},
        "worker": worker,
        "batch": "b1",
        **more,
    }


ALPACA = {
    "instruction": "Name a river.", "input": "", "output_1": "The Danube.", "output_2": "No.", "preference": 1, "annotator_index": 15,
    "generator_1": "m1", "generator_2": "m2", "dataset": "helpful_base", "time_per_example": 12.5,
}  # fmt: skip
FIELDS = {"prompt": "Name a river.", "response-1": "The Danube.", "response-2": "No.", "response-3": "A hill."}
RANKING = ["response-3", "response-1", "response-2"]


def nested(**questions: list[tuple[str, Any]]) -> dict[str, Any]:
    responses = {name: [{"user_id": user, "value": value} for user, value in answers] for name, answers in questions.items()}
    return {
        "id": "r1",
        "fields": FIELDS,
        "metadata": {"topic": "rivers"},
        "suggestions": {},
        "responses": responses,
        "vectors": {},
        "_server_id": "s",
    }


def flat(**questions: list[tuple[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"id": "r1", **FIELDS, "response-1-model": "m1", "topic": "rivers", "_server_id": "s"}
    for name, answers in questions.items():
        row |= {f"{name}.responses": [value for _, value in answers], f"{name}.responses.users": [user for user, _ in answers]}
        row |= {f"{name}.responses.status": ["submitted"] * len(answers), f"{name}.suggestion": "response-2", f"{name}.suggestion.agent": "judge"}
    return row


def first_version(**questions: list[tuple[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {**FIELDS, "external_id": "r1", "metadata": "{}"}
    for name, answers in questions.items():
        row[name] = [{"user_id": user, "value": value, "status": "submitted"} for user, value in answers]
        row[f"{name}-suggestion"] = None
    return row


def judged(tmp_path: Path, row: dict[str, Any]) -> set[tuple[str, str, str]]:
    """(annotator, better, worse) of each pair; a tie is written with =."""
    pairs = read_pairs(written(tmp_path, [row]), split="all", strict=True).rows
    return {
        (pair.metadata["annotator"], pair.chosen, pair.rejected if pair.preference > 0.5 else f"= {pair.rejected}") for pair in pairs
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("tldr", COMPARISON), ("tldr", axis("w1", "a", 3)), ("alpaca_eval", ALPACA), ("argilla", nested(ranking=[("u1", RANKING)])),
        ("argilla", flat(ranking=[("u1", RANKING)])), ("argilla", first_version(ranking=[("u1", RANKING)])),
    ],
)  # fmt: skip
def test_each_format_recognises_its_own_rows_and_no_other_takes_them_first(name: str, row: dict[str, Any]) -> None:
    assert next(each.name for each in FORMATS.values() if each.recognises(row)) == name


def test_a_tldr_comparison_keeps_worker_confidence_batch_and_policies(tmp_path: Path) -> None:
    (pair,) = read_pairs(written(tmp_path, [COMPARISON]), split="validation", strict=True).rows
    assert (pair.chosen, pair.rejected, pair.human_preference) == ("cat is here", "dog is gone", 1.0)
    assert pair.metadata == {
        "annotator": "w9", "confidence": "7", "batch": "b4", "subreddit": "dogs", "policy_chosen": "sup2", "policy_rejected": "ref", "part": "valid2",
    }  # fmt: skip
    assert read_pairs(written(tmp_path, [COMPARISON])).report.other_splits == 1


def test_tldr_axis_ratings_make_pairs_of_one_post_and_worker(tmp_path: Path) -> None:
    rows = [
        axis("w1", "one", 3, "ref"), axis("w1", "two", 7, "sup2"), axis("w2", "two", 2), axis("w1", "three", 3), axis("w1", "far", 1, post="t3_2"),
        axis("w3", "none", None), axis("w2", "four", 2.0),
    ]  # fmt: skip
    data = read_pairs(written(tmp_path, rows), split="test")
    assert [(pair.chosen, pair.rejected, pair.preference, pair.rating_gap, pair.metadata["annotator"]) for pair in data.rows] == [
        ("two", "one", 1.0, 4.0, "w1"), ("one", "three", 0.5, 0.0, "w1"), ("two", "three", 1.0, 4.0, "w1"), ("two", "four", 0.5, 0.0, "w2"),
    ]  # fmt: skip
    assert data.report.rejected == {FIRST: 3, "summary.axes.overall is missing": 1}
    assert data.report.seen == data.report.rows + 4
    assert data.rows[0].metadata["policy_chosen"] == "sup2"
    assert data.rows[0].metadata["policy_rejected"] == "ref"
    assert "axis_overall" not in data.rows[0].metadata
    assert {pair.group for pair in data.rows} == {"t3_1"}
    assert len({pair.pair_id for pair in data.rows}) == 4
    shown = read_demonstrations(written(tmp_path, [axis("w1", "one", 3)]), split="test", strict=True).rows[0]
    assert (shown.response, shown.metadata["axis_accuracy"], shown.task) == ("one", "6", Task.SUMMARIZATION)


def test_ratings_of_different_splits_make_no_pair(tmp_path: Path) -> None:
    rows = [axis("w1", "one", 3), axis("w1", "two", 7, split="valid1")]
    assert read_pairs(written(tmp_path, rows), split="all").report.rejected == {FIRST: 2}
    assert read_pairs(written(tmp_path, rows), split="test").report.other_splits == 1


@pytest.mark.parametrize(
    ("value", "chosen", "preference"), [(1, "The Danube.", 1.0), (2, "No.", 1.0), (1.5, "The Danube.", 0.5), (0, "The Danube.", 0.5), (1.75, "No.", 0.75)]
)  # fmt: skip
def test_preferences_of_alpaca_eval(tmp_path: Path, value: float, chosen: str, preference: float) -> None:
    (pair,) = read_pairs(written(tmp_path, [{**ALPACA, "preference": value}]), strict=True).rows
    assert (pair.chosen, pair.preference, pair.human_preference) == (chosen, preference, preference)
    assert pair.messages == (Message("user", "Name a river."),)
    assert (pair.metadata["annotator"], pair.metadata["seconds"], pair.metadata["dataset"]) == ("15", "12.5", "helpful_base")
    assert pair.metadata["policy_chosen"] == ("m1" if chosen == "The Danube." else "m2")


def test_a_judge_of_alpaca_eval_is_no_person(tmp_path: Path) -> None:
    row = {name: value for name, value in ALPACA.items() if name != "annotator_index"}
    rows = [{**row, "annotator": "weighted_gpt4"}, {**row, "annotator": "humans"}, row]
    pairs = read_pairs(written(tmp_path, rows), strict=True).rows
    assert [pair.human_preference for pair in pairs] == [None, 1.0, 1.0]
    (pair,) = read_pairs(written(tmp_path, [{**row, "input": "In Austria."}]), strict=True).rows
    assert pair.messages[0].content == "Name a river.\n\nIn Austria."


@pytest.mark.parametrize("value", [None, 3, -1, 0.5, "1", True, float("nan")])
def test_a_preference_of_alpaca_eval_that_is_none(tmp_path: Path, value: object) -> None:
    report = read_pairs(written(tmp_path, [{**ALPACA, "preference": value}]), format="alpaca_eval").report
    assert report.rejected == {"preference is not 1, 2, a number between them, or 0 for a tie": 1}


@pytest.mark.parametrize("shape", [nested, flat, first_version])
def test_a_ranking_gives_every_two_responses_by_every_person(tmp_path: Path, shape: Any) -> None:
    ranked = [{"rank": 2, "value": "response-1"}, {"rank": 1, "value": "response-2"}, {"rank": 2, "value": "response-3"}]
    found = judged(tmp_path, shape(ranking=[("u1", RANKING), ("u2", ranked)]))
    assert found == {
        ("u1", "A hill.", "The Danube."), ("u1", "A hill.", "No."), ("u1", "The Danube.", "No."),
        ("u2", "No.", "The Danube."), ("u2", "No.", "A hill."), ("u2", "The Danube.", "= A hill."),
    }  # fmt: skip


@pytest.mark.parametrize("shape", [nested, flat, first_version])
def test_ratings_of_each_response_are_compared_and_kept_as_gaps(tmp_path: Path, shape: Any) -> None:
    row = shape(**{
        "rating response 1": [("u1", 5), ("u2", 1)], "response-2-rating": [("u1", 2), ("u2", 1)], "comment": [("u1", "clear and short")],
        "confidence": [("u2", 4)],
    })  # fmt: skip
    assert judged(tmp_path, row) == {("u1", "The Danube.", "No."), ("u2", "The Danube.", "= No.")}
    pairs = read_pairs(written(tmp_path, [row]), strict=True).rows
    assert [pair.rating_gap for pair in pairs] == [3.0, 0.0]
    assert (pairs[0].metadata["reason"], pairs[1].metadata["confidence"]) == ("clear and short", "4")
    assert len({pair.pair_id for pair in pairs}) == 2


@pytest.mark.parametrize(
    ("questions", "confidence"),
    [
        ({"confidence": 4, "confidence_comment": "x" * 80}, "4"), ({"confidence_comment": "I live there", "confidence": 4.0}, "4"),
        ({"confidence_comment": "I live there"}, None), ({"confidence in words": "very", "Confidence": 3.5}, "3.5"), ({"confidence": "very"}, "very"),
        ({"confidence_style": 2, "confidence": 3}, "3"), ({"confidence in your reasoning": 5}, "5"), ({"confidence": " "}, None), ({"confidence": True}, "True"),
        ({"confidence": [1]}, None), ({"confidence": "a\x00b", "confidence_level": "b"}, "b"),
    ],
)  # fmt: skip
def test_how_sure_is_one_number_whatever_else_was_asked_about_it(tmp_path: Path, questions: dict[str, Any], confidence: str | None) -> None:
    """It is part of a label in the ledger: a comment in its place, or 4.0 beside 4, made another label of the same one. A comment on it is no reason."""
    row = nested(
        **{"preference": [("u1", "response-1")], "reason": [("u1", "short")], **{name: [("u1", value)] for name, value in questions.items()}}
    )
    for pair in read_pairs(written(tmp_path, [row]), strict=True).rows:
        assert (pair.metadata.get("confidence"), pair.metadata["reason"]) == (confidence, "short")


def test_how_sure_is_the_same_out_of_json_and_out_of_parquet(tmp_path: Path) -> None:
    rows = [flat(ranking=[("u1", RANKING)], confidence=[("u1", sure)]) | {"id": f"r{sure}"} for sure in (4, 2.5)]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{**row, "confidence.responses": [float(*row["confidence.responses"])]} for row in rows]), tmp_path / "r.parquet"
    )
    found = [[pair.metadata for pair in read_pairs(uri, strict=True).rows] for uri in (written(tmp_path, rows), str(tmp_path / "r.parquet"))]
    assert found[0] == found[1]
    assert [facts["confidence"] for facts in found[0]] == ["4"] * 3 + ["2.5"] * 3


def test_of_ratings_of_several_things_the_overall_one_counts_or_their_mean(tmp_path: Path) -> None:
    """The last question to be read must not take the place of the others: a response rated 5 and 2 is better than one rated 1 and 3."""
    several = {
        "helpful response-1": [("u1", 5)],
        "helpful response-2": [("u1", 1)],
        "honest response-1": [("u1", 2)],
        "honest response-2": [("u1", 3)],
    }
    (pair,) = read_pairs(written(tmp_path, [nested(**several, **{"tone response-2": [("u1", 1)]})]), strict=True).rows
    assert (pair.chosen, pair.rating_gap) == ("The Danube.", 1.5)
    overall = {"overall response-1": [("u1", 1)], "overall response-2": [("u1", 3)]}
    (pair,) = read_pairs(written(tmp_path, [nested(**overall, **several)]), strict=True).rows
    assert (pair.chosen, pair.rating_gap) == ("No.", 2.0)
    (pair,) = read_pairs(written(tmp_path, [nested(**{"stars response-1": [("u1", 1)], "marks response-2": [("u1", 3)]})]), strict=True).rows
    assert (pair.chosen, pair.rating_gap) == ("No.", 2.0)


@pytest.mark.parametrize("name", ["id", "external_id"])
def test_records_with_numbers_as_ids_and_numbers_beside_their_fields(tmp_path: Path, name: str) -> None:
    row = {**flat(ranking=[("u1", RANKING)]), "id": "", name: 7, "answer_count": 3, "output.tokens": 81.5}
    pairs = read_pairs(written(tmp_path, [row]), strict=True).rows
    assert [pair.pair_id.split("/")[0] for pair in pairs] == ["7"] * 3
    assert {pair.metadata["field_chosen"] for pair in pairs} == {"response-1", "response-3"}


@pytest.mark.parametrize(
    ("value", "better"), [("response-2", {"response-2"}), ("Response 1", {"response-1"}), ("b", {"response-2"}), (3, {"response-3"}), ("tie", set())]
)  # fmt: skip
def test_a_choice_beats_the_others_and_says_nothing_of_them(tmp_path: Path, value: object, better: set[str]) -> None:
    """Who names the best of three has not called the other two equally good; who calls it a tie has said so of all."""
    pairs = read_pairs(written(tmp_path, [nested(preference=[("u1", value)])]), strict=True).rows
    assert {pair.metadata["field_chosen"] for pair in pairs if pair.preference == 1.0} == better
    assert [pair.preference for pair in pairs] == ([1.0, 1.0] if better else [0.5] * 3)
    assert all(pair.human_preference == pair.preference for pair in pairs)


def test_numbers_that_are_no_choice_and_drafts_do_not_count(tmp_path: Path) -> None:
    draft = first_version(ranking=[("u1", RANKING)])
    draft["ranking"][0]["status"] = "draft"
    for row in (nested(quality=[("u1", 2)]), nested(quality=[("u1", "1")]), nested(comment=[("u1", "same")]), nested(), draft):
        assert read_pairs(written(tmp_path, [row]), format="argilla").report.rejected == {"no submitted answer compares two responses": 1}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"response-1": "a", "response-2": "b"}, "no field is the prompt"), ({"prompt": "p", "response": "a"}, "fewer than two fields are responses"),
        ({"prompt": "p", "response-1": "a", "response-2": " "}, "response-2 is empty"),
    ],
)  # fmt: skip
def test_records_without_what_is_needed(tmp_path: Path, fields: dict[str, str], reason: str) -> None:
    row = {**nested(ranking=[("u1", RANKING)]), "fields": fields}
    assert read_pairs(written(tmp_path, [row])).report.rejected == {reason: 1}


@pytest.mark.parametrize("shape", [nested, flat, first_version])
def test_answers_of_several_who_are_not_named_are_of_several(tmp_path: Path, shape: Callable[..., dict[str, Any]]) -> None:
    """An export without users: the last answer took the place of the others. Who is the only one without a name is called as ever."""
    row = shape(preference=[(None, "response-1"), ("u1", "response-2"), (None, "response-3")], confidence=[(None, 2), ("u1", 3), (None, 4)])
    pairs = read_pairs(written(tmp_path, [row]), strict=True).rows
    best = {(pair.metadata["annotator"], pair.metadata["field_chosen"], pair.metadata["confidence"]) for pair in pairs}
    assert best == {("anonymous", "response-1", "2"), ("anonymous-1", "response-3", "4"), ("u1", "response-2", "3")}
    assert len(pairs) == len({pair.pair_id for pair in pairs}) == 6
    alone = read_pairs(written(tmp_path, [shape(preference=[("", "response-1"), ("u1", "response-2")])]), strict=True).rows
    assert {pair.metadata["annotator"] for pair in alone} == {"anonymous", "u1"}


def test_argilla_out_of_parquet_and_chats(tmp_path: Path) -> None:
    """`datasets` writes a sequence of mappings as a mapping of lists."""
    row = {
        **FIELDS,
        "ranking": {"user_id": ["u1"], "value": [{"rank": [2, 1, 3], "value": ["response-1", "response-2", "response-3"]}], "status": ["submitted"]},
    }
    row["prompt"] = [{"role": "user", "content": "Name a river."}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
    pairs = read_pairs(str(tmp_path / "rows.parquet"), strict=True).rows
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("No.", "The Danube."), ("The Danube.", "A hill."), ("No.", "A hill.")]
    assert pairs[0].messages == (Message("user", "Name a river."),)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_what_is_said_of_a_label_comes_back_from_accords_own_files(tmp_path: Path, suffix: str) -> None:
    facts = {
        "annotator": "anna",
        "confidence": "4",
        "seconds": "1234567.125",
        "reason": " clear,\nand short ",
        "labelled_at": "2026-01-02T03:04:05+00:00",
    }
    pair = PreferencePair("p", Task.CONVERSATION, (Message("user", "x"),), "a", "b", group="g", human_preference=1.0, metadata=facts)
    with ParquetFile(tmp_path / f"rows.{suffix}", tuple(facts)) if suffix == "parquet" else PairFile(tmp_path / f"rows.{suffix}") as file:
        file.add(pair)
    assert read_pairs(str(tmp_path / f"rows.{suffix}"), strict=True).rows == (pair,)


@pytest.mark.parametrize(("sure", "text"), [(4, "4"), (4.0, "4"), (3.5, "3.5"), ("4", "4"), (True, "True")])
def test_a_number_in_accords_metadata_is_the_text_that_every_format_has(tmp_path: Path, sure: object, text: str) -> None:
    turn = {
        "prompt": [{"role": "user", "content": "x"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
    row = {"pair_id": "p", "task": "conversation", **turn, "preference": 1.0, "metadata": {"confidence": sure, "loss": 1.0, "reason": ""}}
    assert read_pairs(written(tmp_path, [row]), strict=True).rows[0].metadata == {"confidence": text, "loss": "1.0", "reason": ""}


def test_what_a_plain_row_tells_of_its_label_is_kept(tmp_path: Path) -> None:
    row = {
        "prompt": "p",
        "chosen": "a",
        "rejected": "b",
        "annotator_id": 7.0,
        "confidence": 0.5,
        "time_spent": 12,
        "comment": "clear",
        "timestamp": "2026-01-02",
    }
    rows = [row, {**row, "annotator_id": {"odd": 1}, "comment": ""}]
    kept, left = read_pairs(written(tmp_path, rows), strict=True).rows
    assert kept.metadata == {"annotator": "7", "confidence": "0.5", "seconds": "12", "reason": "clear", "labelled_at": "2026-01-02"}
    assert "annotator" not in left.metadata
    assert "reason" not in left.metadata
    assert all(first != second for first, second in pairwise((kept.pair_id, left.pair_id)))
