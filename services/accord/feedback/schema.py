"""The tables of the ledger. Rows are added and never changed: triggers refuse anything else, whoever asks.

What does not belong here: bringing an older ledger up to this version (`accord.feedback.migration`).
"""

from __future__ import annotations

from collections.abc import Iterable

VERSION = 3
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
# Version 2 is version 1 and these, so that a new ledger and a migrated one have the same columns in the same order.
_PAIRS = "content_key TEXT PRIMARY KEY, task TEXT NOT NULL, prompt TEXT NOT NULL, low TEXT NOT NULL, high TEXT NOT NULL"
_SINCE_2 = (
    "ALTER TABLE judgements ADD COLUMN sample INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE judgements ADD COLUMN cost REAL NOT NULL DEFAULT 0",
    "ALTER TABLE judgements ADD COLUMN latency_seconds REAL",
    "ALTER TABLE labels ADD COLUMN agreement REAL",
    "ALTER TABLE labels ADD COLUMN escalated INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX labels_of_pairs ON labels (content_key)",
)
# Version 3 knows how sure a person was.
_SINCE_3 = ("ALTER TABLE human_labels ADD COLUMN confidence TEXT NOT NULL DEFAULT ''",)


def statements() -> list[str]:
    """The SQL that makes an empty file a ledger."""
    found = [f"CREATE TABLE {name} ({columns})" for name, columns in _TABLES.items()]
    found += _INDEXES
    found += _guards(_TABLES)
    return [*found, *upgrade_to_2(), *upgrade_to_3(), f"PRAGMA application_id = {APPLICATION_ID}"]


def upgrade_to_2() -> list[str]:
    """The SQL that gives a ledger of version 1 the tables of version 2, without the rows that can be made out of the old ones."""
    return [f"CREATE TABLE pairs ({_PAIRS})", *_SINCE_2, *_guards(("pairs",)), "PRAGMA user_version = 2"]


def upgrade_to_3() -> list[str]:
    """The SQL that gives a ledger of version 2 the tables of version 3."""
    return [*_SINCE_3, "PRAGMA user_version = 3"]


def _guards(tables: Iterable[str]) -> list[str]:
    return [
        f"CREATE TRIGGER {name}_never_{action.lower()} BEFORE {action} ON {name} BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
        for name in tables
        for action in ("UPDATE", "DELETE")
    ]
