"""What comes of bad data and bad judges in a label job: each row of the table in ARCHITECTURE.md ("What comes of bad input in a label job")."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.feedback.fakes import FakePolicy
from tests.unit.feedback.job_bench import ended, labelled, pairs

from accord.client.feedback import Judge, LabelJob, LabelJobSpec
from accord.client.messages import ModelDigests
from accord.client.policy import GenerateItem, Generation, Logprobs, LogprobsItem
from accord.data.writers import write_pairs
from accord.errors import DeadlineExceededError, UnavailableError

SPOILT = 3  # pair p03 is the one that is spoilt


def write(path: Path, *, line: bytes | None = None, **spoilt: str) -> None:
    """Twelve pairs; `line` stands in place of the spoilt one, else `spoilt` are its chosen, rejected or prompt."""
    write_pairs(path, pairs(12))
    lines = path.read_bytes().splitlines()
    row = json.loads(lines[SPOILT])
    for name, text in spoilt.items():
        row[name] = [{"role": "user" if name == "prompt" else "assistant", "content": text}]
    lines[SPOILT] = json.dumps(row).encode() if line is None else line
    path.write_bytes(b"\n".join(lines) + b"\n")


async def run(make_jobs: Any, spec: LabelJobSpec, policy: FakePolicy | None = None, **config: Any) -> tuple[LabelJob, Any]:
    jobs, bench = await make_jobs(policy, **config)
    await jobs.create(spec)
    job = await ended(jobs)
    return job, bench


def abstentions(job: LabelJob) -> dict[str, int]:
    (card,) = json.loads(Path(job.card_uri).read_text())["cards"]
    return dict(card["abstentions"])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{broken", "not JSON"),
        (b'{"prompt": "caf\xe9"}', "not UTF-8"),
        (b"[1, 2]", "not a JSON object"),
        (b'{"task": "conversation", "prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": "c"}]}', ""),
    ],
)
async def test_a_row_that_cannot_be_read_is_counted_and_the_rest_is_labelled(
    make_jobs: Any, spec: LabelJobSpec, data: Path, line: bytes, reason: str
) -> None:
    write(data, line=line)
    job, _ = await run(make_jobs, spec)
    assert (job.state, job.total_pairs, job.done_pairs, job.abstained_pairs) == ("succeeded", 11, 11, 0)
    assert sum(job.rejected_rows.values()) == 1
    assert reason in next(iter(job.rejected_rows))


@pytest.mark.parametrize(
    ("text", "reason"), [("lone \ud800 surrogate", "holds a lone surrogate"), ("a\x00b", "holds a NUL character"), ("", "is empty")]
)
async def test_a_response_that_is_no_text_is_a_row_that_cannot_be_read(
    make_jobs: Any, spec: LabelJobSpec, data: Path, text: str, reason: str
) -> None:
    write(data, rejected=text)
    job, _ = await run(make_jobs, spec)
    assert (job.state, job.total_pairs, job.done_pairs) == ("succeeded", 11, 11)
    assert sum(job.rejected_rows.values()) == 1
    assert reason in next(iter(job.rejected_rows))


@pytest.mark.parametrize(
    ("spoilt", "preference"),
    [
        ({"chosen": "the same", "rejected": "the same"}, {"the same": 0.5}),
        ({"chosen": "the same", "rejected": " the same\n"}, {"the same": 0.5, " the same\n": 0.5}),
    ],
)
@pytest.mark.parametrize("kind", ["verdict", "rating", "likelihood"])
async def test_identical_responses_tie_by_rule(
    make_jobs: Any, spec: LabelJobSpec, data: Path, spoilt: dict[str, str], preference: dict[str, float], kind: Any
) -> None:
    write(data, **spoilt)
    job, bench = await run(make_jobs, replace(spec, judge=Judge(kind)))
    assert (job.state, job.done_pairs, job.abstained_pairs) == ("succeeded", 12, 0)
    row = labelled(job)[f"p{SPOILT:02}"]
    assert row.preference == preference[row.chosen]
    assert not any("question 3" in asked for asked in bench.policy.asked)


async def test_a_text_that_no_judge_may_be_given_is_an_abstention(make_jobs: Any, spec: LabelJobSpec, data: Path) -> None:
    """A response of 100,000 words, over `max_text_bytes`."""
    write(data, rejected="word " * 100_000)
    job, _ = await run(make_jobs, spec)
    assert (job.state, job.done_pairs, job.abstained_pairs) == ("succeeded", 12, 1)
    assert abstentions(job) == {"unusable pair": 1}
    assert f"p{SPOILT:02}" not in labelled(job)


async def test_a_transcript_over_the_judges_context_is_an_abstention_with_its_reason(make_jobs: Any, spec: LabelJobSpec, data: Path) -> None:
    """100,000 tokens of the judge (one a character) under a `max_text_bytes` that lets them through: nothing is cut off in silence."""
    write(data, prompt="long " * 20_000)
    job, bench = await run(make_jobs, spec, FakePolicy(context_tokens=90_000), max_text_bytes=200_000)
    assert (job.state, job.done_pairs, job.abstained_pairs) == ("succeeded", 12, 1)
    assert abstentions(job) == {"context overflow": 1}
    (label,) = [label for label in bench.ledger.labels(job=job.name) if label.outcome == "abstain"]
    assert "at most 90000 are allowed" in label.abstention_reason


async def test_a_judge_with_numbers_that_are_none_abstains(make_jobs: Any, spec: LabelJobSpec) -> None:
    policy = FakePolicy()
    policy.logprob_of = lambda prompt, text: float("nan")
    job, _ = await run(make_jobs, spec, policy)
    assert (job.state, job.abstained_pairs) == ("succeeded", 12)
    assert abstentions(job) == {"not finite": 12}


class Forgetful(FakePolicy):
    """Answers one item too few."""

    async def compute_logprobs(
        self, items: Sequence[LogprobsItem], *, adapter: str, expected_digests: ModelDigests | None, timeout_seconds: float | None
    ) -> Logprobs:
        found = await super().compute_logprobs(items, adapter=adapter, expected_digests=expected_digests, timeout_seconds=timeout_seconds)
        return Logprobs(found.results[:-1], found.adapter_version, found.digests, found.usage)


async def test_a_judge_that_answers_too_few_items_ends_the_job(make_jobs: Any, spec: LabelJobSpec) -> None:
    job, _ = await run(make_jobs, spec, Forgetful())
    assert job.state == "failed"
    assert "the judge at fake:1 gave 1 results for 2 items" in job.message


class Terse(FakePolicy):
    """Gives no logprobs for the tokens that it scored, and no text where it was to write one."""

    async def compute_logprobs(self, items: Sequence[LogprobsItem], **options: Any) -> Logprobs:
        found = await super().compute_logprobs(items, **options)
        bare = [replace(result, responses=tuple(replace(each, logprobs=()) for each in result.responses)) for result in found.results]
        return replace(found, results=tuple(bare))

    async def generate(self, items: Sequence[GenerateItem], **options: Any) -> Generation:
        found = await super().generate(items, **options)
        return replace(found, results=tuple(replace(result, samples=()) for result in found.results))


@pytest.mark.parametrize(("rationale", "words"), [(False, r"gave 0 logprobs for \d+ tokens"), (True, "gave 0 texts for 1 samples")])
async def test_a_judge_that_answers_with_nothing_ends_the_job_and_is_no_tie(make_jobs: Any, spec: LabelJobSpec, rationale: bool, words: str) -> None:
    job, bench = await run(make_jobs, replace(spec, judge=Judge("verdict", rationale=rationale)), Terse())
    assert job.state == "failed"
    assert re.search(f"the judge at fake:1 {words}", job.message), job.message
    assert bench.ledger.labels(job=job.name) == []


async def test_a_judge_that_is_too_slow_is_asked_again_and_in_the_end_given_up(make_jobs: Any, spec: LabelJobSpec) -> None:
    policy = FakePolicy()
    policy.failures = [DeadlineExceededError("too slow") for _ in range(3)]
    job, _ = await run(make_jobs, spec, policy)
    assert (job.state, job.done_pairs) == ("succeeded", 12)

    stuck = FakePolicy()
    stuck.gate = asyncio.Event()
    jobs, _ = await make_jobs(stuck, judge_wait_seconds=0.3, judge_timeout_seconds=0.1)
    stuck.down = DeadlineExceededError("too slow")
    stuck.gate.set()
    await jobs.create(replace(spec, request_id="job-2", output_uri=f"{spec.output_uri}-2", judge=Judge("rating")))
    job = await ended(jobs, "labelJobs/job-2")
    assert job.state == "failed"
    assert "the judge at fake:1 did not answer within 0.1 s" in job.message


async def test_a_judge_that_never_comes_ends_the_job_after_the_configured_time(make_jobs: Any, spec: LabelJobSpec) -> None:
    policy = FakePolicy()
    policy.down = UnavailableError("connection refused", retry_after_seconds=0.01)
    job, _ = await run(make_jobs, spec, policy, judge_wait_seconds=0.3)
    assert (job.state, job.done_pairs) == ("failed", 0)
    assert "connection refused" in job.message
    assert asdict(job)["dataset_uri"] == ""
