"""What comes of a label job whose place is taken, gone or full, whose ids clash, and which is cancelled beside another (ARCHITECTURE.md, the same table)."""

from __future__ import annotations

import asyncio
import json
import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.feedback.fakes import FakePolicy
from tests.unit.feedback.job_bench import ended, labelled, pairs, until

from accord.client.feedback import LabelJobSpec, LabelLimits
from accord.data.readers import read_pairs
from accord.data.writers import write_pairs
from accord.errors import FailedPreconditionError, InternalError, InvalidArgumentError, NotFoundError, PermissionDeniedError, UnavailableError
from accord.feedback.candidates import Candidate
from accord.feedback.job_candidates import CandidateFile

NAME = "labelJobs/job-1"


async def held(make_jobs: Any, spec: LabelJobSpec, **config: Any) -> tuple[Any, Any]:
    """A job whose judge answers nothing yet."""
    jobs, bench = await make_jobs(**config)
    bench.policy.gate = asyncio.Event()
    await jobs.create(spec)
    await until(lambda: bool(bench.policy.calls))
    return jobs, bench


class TestIds:
    async def test_rows_of_two_splits_with_one_id_do_not_share_a_label(self, make_jobs: Any, spec: LabelJobSpec, data: Path) -> None:
        """The second p00 prefers the other response: with the label of the first it would be in the output, turned round."""
        rows = pairs(4)
        write_pairs(
            data,
            [
                *rows,
                replace(rows[0], split="test", chosen=rows[0].rejected, rejected="good good good"),
                replace(rows[1], split="test", pair_id="p99"),
            ],
        )
        jobs, _ = await make_jobs()
        await jobs.create(replace(spec, split="all"))
        job = await ended(jobs)
        assert (job.state, job.total_pairs, job.done_pairs, dict(job.rejected_rows)) == ("succeeded", 5, 5, {"id occurs in another split": 1})
        found = {row.pair_id: row for row in read_pairs(job.dataset_uri, split="all", strict=True).rows}
        assert {name: row.split for name, row in found.items()} == {**{f"p0{number}": "train" for number in range(4)}, "p99": "test"}
        assert {found["p00"].chosen, found["p00"].rejected} == {rows[0].chosen, rows[0].rejected}
        again, _ = await make_jobs()
        assert again.get(NAME).done_pairs == 5

    @pytest.mark.parametrize(("key", "value"), [("metadata", {"note": "cut \ud83d"}), ("metadata", {"\ud83d": "key"})])
    async def test_what_could_not_be_written_in_the_end_is_a_row_that_cannot_be_read(
        self, make_jobs: Any, spec: LabelJobSpec, data: Path, key: str, value: Any
    ) -> None:
        lines = data.read_text().splitlines()
        lines[3] = json.dumps({**json.loads(lines[3]), key: value})
        data.write_text("\n".join(lines) + "\n")
        jobs, _ = await make_jobs()
        await jobs.create(spec)
        job = await ended(jobs)
        assert (job.state, job.done_pairs, dict(job.rejected_rows)) == ("succeeded", 11, {"metadata holds a lone surrogate": 1})


class TestData:
    async def test_a_file_that_is_gone_when_it_is_read_fails_the_job(self, make_jobs: Any, spec: LabelJobSpec, data: Path, tmp_path: Path) -> None:
        jobs, bench = await held(make_jobs, spec, max_running_jobs=1)
        second = tmp_path / "second.jsonl"
        write_pairs(second, pairs(2))
        await jobs.create(replace(spec, request_id="job-2", dataset_uri=str(second), output_uri=str(tmp_path / "out2")))
        second.unlink()
        bench.policy.gate.set()
        job = await ended(jobs, "labelJobs/job-2")
        assert (job.state, "there is no file" in job.message) == ("failed", True)

    @pytest.mark.parametrize(
        ("fault", "error"), [(PermissionError(13, "denied"), PermissionDeniedError), (OSError(5, "I/O error"), UnavailableError)]
    )
    def test_a_file_that_cannot_be_read_is_named(self, data: Path, monkeypatch: pytest.MonkeyPatch, fault: OSError, error: type[Exception]) -> None:
        def refuse(*_: Any, **__: Any) -> Any:
            raise fault

        monkeypatch.setattr(Path, "open", refuse)
        with pytest.raises(error, match=r"pairs\.jsonl .* read: "):
            read_pairs(str(data))


