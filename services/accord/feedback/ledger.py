"""The ledger: every judgement, label and human label, in one SQLite file, durable before it is answered.

WAL with synchronous=FULL: what `append_*` has returned for survives a kill and a power cut. One process writes a ledger at a time, so that a
judgement is asked for once; a lock that dies with its process says so. What does not belong here: asking (`accord.feedback.desk`) and
arithmetic over labels (`accord.feedback.cards`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from accord.errors import AccordError, AlreadyExistsError, DataLossError, FailedPreconditionError, UnavailableError
from accord.feedback import schema
from accord.feedback.records import Answer, HumanLabel, JudgementFacts, Kind, LabelEntry, LabelFacts, Origin, Question, content_key
from accord.text.tasks import Task

_FIND_AT_ONCE = 500
_BUSY_MILLISECONDS = 10_000
_JUDGEMENT_COLUMNS = 28
_LABEL_COLUMNS = 19


@dataclass(frozen=True, slots=True)
class JobProgress:
    """What the ledger says of a job: pair ids that have a label, abstentions among them, reused judgements, tokens paid for."""

    labelled: frozenset[str]
    abstained: int
    cached_judgements: int
    tokens: int


class Ledger:
    """An open ledger. Every method may be called from any thread; each is one transaction.

    Args:
        path: the SQLite file; made, with its folder, where there is none.

    Raises:
        FailedPreconditionError: another process has it open, or it is no ledger of this version.
        DataLossError: the file is damaged.
        UnavailableError: it cannot be opened or written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.fault: str | None = None
        self._lock = threading.Lock()
        self._claim = _claim(self.path)
        try:
            self._connection = self._open()
        except BaseException:
            self._claim.close()
            raise

    def close(self) -> None:
        """Closes the file and lets go of the lock."""
        with self._lock:
            self._connection.close()
            self._claim.close()

    def check(self) -> str | None:
        """Why the ledger cannot be used, or None; after a failure it tries a write that changes nothing."""
        if self.fault is not None:
            with contextlib.suppress(AccordError), self._writing() as run:
                run(f"PRAGMA user_version = {schema.VERSION}")
        return self.fault

    def find(self, keys: Sequence[str]) -> dict[str, Answer]:
        """The answers that are there, by key."""
        found: dict[str, Answer] = {}
        with self._reading() as run:
            for start in range(0, len(keys), _FIND_AT_ONCE):
                part = list(keys[start : start + _FIND_AT_ONCE])
                for row in run(f"SELECT * FROM judgements WHERE key IN ({_marks(len(part))})", part):
                    found[row["key"]] = _answer(row)
        return found

    def append_judgements(self, rows: Sequence[tuple[Question, Answer, Origin]]) -> None:
        """Makes judgements durable; where a key is there already, the first answer stays."""
        with self._writing() as run:
            for question, answer, origin in rows:
                run(
                    f"INSERT INTO judgements VALUES ({_marks(_JUDGEMENT_COLUMNS)}) ON CONFLICT (key) DO NOTHING",
                    (*_question_columns(question), *_answer_columns(answer), origin.request_id, origin.job, time.time()),
                )

    def append_labels(self, entries: Sequence[LabelEntry]) -> None:
        """Makes labels durable, all of them or none. A job's second label of the same pair is not added: the first stays."""
        with self._writing() as run:
            for entry in entries:
                cursor = run(f"INSERT INTO labels VALUES (NULL, {_marks(_LABEL_COLUMNS)}) ON CONFLICT DO NOTHING", _label_columns(entry))
                uses = entry.uses if cursor.rowcount else ()
                for place, use in enumerate(uses):
                    run(f"INSERT INTO label_judgements VALUES ({_marks(5)})", (cursor.lastrowid, place, use.key, use.a_first, use.cached))

    def record_human_label(self, label: HumanLabel) -> str:
        """Makes a person's label durable and returns its key; the same label under the same request id is kept once.

        Raises:
            AlreadyExistsError: the request id was used with another label.
        """
        low = label.response_a <= label.response_b
        columns = (
            label.request_id, label.key, label.pair_id, label.task.value, json.dumps([[m.role, m.content] for m in label.messages]),
            label.response_a, label.response_b, content_key(label.task, label.messages, label.response_a, label.response_b),
            label.preference if low else 1.0 - label.preference, label.outcome, label.annotator_id, label.reason, label.duration_seconds,
            time.time(),
        )  # fmt: skip
        with self._writing() as run:
            known = run("SELECT key FROM human_labels WHERE request_id = ?", (label.request_id,)).fetchone()
            if known is None:
                run(f"INSERT INTO human_labels VALUES ({_marks(len(columns))})", columns)
            elif known["key"] != label.key:
                raise AlreadyExistsError(f"request_id {label.request_id!r} was used with another label", field="request_id")
        return label.key

    def labels(self, *, job: str = "", kind: Kind | None = None, task: Task | None = None) -> list[LabelFacts]:
        """The labels of a job (all where it is empty), of a kind and a task, oldest first, with their judgements and human preferences."""
        wanted = {"job": job, "kind": kind, "task": task.value if task else None}
        given = {name: value for name, value in wanted.items() if value}
        where = " AND ".join(f"labels.{name} = :{name}" for name in given) or "1"
        with self._reading() as run:
            labels = run(_LABELS.format(where=where), given).fetchall()
            judgements = run(_LABEL_JUDGEMENTS.format(where=where), given).fetchall()
        uses: dict[int, list[JudgementFacts]] = {}
        for row in judgements:
            uses.setdefault(row["label_id"], []).append(_judgement_facts(row, job))
        return [_label_facts(row, tuple(uses.get(row["id"], ()))) for row in labels]

    def job_progress(self, job: str) -> JobProgress:
        """What is done of a job."""
        with self._reading() as run:
            pairs = run("SELECT pair_id, outcome FROM labels WHERE job = ?", (job,)).fetchall()
            cached = run("SELECT count(*) FROM label_judgements JOIN labels ON labels.id = label_id WHERE job = ? AND cached", (job,)).fetchone()[0]
            tokens = run("SELECT total(prompt_tokens + response_tokens) FROM judgements WHERE job = ?", (job,)).fetchone()[0]
        labelled = frozenset(row["pair_id"] for row in pairs)
        return JobProgress(labelled, sum(row["outcome"] == "abstain" for row in pairs), int(cached), int(tokens))

    def label_keys(self, job: str) -> dict[str, tuple[str, ...]]:
        """The keys of the judgements behind each label of a job, by pair id."""
        found: dict[str, list[str]] = {}
        with self._reading() as run:
            for row in run(
                "SELECT pair_id, key FROM label_judgements JOIN labels ON labels.id = label_id WHERE job = ? ORDER BY label_id, place", (job,)
            ):
                found.setdefault(row["pair_id"], []).append(row["key"])
        return {pair_id: tuple(keys) for pair_id, keys in found.items()}

    def _open(self) -> sqlite3.Connection:
        with self._translated():
            connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=_BUSY_MILLISECONDS / 1000)
            connection.row_factory = sqlite3.Row
            try:
                _prepare(connection, self.path)
            except BaseException:
                connection.close()
                raise
            return connection

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Any]:
        with self._lock, self._translated():
            yield self._connection.execute

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Any]:
        """One transaction: all of it, on disk, or nothing."""
        with self._lock, self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.execute
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a failed COMMIT (disk full) may have rolled back already
                    self._connection.execute("ROLLBACK")
                raise
            self.fault = None

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """SQLite's errors as ours; the last one is `fault` until a write succeeds."""
        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise  # a defect of ours, not of the file
        except sqlite3.OperationalError as error:
            self.fault = f"the ledger {self.path} cannot be used: {error}"
            raise UnavailableError(self.fault, retry_after_seconds=5.0) from error
        except sqlite3.DatabaseError as error:
            self.fault = f"the ledger {self.path} is damaged: {error}"
            raise DataLossError(self.fault) from error


