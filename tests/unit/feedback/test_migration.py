"""A ledger of an older version is brought up to date where it lies: nothing is lost, and pairs come out of what was judged."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from tests.unit.feedback.ledger_v1 import make_version_1

from accord.errors import AlreadyExistsError, FailedPreconditionError, UnavailableError
from accord.feedback import migration, schema
from accord.feedback.ledger import Ledger
from accord.feedback.records import Answer, HumanLabel, content_key, digest_of
from accord.text.chat import Message
from accord.text.tasks import Task

PROMPT = (Message("user", "Summarize: thé cat sat."),)
PROMPT_JSON = json.dumps([[message.role, message.content] for message in PROMPT], ensure_ascii=False)


def judgement(key: str, first: str, second: str | None) -> tuple[object, ...]:
    return (
        key, "verdict", "summarization", PROMPT_JSON, first, second, "r", "rd", "m", "jd", "base", "tokens", "template", "", "", "{}",
        0.75, -1.5, -2.25, "[]", "because", "first", "", 120, 7, "req", "labelJobs/x", 1_750_000_000.0,
    )  # fmt: skip


def label(pair_id: str, response_a: str, response_b: str, *, key: str = "") -> tuple[object, ...]:
    key = key or content_key(Task.SUMMARIZATION, PROMPT, response_a, response_b)
    return (
        "labelJobs/x", pair_id, "summarization", key, response_a <= response_b, len(response_a), len(response_b), "verdict", "r", "rd", "m", "jd",
        "{}", 0.75, "a", "", None, "req", 1_750_000_001.0,
    )  # fmt: skip


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    """Four labels: judged in both orders, judged once, never judged, and one whose judgement speaks of another pair."""
    path = tmp_path / "l.sqlite"
    judgements = [judgement("k1", "a dog", "a cat"), judgement("k2", "a cat", "a dog"), judgement("k3", "x", "y"), judgement("k4", "alone", None)]
    labels = [label("p1", "a dog", "a cat"), label("p2", "x", "y"), label("p3", "never", "shown"), label("p4", "x", "y", key="f" * 64)]
    uses: list[tuple[object, ...]] = [(1, 0, "k1", 1, 0), (1, 1, "k2", 0, 0), (2, 0, "k3", 1, 1), (4, 0, "k3", 1, 1), (4, 1, "k4", 1, 0)]
    make_version_1(path, judgements, labels, uses)
    return path


def rows(path: Path, sql: str) -> list[dict[str, object]]:
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute(sql)]
    finally:
        connection.close()


def test_nothing_is_lost_and_what_was_not_known_stays_unknown(version_1: Path) -> None:
    before = {table: rows(version_1, f"SELECT * FROM {table}") for table in ("judgements", "labels", "label_judgements")}
    ledger = Ledger(version_1)
    assert ledger.find(["k1"]) == {"k1": Answer(0.75, -1.5, -2.25, (), "because", "first", "", 120, 7, 0.0, 0, None)}
    assert [(found.pair_id, found.agreement, found.escalated) for found in ledger.labels()] == [(f"p{n}", None, False) for n in (1, 2, 3, 4)]
    ledger.close()
    for table, kept in before.items():
        assert [{name: row[name] for name in old} for row, old in zip(rows(version_1, f"SELECT * FROM {table}"), kept, strict=True)] == kept
    assert rows(version_1, "PRAGMA user_version") == [{"user_version": schema.VERSION}]


def test_pairs_come_out_of_judgements_and_only_of_those_that_speak_of_them(version_1: Path) -> None:
    Ledger(version_1).close()
    found = rows(version_1, "SELECT * FROM pairs ORDER BY low")
    assert found == [
        {"content_key": content_key(Task.SUMMARIZATION, PROMPT, low, high), "task": "summarization", "prompt": PROMPT_JSON, "low": low, "high": high}
        for low, high in (("a cat", "a dog"), ("x", "y"))
    ]


def test_a_pair_that_no_judge_saw_comes_from_a_person(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    make_version_1(path, [], [label("p1", "a dog", "a cat")], [])
    person = HumanLabel("h1", "p1", Task.SUMMARIZATION, PROMPT, "a dog", "a cat", "a", "ann")
    connection = sqlite3.connect(path)
    key = content_key(Task.SUMMARIZATION, PROMPT, "a dog", "a cat")
    row = ("h1", person.key, "p1", "summarization", PROMPT_JSON, "a dog", "a cat", key, 0.0, "a", "ann", "", None, 1.0)
    connection.execute(f"INSERT INTO human_labels VALUES ({', '.join('?' * len(row))})", row)
    connection.commit()
    connection.close()
    Ledger(path).close()
    assert [(pair["low"], pair["high"]) for pair in rows(path, "SELECT * FROM pairs")] == [("a cat", "a dog")]


def test_a_migrated_ledger_and_a_new_one_are_alike(version_1: Path, tmp_path: Path) -> None:
    Ledger(version_1).close()
    Ledger(tmp_path / "new.sqlite").close()
    schemas = [rows(path, "SELECT type, name, sql FROM sqlite_master ORDER BY name") for path in (version_1, tmp_path / "new.sqlite")]
    assert schemas[0] == schemas[1]
    assert len([row for row in schemas[0] if row["type"] == "trigger"]) == 10


def test_a_ledger_of_version_2_keeps_its_labels_and_their_keys(version_1: Path) -> None:
    """A version that has pairs, and no place for how sure people were: the key of a label without confidence is the one that it had."""
    connection = sqlite3.connect(version_1)
    for statement in schema.upgrade_to_2():
        connection.execute(statement)
    person = HumanLabel("h1", "p1", Task.SUMMARIZATION, PROMPT, "a dog", "a cat", "a", "ann", "clearer", 2.5)
    said = {name: value for name, value in asdict(person).items() if name != "confidence"}
    key = digest_of("human/1", json.loads(json.dumps(said)))
    row = ("h1", key, "p1", "summarization", PROMPT_JSON, "a dog", "a cat", "c" * 64, 0.0, "a", "ann", "clearer", 2.5, 1.0)
    connection.execute(f"INSERT INTO human_labels VALUES ({', '.join('?' * len(row))})", row)
    connection.commit()
    connection.close()
    with contextlib.closing(Ledger(version_1)) as ledger:
        ((_, found),) = ledger.list_human_labels(content_key="", annotator_id="", after=0, limit=9)
        assert (found.ledger_key, found.reason, found.duration_seconds, found.confidence) == (key, "clearer", 2.5, "")
        assert ledger.record_human_label(person) == key, "the same label once more"
        assert ledger.record_human_label(replace(person, confidence="8")) == key, "an import that goes on, now with how sure they were"
        ((_, kept),) = ledger.list_human_labels(content_key="", annotator_id="", after=0, limit=9)
        assert kept == found, "what is in the ledger stays"
        for other in (replace(person, outcome="b"), replace(person, outcome="b", confidence="8"), replace(person, reason="", confidence="8")):
            with pytest.raises(AlreadyExistsError):
                ledger.record_human_label(other)
        sure = replace(person, request_id="h2", confidence="7")
        assert ledger.record_human_label(sure) == ledger.record_human_label(sure) == sure.key
        for other in (replace(sure, confidence="8"), replace(sure, confidence="")):
            with pytest.raises(AlreadyExistsError):
                ledger.record_human_label(other)
    assert rows(version_1, "PRAGMA user_version") == [{"user_version": schema.VERSION}]


def test_a_migration_that_fails_leaves_version_1(version_1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(migration, "_keep_pair", full)
    before = rows(version_1, "SELECT * FROM sqlite_master")
    with pytest.raises(UnavailableError, match="disk is full"):
        Ledger(version_1)
    assert rows(version_1, "PRAGMA user_version") == [{"user_version": 1}]
    assert rows(version_1, "SELECT * FROM sqlite_master") == before
    monkeypatch.undo()
    Ledger(version_1).close()
    assert len(rows(version_1, "SELECT * FROM pairs")) == 2


@pytest.mark.parametrize("version", [0, schema.VERSION + 1, 99])
def test_an_unknown_version_is_refused_and_left_alone(version_1: Path, version: int) -> None:
    connection = sqlite3.connect(version_1)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    before = rows(version_1, "SELECT * FROM sqlite_master")
    with pytest.raises(FailedPreconditionError, match=rf"no ledger of version {schema.VERSION} \(user_version {version}\)"):
        Ledger(version_1)
    assert rows(version_1, "SELECT * FROM sqlite_master") == before
