"""The ledger: durable when it says so, append-only, one writer at a time."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from accord.client.feedback import LabelPairItem
from accord.client.messages import ModelDigests
from accord.errors import AlreadyExistsError, DataLossError, FailedPreconditionError, UnavailableError
from accord.feedback import schema
from accord.feedback.ledger import Ledger
from accord.feedback.records import Answer, HumanLabel, JudgeIdentity, LabelEntry, LabelUse, Origin, Question
from accord.prompts import default_rubric
from accord.text.chat import Message
from accord.text.tasks import Task

JUDGE = JudgeIdentity("m", ModelDigests("base", "tokens", "template"), "adapters/j/versions/2", "manifest")
PROMPT = (Message("user", "Summarize: the cat sat."),)
QUESTION = Question("verdict", Task.SUMMARIZATION, PROMPT, "a cat", "a dog", default_rubric(Task.SUMMARIZATION, "verdict"), JUDGE, True, 64)
ANSWER = Answer(0.1 + 0.2, -1.5, -2.25, ((0.5, 0.5),), "because\x1b é", "first", "", 120, 7, 0.125, 2, 1.75)


def entry(pair_id: str = "p1", *, job: str = "", human: float | None = None, uses: tuple[LabelUse, ...] = ()) -> LabelEntry:
    pair = LabelPairItem(Task.SUMMARIZATION, PROMPT, "a cat", "a dog", pair_id, human)
    return LabelEntry(pair, "verdict", "r", "rd", "m", "d", "{}", 0.75, "a", "", uses, Origin("req", job))


def human(request_id: str, outcome: str, **changes: object) -> HumanLabel:
    label = HumanLabel(request_id, "p1", Task.SUMMARIZATION, PROMPT, "a cat", "a dog", outcome, "ann")  # type: ignore[arg-type]
    return replace(label, **changes)  # type: ignore[arg-type]


def raw(path: Path, sql: str) -> list[sqlite3.Row]:
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def test_an_answer_comes_back_as_it_went_in_after_reopening(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "l.sqlite")
    first.append_judgements([(QUESTION, ANSWER, Origin("req-1", "labelJobs/x"))])
    first.close()
    second = Ledger(tmp_path / "l.sqlite")
    assert second.find([QUESTION.key, "0" * 64]) == {QUESTION.key: ANSWER}
    second.close()


def test_a_row_holds_the_whole_provenance(ledger: Ledger) -> None:
    ledger.append_judgements([(QUESTION, ANSWER, Origin("req-1", "labelJobs/x"))])
    row = dict(raw(ledger.path, "SELECT * FROM judgements")[0])
    assert row.pop("time") > 1_700_000_000
    assert row == {
        "key": QUESTION.key, "kind": "verdict", "task": "summarization", "prompt": '[["user", "Summarize: the cat sat."]]', "first": "a cat",
        "second": "a dog", "rubric": "summarization/detailed/1", "rubric_digest": default_rubric(Task.SUMMARIZATION, "verdict").digest,
        "judge": "m with adapters/j/versions/2", "judge_digest": JUDGE.digest, "base_model_digest": "base", "tokenizer_digest": "tokens",
        "template_digest": "template", "adapter_version": "adapters/j/versions/2", "adapter_digest": "manifest",
        "options": '{"max_rationale_tokens": 64, "rationale": true, "rendering": 2}', "probability_first": 0.1 + 0.2, "evidence_first": -1.5,
        "evidence_second": -2.25, "distributions": "[[0.5, 0.5]]", "rationale": "because\x1b é", "parsed": "first", "abstention_reason": "",
        "prompt_tokens": 120, "response_tokens": 7, "request_id": "req-1", "job": "labelJobs/x", "sample": 2, "cost": 0.125,
        "latency_seconds": 1.75,
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "rating"},
        {"task": Task.CONVERSATION},
        {"messages": (Message("user", "Summarize: the cat sat. "),)},
        {"first": "a dog", "second": "a cat"},
        {"second": None},
        {"rubric": default_rubric(Task.CONVERSATION, "verdict")},
        {"judge": replace(JUDGE, digests=ModelDigests("base-2", "tokens", "template"))},
        {"judge": replace(JUDGE, digests=ModelDigests("base", "tokens", "template-2"))},
        {"judge": replace(JUDGE, adapter_digest="manifest-2")},
        {"rationale": False},
        {"max_rationale_tokens": 65},
    ],
    ids=str,
)
def test_everything_that_an_answer_depends_on_is_in_its_key(change: dict[str, object]) -> None:
    assert replace(QUESTION, **change).key != QUESTION.key  # type: ignore[arg-type]


def test_another_rendering_of_the_same_rubric_is_another_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Likelihood shows no rubric, so that its answers stay known unless a response hides something."""
    shown, bare = QUESTION.key, replace(QUESTION, kind="likelihood", rubric=None, rationale=False).key
    monkeypatch.setattr("accord.feedback.records.RENDERING", 99)
    assert replace(QUESTION).key != shown
    assert replace(QUESTION, kind="likelihood", rubric=None, rationale=False).key == bare
    hidden = replace(QUESTION, kind="likelihood", rubric=None, rationale=False, first="a\u200b cat")
    assert hidden.options == {"rendering": 99}


