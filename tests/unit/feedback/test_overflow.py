"""That a judge's context was too small holds for that context alone: another one asks again, and nothing else is bought twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.feedback.fakes import FakePolicy
from tests.unit.feedback.job_bench import TASK, ended, labelled, pairs

from accord.client.feedback import Judge, LabelJob, LabelJobSpec
from accord.client.messages import ModelDigests
from accord.data.writers import write_pairs
from accord.errors import OutOfRangeError
from accord.feedback.completions import Completion
from accord.feedback.endpoint import ChatEndpoint
from accord.feedback.job_data import shown_pair
from accord.feedback.judge_config import OpenAIJudge, Price
from accord.feedback.ledger import Ledger
from accord.feedback.records import OVERFLOW, Answer, JudgeIdentity, Origin, Question
from accord.text.chat import Message

SMALL, LARGE = 5_000, 50_000
LONG = 3


@pytest.fixture
def long_data(data: Path) -> Path:
    """Twelve pairs, one of which does not fit into the small context."""
    rows = pairs(12)
    rows[LONG] = replace(rows[LONG], messages=(Message("user", "long " * 4000),))
    write_pairs(data, rows)
    return data


@pytest.fixture
def run(make_jobs: Any, spec: LabelJobSpec, long_data: Path, tmp_path: Path) -> Any:
    """A function that runs a job over the data on a server whose judge has a context, and gives the job and the judge."""

    async def run(name: str, context_tokens: int, **judge: Any) -> tuple[LabelJob, FakePolicy]:
        jobs, bench = await make_jobs(FakePolicy(context_tokens=context_tokens))
        await jobs.create(replace(spec, request_id=name, output_uri=str(tmp_path / name), judge=Judge(**{"kind": "verdict", **judge})))
        job = await ended(jobs, f"labelJobs/{name}")
        assert (job.state, job.done_pairs) == ("succeeded", 12), job.message
        await jobs.close()
        return job, bench.policy

    return run


@pytest.mark.parametrize("kind", ["verdict", "rating", "likelihood"])
async def test_a_larger_context_is_asked_what_a_smaller_one_could_not_read_and_nothing_else(run: Any, kind: str) -> None:
    small, _ = await run("small", SMALL, kind=kind)
    assert (small.abstained_pairs, small.cached_judgements) == (1, 0)
    assert f"p{LONG:02}" not in labelled(small)
    large, policy = await run("large", LARGE, kind=kind)
    assert large.abstained_pairs == 0
    assert f"p{LONG:02}" in labelled(large)
    assert policy.asked
    assert all("long" in text for text in policy.asked if text)
    assert large.cached_judgements == 11 * (2 if kind == "verdict" else 1)
    again, policy = await run("again", LARGE, kind=kind)
    assert (policy.asked, again.tokens, again.abstained_pairs) == ([], 0, 0)
    back, policy = await run("back", SMALL, kind=kind)
    assert (policy.asked, back.abstained_pairs) == ([], 0), "what was answered once stays answered, whatever the context is now"


async def test_the_same_context_is_not_asked_again_and_another_that_is_too_small_is_asked_once(run: Any, ledger: Ledger) -> None:
    await run("first", SMALL)
    second, policy = await run("second", SMALL)
    assert (policy.asked, second.abstained_pairs, second.cached_judgements) == ([], 1, 24)
    third, policy = await run("third", SMALL + 1)
    assert (len(policy.asked), third.abstained_pairs) == (2, 1)
    fourth, policy = await run("fourth", SMALL + 1)
    assert (policy.asked, fourth.abstained_pairs) == ([], 1)
    reasons = [found.abstention_reason for found in ledger.labels() if found.outcome == "abstain"]
    assert len(reasons) == 4
    assert [f"at most {most} " in reason for reason, most in zip(reasons, [SMALL, SMALL, SMALL + 1, SMALL + 1], strict=True)] == [True] * 4


async def test_a_rating_is_asked_again_too(make_bench: Any) -> None:
    prompt = (Message("user", "long " * 4000),)
    with pytest.raises(OutOfRangeError, match=OVERFLOW):
        await make_bench(FakePolicy(context_tokens=SMALL)).labeller.rate(TASK, prompt, "good", Judge("rating"), Origin("r"))
    rating = await make_bench(FakePolicy(context_tokens=LARGE)).labeller.rate(TASK, prompt, "good", Judge("rating"), Origin("r"))
    assert rating.expected_rating > 1


async def test_callers_who_know_another_context_of_one_judge_have_labels_whose_judgement_is_there(make_bench: Any) -> None:
    """Both ask at once, the first on a plan of before the judge was served with another context."""
    bench = make_bench(FakePolicy(context_tokens=SMALL))
    plan = await bench.labeller.plan(bench.labeller.settings(Judge("verdict")))
    old = replace(plan, judge=replace(plan.judge, context_tokens=SMALL - 1))
    pair = shown_pair(pairs(1, messages=(Message("user", "long " * 4000),))[0], 0)
    found = await asyncio.gather(*(bench.labeller.label_many([pair], known, Origin("r")) for known in (old, plan)))
    assert [label.outcome for (label,) in found] == ["abstain", "abstain"]
    assert len(bench.policy.asked) == 2
    assert [len(label.judgements) for label in bench.ledger.labels()] == [2, 2]


def test_an_overflow_of_before_its_context_was_in_its_key_stays_an_answer(ledger: Ledger) -> None:
    question = Question("likelihood", TASK, (Message("user", "q"),), "a", "b", None, JudgeIdentity("m", ModelDigests("x"), context_tokens=9))
    ledger.append_judgements([(question, Answer(None, abstention_reason=f"{OVERFLOW}: 12 tokens"), Origin("old"))])
    assert ledger.answers([question])[question.key].key == question.key


async def test_an_endpoints_context_is_no_part_of_who_it_is(tmp_path: Path) -> None:
    said = Completion("1")
    config = OpenAIJudge(kind="openai", base_url="http://127.0.0.1:1/v1", model="m", context_tokens=100, api_key_env=None)
    price = Price(prompt_per_million=0, completion_per_million=0)
    small, large = (ChatEndpoint("e", config.model_copy(update={"context_tokens": most}), price).identity_of(said) for most in (100, 200))
    assert small.digest == large.digest
    assert (small.context_tokens, large.context_tokens) == (100, 200)
