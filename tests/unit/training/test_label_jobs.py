"""What is published names the label jobs that its data's rows come from, whatever part of them was read."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.training.surroundings import make_context, planted_pairs, write_rows

from accord.training.__main__ import build


@pytest.mark.parametrize("kind", ["reward_model", "dpo"])
def test_the_label_jobs_of_the_rows_are_published(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    rows = [
        {
            "pair_id": f"p{n}", "task": "conversation", "prompt": [{"role": "user", "content": row["prompt"]}], "preference": 0.9,
            "chosen": [{"role": "assistant", "content": row["chosen"]}], "rejected": [{"role": "assistant", "content": row["rejected"]}],
            "metadata": {"label_job": f"labelJobs/{'ab'[n % 2]}"} if n % 3 else {},
        }
        for n, row in enumerate(planted_pairs())
    ]  # fmt: skip
    published = []
    for name, kept in (("all", rows), ("part", [row for row in rows if row["metadata"] != {"label_job": "labelJobs/a"}]), ("none", planted_pairs())):
        data = write_rows(tmp_path / f"{name}.jsonl", kept)
        algorithm = build(make_context(tmp_path, tiny_folder, {kind: {"data": data}}, name=name))
        algorithm.setup()
        published.append(algorithm.publication()["facts"].get("label_jobs"))
    assert published == [["labelJobs/a", "labelJobs/b"], ["labelJobs/b"], None]
