"""The ledger as version 1 made it, statement for statement, with rows as it wrote them: what a migration is tried on."""

from __future__ import annotations

import sqlite3
from pathlib import Path

VERSION = 1
APPLICATION_ID = 0x41434C47  # "ACLG": tells a ledger from any other SQLite file

_TABLES = {
    "judgements": """
        key TEXT PRIMARY KEY, kind TEXT NOT NULL, task TEXT NOT NULL, prompt TEXT NOT NULL, first TEXT NOT NULL, second TEXT,
        rubric TEXT NOT NULL, rubric_digest TEXT NOT NULL, judge TEXT NOT NULL, judge_digest TEXT NOT NULL,
        base_model_digest TEXT NOT NULL, tokenizer_digest TEXT NOT NULL, template_digest TEXT NOT NULL,
        adapter_version TEXT NOT NULL, adapter_digest TEXT NOT NULL, options TEXT NOT NULL,
        probability_first REAL, evidence_first REAL, evidence_second REAL, distributions TEXT NOT NULL,
        rationale TEXT NOT NULL, parsed TEXT NOT NULL, abstention_reason TEXT NOT NULL,
        prompt_tokens INTEGER NOT NULL, response_tokens INTEGER NOT NULL,
        request_id TEXT NOT NULL, job TEXT NOT NULL, time REAL NOT NULL""",
    "labels": """
        id INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL, pair_id TEXT NOT NULL, task TEXT NOT NULL,
        content_key TEXT NOT NULL, a_is_low INTEGER NOT NULL, length_a INTEGER NOT NULL, length_b INTEGER NOT NULL,
        kind TEXT NOT NULL, rubric TEXT NOT NULL, rubric_digest TEXT NOT NULL, judge TEXT NOT NULL, judge_digest TEXT NOT NULL,
        options TEXT NOT NULL, preference REAL, outcome TEXT NOT NULL, abstention_reason TEXT NOT NULL, human_preference REAL,
        request_id TEXT NOT NULL, time REAL NOT NULL""",
    "label_judgements": """
        label_id INTEGER NOT NULL REFERENCES labels (id), place INTEGER NOT NULL, key TEXT NOT NULL REFERENCES judgements (key),
        a_first INTEGER NOT NULL, cached INTEGER NOT NULL, PRIMARY KEY (label_id, place)""",
    "human_labels": """
        request_id TEXT PRIMARY KEY, key TEXT NOT NULL, pair_id TEXT NOT NULL, task TEXT NOT NULL, prompt TEXT NOT NULL,
        response_a TEXT NOT NULL, response_b TEXT NOT NULL, content_key TEXT NOT NULL, preference_low REAL NOT NULL,
        outcome TEXT NOT NULL, annotator_id TEXT NOT NULL, reason TEXT NOT NULL, duration_seconds REAL, time REAL NOT NULL""",
}
_INDEXES = (
    "CREATE UNIQUE INDEX labels_of_jobs ON labels (job, pair_id) WHERE job != ''",
    "CREATE INDEX judgements_of_jobs ON judgements (job) WHERE job != ''",
    "CREATE INDEX human_labels_of_pairs ON human_labels (content_key)",
)


def statements() -> list[str]:
    """The SQL that makes an empty file a ledger."""
    found = [f"CREATE TABLE {name} ({columns})" for name, columns in _TABLES.items()]
    found += _INDEXES
    for name in _TABLES:
        for action in ("UPDATE", "DELETE"):
            found.append(
                f"CREATE TRIGGER {name}_never_{action.lower()} BEFORE {action} ON {name} BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
            )
    return [*found, f"PRAGMA user_version = {VERSION}", f"PRAGMA application_id = {APPLICATION_ID}"]


JUDGEMENT_COLUMNS = 28
LABEL_COLUMNS = 19


def make_version_1(path: Path, judgements: list[tuple[object, ...]], labels: list[tuple[object, ...]], uses: list[tuple[object, ...]]) -> None:
    """A ledger of version 1 with these rows, inserted by position as version 1 did."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    for statement in statements():
        connection.execute(statement)
    for row in judgements:
        connection.execute(f"INSERT INTO judgements VALUES ({', '.join('?' * JUDGEMENT_COLUMNS)})", row)
    for row in labels:
        connection.execute(f"INSERT INTO labels VALUES (NULL, {', '.join('?' * LABEL_COLUMNS)})", row)
    for row in uses:
        connection.execute("INSERT INTO label_judgements VALUES (?, ?, ?, ?, ?)", row)
    connection.close()
