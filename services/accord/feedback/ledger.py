"""The ledger: every judgement, label and human label, in one SQLite file, durable before it is answered.

WAL with synchronous=FULL: what `append_*` has returned for survives a kill and a power cut. One process writes a ledger at a time, so that a
judgement is asked for once; a lock that dies with its process says so. What does not belong here: asking (`accord.feedback.desk`) and
arithmetic over labels (`accord.feedback.cards`).
"""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from accord.client.ledger import HumanLabelRecord, LabelQuery, LabelRecord
from accord.errors import AccordError, AlreadyExistsError, DataLossError, FailedPreconditionError, UnavailableError
from accord.feedback import ledger_rows as rows
from accord.feedback import schema
from accord.feedback.ledger_pages import read_human_labels, read_labels
from accord.feedback.migration import migrate
from accord.feedback.records import (
    Answer,
    HumanLabel,
    JudgementFacts,
    Kind,
    LabelEntry,
    LabelFacts,
    Origin,
    PairText,
    Question,
    is_added,
)
from accord.text.tasks import Task

_log = structlog.get_logger(__name__)
_FIND_AT_ONCE = 500
_BUSY_MILLISECONDS = 10_000


@dataclass(frozen=True, slots=True)
class JobProgress:
    """What the ledger says of a job: pair ids with a label, abstentions and escalations among those of its data, judgements reused, tokens, money."""

    labelled: frozenset[str]
    abstained: int
    cached_judgements: int
    tokens: int
    cost: float
    escalated: int


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
                    found[row["key"]] = rows.answer_of(row)
        return found

    def answers(self, questions: Sequence[Question]) -> dict[str, Answer]:
        """The answers to questions that are there, by question key.

        That a judge's context was too small is an answer only where it is the context that the judge has now.
        """
        found = self.find([key for question in questions for key in (question.key, question.overflow.key)])
        known = {question.key: found.get(question.key) or found.get(question.overflow.key) for question in questions}
        return {key: answer for key, answer in known.items() if answer is not None}

    def pair_texts(self, keys: Sequence[str]) -> dict[str, PairText]:
        """The texts of pairs that are there, by content key."""
        with self._reading() as run:
            found = run(f"SELECT * FROM pairs WHERE content_key IN ({_marks(len(keys))})", list(keys)).fetchall()
        return {row["content_key"]: rows.pair_text(row) for row in found}

    def append_judgements(self, answered: Sequence[tuple[Question, Answer, Origin]]) -> None:
        """Makes judgements durable; where a key is there already, the first answer stays."""
        with self._writing() as run:
            for question, answer, origin in answered:
                _insert(run, "judgements", rows.judgement_columns(question, answer, origin), "ON CONFLICT (key) DO NOTHING")

    def append_labels(self, entries: Sequence[LabelEntry]) -> None:
        """Makes labels durable with their pairs, all of them or none. A job's second label of the same pair is not added: the first stays."""
        with self._writing() as run:
            for entry in entries:
                _insert(run, "pairs", rows.pair_columns(entry), "ON CONFLICT (content_key) DO NOTHING")
                cursor = _insert(run, "labels", rows.label_columns(entry), "ON CONFLICT DO NOTHING")
                uses = entry.uses if cursor.rowcount else ()
                for place, use in enumerate(uses):
                    run(f"INSERT INTO label_judgements VALUES ({_marks(5)})", (cursor.lastrowid, place, use.key, use.a_first, use.cached))

    def record_human_label(self, label: HumanLabel) -> str:
        """Makes a person's label durable and returns its key; the same label under the same request id is kept once.

        A label that is there without confidence is the same one with it: version 2 had no place for it. It stays as it is, under its own key.

        Raises:
            AlreadyExistsError: the request id was used with another label.
        """
        with self._writing() as run:
            known = run("SELECT key, confidence FROM human_labels WHERE request_id = ?", (label.request_id,)).fetchone()
            if known is None:
                _insert(run, "human_labels", rows.human_label_columns(label))
                return label.key
            key: str = known["key"]
            if key != (label if known["confidence"] else replace(label, confidence="")).key:
                raise AlreadyExistsError(f"request_id {label.request_id!r} was used with another label", field="request_id")
            return key

    def labels(self, *, job: str = "", kind: Kind | None = None, task: Task | None = None) -> list[LabelFacts]:
        """The labels of a job (all where it is empty), of a kind and a task, oldest first, with their judgements and human preferences."""
        wanted = {"job": job, "kind": kind, "task": task.value if task else None}
        given = {name: value for name, value in wanted.items() if value}
        where = " AND ".join(f"labels.{name} = :{name}" for name in given) or "1"
        with self._reading() as run:
            labels = run(rows.LABELS.format(where=where), given).fetchall()
            judgements = run(rows.LABEL_JUDGEMENTS.format(where=where), given).fetchall()
        uses: dict[int, list[JudgementFacts]] = {}
        for row in judgements:
            uses.setdefault(row["label_id"], []).append(rows.judgement_facts(row, job))
        return [rows.label_facts(row, tuple(uses.get(row["id"], ()))) for row in labels]

    def job_progress(self, job: str) -> JobProgress:
        """What is done of a job."""
        with self._reading() as run:
            pairs = run("SELECT pair_id, outcome, escalated FROM labels WHERE job = ?", (job,)).fetchall()
            cached = run("SELECT count(*) FROM label_judgements JOIN labels ON labels.id = label_id WHERE job = ? AND cached", (job,)).fetchone()[0]
            tokens, cost = run("SELECT total(prompt_tokens + response_tokens), total(cost) FROM judgements WHERE job = ?", (job,)).fetchone()
        labelled = frozenset(row["pair_id"] for row in pairs)
        abstained = sum(row["outcome"] == "abstain" for row in pairs if not is_added(row["pair_id"]))
        escalated = sum(row["escalated"] for row in pairs if not is_added(row["pair_id"]))
        return JobProgress(labelled, abstained, int(cached), int(tokens), float(cost), escalated)

    def spent(self, job: str, keys: Collection[str]) -> tuple[float, int]:
        """Money and tokens that a job has paid for some judgements, by key; for those that others have paid, and that are not there, nothing."""
        with self._reading() as run:
            query = f"SELECT total(cost), total(prompt_tokens + response_tokens) FROM judgements WHERE key IN ({_marks(len(keys))}) AND job = ?"
            cost, tokens = run(query, (*keys, job)).fetchone()
        return float(cost), int(tokens)

    def label_keys(self, job: str) -> dict[str, tuple[str, ...]]:
        """The keys of the judgements behind each label of a job, by pair id."""
        found: dict[str, list[str]] = {}
        with self._reading() as run:
            for row in run(
                "SELECT pair_id, key FROM label_judgements JOIN labels ON labels.id = label_id WHERE job = ? ORDER BY label_id, place", (job,)
            ):
                found.setdefault(row["pair_id"], []).append(row["key"])
        return {pair_id: tuple(keys) for pair_id, keys in found.items()}

    def list_labels(self, query: LabelQuery, *, after: int, limit: int) -> list[tuple[int, LabelRecord]]:
        """The next labels of a query behind a place (0 is the beginning), oldest first, each with its own place."""
        with self._reading() as run:
            return read_labels(run, query, after, limit)

    def list_human_labels(self, *, content_key: str, annotator_id: str, after: int, limit: int) -> list[tuple[int, HumanLabelRecord]]:
        """As `list_labels`, of labels by people: of a pair, by a person, or of and by all where these are empty."""
        with self._reading() as run:
            return read_human_labels(run, content_key, annotator_id, after, limit)

    def _open(self) -> sqlite3.Connection:
        with self._translated():
            connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=_BUSY_MILLISECONDS / 1000)
            connection.row_factory = sqlite3.Row
            connection.create_function(rows.PROMPT_KEY, 1, rows.prompt_key, deterministic=True)
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
    if application == schema.APPLICATION_ID and migrate(connection, version):
        _log.info("ledger_migrated", ledger=str(path), version=version, to_version=schema.VERSION)
        return
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] or version:
        raise FailedPreconditionError(f"{path} is no ledger of version {schema.VERSION} (user_version {version}); give another path", field="ledger")
    connection.execute("BEGIN IMMEDIATE")
    for statement in schema.statements():
        connection.execute(statement)
    connection.execute("COMMIT")


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _insert(run: Any, table: str, columns: rows.Columns, clause: str = "") -> sqlite3.Cursor:
    cursor: sqlite3.Cursor = run(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({_marks(len(columns))}) {clause}", tuple(columns.values()))
    return cursor
