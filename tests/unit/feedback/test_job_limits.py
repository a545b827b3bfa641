"""Label jobs under limits, side by side over the same pairs, and with output behind URLs."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from tests.unit.feedback.fakes import Bench, FakePolicy
from tests.unit.feedback.job_bench import ended, labelled, pairs, until

from accord.client.feedback import Judge, LabelJob, LabelJobSpec, LabelLimits
from accord.client.policy import Logprobs, LogprobsItem
from accord.data.writers import write_pairs
from accord.errors import AccordError, AlreadyExistsError, FailedPreconditionError, InternalError, ResourceExhaustedError
from accord.feedback.job_data import shown_pair
from accord.feedback.records import Origin

PRICES = {"dear": {"prompt_per_million": 2000.0, "completion_per_million": 500_000.0}}


class EverySecondCallFails(FakePolicy):
    """A judge that answers one call and refuses the next."""

    def __init__(self, error: AccordError | None = None) -> None:
        super().__init__()
        self._error = error or ResourceExhaustedError("429", retry_after_seconds=0.001)
        self._calls = 0

    async def compute_logprobs(self, items: Sequence[LogprobsItem], **options: Any) -> Logprobs:
        self._calls += 1
        if self._calls % 2 == 0:
            raise self._error
        return await super().compute_logprobs(items, **options)


class TestLimits:
    async def test_at_the_limit_it_ends_with_what_it_has_and_goes_on_under_a_higher_one(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        jobs, bench = await make_jobs(concurrency=2)
        await jobs.create(replace(spec, limits=LabelLimits(max_tokens=1)))
        job = await ended(jobs)
        one_pair = job.tokens  # the first goes alone: until it has ended, nobody knows what a pair takes
        assert (job.state, job.at_limit, job.done_pairs) == ("failed", True, 1)
        limit = one_pair * 6 + one_pair // 2
        limited = replace(spec, limits=LabelLimits(max_tokens=limit))
        await jobs.create(limited)
        job = await ended(jobs)
        assert (job.state, job.at_limit) == ("failed", True)
        assert (job.done_pairs, job.tokens) == (6, one_pair * 6)
        assert (
            f"max_tokens {limit:.10g} leaves no room for another pair: {job.tokens:.10g} spent, and a pair took up to {one_pair:.10g}" in job.message
        )
        assert f"{job.done_pairs} of 12 pairs are labelled and kept" in job.message
        assert await jobs.create(limited) == job  # asked for again under the same limit, it stays as it is
        higher = await jobs.create(replace(limited, limits=LabelLimits(max_tokens=one_pair * 100)))
        assert (higher.name, higher.state, higher.at_limit) == (job.name, "running", False)
        job = await ended(jobs)
        assert (job.state, job.done_pairs, job.at_limit, job.message) == ("succeeded", 12, False, "")
        assert len(bench.policy.asked) == len(set(bench.policy.asked)) == 24
        with pytest.raises(AlreadyExistsError):
            await jobs.create(replace(limited, seed=99))

    async def test_what_a_pair_cost_before_its_judge_failed_counts(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        """Every second call fails the first time: of each pair the first judgement is paid for in a try that gave no label."""
        jobs, bench = await make_jobs(EverySecondCallFails(), batch_pairs=1, policy_price="dear", prices=PRICES)
        await jobs.create(replace(spec, limits=LabelLimits(max_cost=1e-9)))
        one_pair = (await ended(jobs)).cost
        assert one_pair == bench.ledger.job_progress("labelJobs/job-1").cost > 0
        await jobs.create(replace(spec, limits=LabelLimits(max_cost=4.5 * one_pair)))
        job = await ended(jobs)
        assert (job.at_limit, job.done_pairs) == (True, 4)
        assert job.cost == pytest.approx(4 * one_pair)
        assert job.cost == pytest.approx(bench.ledger.job_progress("labelJobs/job-1").cost)

    async def test_a_job_that_failed_says_what_pairs_without_a_label_have_cost(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        jobs, bench = await make_jobs(EverySecondCallFails(InternalError("broken")), batch_pairs=1, policy_price="dear", prices=PRICES)
        await jobs.create(spec)
        job = await ended(jobs)
        assert (job.state, job.done_pairs) == ("failed", 0)
        assert job.cost == bench.ledger.job_progress("labelJobs/job-1").cost > 0

    async def test_a_limit_of_money_needs_a_judge_with_a_price(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        jobs, _ = await make_jobs()
        with pytest.raises(FailedPreconditionError, match="the judge 'default' has no price") as caught:
            await jobs.create(replace(spec, limits=LabelLimits(max_cost=1.0)))
        assert caught.value.field == "max_cost"
        free, _ = await make_jobs(policy_price="free", prices={"free": {"prompt_per_million": 0, "completion_per_million": 0}})
        await free.create(replace(spec, limits=LabelLimits(max_cost=1.0)))
        assert (await ended(free)).state == "succeeded"

    async def test_a_restart_keeps_what_was_spent(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        limited = replace(spec, limits=LabelLimits(max_tokens=1))
        jobs, bench = await make_jobs()
        await jobs.create(limited)
        job = await ended(jobs)
        await jobs.close()
        await bench.desk.close()
        again, _ = await make_jobs()
        assert again.get(job.name) == job
        await again.create(replace(limited, limits=LabelLimits(max_tokens=job.tokens)))
        assert (await ended(again)).done_pairs == job.done_pairs == 1  # what was spent before the restart counts

    async def test_what_the_ledger_has_is_free_under_any_limit(self, make_jobs: Any, spec: LabelJobSpec, tmp_path: Path) -> None:
        jobs, bench = await make_jobs()
        await jobs.create(spec)
        await ended(jobs)
        asked = len(bench.policy.asked)
        await jobs.create(
            replace(spec, request_id="job-2", output_uri=str(tmp_path / "out2"), limits=LabelLimits(max_tokens=1, max_judgements_per_second=0.01))
        )
        job = await ended(jobs, "labelJobs/job-2")
        assert (job.state, job.tokens, len(bench.policy.asked)) == ("succeeded", 0, asked)

    async def test_the_rate_is_kept(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        jobs, _ = await make_jobs(concurrency=4)
        began = time.monotonic()
        await jobs.create(replace(spec, limits=LabelLimits(max_judgements_per_second=40)))
        assert (await ended(jobs)).state == "succeeded"
        assert time.monotonic() - began >= 0.55  # 24 judgements, two a pair: the last pair begins after 22; how much later is the machine's business

    async def test_concurrency_is_how_many_pairs_are_judged_at_once(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        policy = FakePolicy()
        policy.gate = asyncio.Event()
        jobs, _ = await make_jobs(policy, batch_pairs=64, concurrency=8)
        await jobs.create(replace(spec, limits=LabelLimits(concurrency=3)))
        await until(lambda: sum(policy.calls) == 6)
        await asyncio.sleep(0.05)
        assert sum(policy.calls) == 6  # three pairs, each in both orders
        policy.gate.set()
        assert (await ended(jobs)).state == "succeeded"


class TestEscalations:
    """Limits count the second judge where it may be asked, and not where the ledger shows that the first one is sure."""

    JUDGES: ClassVar[dict[str, Any]] = {
        "large": {"kind": "policy", "address": "large:1", "price": "dear"},
        "ladder": {"kind": "escalation", "first": "default", "then": "large", "threshold": 0.2},
    }

    async def _after_the_small_judge(self, make_jobs: Any, spec: LabelJobSpec, unsure: int, limits: LabelLimits) -> tuple[LabelJob, Bench]:
        """An escalation's job over 12 pairs of which the small judge, which has answered for all, is sure, and some of which it is not."""
        rows = pairs(12 + unsure)
        rows[12:] = [replace(row, chosen=f"one {row.pair_id}", rejected=f"other {row.pair_id}") for row in rows[12:]]
        write_pairs(Path(spec.dataset_uri), rows)
        jobs, bench = await make_jobs(others={"large": FakePolicy(base="large")}, judges=self.JUDGES, prices=PRICES, concurrency=4, batch_pairs=4)
        await jobs.create(spec)
        await ended(jobs)
        ladder = replace(spec, request_id="ladder", output_uri=f"{spec.output_uri}2", judge=replace(spec.judge, name="ladder"), limits=limits)
        await jobs.create(ladder)
        return await ended(jobs, "labelJobs/ladder"), bench

    async def test_pairs_that_cost_nothing_let_no_others_begin(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        """What a pair takes is not known of those that are free, so that the first that is asked about goes alone."""
        job, bench = await self._after_the_small_judge(make_jobs, spec, 12, LabelLimits(max_cost=1e-9))
        assert (job.at_limit, job.done_pairs, job.escalated_pairs) == (True, 13, 1)
        assert len(bench.others["large"].asked) == 2
        assert job.cost > 0

    async def test_pairs_that_cost_nothing_wait_for_no_rate(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        job, bench = await self._after_the_small_judge(make_jobs, spec, 1, LabelLimits(max_judgements_per_second=0.01))
        assert (job.state, job.done_pairs, job.escalated_pairs) == ("succeeded", 13, 1)  # 24 questions more would take 40 minutes
        assert len(bench.others["large"].asked) == 2

    async def test_where_the_first_judge_has_not_answered_the_second_one_counts(self, make_bench: Any) -> None:
        bench = make_bench(FakePolicy(), {"large": FakePolicy(base="large")}, judges=self.JUDGES, prices=PRICES)
        plan = await bench.labeller.plan(bench.labeller.settings(Judge("verdict", name="ladder")))
        sure, unsure = shown_pair(pairs(1)[0], 3), shown_pair(pairs(1, chosen="one", rejected="other")[0], 3)
        for pair, left in ((sure, 0), (unsure, 2)):
            assert len(await bench.labeller.unanswered(pair, plan)) == 4
            await bench.labeller.label(pair, await bench.labeller.plan(bench.labeller.settings(Judge("verdict"))), Origin("r"))
            assert len(await bench.labeller.unanswered(pair, plan)) == left


class TestTwoJobs:
    async def test_two_jobs_at_once_over_the_same_pairs_ask_each_question_once(self, make_jobs: Any, spec: LabelJobSpec, tmp_path: Path) -> None:
        jobs, bench = await make_jobs(concurrency=3)
        await asyncio.gather(jobs.create(spec), jobs.create(replace(spec, request_id="job-2", output_uri=str(tmp_path / "out2"), seed=8)))
        first, second = await ended(jobs), await ended(jobs, "labelJobs/job-2")
        assert (first.state, second.state) == ("succeeded", "succeeded")
        assert len(bench.policy.asked) == len(set(bench.policy.asked)) == 24
        assert first.cached_judgements + second.cached_judgements == 24  # of 48 answers, each was paid for by one of the two


class TestUrls:
    async def test_output_goes_to_a_url_whole(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        jobs, _ = await make_jobs()
        await jobs.create(replace(spec, output_uri="memory://labels/a/"))
        job = await ended(jobs)
        assert (job.dataset_uri, job.card_uri) == ("memory://labels/a/labels.jsonl", "memory://labels/a/card.json")
        assert len(labelled(job)) == 12
        content = fsspec.filesystem("memory").cat_file("/labels/a/labels.jsonl")
        assert hashlib.sha256(content).hexdigest() == job.dataset_digest
        with pytest.raises(FailedPreconditionError, match="is the output folder of"):
            await jobs.create(replace(spec, request_id="job-2", output_uri="memory://labels/a"))

    async def test_a_store_that_is_away_is_waited_for_and_can_be_cancelled(
        self, make_jobs: Any, spec: LabelJobSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise OSError("503 slow down")

        monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", refuse)
        jobs, bench = await make_jobs()
        await jobs.create(replace(spec, output_uri="memory://labels/b"))
        await until(lambda: "memory://labels/b cannot be written: OSError: 503 slow down" in jobs.get("labelJobs/job-1").message)
        assert jobs.get("labelJobs/job-1").done_pairs == 12
        assert (await jobs.cancel("labelJobs/job-1")).state == "cancelled"
        assert len(bench.ledger.labels(job="labelJobs/job-1")) == 12
