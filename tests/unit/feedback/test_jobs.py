"""Label jobs: output, patience, restarts in the middle, cancellation, and what is refused at once."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.feedback.fakes import Bench, FakePolicy, quality
from tests.unit.feedback.job_bench import TASK, ended, labelled, pairs, until

from accord.client.feedback import Candidates, Judge, LabelJobSpec, LabelPairItem
from accord.data.readers import read_pairs
from accord.data.writers import write_pairs
from accord.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from accord.feedback import job_run
from accord.feedback.job_data import chosen_is_a, shown_pair
from accord.feedback.job_stages import Asked, JobWork, Stage, pairs_of_the_data
from accord.feedback.records import ADDED, Origin, is_added
from accord.text.tasks import Task

MakeBench = Callable[..., Bench]


class TestOutput:
    async def test_chosen_is_what_the_judge_prefers_with_its_probability(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        jobs, _ = await make_jobs()
        job = await jobs.create(spec)
        assert job.name == "labelJobs/job-1"
        job = await ended(jobs)
        assert (job.state, job.total_pairs, job.done_pairs, job.abstained_pairs, job.message) == ("succeeded", 12, 12, 0, "")
        rows = labelled(job)
        assert list(rows) == [f"p{number:02}" for number in range(12)]
        for source in pairs(12):
            row = rows[source.pair_id]
            assert quality(row.chosen) == 2
            assert {row.chosen, row.rejected} == {source.chosen, source.rejected}
            assert row.preference == pytest.approx(0.880797, abs=1e-6)  # sigmoid(2), not the data's 1.0
            assert row.human_preference == (1.0 if source.chosen == row.chosen else 0.0)
            assert (row.group, row.reference, row.split, row.task) == (source.group, "a reference", "train", TASK)
        assert hashlib.sha256(Path(job.dataset_uri).read_bytes()).hexdigest() == job.dataset_digest

    async def test_a_rating_judge_says_by_how_much(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        """The difference of the expected ratings, chosen less rejected: the fake rates 4 and 2, each with 0.6 and the rest spread evenly."""
        jobs, _ = await make_jobs()
        await jobs.create(replace(spec, judge=Judge("rating")))
        rows = labelled(await ended(jobs))
        gap = (0.6 - 0.4 / 9) * (4 - 2)
        assert [row.rating_gap for row in rows.values()] == pytest.approx([gap] * 12)
        assert {row.preference > 0.5 for row in rows.values()} == {True}

    async def test_other_judges_leave_no_rating(self, make_jobs: Any, spec: LabelJobSpec, tmp_path: Path) -> None:
        write_pairs(tmp_path / "data" / "pairs.jsonl", pairs(2, rating_gap=3.0))
        jobs, _ = await make_jobs()
        await jobs.create(spec)
        job = await ended(jobs)
        assert [row.rating_gap for row in labelled(job).values()] == [None, None]
        assert "rating_gap" not in Path(job.dataset_uri).read_text()

    async def test_each_row_says_where_it_comes_from(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        jobs, bench = await make_jobs()
        await jobs.create(spec)
        row = labelled(await ended(jobs))["p00"]
        assert row.metadata["subject"] == "tests"
        assert (row.metadata["judge"], row.metadata["judge_kind"]) == ("fake", "verdict")
        assert row.metadata["rubric"] == "conversation/detailed/1"
        assert len(row.metadata["rubric_digest"]) == len(row.metadata["judge_digest"]) == 64
        keys = row.metadata["ledger_keys"].split(",")
        assert len(keys) == 2
        assert bench.ledger.find(keys).keys() == set(keys)

    async def test_the_card_compares_with_people_and_length(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        jobs, _ = await make_jobs(FakePolicy(bias=1.0))
        await jobs.create(spec)
        job = await ended(jobs)
        card = json.loads(Path(job.card_uri).read_text())
        (found,) = card["cards"]
        assert (card["job"], card["dataset_digest"], card["rows"]) == (job.name, job.dataset_digest, 12)
        assert (found["pairs"], found["tokens"]) == (12, job.tokens)
        assert found["human_agreement"]["value"] == 0.5  # the judge contradicts every second label
        assert found["length_baseline"]["value"] == 0.5  # the worse response is the longer one
        assert found["longer_preferred"]["value"] == 0.0
        assert found["same_position_after_swap"]["value"] == 0.0

    async def test_ties_are_kept_in_the_seeds_order_and_abstentions_are_counted(self, make_jobs: Any, spec: LabelJobSpec, data: Path) -> None:
        rows = pairs(8, chosen="equally good", rejected="good equally")
        rows[3] = replace(rows[3], chosen="x" * 5000)
        write_pairs(data, rows)
        jobs, _ = await make_jobs(FakePolicy(context_tokens=4000))
        await jobs.create(spec)
        job = await ended(jobs)
        assert (job.state, job.done_pairs, job.abstained_pairs) == ("succeeded", 8, 1)
        kept = labelled(job)
        assert kept.keys() == {f"p{number:02}" for number in range(8)} - {"p03"}
        assert {row.preference for row in kept.values()} == {0.5}
        first = {name: row.chosen == "equally good" for name, row in kept.items()}
        assert first == {name: chosen_is_a(3, name) for name in kept}
        assert set(first.values()) == {True, False}
        assert {row.human_preference for row in kept.values()} == {0.0, 1.0}
        (card,) = json.loads(Path(job.card_uri).read_text())["cards"]
        assert card["abstentions"] == {"context overflow": 1}

    async def test_a_pair_that_no_judge_could_read_is_an_abstention_of_its_own(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        jobs, _ = await make_jobs(max_text_bytes=26)  # the longer response of p10 and p11 has 27 bytes
        await jobs.create(spec)
        job = await ended(jobs)
        assert (job.state, job.done_pairs, job.abstained_pairs) == ("succeeded", 12, 2)
        (card,) = json.loads(Path(job.card_uri).read_text())["cards"]
        assert card["abstentions"] == {"unusable pair": 2}

    async def test_a_limit_takes_the_rows_that_training_would_take(self, make_jobs: Any, spec: LabelJobSpec, data: Path) -> None:
        jobs, _ = await make_jobs()
        await jobs.create(replace(spec, limit=5))
        job = await ended(jobs)
        assert list(labelled(job)) == [pair.pair_id for pair in read_pairs(str(data), limit=5, seed=3).rows]

    async def test_rows_of_another_task_and_unreadable_rows_are_counted(self, make_jobs: Any, spec: LabelJobSpec, data: Path) -> None:
        rows = pairs(6)
        write_pairs(data, [*rows[:3], *(replace(row, task=Task.SUMMARIZATION) for row in rows[3:])])
        data.write_text(data.read_text() + "{broken\n")
        jobs, _ = await make_jobs()
        await jobs.create(replace(spec, limit=4))
        job = await ended(jobs)
        assert job.total_pairs == 3
        assert dict(job.rejected_rows) == {"of another task than conversation": 3, "not JSON": 1}

    async def test_the_seed_decides_which_response_is_shown_as_a(self) -> None:
        shown = [[chosen_is_a(seed, f"p{number}") for number in range(400)] for seed in (1, 2)]
        assert shown[0] != shown[1]
        assert 150 < sum(shown[0]) < 250


class TestRepeats:
    async def test_the_first_pairs_are_judged_twice_and_counted_once(self, make_jobs: Any, spec: LabelJobSpec, tmp_path: Path) -> None:
        jobs, bench = await make_jobs()
        await jobs.create(replace(spec, repeats=5))
        job = await ended(jobs)
        assert (job.state, job.done_pairs, job.total_pairs, job.cached_judgements) == ("succeeded", 12, 12, 0)
        assert len(bench.policy.asked) == 2 * (12 + 5)
        assert len(set(bench.policy.asked)) == 2 * 12
        assert len(labelled(job)) == 12
        card = json.loads(Path(job.card_uri).read_text())["cards"][0]
        assert (card["pairs"], card["repeat_consistency"]["value"], card["repeat_consistency"]["n"]) == (12, 1.0, 5)
        assert card["tokens"] == job.tokens
        page = Path(job.card_uri).with_suffix(".html").read_text()
        assert "same label when asked again" in page
        assert job.dataset_digest in page

        await jobs.create(replace(spec, request_id="job-2", output_uri=str(tmp_path / "out2"), repeats=12))
        again = await ended(jobs, "labelJobs/job-2")
        assert (again.cached_judgements, len(bench.policy.asked)) == (2 * (12 + 5), 2 * (12 + 12))  # a repeat is not bought twice either

    async def test_a_restart_goes_on_with_the_repeats(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        jobs, bench = await make_jobs()
        await jobs.create(replace(spec, repeats=12))
        await until(lambda: len(bench.policy.asked) >= 2 * 14)
        await jobs.close()
        await bench.desk.close()
        assert not jobs.get("labelJobs/job-1").ended
        again, other = await make_jobs()
        job = await ended(again)
        assert (job.state, job.done_pairs, len(bench.policy.asked) + len(other.policy.asked)) == ("succeeded", 12, 48)
        assert json.loads(Path(job.card_uri).read_text())["cards"][0]["repeat_consistency"]["n"] == 12

    async def test_ids_that_jobs_give_are_not_read_from_data(self, make_jobs: Any, spec: LabelJobSpec, data: Path) -> None:
        rows = pairs(3)
        write_pairs(data, [*rows[:2], replace(rows[2], pair_id="accord-repeat:p00")])
        jobs, _ = await make_jobs()
        await jobs.create(spec)
        job = await ended(jobs)
        assert (job.total_pairs, dict(job.rejected_rows)) == (2, {"id begins with accord-, as those of pairs that jobs add": 1})


class TestRestarts:
    async def test_a_job_goes_on_at_the_first_pair_without_a_label(self, make_jobs: Any, spec: LabelJobSpec, tmp_path: Path) -> None:
        whole, _ = await make_jobs()
        await whole.create(replace(spec, request_id="whole", output_uri=str(tmp_path / "whole"), judge=Judge("verdict")))
        reference = await ended(whole, "labelJobs/whole")

        first_policy, second_policy = FakePolicy(base="base-9"), FakePolicy(base="base-9")
        jobs, bench = await make_jobs(first_policy)
        await jobs.create(spec)
        await until(lambda: jobs.get("labelJobs/job-1").done_pairs >= 5)
        await jobs.close()  # what a kill would leave: a file that says running, and the ledger
        await bench.desk.close()

        again, _ = await make_jobs(second_policy)
        resumed = await ended(again)
        assert (resumed.state, resumed.done_pairs) == ("succeeded", 12)
        asked = first_policy.asked + second_policy.asked
        assert len(asked) == len(set(asked)) == 24  # every judgement once, in all
        assert len(second_policy.asked) >= 2
        rows, expected = labelled(resumed), labelled(reference)
        assert [(row.chosen, row.preference) for row in rows.values()] == [(row.chosen, row.preference) for row in expected.values()]
        assert resumed.tokens == reference.tokens

    async def test_a_stop_lets_what_is_in_work_be_finished(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        jobs, bench = await make_jobs()
        bench.policy.gate = asyncio.Event()
        await jobs.create(spec)
        await until(lambda: len(bench.policy.calls) == 1)
        stopping = asyncio.create_task(jobs.stop_taking())
        await asyncio.sleep(0.02)
        assert not stopping.done()
        bench.policy.gate.set()
        await asyncio.wait_for(stopping, 5)
        job = jobs.get("labelJobs/job-1")
        assert job.state == "running"
        assert 0 < job.done_pairs < 12
        assert bench.policy.cancelled == 0
        again, _ = await make_jobs()
        assert (await ended(again)).state == "succeeded"

    async def test_a_stop_does_not_wait_for_a_judge_that_is_away(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        policy = FakePolicy()
        policy.down = UnavailableError("refused", retry_after_seconds=0.01)
        jobs, _ = await make_jobs(policy)
        await jobs.create(spec)
        await until(lambda: jobs.get("labelJobs/job-1").message != "")
        await asyncio.wait_for(jobs.stop_taking(), 5)
        assert jobs.get("labelJobs/job-1").state == "running"

    async def test_an_ended_job_stays_as_it_was(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        jobs, _ = await make_jobs()
        await jobs.create(spec)
        before = await ended(jobs)
        again, bench = await make_jobs()
        assert again.get(before.name) == before
        assert bench.policy.info_calls == 0
        assert await again.create(spec) == before
        assert (bench.policy.calls, bench.policy.generated) == ([], [])

    async def test_who_asks_for_an_ended_job_hears_that_the_judge_is_another_now(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        """The labels are those of before, and nothing is judged; what is told to this caller is no part of the job."""
        jobs, _ = await make_jobs()
        await jobs.create(spec)
        before = await ended(jobs)
        again, bench = await make_jobs(FakePolicy(base="base-2"))
        told = await again.create(spec)
        assert replace(told, message="") == again.get(before.name) == before
        assert told.message.startswith("the judge is another one now (fake, digest ")
        assert f"; then {labelled(before)['p00'].metadata['judge_digest']})" in told.message
        assert bench.policy.calls == []
        away = FakePolicy()
        away.down = UnavailableError("no route")
        third, _ = await make_jobs(away)
        unknown = await third.create(spec)
        assert replace(unknown, message="") == before
        assert unknown.message == "who would label now is not known: the judge at fake:1 cannot be reached: no route"

    async def test_a_second_job_on_the_same_pairs_costs_nothing(self, make_jobs: Any, spec: LabelJobSpec, tmp_path: Path) -> None:
        jobs, bench = await make_jobs()
        await jobs.create(spec)
        first = await ended(jobs)
        asked = len(bench.policy.calls)
        await jobs.create(replace(spec, request_id="job-2", output_uri=str(tmp_path / "out2"), seed=99))  # other orientation, same questions
        second = await ended(jobs, "labelJobs/job-2")
        assert len(bench.policy.calls) == asked
        assert (first.cached_judgements, second.cached_judgements, second.tokens) == (0, 24, 0)
        assert first.tokens > 0
        (card,) = json.loads(Path(second.card_uri).read_text())["cards"]
        assert card["tokens"] == 0

    async def test_changed_data_and_a_changed_judge_end_it(self, make_jobs: Any, spec: LabelJobSpec, data: Path) -> None:
        for change, text in (("data", "has changed since the job began"), ("judge", "the judge has changed since the job began")):
            name = f"changed-{change}"
            jobs, bench = await make_jobs()
            await jobs.create(replace(spec, request_id=name, output_uri=f"{spec.output_uri}-{change}", judge=Judge("likelihood", tie_margin=0.1)))
            await until(lambda jobs=jobs, name=name: jobs.get(f"labelJobs/{name}").done_pairs >= 1)  # type: ignore[misc]
            await jobs.close()
            await bench.desk.close()
            if jobs.get(f"labelJobs/{name}").ended:
                pytest.fail("too quick for this test")
            before = data.read_bytes()
            if change == "data":
                write_pairs(data, pairs(11))
            again, _ = await make_jobs(FakePolicy(base="base-2" if change == "judge" else "base-1"))
            job = await ended(again, f"labelJobs/{name}")
            assert job.state == "failed"
            assert text in job.message
            data.write_bytes(before)

    async def test_a_damaged_job_file_is_named(self, make_jobs: Any, tmp_path: Path) -> None:
        (tmp_path / "jobs").mkdir()
        (tmp_path / "jobs" / "abc.json").write_text('{"name": "labelJobs/x"}')
        with pytest.raises(DataLossError, match=r"abc\.json"):
            await make_jobs()


class TestStages:
    async def test_a_stage_begins_after_the_one_before_and_its_pairs_are_no_pairs_of_the_data(
        self, make_jobs: Any, spec: LabelJobSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A stage that judges the decided pairs once more, under ids of its own: it sees all labels of the first, and a restart asks for nothing."""
        seen: list[int] = []

        def again(work: JobWork) -> Iterator[Asked]:
            decided = [label.pair_id for label in work.ledger.labels(job=work.name) if label.outcome in ("a", "b") and not is_added(label.pair_id)]
            seen.append(len(decided))
            by_id = {pair.pair_id: shown_pair(pair, work.spec.seed) for pair in work.pairs}
            return ((replace(by_id[name], pair_id=f"{ADDED}test:{name}", response_b="quite another response"), work.plan) for name in decided[:5])

        monkeypatch.setattr(job_run, "STAGES", (Stage("", pairs_of_the_data), Stage("again", again)))
        jobs, bench = await make_jobs()
        await jobs.create(spec)
        job = await ended(jobs)
        assert (job.state, job.total_pairs, job.done_pairs, seen) == ("succeeded", 12, 12, [12])
        assert len(bench.ledger.labels(job=job.name)) == 17
        assert list(labelled(job)) == [f"p{number:02}" for number in range(12)]
        assert bench.ledger.job_progress(job.name).abstained == 0
        again_jobs, _ = await make_jobs()
        assert again_jobs.get(job.name).done_pairs == 12

    async def test_a_row_may_not_pass_for_an_added_pair(self, make_jobs: Any, spec: LabelJobSpec, data: Path) -> None:
        rows = pairs(4)
        write_pairs(data, [replace(rows[0], pair_id=f"{ADDED}twin:p00"), *rows[1:]])
        jobs, _ = await make_jobs()
        await jobs.create(spec)
        job = await ended(jobs)
        assert (job.state, job.done_pairs) == ("succeeded", 3)
        assert dict(job.rejected_rows) == {"id begins with accord-, as those of pairs that jobs add": 1}


