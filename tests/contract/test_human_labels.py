"""People's labels through the real feedback service: each once, whatever is killed in between, and then on the judge's card."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.entries import feedback_config
from tests.contract.fake_judge import FakeJudge
from tests.contract.harness import ServerProcess
from tests.unit.feedback.fakes import FakePolicy

from accord.cli.human_labels import Imported, human_label, import_human_labels
from accord.client.feedback import FeedbackClient, Judge
from accord.data.records import PreferencePair
from accord.errors import UnavailableError
from accord.rpc.channels import ChannelConfig
from accord.text.chat import Message
from accord.text.tasks import Task


def pairs(count: int) -> list[PreferencePair]:
    """Two people on each pair; anna takes the good response, ben the other one where the number is divisible by five."""
    found = []
    for number in range(count):
        for person in ("anna", "ben"):
            human = 0.0 if person == "ben" and number % 5 == 0 else 1.0
            found.append(
                PreferencePair(
                    f"p{number}-{person}", Task.CONVERSATION, (Message("user", f"question {number}"),), f"good answer {number}", f"words, {number}",
                    human, f"g{number}", human, metadata={"annotator": person, "seconds": "2.5", "reason": "clearer"},
                )
            )  # fmt: skip
    return found


def recorded(folder: Path) -> list[tuple[str, str, str, float]]:
    with closing(sqlite3.connect(f"file:{folder / 'ledger.sqlite'}?mode=ro", uri=True)) as ledger:
        return ledger.execute("SELECT pair_id, annotator_id, reason, duration_seconds FROM human_labels ORDER BY pair_id").fetchall()


def whole_import(address: str, rows: list[PreferencePair]) -> Imported:
    with FeedbackClient(ChannelConfig(address=address, attempts=1)) as client:
        *_, done = import_human_labels(client, rows, "")
    return done


def test_labels_are_recorded_once_whenever_the_service_is_killed(tmp_path: Path) -> None:
    rows = pairs(150)
    with (
        ServerProcess("accord.feedback", feedback_config(tmp_path), tmp_path) as server,
        FeedbackClient(ChannelConfig(address=server.address, attempts=1)) as client,
    ):
        steps = import_human_labels(client, rows, "")
        next(steps)
        next(steps)
        server.kill()
        with pytest.raises(UnavailableError):
            list(steps)
    assert 128 <= len(recorded(tmp_path)) < 300
    with ServerProcess("accord.feedback", feedback_config(tmp_path), tmp_path) as server:
        for _ in range(2):
            done = whole_import(server.address, rows)
            assert (done.recorded, done.conflicting, dict(done.annotators)) == (300, 0, {"anna": 150, "ben": 150})
        other = [replace(row, human_preference=1.0 - (row.human_preference or 0.0)) for row in rows[:3]]
        assert whole_import(server.address, other).conflicting == 3
    found = recorded(tmp_path)
    assert [row[0] for row in found] == sorted(row.pair_id for row in rows)
    assert {row[1:] for row in found} == {("anna", "clearer", 2.5), ("ben", "clearer", 2.5)}


def test_a_judges_card_compares_with_the_people_and_what_is_too_long_is_refused_alone(tmp_path: Path) -> None:
    """The judge takes what it calls good; people agree but where they are of two minds, which is no label to compare with."""
    judge = FakeJudge(FakePolicy(bias=0.0))
    long = "word " * 100_000  # a transcript of 100,000 tokens: half a megabyte
    rows = pairs(20)
    rows += [replace(rows[0], pair_id="long", messages=(Message("user", long),)), replace(rows[0], pair_id="huge", chosen=long * 3)]
    try:
        with ServerProcess("accord.feedback", {**feedback_config(tmp_path), "policy": judge.address, "max_text_bytes": 100_000}, tmp_path) as server:
            done = whole_import(server.address, rows)
            assert done.recorded == 40
            assert sum(done.refused.values()) == 2
            assert [example.split(":")[0] for example in done.examples] == ["long", "huge"]
            with FeedbackClient(ChannelConfig(address=server.address)) as client:
                items = [human_label(row)[0] for row in rows[:40:2]]
                client.label_pairs(items, Judge("verdict"))
                (card,) = client.label_cards()
    finally:
        judge.stop()
    assert card.human_agreement is not None
    assert (card.human_agreement.n, card.human_agreement.value) == (16, 1.0)
