"""What a label job leaves, and what happens when it is gone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from tests.unit.feedback.job_bench import ended, pairs

from accord.client.feedback import LabelJobSpec
from accord.data.writers import write_pairs


def files_of(folder: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


@pytest.mark.parametrize("lost", ["labels.jsonl", "card.json", "card.html", ""])
async def test_files_that_are_gone_are_written_again_and_nothing_is_judged_again(make_jobs: Any, spec: LabelJobSpec, lost: str) -> None:
    jobs, bench = await make_jobs()
    await jobs.create(spec)
    before = await ended(jobs)
    files, asked = files_of(spec.output_uri), len(bench.policy.asked)
    if lost:
        (Path(spec.output_uri) / lost).unlink()
    else:
        shutil.rmtree(spec.output_uri)
    assert (await jobs.create(spec)).state == "running"
    after = await ended(jobs)
    assert after == before
    assert files_of(spec.output_uri) == files
    assert len(bench.policy.asked) == asked


async def test_a_job_says_what_it_judges_besides_the_pairs_of_the_data(make_jobs: Any, spec: LabelJobSpec) -> None:
    jobs, _ = await make_jobs()
    await jobs.create(replace(spec, repeats=3, attacks=2))
    said = {job.message async for job in jobs.watch("labelJobs/job-1")}  # whoever watches sees the last of several changes
    assert said & {f"judging pairs a second time: {number} of 3" for number in range(3)}
    assert said & {f"judging attacked twins and their controls: {number} of 4" for number in range(4)}
    assert jobs.get("labelJobs/job-1").message == ""


async def test_a_split_without_rows_is_no_success(make_jobs: Any, spec: LabelJobSpec, data: Path) -> None:
    write_pairs(data, [*pairs(5, split="test"), *pairs(3, pair_id="p9")])
    jobs, _ = await make_jobs()
    await jobs.create(replace(spec, split="validation"))
    job = await ended(jobs)
    assert job.state == "failed"
    assert job.message.endswith("pairs.jsonl can be labelled: 8 of other splits than validation")


@pytest.mark.parametrize(("content", "reason"), [
    ("", "it is empty"), ("\n\n", "it is empty"), ("{\n" * 3, "3 not JSON"), ("\ufeff", "1 not JSON"),
])  # fmt: skip
async def test_a_file_without_rows_that_can_be_used_is_no_success(make_jobs: Any, spec: LabelJobSpec, data: Path, content: str, reason: str) -> None:
    data.write_text(content)
    jobs, _ = await make_jobs()
    await jobs.create(spec)
    job = await ended(jobs)
    assert (job.state, job.message.partition("labelled: ")[2]) == ("failed", reason)


async def test_a_signature_in_a_url_is_shown_to_nobody(make_jobs: Any, spec: LabelJobSpec) -> None:
    """What was labelled is named on the card, in messages and to whoever lists jobs; a signed URL lets its reader in."""
    content = Path(spec.dataset_uri).read_bytes()
    place = fsspec.filesystem("memory")
    with place.open("/signed/pairs.jsonl?signature=s3cr3t", "wb") as file:
        file.write(content)
    jobs, _ = await make_jobs()
    await jobs.create(replace(spec, dataset_uri="memory://signed/pairs.jsonl?signature=s3cr3t"))
    job = await ended(jobs)
    assert (job.state, job.source_uri) == ("succeeded", "memory://signed/pairs.jsonl")
    assert not [name for name, text in files_of(spec.output_uri).items() if b"s3cr3t" in text]
