"""Labels as rows of data: what is chosen, with how much certainty, where it comes from; in JSON Lines and Parquet, read back without loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from accord.client.feedback import Judgement, Label, LabelPairItem
from accord.client.ledger import HumanLabelRecord, LabelRecord
from accord.data.parquet import ParquetFile
from accord.data.readers import read_pairs
from accord.data.records import LABEL_JOB, PreferencePair
from accord.data.writers import PairFile, write_pairs
from accord.errors import InvalidArgumentError
from accord.feedback.label_rows import PROVENANCE, LabelledRows, human_row, labelled_row
from accord.text.chat import Message
from accord.text.tasks import Task

PAIR = LabelPairItem(Task.SUMMARIZATION, (Message("user", "post é"),), "first one", "second", "p1", 0.75)


def judgement(key: str, rating_a: float | None = None, rating_b: float | None = None) -> Judgement:
    return Judgement(True, 0.8, rating_a, rating_b, "", "", "", 1, 1, key, cached=False)


def record(preference: float | None = 0.8, outcome: str = "a", **changes: Any) -> LabelRecord:
    label = Label("p1", preference, outcome, "", (judgement("k1"), judgement("k2")), "verdict", "s/1", "rd", "judge", "jd")  # type: ignore[arg-type]
    return replace(LabelRecord(label, PAIR, "c" * 64, "labelJobs/x", "req", 1_764_000_000.0, '{"tie_margin": 0.0}'), **changes)


def row(found: LabelRecord) -> PreferencePair:
    made = labelled_row(found)
    assert made is not None
    return made


def test_the_row_of_a_label_is_what_the_judge_prefers_and_where_it_comes_from() -> None:
    made = row(record())
    assert (made.chosen, made.rejected, made.preference, made.human_preference) == ("first one", "second", 0.8, 0.75)
    assert (made.pair_id, made.task, made.messages, made.split) == ("p1", Task.SUMMARIZATION, PAIR.messages, "train")
    assert dict(made.metadata) == {
        LABEL_JOB: "labelJobs/x", "judge": "judge", "judge_digest": "jd", "judge_kind": "verdict", "judge_options": '{"tie_margin": 0.0}',
        "rubric": "s/1", "rubric_digest": "rd", "ledger_keys": "k1,k2", "content_key": "c" * 64, "request_id": "req",
        "labelled_at": "2025-11-24T16:00:00+00:00",
    }  # fmt: skip
    assert set(made.metadata) == set(PROVENANCE)
    turned = row(record(0.2, "b"))
    assert (turned.chosen, turned.rejected, turned.preference, turned.human_preference) == ("second", "first one", 0.8, 0.25)


def test_ties_keep_a_in_front_and_abstentions_make_no_row() -> None:
    tie = row(record(0.48, "tie"))
    assert (tie.chosen, tie.preference, tie.human_preference) == ("first one", 0.5, 0.75)
    assert labelled_row(record(None, "abstain")) is None
    assert labelled_row(record(pair=None)) is None


def test_a_rating_judge_says_by_how_much() -> None:
    rated = record().label
    rated = replace(rated, kind="rating", judgements=(judgement("k", 6.0, 3.5), judgement("k2", 7.0, 3.5)))
    assert row(record(label=rated)).rating_gap == 3.0
    assert row(record(label=replace(rated, preference=0.2, outcome="b"))).rating_gap == -3.0
    assert row(record()).rating_gap is None


def test_pairs_of_a_prompt_share_a_group_and_no_others() -> None:
    other = replace(PAIR, response_b="third", pair_id="p2")
    elsewhere = replace(PAIR, messages=(Message("user", "another"),))
    first, second, third = (row(record(pair=pair)).group for pair in (PAIR, other, elsewhere))
    assert first == second != third


def test_what_makes_no_row_is_counted() -> None:
    named = replace(record().label, pair_id="p2")
    unnamed = replace(record().label, pair_id="")
    records = [
        record(), record(0.1, "b"), record(None, "abstain"), record(pair=None), record(label=named), record(label=unnamed), record(label=unnamed),
        record(label=unnamed, content_key="d" * 64),
    ]  # fmt: skip
    rows = LabelledRows(records)
    assert [pair.pair_id for pair in rows] == ["p1", "p2", "c" * 64, "d" * 64]
    assert rows.left_out == {"of pairs that were there before": 2, "abstentions": 1, "whose text is not in the ledger": 1}


def test_two_data_sets_that_count_their_pairs_alike_lose_none(tmp_path: Path) -> None:
    """Both call their first pair p1; each was labelled twice, by two judges."""
    other = replace(PAIR, response_b="quite another")
    records = [record(), record(pair=other, content_key="d" * 64), record(), record(0.1, "b", pair=other, content_key="d" * 64)]
    rows = LabelledRows(records)
    write_pairs(tmp_path / "l.jsonl", rows)
    assert rows.left_out == {"of pairs that were there before": 2}
    found = read_pairs(str(tmp_path / "l.jsonl"), strict=True).rows
    assert [pair.pair_id for pair in found] == ["p1", "p1-" + "d" * 64]
    assert "quite another" in (found[1].chosen, found[1].rejected)


def write(path: Path, rows: Sequence[PreferencePair]) -> str:
    file = ParquetFile(path, PROVENANCE) if path.suffix == ".parquet" else PairFile(path)
    with file:
        for each in rows:
            file.add(each)
    assert file.rows == len(rows)
    return file.digest


@pytest.mark.parametrize("name", ["l.jsonl", "l.jsonl.gz", "l.parquet"])
def test_files_are_read_back_without_loss(tmp_path: Path, name: str) -> None:
    rows = [replace(row(record()), pair_id=f"p{number}", human_preference=None if number % 2 else 0.75) for number in range(2501)]
    rows += [replace(row(record(job="")), pair_id="call", rating_gap=1.5, reference="ref")]
    digest = write(tmp_path / name, rows)
    assert digest == write(tmp_path / name, rows)
    assert list(read_pairs(str(tmp_path / name), strict=True).rows) == rows
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_parquet_is_written_in_parts(tmp_path: Path) -> None:
    write(tmp_path / "l.parquet", [replace(row(record()), pair_id=f"p{number}") for number in range(2501)])
    assert pyarrow.parquet.ParquetFile(tmp_path / "l.parquet").num_row_groups == 3


@pytest.mark.parametrize("name", ["l.jsonl", "l.parquet"])
def test_a_file_that_is_not_finished_is_not_there(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, [row(record())])
    before = (tmp_path / name).read_bytes()

    def broken() -> None:
        with ParquetFile(tmp_path / name, PROVENANCE) if name.endswith(".parquet") else PairFile(tmp_path / name) as file:
            file.add(replace(row(record()), pair_id="new"))
            raise RuntimeError("the service went away")

    with pytest.raises(RuntimeError, match="went away"):
        broken()
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_unknown_key_or_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="does not end in"):
        ParquetFile(tmp_path / "l.csv", ())
    with pytest.raises(InvalidArgumentError, match="ends in neither"):
        write(tmp_path / "l.csv", [])


def test_an_export_of_a_jobs_labels_trains_like_the_jobs_own_file(tmp_path: Path) -> None:
    """Same prompts, responses and preferences: what differs is where it says that a row comes from."""
    own = replace(row(record()), metadata={LABEL_JOB: "labelJobs/x"}, group="g")
    write_pairs(tmp_path / "own.jsonl", [own])
    write(tmp_path / "export.jsonl", [row(record())])
    one, other = (read_pairs(str(tmp_path / f"{name}.jsonl")).rows[0] for name in ("own", "export"))
    assert replace(one, metadata={}, group="") == replace(other, metadata={}, group="")
    assert one.metadata[LABEL_JOB] == other.metadata[LABEL_JOB]


@pytest.mark.parametrize(("seconds", "text"), [(12.5, "12.5"), (2.0, "2"), (1234567.125, "1234567.125"), (0.0, "0"), (None, None)])
def test_a_persons_label_keeps_all_that_was_said_of_it(seconds: float | None, text: str | None) -> None:
    """Imported into another ledger it is the same label, to the last digit of its seconds."""
    found = HumanLabelRecord("k", PAIR, "b", "ann", "clearer", seconds, "c", 1_750_000_000.0, "8")
    made = human_row(found)
    assert (made.chosen, made.human_preference) == (PAIR.response_b, 1.0)
    assert [made.metadata.get(name) for name in ("annotator", "reason", "seconds", "confidence")] == ["ann", "clearer", text, "8"]
