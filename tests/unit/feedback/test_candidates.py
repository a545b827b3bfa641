"""Pairs that a label job samples itself: deterministic, durable before they are judged, the best of several, equal ones a tie by rule."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.feedback.fakes import FakePolicy, ids_of, text_of
from tests.unit.feedback.job_bench import ended, labelled, until

from accord.client.feedback import Candidates, LabelJobSpec
from accord.client.messages import ModelDigests, Usage
from accord.client.policy import GenerateItem, GenerateResult, Generation, Sample
from accord.client.reward import RewardModelInfo, ScoreItem, ScoreResult, Scores
from accord.data.readers import read_pairs
from accord.errors import DataLossError, InvalidArgumentError, NotFoundError, OutOfRangeError, UnavailableError
from accord.feedback.candidates import Candidate, CandidateSource
from accord.feedback.job_candidates import CandidateFile
from accord.feedback.job_files import JobFiles

DIGESTS = ModelDigests("base-1", "tokenizer-1", "template-1")


class Sampler(FakePolicy):
    """Writes out of its seed: equal requests, equal samples. An adapter shows in the text; at temperature 0 the seed does not."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters = {"adapters/x": ("adapters/x/versions/2", "digest-x")}
        self.sampled: list[str] = []
        self.same_for: set[str] = set()
        self.too_long: set[str] = set()
        self.seconds = 0.0
        self.fewer = 0

    async def generate(
        self, items: Sequence[GenerateItem], *, adapter: str, expected_digests: ModelDigests | None, timeout_seconds: float | None
    ) -> Generation:
        await self._arrive(expected_digests)
        await asyncio.sleep(self.seconds)
        return Generation(tuple(self._sampled(item, adapter) for item in items), adapter, self._digests, Usage())

    def _sampled(self, item: GenerateItem, adapter: str) -> GenerateResult:
        prompt = text_of(item.prompt)
        self.sampled.append(prompt)
        if prompt in self.too_long:
            return GenerateResult("", OutOfRangeError("2000 tokens; at most 1000"), (), ())
        seed = 0 if not item.sampling.temperature or prompt in self.same_for else item.sampling.seed or 0
        texts = [f"{adapter or 'base'} says {'good ' * ((seed + index) % 5)}{seed % 1000} {index if seed else 0}" for index in range(item.n)]
        samples = tuple(Sample(index, text, ids_of(text), (-0.1,) * len(text), "eos", seed) for index, text in enumerate(texts[self.fewer :]))
        return GenerateResult("", None, samples, ids_of(prompt))


class Scorer:
    """Scores a response by how often it says good. Implements `RewardCalls`."""

    def __init__(self) -> None:
        self.scored = 0
        self.score_of: Callable[[str], float] = lambda text: float(text.count("good"))

    async def score(
        self, items: Sequence[ScoreItem], reward_model: str, *, expected_digests: ModelDigests | None, timeout_seconds: float | None
    ) -> Scores:
        self.scored += len(items)
        results = tuple(ScoreResult("", None, self.score_of(str(item.response)), (), 1) for item in items)
        return Scores(results, (reward_model,), DIGESTS, Usage())

    async def reward_model_info(self, reward_model: str, *, timeout_seconds: float | None) -> RewardModelInfo:
        if reward_model != "adapters/rm":
            raise NotFoundError(f"there is no {reward_model}", field="reward_model")
        return RewardModelInfo("adapters/rm/versions/3", "digest-rm", DIGESTS, 0.0, 1.0, 100, "", None, "0")

    async def close(self) -> None: ...


def source(policy: Sampler, reward: Scorer | None = None) -> CandidateSource:
    return CandidateSource(policy, reward, timeout_seconds=10)


async def run(make_jobs: Any, spec: LabelJobSpec, policy: Sampler, reward: Scorer | None = None) -> tuple[Any, dict[str, Any]]:
    jobs, bench = await make_jobs(policy, source(policy, reward))
    await jobs.create(spec)
    job = await ended(jobs, f"labelJobs/{spec.request_id}")
    assert job.state == "succeeded", job.message
    return bench, labelled(job)


async def test_two_candidates_for_each_prompt_with_their_lineage(make_jobs: Any, spec: LabelJobSpec, data: Path) -> None:
    policy = Sampler()
    _, rows = await run(make_jobs, replace(spec, candidates=Candidates(adapter_a="adapters/x", temperature_b=1.0)), policy)
    prompts = {pair.messages for pair in read_pairs(str(data)).rows}
    assert {row.messages for row in rows.values()} == prompts
    assert len(policy.sampled) == 24
    for row in rows.values():
        side = {"a": "adapters/x/versions/2 says", "b": "base says"}
        other = {"a": "b", "b": "a"}[row.metadata["chosen_candidate"]]
        assert row.chosen.startswith(side[row.metadata["chosen_candidate"]])
        assert row.rejected.startswith(side[other])
        assert (row.metadata["candidates_adapter_a"], row.metadata["candidates_adapter_a_digest"]) == ("adapters/x/versions/2", "digest-x")
        assert (row.metadata["candidates_base_model_digest"], row.metadata["candidates_temperature_b"]) == ("base-1", "1.0")
        assert row.human_preference is None
    assert {row.metadata["chosen_candidate"] for row in rows.values()} == {"a", "b"}


