"""What a label job leaves, and what happens when it is gone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from tests.unit.feedback.job_bench import ended, labelled, pairs
from tests.unit.feedback.test_candidates import Sampler, source
from tests.unit.feedback.test_cards import judgement, label

from accord.client.feedback import Candidates, Judge, LabelJobSpec, LabelLimits
from accord.data.records import CHOSEN_CANDIDATE, turned_facts
from accord.data.writers import write_pairs
from accord.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, UnavailableError
from accord.feedback.job_data import rating_gap
from accord.feedback.job_output import check_output


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


@pytest.mark.parametrize("sampled", [None, Candidates(temperature_b=1.0)], ids=["pairs", "candidates"])
async def test_files_are_written_again_whoever_judges_now(make_jobs: Any, spec: LabelJobSpec, sampled: Candidates | None) -> None:
    """The judge was upgraded, and what candidates were sampled from with it; labels need neither to be written again, nor that anybody answers."""
    first, second = Sampler(), Sampler()
    second.base, second.down = "base-2", UnavailableError("away")
    asked = replace(spec, candidates=sampled, repeats=2)
    jobs, bench = await make_jobs(first, source(first))
    await jobs.create(asked)
    before = await ended(jobs)
    assert before.state == "succeeded", before.message
    files = files_of(spec.output_uri)
    await jobs.close()
    await bench.desk.close()
    shutil.rmtree(spec.output_uri)
    again, bench = await make_jobs(second, source(second), judge_wait_seconds=1)
    assert (await again.create(asked)).state == "running"
    assert await ended(again) == before
    assert files_of(spec.output_uri) == files
    assert (bench.policy.asked, second.sampled, second.info_calls) == ([], [], 0)


async def test_files_that_cannot_be_written_again_are_tried_again_under_the_same_id(make_jobs: Any, spec: LabelJobSpec, data: Path) -> None:
    """A caller whose job is lost begins another attempt, which would be paid for where the judge is another one by now."""
    jobs, bench = await make_jobs()
    await jobs.create(spec)
    before, asked = await ended(jobs), len(bench.policy.asked)
    files, rows = files_of(spec.output_uri), data.read_bytes()
    shutil.rmtree(spec.output_uri)
    data.unlink()
    await jobs.create(spec)
    failed = await ended(jobs)
    assert failed.state == "failed"
    assert "its labels are in the ledger, and the same request tries once more: " in failed.message
    assert "pairs.jsonl" in failed.message
    data.write_bytes(rows)
    assert (await jobs.create(spec)).state == "running"
    assert await ended(jobs) == before
    assert files_of(spec.output_uri) == files
    assert len(bench.policy.asked) == asked


@pytest.mark.parametrize("card", ["", "no json", "[]", '{"title": "my card"}'])
async def test_labels_that_no_job_wrote_stay(make_jobs: Any, spec: LabelJobSpec, card: str) -> None:
    folder = Path(spec.output_uri)
    folder.mkdir()
    (folder / "labels.jsonl").write_text("somebody's work")
    if card:
        (folder / "card.json").write_text(card)
    before = files_of(spec.output_uri)
    jobs, _ = await make_jobs()
    with pytest.raises(FailedPreconditionError, match=r"labels\.jsonl is there, and no label job's card\.json beside it") as refused:
        await jobs.create(spec)
    assert refused.value.field == "output_uri"
    assert files_of(spec.output_uri) == before
    with pytest.raises(NotFoundError):
        jobs.get("labelJobs/job-1")


async def test_a_job_at_its_limit_replaces_no_labels_that_have_come_meanwhile(make_jobs: Any, spec: LabelJobSpec) -> None:
    jobs, _ = await make_jobs()
    await jobs.create(replace(spec, limits=LabelLimits(max_tokens=1)))
    assert (await ended(jobs)).at_limit
    (Path(spec.output_uri) / "labels.jsonl").write_text("somebody's work")
    with pytest.raises(FailedPreconditionError, match="it would be replaced"):
        await jobs.create(spec)


async def test_labels_of_another_servers_job_are_replaced(make_jobs: Any, spec: LabelJobSpec, tmp_path: Path) -> None:
    """A folder with a job's card is a job's, also where nobody knows that job any more."""
    jobs, bench = await make_jobs()
    await jobs.create(spec)
    await ended(jobs)
    await jobs.close()
    await bench.desk.close()
    others, _ = await make_jobs(jobs=str(tmp_path / "other"))
    await others.create(replace(spec, request_id="job-2"))
    assert (await ended(others, "labelJobs/job-2")).state == "succeeded"


async def test_a_job_says_what_it_judges_besides_the_pairs_of_the_data(make_jobs: Any, spec: LabelJobSpec) -> None:
    jobs, _ = await make_jobs()
    await jobs.create(replace(spec, repeats=3, attacks=2))
    said = {job.message async for job in jobs.watch("labelJobs/job-1")}  # whoever watches sees the last of several changes
    assert said & {f"judging pairs a second time: {number} of 3" for number in range(3)}
    assert said & {f"judging attacked twins and their controls: {number} of 4" for number in range(4)}
    assert jobs.get("labelJobs/job-1").message == ""


def test_several_raters_say_by_how_much_in_the_mean() -> None:
    """As the ledger's export has it; one that was shown B first counts the other way round, and one that abstained does not."""
    first = judgement("k1", True, 0.8, evidence_first=6.0, evidence_second=3.5)
    second = judgement("k2", False, 0.3, evidence_first=2.0, evidence_second=3.0)
    none = judgement("k3", True, None, evidence_first=None, evidence_second=None)
    assert rating_gap(label("p", "a", kind="rating", judgements=(first, second, none))) == pytest.approx((2.5 + 1.0) / 2)
    assert rating_gap(label("p", "a", kind="rating", judgements=(none,))) is None