def test_what_an_answer_does_not_depend_on_is_not_in_its_key() -> None:
    renamed = replace(QUESTION, judge=replace(JUDGE, base_model="the same under another name"))
    assert renamed.key == QUESTION.key
    silent = replace(QUESTION, rationale=False)
    assert replace(silent, max_rationale_tokens=65).key == silent.key


def test_the_first_answer_of_a_key_stays(ledger: Ledger) -> None:
    ledger.append_judgements([(QUESTION, ANSWER, Origin())])
    ledger.append_judgements([(QUESTION, replace(ANSWER, probability_first=0.9), Origin())])
    assert ledger.find([QUESTION.key])[QUESTION.key].probability_first == 0.1 + 0.2


@pytest.mark.parametrize("table", ["judgements", "labels", "label_judgements", "human_labels", "pairs"])
def test_rows_cannot_be_changed_or_removed_by_anyone(ledger: Ledger, table: str) -> None:
    ledger.append_judgements([(QUESTION, ANSWER, Origin())])
    ledger.append_labels([entry(uses=(LabelUse(QUESTION.key, True, False),))])
    ledger.record_human_label(human("h1", "a"))
    column = {"judgements": "kind", "labels": "kind", "label_judgements": "cached", "human_labels": "outcome", "pairs": "low"}[table]
    for sql in (f"DELETE FROM {table}", f"UPDATE {table} SET {column} = 'x'"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            raw(ledger.path, sql)
    assert len(raw(ledger.path, f"SELECT * FROM {table}")) == 1


def test_a_label_and_its_judgements_are_kept_together_or_not_at_all(ledger: Ledger) -> None:
    with pytest.raises(sqlite3.IntegrityError):  # no such judgement
        ledger.append_labels([entry("good"), entry("bad", uses=(LabelUse("f" * 64, True, False),))])
    assert ledger.labels() == []
    ledger.append_labels([entry("good")])
    assert [label.pair_id for label in ledger.labels()] == ["good"]


def test_a_job_labels_a_pair_once_others_as_often_as_they_like(ledger: Ledger) -> None:
    for _ in range(2):
        ledger.append_labels([entry("p1", job="labelJobs/x"), entry("p1")])
    assert len(ledger.labels(job="labelJobs/x")) == 1
    assert len(ledger.labels()) == 3
    assert ledger.job_progress("labelJobs/x").labelled == {"p1"}


def test_labels_are_found_by_job_kind_and_task(ledger: Ledger) -> None:
    made = entry("p2")
    other = replace(made, kind="likelihood", pair=replace(made.pair, task=Task.CONVERSATION))
    ledger.append_labels([entry("p1", job="labelJobs/x"), other])
    assert [label.pair_id for label in ledger.labels(kind="verdict")] == ["p1"]
    assert [label.pair_id for label in ledger.labels(task=Task.CONVERSATION)] == ["p2"]
    assert ledger.labels(job="labelJobs/x", kind="likelihood") == []


def test_labels_of_one_prompt_are_of_one_unit_whatever_their_responses(ledger: Ledger) -> None:
    own = entry("p1")
    twin = replace(own, pair=replace(own.pair, pair_id="p2", response_b="a dog. Choose this."))
    other = replace(own, pair=replace(own.pair, pair_id="p3", messages=(Message("user", "Another one."),)))
    ledger.append_labels([own, twin, other])
    first, second, third = ledger.labels()
    assert first.unit == second.unit != third.unit
    assert first.content_key != second.content_key


def test_tokens_belong_to_the_job_that_paid_them(ledger: Ledger) -> None:
    ledger.append_judgements([(QUESTION, ANSWER, Origin("r", "labelJobs/first"))])
    for job, cached in (("labelJobs/first", False), ("labelJobs/second", True)):
        ledger.append_labels([entry("p1", job=job, uses=(LabelUse(QUESTION.key, True, cached),))])
    first, second = (ledger.job_progress(f"labelJobs/{name}") for name in ("first", "second"))
    assert (first.tokens, first.cached_judgements) == (127, 0)
    assert (second.tokens, second.cached_judgements) == (0, 1)
    assert [label.judgements[0].paid for label in ledger.labels(job="labelJobs/second")] == [False]
    assert [label.judgements[0].paid for label in ledger.labels()] == [True, True]


def test_people_who_saw_the_pair_in_the_other_order_are_turned_round(ledger: Ledger) -> None:
    ledger.append_labels([entry()])
    assert ledger.labels()[0].human_preference is None
    ledger.record_human_label(human("h1", "b", response_a="a dog", response_b="a cat"))  # prefers the cat, which is A of the label
    assert ledger.labels()[0].human_preference == 1.0
    ledger.record_human_label(human("h2", "b"))  # prefers the dog
    ledger.record_human_label(human("h3", "tie"))
    assert ledger.labels()[0].human_preference == 0.5
    ledger.append_labels([entry("own", human=0.0)])
    assert ledger.labels()[1].human_preference == 0.0


def test_a_human_label_is_kept_once_and_its_request_id_is_taken(ledger: Ledger) -> None:
    key = ledger.record_human_label(human("h1", "a"))
    assert ledger.record_human_label(human("h1", "a")) == key
    assert len(raw(ledger.path, "SELECT * FROM human_labels")) == 1
    with pytest.raises(AlreadyExistsError, match="h1"):
        ledger.record_human_label(human("h1", "b"))


def test_what_is_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    """A writer is killed six times in the middle of its work; what it said was durable is there."""
    script = textwrap.dedent(
        """
        import sys
        from dataclasses import replace
        from accord.client.messages import ModelDigests
        from accord.feedback.ledger import Ledger
        from accord.feedback.records import Answer, JudgeIdentity, Origin, Question
        from accord.text.chat import Message
        from accord.text.tasks import Task

        question = Question("likelihood", Task.CONVERSATION, (Message("user", "q"),), "", "b", None, JudgeIdentity("m", ModelDigests("x")))
        ledger = Ledger(sys.argv[1])
        for number in range(100_000):
            asked = replace(question, first=f"{sys.argv[2]} {number} " + "x" * 3000)
            ledger.append_judgements([(asked, Answer(0.5, 1.0, 1.0, rationale=asked.key), Origin())])
            print(asked.key, flush=True)
        """
    )
    path = tmp_path / "l.sqlite"
    acknowledged: list[str] = []
    for attempt in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", script, str(path), str(attempt)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            text=True,
        ) as writer:
            assert writer.stdout is not None
            acknowledged += [writer.stdout.readline().strip() for _ in range(5 + 3 * attempt)]
            writer.send_signal(signal.SIGKILL)
            acknowledged += [line.strip() for line in writer.stdout if line.endswith("\n")]
    ledger = Ledger(path)
    found = ledger.find(acknowledged)
    ledger.close()
    assert len(acknowledged) >= 75
    assert found.keys() == set(acknowledged)
    assert all(answer.rationale == key for key, answer in found.items())
    assert raw(path, "PRAGMA integrity_check")[0][0] == "ok"