async def test_the_same_seed_samples_the_same_and_another_other_candidates(make_jobs: Any, spec: LabelJobSpec) -> None:
    def job(number: int, seed: int) -> LabelJobSpec:
        return replace(spec, request_id=f"job-{number}", output_uri=f"{spec.output_uri}-{number}", seed=seed, candidates=Candidates())

    texts = []
    for number, seed in enumerate((3, 3, 4)):
        _, rows = await run(make_jobs, job(number, seed), Sampler())
        texts.append({name: {row.chosen, row.rejected} for name, row in rows.items()})
    assert texts[0] == texts[1]
    assert all(texts[0][name] != texts[2][name] for name in texts[0])
    assert all(len(both) == 2 for both in texts[0].values())  # the sides have seeds of their own


async def test_who_asks_for_an_ended_job_hears_that_its_candidates_would_be_others_now(make_jobs: Any, spec: LabelJobSpec) -> None:
    """As a second round under the same names: the adapter has a new version."""
    asked = replace(spec, candidates=Candidates(adapter_a="adapters/x", temperature_b=1.0))
    await run(make_jobs, asked, Sampler())
    later = Sampler()
    jobs, _ = await make_jobs(later, source(later))
    assert (await jobs.create(asked)).message == ""
    later.adapters = {"adapters/x": ("adapters/x/versions/3", "digest-y")}
    told = (await jobs.create(asked)).message
    assert told == (
        "what candidates are sampled from is another now: adapter_a 'adapters/x/versions/2' is now 'adapters/x/versions/3', "
        "adapter_a_digest 'digest-x' is now 'digest-y'"
    )
    assert later.sampled == []


async def test_the_best_of_several_by_the_reward_model(make_jobs: Any, spec: LabelJobSpec) -> None:
    policy, reward = Sampler(), Scorer()
    _, rows = await run(make_jobs, replace(spec, candidates=Candidates(best_of=5, reward_model="adapters/rm")), policy, reward)
    assert reward.scored == 12 * 2 * 5
    for row in rows.values():
        assert (row.chosen.count("good"), row.rejected.count("good")) == (4, 4)  # of five samples in a row each has another count out of 0 to 4
        assert row.metadata["candidate_score_a"] == row.metadata["candidate_score_b"] == "4.0"
        assert (row.metadata["candidates_reward_model"], row.metadata["candidates_reward_model_digest"]) == ("adapters/rm/versions/3", "digest-rm")


async def test_scores_that_are_no_numbers_choose_nothing_and_are_waited_for(make_jobs: Any, spec: LabelJobSpec) -> None:
    policy, reward = Sampler(), Scorer()
    reward.score_of = lambda text: float("nan") if text.count("good") == 2 else float(text.count("good"))
    jobs, _ = await make_jobs(policy, source(policy, reward))
    await jobs.create(replace(spec, candidates=Candidates(best_of=5, reward_model="adapters/rm")))
    await until(lambda: "a score that is no finite number" in jobs.get("labelJobs/job-1").message)
    reward.score_of = lambda text: float(text.count("good"))
    job = await ended(jobs)
    assert (job.state, {row.chosen.count("good") for row in labelled(job).values()}) == ("succeeded", {4})


async def test_a_policy_that_gives_fewer_samples_than_asked_for_is_named(make_jobs: Any, spec: LabelJobSpec) -> None:
    policy = Sampler()
    policy.fewer = 1
    for name, options in (("one", Candidates()), ("several", Candidates(best_of=5, reward_model="adapters/rm"))):
        jobs, _ = await make_jobs(policy, source(policy, Scorer()))
        await jobs.create(replace(spec, request_id=name, output_uri=f"{spec.output_uri}-{name}", candidates=options))
        job = await ended(jobs, f"labelJobs/{name}")
        assert (job.state, "the policy that samples candidates gave" in job.message) == ("failed", True), job.message