def test_a_side_by_itself_is_turned_too() -> None:
    told = {"chosen": "x", "rejected": "y", "model_chosen": "m", "well_chosen_words": "w", "chosenness": "c", CHOSEN_CANDIDATE: "b"}
    turned = {"rejected": "x", "chosen": "y", "model_rejected": "m", "well_rejected_words": "w", "chosenness": "c", CHOSEN_CANDIDATE: "a"}
    assert turned_facts(told) == turned
    assert turned_facts(turned) == told


@pytest.mark.parametrize("kind", ["verdict", "likelihood"])
async def test_what_metadata_says_of_a_response_goes_with_it(make_jobs: Any, spec: LabelJobSpec, data: Path, kind: Any) -> None:
    """Who wrote the chosen response, and of what an earlier job chose: the judge turns every second pair round."""
    told = [
        replace(pair, metadata={"policy_chosen": f"wrote {pair.chosen}", "rejected_length": str(len(pair.rejected)), "chosen_candidate": "a",
                                "subject": "tests", "rubric": "old", "rubric_digest": "old"})
        for pair in pairs(12)
    ]  # fmt: skip
    write_pairs(data, told)
    jobs, _ = await make_jobs()
    await jobs.create(replace(spec, judge=Judge(kind)))
    rows = labelled(await ended(jobs))
    turned = [row for pair, row in ((pair, rows[pair.pair_id]) for pair in told) if row.chosen != pair.chosen]
    assert 0 < len(turned) < 12
    for pair in told:
        row = rows[pair.pair_id]
        side, other = ("chosen", "rejected") if row.chosen == pair.chosen else ("rejected", "chosen")
        facts = {key: value for key, value in row.metadata.items() if key.startswith("policy") or key.endswith("length")}
        assert facts == {f"policy_{side}": f"wrote {pair.chosen}", f"{other}_length": str(len(pair.rejected))}
        assert (row.metadata["chosen_candidate"], row.metadata["subject"]) == ("a" if side == "chosen" else "b", "tests")
        assert row.metadata.get("rubric", "") != "old"
        assert ("rubric" in row.metadata) == (kind == "verdict")


async def test_a_split_without_rows_is_no_success(make_jobs: Any, spec: LabelJobSpec, data: Path) -> None:
    write_pairs(data, [*pairs(5, split="test"), *pairs(3, pair_id="p9")])
    jobs, _ = await make_jobs()
    await jobs.create(replace(spec, split="validation"))
    job = await ended(jobs)
    assert job.state == "failed"
    assert job.message.endswith(
        "pairs.jsonl can be labelled: 8 of other splits than validation (5 of test, 3 of train; --split test takes those, --split all every one)"
    )


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


async def test_a_password_in_an_outputs_url_is_in_no_message(make_jobs: Any, spec: LabelJobSpec) -> None:
    jobs, _ = await make_jobs()
    output = "memory://anna:s3cr3t@labels/out"
    await jobs.create(replace(spec, output_uri=output))
    await ended(jobs)
    with pytest.raises(FailedPreconditionError, match="memory://labels/out is the output folder") as refused:
        await jobs.create(replace(spec, output_uri=output, request_id="job-2"))
    assert "s3cr3t" not in str(refused.value)
    with pytest.raises(InvalidArgumentError, match="nope://labels is no folder") as unknown:
        check_output("nope://anna:s3cr3t@labels")
    assert "s3cr3t" not in str(unknown.value)
