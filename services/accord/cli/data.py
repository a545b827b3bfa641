"""`accord data`: its commands, each in a module of its own beside this file.

What does not belong here: what they do.
"""

from __future__ import annotations

COMMANDS: tuple[tuple[str, str, str], ...] = (
    ("inspect", "data_inspect", "inspect"),
    ("split", "data_split", "split"),
    ("contamination", "data_split", "contamination"),
    ("dedupe", "data_convert", "dedupe"),
    ("convert", "data_convert", "convert"),
    ("import", "data_import", "import_labels"),
)
"""Name, module and function, in the order of the help."""


def data() -> None:
    """Looks at preference data, cleans and splits it, and takes people's labels into the ledger.

    \b
    Example:
        accord data inspect comparisons.jsonl.gz --card card.md
        accord data dedupe comparisons.jsonl.gz clean.jsonl
        accord data split clean.jsonl splits --shares train=0.9,test=0.1
    """