async def test_equal_candidates_are_sampled_once_more_and_then_a_tie_by_rule(make_jobs: Any, spec: LabelJobSpec) -> None:
    policy = Sampler()
    policy.same_for = {"question 3", "question 5"}
    bench, rows = await run(make_jobs, replace(spec, candidates=Candidates()), policy)
    assert sorted(policy.sampled.count(name) for name in ("question 3", "question 4", "question 5")) == [2, 3, 3]
    assert len(rows) == 12
    ties = [row for row in rows.values() if row.chosen == row.rejected]
    assert [(row.messages[0].content, row.preference) for row in ties] == [("question 3", 0.5), ("question 5", 0.5)]
    assert len(bench.policy.asked) == 2 * 10  # no judge is asked about a tie by rule


async def test_a_kill_samples_only_what_is_missing(make_jobs: Any, spec: LabelJobSpec, tmp_path: Path) -> None:
    first, second = Sampler(), Sampler()
    first.seconds = 0.05
    asked = replace(spec, candidates=Candidates())
    _, whole = await run(make_jobs, replace(asked, request_id="whole", output_uri=f"{spec.output_uri}-whole"), Sampler())
    jobs, bench = await make_jobs(first, source(first))
    path = JobFiles(tmp_path / "jobs").candidates("labelJobs/job-1")
    await jobs.create(asked)
    await until(lambda: path.exists() and path.read_bytes().count(b"\n") >= 4)
    await jobs.close()
    await bench.desk.close()
    kept = path.read_bytes().count(b"\n")
    assert 4 <= kept < 12
    with path.open("ab") as file:
        file.write(b'{"prompt_id": "torn by the ki')
    again, _ = await make_jobs(second, source(second))
    job = await ended(again)
    assert job.state == "succeeded"
    assert len(second.sampled) == 2 * (12 - kept)
    assert {name: (row.chosen, row.rejected) for name, row in labelled(job).items()} == {
        name: (row.chosen, row.rejected) for name, row in whole.items()
    }


async def test_candidates_of_another_model_do_not_mix(make_jobs: Any, spec: LabelJobSpec) -> None:
    first, second = Sampler(), Sampler()
    second.adapters = {"adapters/x": ("adapters/x/versions/3", "digest-y")}
    jobs, bench = await make_jobs(first, source(first))
    bench.policy.gate = asyncio.Event()
    await jobs.create(replace(spec, candidates=Candidates(adapter_a="adapters/x")))
    await until(lambda: jobs._jobs["labelJobs/job-1"].run.record.candidates_from != {})
    await jobs.close()
    again, _ = await make_jobs(second, source(second))
    job = await ended(again)
    assert job.state == "failed"
    assert "adapter_a 'adapters/x/versions/2' is now 'adapters/x/versions/3'" in job.message


async def test_prompts_that_the_policy_cannot_read_are_counted(make_jobs: Any, spec: LabelJobSpec) -> None:
    policy = Sampler()
    policy.too_long = {"question 7"}
    jobs, _ = await make_jobs(policy, source(policy))
    await jobs.create(replace(spec, candidates=Candidates()))
    job = await ended(jobs)
    assert (job.state, job.total_pairs, job.done_pairs) == ("succeeded", 11, 11)
    assert dict(job.rejected_rows) == {"prompt cannot be answered: longer than the model's context": 1}


async def test_a_policy_that_is_away_is_waited_for(make_jobs: Any, spec: LabelJobSpec) -> None:
    policy = Sampler()
    policy.down = UnavailableError("connection refused", retry_after_seconds=0.01)
    jobs, _ = await make_jobs(policy, source(policy))
    await jobs.create(replace(spec, candidates=Candidates()))
    await until(lambda: "the policy that samples candidates: connection refused" in jobs.get("labelJobs/job-1").message)
    policy.down = None
    assert (await ended(jobs)).state == "succeeded"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (Candidates(best_of=4), "candidates.reward_model"),
        (Candidates(reward_model="adapters/rm"), "candidates.best_of"),
        (Candidates(best_of=4, reward_model="adapters/rm"), "candidates.reward_model"),
    ],
)
async def test_what_cannot_be_sampled_is_refused_at_once(make_jobs: Any, spec: LabelJobSpec, options: Candidates, field: str) -> None:
    policy = Sampler()
    jobs, _ = await make_jobs(policy, source(policy))
    with pytest.raises(InvalidArgumentError) as caught:
        await jobs.create(replace(spec, candidates=options))
    assert caught.value.field == field


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    file = CandidateFile(tmp_path / "c.jsonl")
    file.append([Candidate("p1", "a", "b"), Candidate("p2", "", "", refused="too long")])
    assert file.read() == {"p1": Candidate("p1", "a", "b"), "p2": Candidate("p2", "", "", refused="too long")}
    (tmp_path / "c.jsonl").write_bytes(b"{broken\n" + (tmp_path / "c.jsonl").read_bytes())
    with pytest.raises(DataLossError, match=r"c\.jsonl line 1"):
        file.read()