class TestPlaces:
    async def test_a_job_does_not_write_over_its_own_data(self, make_jobs: Any, spec: LabelJobSpec, data: Path, tmp_path: Path) -> None:
        own = data.rename(data.with_name("labels.jsonl"))
        before = own.read_bytes()
        link = tmp_path / "link"
        link.symlink_to(own.parent)
        jobs, _ = await make_jobs()
        for folder in (own.parent, link, own.parent / ".." / own.parent.name, f"{own.parent}/"):
            with pytest.raises(InvalidArgumentError, match="would write over its own data") as caught:
                await jobs.create(replace(spec, dataset_uri=str(own), output_uri=str(folder)))
            assert caught.value.field == "output_uri"
        assert own.read_bytes() == before
        with pytest.raises(NotFoundError):
            jobs.get(NAME)

    async def test_two_paths_to_one_folder_are_one(self, make_jobs: Any, spec: LabelJobSpec, tmp_path: Path) -> None:
        jobs, _ = await make_jobs()
        await jobs.create(spec)
        (tmp_path / "link").symlink_to(spec.output_uri)
        for folder in (tmp_path / "link", f"{tmp_path}/x/../out", f"{spec.output_uri}/"):
            with pytest.raises(FailedPreconditionError, match=NAME):
                await jobs.create(replace(spec, request_id="job-2", output_uri=str(folder)))

    async def test_a_job_at_its_limit_does_not_come_back_into_a_folder_that_is_anothers_by_then(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        jobs, _ = await make_jobs()
        await jobs.create(replace(spec, limits=LabelLimits(max_tokens=1)))
        assert (await ended(jobs)).at_limit
        await jobs.create(replace(spec, request_id="job-2"))
        assert (await ended(jobs, "labelJobs/job-2")).state == "succeeded"
        before = (Path(spec.output_uri) / "card.json").read_bytes()
        with pytest.raises(FailedPreconditionError, match="the output folder of labelJobs/job-2"):
            await jobs.create(spec)
        assert (Path(spec.output_uri) / "card.json").read_bytes() == before


class TestFullDisks:
    @staticmethod
    def block(spec: LabelJobSpec) -> Path:
        """A file where the output folder was."""
        out = Path(spec.output_uri)
        out.rmdir()
        out.write_text("in the way")
        return out

    async def test_an_output_folder_that_cannot_be_written_is_waited_for(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        jobs, bench = await held(make_jobs, spec)
        out = self.block(spec)
        bench.policy.gate.set()
        await until(lambda: "cannot be written" in jobs.get(NAME).message)
        assert jobs.get(NAME).state == "running"
        out.unlink()
        job = await ended(jobs)
        assert (job.state, job.message, len(labelled(job))) == ("succeeded", "", 12)

    async def test_a_job_that_waits_for_its_output_folder_can_be_cancelled(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        jobs, bench = await held(make_jobs, spec)
        self.block(spec)
        bench.policy.gate.set()
        await until(lambda: "cannot be written" in jobs.get(NAME).message)
        assert (await asyncio.wait_for(jobs.cancel(NAME), 5)).state == "cancelled"

    async def test_a_folder_that_never_comes_back_fails_the_job_and_says_why(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        jobs, bench = await held(make_jobs, spec, judge_wait_seconds=0.3)
        self.block(spec)
        bench.policy.gate.set()
        job = await ended(jobs)
        assert (job.state, f"{spec.output_uri} cannot be written: File exists" in job.message) == ("failed", True)

    async def test_a_job_whose_file_cannot_be_written_is_not_there(self, make_jobs: Any, spec: LabelJobSpec, tmp_path: Path) -> None:
        jobs, _ = await make_jobs()
        (tmp_path / "jobs").rename(tmp_path / "away")
        with pytest.raises(UnavailableError, match="the job's file cannot be written"):
            await jobs.create(spec)
        with pytest.raises(NotFoundError):
            jobs.get(NAME)
        (tmp_path / "away").rename(tmp_path / "jobs")
        await jobs.create(spec)
        assert (await ended(jobs)).state == "succeeded"

    async def test_a_job_waits_until_its_file_can_be_written_again(self, make_jobs: Any, spec: LabelJobSpec, tmp_path: Path) -> None:
        jobs, bench = await held(make_jobs, spec)
        (tmp_path / "jobs").rename(tmp_path / "away")
        bench.policy.gate.set()
        await until(lambda: "the job's file cannot be written" in jobs.get(NAME).message)
        assert jobs.get(NAME).state == "running"
        (tmp_path / "away").rename(tmp_path / "jobs")
        assert (await ended(jobs)).state == "succeeded"
        again, _ = await make_jobs()
        assert again.get(NAME).state == "succeeded"

    async def test_a_failure_that_cannot_be_written_is_seen_and_the_next_start_goes_on(
        self, make_jobs: Any, spec: LabelJobSpec, tmp_path: Path
    ) -> None:
        jobs, bench = await held(make_jobs, spec)
        (tmp_path / "jobs").rename(tmp_path / "away")
        bench.policy.failures = [InternalError("the judge is broken")]
        bench.policy.gate.set()
        job = await ended(jobs)
        assert job.state == "failed"
        assert "the judge is broken" in job.message
        assert "the next start takes the job up again" in job.message
        (tmp_path / "away").rename(tmp_path / "jobs")
        again, _ = await make_jobs()
        assert (await ended(again)).state == "succeeded"

    def test_half_a_line_of_candidates_does_not_stay_on_a_full_disk(self, tmp_path: Path) -> None:
        file = CandidateFile(tmp_path / "c.jsonl")
        first, second, third = (Candidate(f"p{number}", "a" * 50, "b" * 50) for number in range(3))
        file.append([first])
        size = os.path.getsize(tmp_path / "c.jsonl")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + size // 2, hard))
        try:
            with pytest.raises(UnavailableError, match="candidates cannot be written"):
                file.append([second])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert os.path.getsize(tmp_path / "c.jsonl") == size
        file.append([third])
        assert file.read() == {"p0": first, "p2": third}


class TestCancelled:
    async def test_the_other_job_gets_what_both_wait_for_and_buys_it_not_again(self, make_jobs: Any, spec: LabelJobSpec, tmp_path: Path) -> None:
        jobs, bench = await held(make_jobs, spec)
        await jobs.create(replace(spec, request_id="job-2", output_uri=str(tmp_path / "out2")))
        await until(lambda: len(bench.desk._entries) > 0 and all(entry.waiters == 2 for entry in bench.desk._entries.values()))
        cancelled = await jobs.cancel(NAME)
        bench.policy.gate.set()
        job = await ended(jobs, "labelJobs/job-2")
        assert (cancelled.state, job.state, job.done_pairs) == ("cancelled", "succeeded", 12)
        assert len(bench.policy.asked) == len(set(bench.policy.asked)) == 24
        assert bench.policy.cancelled == 0
        known = bench.ledger.job_progress(NAME).tokens + bench.ledger.job_progress(job.name).tokens
        assert known == sum(judgement.tokens for label in bench.ledger.labels() for judgement in label.judgements)

    async def test_it_says_what_it_has_cost_and_another_request_labels_the_rest(self, make_jobs: Any, spec: LabelJobSpec, tmp_path: Path) -> None:
        jobs, bench = await make_jobs()
        await jobs.create(spec)
        await until(lambda: jobs.get(NAME).done_pairs >= 3)
        job = await jobs.cancel(NAME)
        progress = bench.ledger.job_progress(NAME)
        assert (job.done_pairs, job.tokens) == (len(progress.labelled), progress.tokens)
        assert await jobs.create(spec) == job
        await jobs.create(replace(spec, request_id="job-2"))
        rest = await ended(jobs, "labelJobs/job-2")
        assert (rest.state, rest.done_pairs) == ("succeeded", 12)
        kept = len(bench.policy.asked) - len(set(bench.policy.asked))
        assert kept <= 4, "at most the call that was broken off is asked again"
        again, _ = await make_jobs(FakePolicy())
        assert again.get(NAME) == job


async def test_a_limit_of_nothing_is_no_limit(make_jobs: Any, spec: LabelJobSpec) -> None:
    jobs, _ = await make_jobs()
    await jobs.create(replace(spec, limits=LabelLimits(max_cost=0.0, max_tokens=0, max_judgements_per_second=0.0)))
    assert (await ended(jobs)).state == "succeeded"
