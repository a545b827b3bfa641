"""A ledger of an older version, brought up to this one where it lies, in one transaction.

What does not belong here: the tables themselves (`accord.feedback.schema`).
"""

from __future__ import annotations

import json
import sqlite3

from accord.feedback import schema
from accord.feedback.records import content_key
from accord.text.chat import Message
from accord.text.tasks import Task

_PAIRS_BY_JUDGEMENTS = """
    SELECT DISTINCT labels.content_key, judgements.task, judgements.prompt, judgements.first, judgements.second FROM labels
    JOIN label_judgements ON label_id = labels.id JOIN judgements ON judgements.key = label_judgements.key WHERE judgements.second IS NOT NULL"""
_PAIRS_BY_PEOPLE = """
    SELECT DISTINCT labels.content_key, human_labels.task, human_labels.prompt, response_a, response_b FROM labels
    JOIN human_labels ON human_labels.content_key = labels.content_key"""


def migrate(connection: sqlite3.Connection, version: int) -> bool:
    """Brings a ledger of that version up to date; False where no way leads from there.

    Version 1 kept a label's pair only in its judgements: from these, and from people's labels, it is taken over. A label whose pair was never
    written down (no judge was asked and no person) has none afterwards. What an older version did not know stays unknown: latency in version 1, how
    sure people were before version 3.
    """
    if version not in (1, 2):
        return False
    connection.execute("BEGIN IMMEDIATE")
    try:
        if version == 1:
            _upgrade_to_2(connection)
        for statement in schema.upgrade_to_3():
            connection.execute(statement)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return True


def _upgrade_to_2(connection: sqlite3.Connection) -> None:
    for statement in schema.upgrade_to_2():
        connection.execute(statement)
    for query in (_PAIRS_BY_JUDGEMENTS, _PAIRS_BY_PEOPLE):
        for key, task, prompt, one, other in connection.execute(query):
            _keep_pair(connection, key, (task, prompt, one, other))


def _keep_pair(connection: sqlite3.Connection, key: str, pair: tuple[str, str, str, str]) -> None:
    """Adds a pair under its key, unless its content is another's: a label must never show a pair that it is not of."""
    task, prompt, one, other = pair
    messages = tuple(Message(role, content) for role, content in json.loads(prompt))
    if content_key(Task(task), messages, one, other) == key:
        connection.execute("INSERT OR IGNORE INTO pairs VALUES (?, ?, ?, ?, ?)", (key, task, prompt, min(one, other), max(one, other)))