def _claim(path: Path) -> Any:
    """The lock of a ledger's one process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        claim = path.with_name(f"{path.name}.lock").open("w")
    except OSError as error:
        raise UnavailableError(f"{path} cannot be opened: {error.strerror}", field="ledger") from error
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        claim.close()
        raise FailedPreconditionError(f"another process has the ledger {path} open", field="ledger") from error
    return claim


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    if (version, application) == (schema.VERSION, schema.APPLICATION_ID):
        return
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] or version:
        raise FailedPreconditionError(f"{path} is no ledger of version {schema.VERSION} (user_version {version}); give another path", field="ledger")
    connection.execute("BEGIN IMMEDIATE")
    for statement in schema.statements():
        connection.execute(statement)
    connection.execute("COMMIT")


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _question_columns(question: Question) -> tuple[object, ...]:
    rubric, judge = question.rubric, question.judge
    return (
        question.key, question.kind, question.task.value, question.prompt_json, question.first, question.second,
        rubric.id if rubric else "", rubric.digest if rubric else "", judge.name, judge.digest,
        judge.digests.base_model, judge.digests.tokenizer, judge.digests.chat_template, judge.adapter_version, judge.adapter_digest,
        json.dumps(question.options, sort_keys=True),
    )  # fmt: skip


def _answer_columns(answer: Answer) -> tuple[object, ...]:
    return (
        answer.probability_first, answer.evidence_first, answer.evidence_second, json.dumps(answer.distributions), answer.rationale,
        answer.parsed, answer.abstention_reason, answer.prompt_tokens, answer.response_tokens,
    )  # fmt: skip


def _label_columns(entry: LabelEntry) -> tuple[object, ...]:
    return (
        entry.origin.job, entry.pair_id, entry.task.value, entry.content_key, entry.a_is_low, entry.length_a, entry.length_b,
        entry.kind, entry.rubric, entry.rubric_digest, entry.judge, entry.judge_digest, entry.options, entry.preference,
        entry.outcome, entry.abstention_reason, entry.human_preference, entry.origin.request_id, time.time(),
    )  # fmt: skip


def _answer(row: sqlite3.Row) -> Answer:
    return Answer(
        row["probability_first"], row["evidence_first"], row["evidence_second"],
        tuple(tuple(distribution) for distribution in json.loads(row["distributions"])), row["rationale"], row["parsed"],
        row["abstention_reason"], row["prompt_tokens"], row["response_tokens"],
    )  # fmt: skip


_LABELS = """
    SELECT labels.*, people.preference_low FROM labels
    LEFT JOIN (SELECT content_key, avg(preference_low) AS preference_low FROM human_labels GROUP BY content_key) AS people
    ON people.content_key = labels.content_key WHERE {where} ORDER BY labels.id"""
_LABEL_JUDGEMENTS = """
    SELECT label_judgements.*, judgements.probability_first, judgements.evidence_first, judgements.evidence_second,
        judgements.prompt_tokens + judgements.response_tokens AS tokens, judgements.job AS paid_by
    FROM label_judgements JOIN labels ON labels.id = label_id JOIN judgements ON judgements.key = label_judgements.key
    WHERE {where} ORDER BY label_id, place"""


def _judgement_facts(row: sqlite3.Row, job: str) -> JudgementFacts:
    return JudgementFacts(
        row["key"], bool(row["a_first"]), row["probability_first"], row["evidence_first"], row["evidence_second"],
        by_judge=row["tokens"] > 0, tokens=row["tokens"], cached=bool(row["cached"]), paid=not job or row["paid_by"] == job,
    )  # fmt: skip


def _label_facts(row: sqlite3.Row, judgements: tuple[JudgementFacts, ...]) -> LabelFacts:
    human = row["human_preference"]
    if human is None and row["preference_low"] is not None:
        human = row["preference_low"] if row["a_is_low"] else 1.0 - row["preference_low"]
    return LabelFacts(
        row["pair_id"], Task(row["task"]), row["content_key"], row["length_a"], row["length_b"], cast(Kind, row["kind"]), row["rubric"],
        row["rubric_digest"],
        row["judge"], row["judge_digest"], row["options"], row["preference"], row["outcome"], row["abstention_reason"], human, judgements,
    )  # fmt: skip
