"""Names of data and what follows from them are the same in every process: no digest, split or count hangs on Python's hashes, which differ in each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, sys
from accord.data.contamination import Split, contamination
from accord.data.duplicates import Duplicates
from accord.data.merging import MeanLabels
from accord.data.readers import read_pairs
from accord.data.records import digest_of
from accord.data.splitting import Shares

found = read_pairs(sys.argv[1], split="all")
shares, known, merged = Shares.parse("train=0.7,test=0.3"), Duplicates(), MeanLabels(found.rows)
splits = {pair.pair_id: shares.split_of(pair, 3, "conversation") for pair in found.rows}
kept = [pair.pair_id for pair in found.rows if not known.add(pair)]
parts = {name: [pair for pair in found.rows if splits[pair.pair_id] == name] for name in ("train", "test")}
near = contamination(Split("test", lambda: parts["test"]), Split("train", lambda: parts["train"]))
means = digest_of(mean for pair in found.rows if (mean := merged.merged(pair)) is not None)
print(json.dumps([found.report.digest, splits, kept, [known.exact, known.near, known.contradicting], near.overlapping_prompts, means]))
"""


def test_another_hash_seed_changes_nothing(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Cat {number // 3}: what keeps it warm on a cold night in the old house by the sea?", "chosen": f"Answer {number // 2}.",
         "rejected": f"answer {number // 2 + 1}", "annotator": f"person {number % 2}"}
        for number in range(60)
    ]  # fmt: skip
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "chosen": "ANSWER 0", "note": "near"}]))
    found = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(data)],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]
    digest, splits, kept, duplicates, overlapping, means = json.loads(found[0])
    assert len(digest) == len(means) == 64
    assert set(splits.values()) == {"train", "test"}
    assert 0 < len(kept) < len(splits) == 61
    assert duplicates[1] == 1
    assert overlapping > 0
