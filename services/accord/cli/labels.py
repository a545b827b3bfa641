"""`accord labels`: its commands, each in a module of its own beside this file.

What does not belong here: what they do.
"""

from __future__ import annotations

COMMANDS: tuple[tuple[str, str, str], ...] = (
    ("list", "labels_list", "list_labels"),
    ("export", "labels_export", "export_labels"),
    ("reaggregate", "labels_reaggregate", "reaggregate"),
    ("diff", "labels_diff", "diff"),
    ("people", "labels_people", "people"),
)
"""Name, module and function, in the order of the help."""


def labels() -> None:
    """Asks the ledger: labels with where they come from, as data, under other rules, of one judge beside another, by people. No judge is called.

    \b
    Example:
        accord labels list --outcome abstain
        accord labels export labels.jsonl --job labelJobs/x
        accord labels reaggregate --tie-margin 0.1
        accord labels diff embedded 4be1c0
    """