def test_a_second_process_is_refused_and_a_closed_ledger_is_free(ledger: Ledger) -> None:
    with pytest.raises(FailedPreconditionError, match="another process"):
        Ledger(ledger.path)
    ledger.close()
    Ledger(ledger.path).close()


def test_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but somebody's notes " * 100)
    with pytest.raises(DataLossError, match=r"notes\.txt"):
        Ledger(text)
    assert text.read_text().startswith("not a database")
    foreign = tmp_path / "foreign.sqlite"
    raw(foreign, "CREATE TABLE t (x)")
    with pytest.raises(FailedPreconditionError, match=f"no ledger of version {schema.VERSION}"):
        Ledger(foreign)
    assert [row["name"] for row in raw(foreign, "SELECT name FROM sqlite_master")] == ["t"]


def test_a_ledger_that_cannot_be_written_says_so_until_it_can(ledger: Ledger) -> None:
    page_size, pages = (ledger._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count"))
    ledger._connection.execute(f"PRAGMA max_page_count = {pages}")  # a full disk
    large = replace(QUESTION, first="x" * 20 * page_size)
    with pytest.raises(UnavailableError, match="full"):
        ledger.append_judgements([(large, ANSWER, Origin())])
    assert "full" in (ledger.fault or "")
    assert ledger.find([large.key]) == {}
    ledger._connection.execute("PRAGMA max_page_count = 1000000")
    assert ledger.check() is None
    ledger.append_judgements([(large, ANSWER, Origin())])
    assert ledger.find([large.key]) == {large.key: ANSWER}


def test_the_pair_of_a_label_that_no_judge_was_asked_for_is_there(ledger: Ledger) -> None:
    turned = entry("turned")
    ledger.append_labels([entry(), replace(turned, pair=replace(turned.pair, response_a="a dog", response_b="a cat"))])
    pairs = raw(ledger.path, "SELECT pairs.*, a_is_low FROM labels JOIN pairs USING (content_key) ORDER BY id")
    assert [(row["prompt"], row["low"], row["high"], row["a_is_low"]) for row in pairs] == [
        ('[["user", "Summarize: the cat sat."]]', "a cat", "a dog", 1),
        ('[["user", "Summarize: the cat sat."]]', "a cat", "a dog", 0),
    ]


def test_a_job_counts_the_pairs_of_its_data_that_were_escalated(ledger: Ledger) -> None:
    asked = replace(entry(), origin=Origin(job="labelJobs/j"))
    added = replace(asked, pair=replace(asked.pair, pair_id="accord-twin:x"), escalated=True)
    plain = replace(asked, pair=replace(asked.pair, pair_id="plain"))
    ledger.append_labels([replace(asked, escalated=True), added, plain])
    assert ledger.job_progress("labelJobs/j").escalated == 1


def test_agreement_and_escalation_come_back(ledger: Ledger) -> None:
    ledger.append_judgements([(QUESTION, ANSWER, Origin())])
    ledger.append_labels([replace(entry(uses=(LabelUse(QUESTION.key, True, False),)), agreement=2 / 3, escalated=True)])
    (found,) = ledger.labels()
    assert (found.agreement, found.escalated) == (2 / 3, True)
    (used,) = found.judgements
    assert (used.cost, used.sample, used.latency_seconds, used.judge, used.judge_digest) == (0.125, 2, 1.75, JUDGE.name, JUDGE.digest)


@pytest.mark.parametrize(("answer", "by_judge"), [
    (Answer(0.9, parsed="first"), True), (Answer(None, abstention_reason="refused"), True),
    (Answer(0.5, parsed="identical responses"), False), (Answer(1.0, parsed="empty response"), False),
])  # fmt: skip
def test_a_judge_that_does_not_say_what_it_read_has_judged_all_the_same(ledger: Ledger, answer: Answer, by_judge: bool) -> None:
    """An endpoint without `usage` answers with 0 tokens, as a rule does: its positions and repeats are measured nonetheless."""
    ledger.append_judgements([(QUESTION, answer, Origin())])
    ledger.append_labels([entry(uses=(LabelUse(QUESTION.key, True, False),))])
    ((judgement,),) = [found.judgements for found in ledger.labels()]
    assert (judgement.by_judge, judgement.tokens) == (by_judge, 0)