class TestPatience:
    async def test_it_waits_for_a_judge_that_is_away_and_says_so(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        policy = FakePolicy()
        policy.down = UnavailableError("connection refused", retry_after_seconds=0.01)
        jobs, _ = await make_jobs(policy)
        await jobs.create(spec)
        await until(lambda: jobs.get("labelJobs/job-1").message != "")
        waiting = jobs.get("labelJobs/job-1")
        assert waiting.state == "running"
        assert "the judge at fake:1 cannot be reached: connection refused" in waiting.message
        policy.down = None
        job = await ended(jobs)
        assert (job.state, job.message) == ("succeeded", "")

    async def test_faults_in_the_middle_cost_no_pair(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        policy = FakePolicy()
        policy.failures = [UnavailableError("reset", retry_after_seconds=0.01) for _ in range(3)]
        jobs, _ = await make_jobs(policy)
        await jobs.create(spec)
        job = await ended(jobs)
        assert (job.state, job.done_pairs, job.abstained_pairs) == ("succeeded", 12, 0)

    async def test_it_gives_up_after_the_configured_time(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        policy = FakePolicy()
        policy.down = UnavailableError("connection refused", retry_after_seconds=0.01)
        jobs, _ = await make_jobs(policy, judge_wait_seconds=0.5)
        await jobs.create(spec)
        job = await ended(jobs)
        assert job.state == "failed"
        assert "last reason: the judge at fake:1 cannot be reached: connection refused" in job.message

    async def test_an_error_that_time_does_not_heal_ends_it_at_once(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        jobs, _ = await make_jobs()
        await jobs.create(replace(spec, judge=Judge("verdict", adapter="adapters/none")))
        job = await ended(jobs)
        assert job.state == "failed"
        assert "there is no adapters/none" in job.message
        policy = FakePolicy()
        policy.failures = [InternalError("the judge is broken")]
        jobs, bench = await make_jobs(policy)
        await jobs.create(replace(spec, request_id="job-2"))
        job = await ended(jobs, "labelJobs/job-2")
        assert (job.state, "the judge is broken" in job.message) == ("failed", True)
        for _ in range(200):  # the questions of its other pairs end when their own calls do
            if not bench.desk._entries:
                break
            await asyncio.sleep(0.02)
        assert len(bench.desk._entries) == 0

    async def test_a_defect_ends_the_job_and_is_hidden(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        def broken(prompt: str, text: str) -> float:
            raise ZeroDivisionError(text)

        policy = FakePolicy()
        policy.logprob_of = broken
        jobs, _ = await make_jobs(policy)
        await jobs.create(spec)
        job = await ended(jobs)
        assert (job.state, job.message) == ("failed", "internal error, see server log")

    async def test_jobs_over_the_limit_wait_for_their_turn(self, make_jobs: Any, spec: LabelJobSpec, tmp_path: Path) -> None:
        policy = FakePolicy()
        policy.gate = asyncio.Event()
        jobs, _ = await make_jobs(policy, max_running_jobs=1)
        await jobs.create(spec)
        await until(lambda: len(policy.calls) == 1)
        await jobs.create(replace(spec, request_id="job-2", output_uri=str(tmp_path / "out2")))
        await until(lambda: "waiting for its turn" in jobs.get("labelJobs/job-2").message)
        policy.gate.set()
        assert [(await ended(jobs, f"labelJobs/job-{number}")).state for number in (1, 2)] == ["succeeded"] * 2


class TestCancel:
    async def test_the_work_ends_and_what_was_judged_stays(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        jobs, bench = await make_jobs()
        await jobs.create(spec)
        await until(lambda: jobs.get("labelJobs/job-1").done_pairs >= 3)
        bench.policy.gate = asyncio.Event()
        calls = len(bench.policy.calls)
        await until(lambda: len(bench.policy.calls) > calls or jobs.get("labelJobs/job-1").ended)
        job = await jobs.cancel("labelJobs/job-1")
        assert job.state == "cancelled"
        assert job.dataset_uri == ""
        assert bench.policy.cancelled == 1
        assert not (Path(spec.output_uri) / "labels.jsonl").exists()
        assert len(bench.ledger.labels(job=job.name)) == job.done_pairs >= 3
        assert await jobs.cancel("labelJobs/job-1") == job
        again, other = await make_jobs()
        assert again.get("labelJobs/job-1").state == "cancelled"
        assert other.policy.calls == []

    async def test_a_watcher_sees_the_end(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        jobs, bench = await make_jobs()
        bench.policy.gate = asyncio.Event()
        await jobs.create(spec)
        watching = asyncio.create_task(ended(jobs))
        await until(lambda: len(bench.policy.calls) == 1)
        await jobs.cancel("labelJobs/job-1")
        assert (await watching).state == "cancelled"

    async def test_a_job_that_waits_for_its_turn_can_be_cancelled(self, make_jobs: Any, spec: LabelJobSpec, tmp_path: Path) -> None:
        policy = FakePolicy()
        policy.gate = asyncio.Event()
        jobs, _ = await make_jobs(policy, max_running_jobs=1)
        await jobs.create(spec)
        await jobs.create(replace(spec, request_id="job-2", output_uri=str(tmp_path / "out2")))
        assert (await jobs.cancel("labelJobs/job-2")).state == "cancelled"

    async def test_an_unknown_job_is_not_found(self, make_jobs: Any) -> None:
        jobs, _ = await make_jobs()
        with pytest.raises(NotFoundError, match="labelJobs/none"):
            jobs.get("labelJobs/none")
        with pytest.raises(NotFoundError):
            await jobs.cancel("labelJobs/none")


class TestCreating:
    async def test_the_same_request_starts_one_job(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        jobs, bench = await make_jobs()
        first, second = await asyncio.gather(jobs.create(spec), jobs.create(spec))
        assert first.name == second.name
        await ended(jobs)
        assert len(bench.policy.asked) == 24
        with pytest.raises(AlreadyExistsError, match="another payload"):
            await jobs.create(replace(spec, seed=4))

    @pytest.mark.parametrize(
        ("change", "error", "field"),
        [
            ({"dataset_uri": "/nowhere/pairs.jsonl"}, NotFoundError, "dataset_uri"),
            ({"dataset_uri": "sample:nothing"}, NotFoundError, "dataset_uri"),
            ({"dataset_uri": "s3://bucket/pairs.txt"}, InvalidArgumentError, "dataset_uri"),
            ({"dataset_format": "csv"}, InvalidArgumentError, "dataset_format"),
            ({"judge": Judge("likelihood", rationale=True)}, InvalidArgumentError, "judge.rationale"),
            ({"judge": Judge("verdict", rubric="summarization/detailed/1")}, InvalidArgumentError, "judge.rubric"),
            ({"judge": Judge("verdict", rubric="none/1")}, NotFoundError, "judge.rubric"),
            ({"output_uri": "nonsense://bucket/labels"}, InvalidArgumentError, "output_uri"),
            ({"candidates": Candidates()}, FailedPreconditionError, "candidates"),
            ({"output_uri": "/proc/nowhere"}, FailedPreconditionError, "output_uri"),
        ],
    )
    async def test_what_cannot_work_is_refused_at_once(
        self, make_jobs: Any, spec: LabelJobSpec, change: dict[str, Any], error: type[Exception], field: str
    ) -> None:
        jobs, bench = await make_jobs()
        with pytest.raises(error) as caught:
            await jobs.create(replace(spec, **change))
        assert caught.value.field == field  # type: ignore[attr-defined]
        assert bench.policy.info_calls == 0
        with pytest.raises(NotFoundError):
            jobs.get("labelJobs/job-1")

    async def test_two_jobs_do_not_share_an_output_folder(self, make_jobs: Any, spec: LabelJobSpec) -> None:
        jobs, _ = await make_jobs()
        await jobs.create(spec)
        with pytest.raises(FailedPreconditionError, match="labelJobs/job-1"):
            await jobs.create(replace(spec, request_id="job-2"))

    async def test_a_request_id_may_be_any_text(self, make_jobs: Any, spec: LabelJobSpec, tmp_path: Path) -> None:
        jobs, _ = await make_jobs()
        await jobs.create(replace(spec, request_id="../../etc/x y"))
        assert (await ended(jobs, "labelJobs/../../etc/x y")).state == "succeeded"
        assert len(list((tmp_path / "jobs").glob("*.json"))) == 1

    async def test_a_data_set_that_breaks_while_it_is_read_fails_the_job(self, make_jobs: Any, spec: LabelJobSpec, data: Path) -> None:
        data.write_text('{"what": "is this"}\n')
        jobs, _ = await make_jobs()
        await jobs.create(spec)
        job = await ended(jobs)
        assert job.state == "failed"
        assert "no format recognises" in job.message


async def test_labels_of_jobs_and_of_calls_share_the_ledger(make_jobs: Any, spec: LabelJobSpec) -> None:
    jobs, bench = await make_jobs()
    await jobs.create(spec)
    await ended(jobs)
    asked = len(bench.policy.calls)
    source = pairs(1)[0]
    item = LabelPairItem(TASK, source.messages, source.chosen, source.rejected)
    label = await bench.labeller.label(item, await bench.labeller.plan(bench.labeller.settings(Judge("verdict"))), Origin("call"))
    assert len(bench.policy.calls) == asked
    assert label.preference == pytest.approx(0.880797, abs=1e-6)
