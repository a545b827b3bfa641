"""Writing preference pairs: TRL's conversational preference format plus soft label, ids and origin; read back without loss."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from accord.data.records import PreferencePair


def write_pairs(path: Path | str, rows: Iterable[PreferencePair]) -> str:
    """Writes JSON Lines at once (a reader sees all of it or nothing) and returns the file's sha256."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    total = hashlib.sha256()
    with temporary.open("wb") as file:
        for row in rows:
            line = (json.dumps(_row(row), ensure_ascii=False) + "\n").encode("utf-8")
            total.update(line)
            file.write(line)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
    return total.hexdigest()


def _row(pair: PreferencePair) -> dict[str, object]:
    rated = {} if pair.rating_gap is None else {"rating_gap": pair.rating_gap}
    return {
        "pair_id": pair.pair_id,
        "task": pair.task.value,
        "prompt": [asdict(message) for message in pair.messages],
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
        "preference": pair.preference,
        "human_preference": pair.human_preference,
        "reference": pair.reference,
        "group": pair.group,
        "split": pair.split,
        "metadata": dict(pair.metadata),
        **rated,
    }
