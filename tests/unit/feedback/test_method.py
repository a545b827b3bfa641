"""The paper's method beyond one greedy verdict: chain-of-thought rubrics, self-consistency, verdicts read as text, batches of ratings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from tests.unit.feedback.fakes import Bench, FakePolicy

from accord.client.feedback import ABSTENTION, Judge, Label, LabelPairItem, Rating
from accord.client.messages import ModelDigests
from accord.errors import InvalidArgumentError, OutOfRangeError, UnavailableError
from accord.feedback.labels import questions_of
from accord.feedback.records import JudgeIdentity, Origin
from accord.feedback.settings import read_settings
from accord.text.chat import Message
from accord.text.tasks import Task

MakeBench = Callable[..., Bench]
PROMPT = (Message("user", "Summarize: the cat sat on the mat"),)
PAIR = LabelPairItem(Task.SUMMARIZATION, PROMPT, "good good words", "other words", "p1")
ORIGIN = Origin("req")
IDENTITY = JudgeIdentity("fake", ModelDigests("base-1", "tokenizer-1", "template-1"))
CONSISTENT = Judge("verdict", rubric="summarization/cot/1", consistency_samples=3, consistency_temperature=0.7)
TEXT = Judge("verdict", verdict_source="text")


async def label(bench: Bench, judge: Judge, pair: LabelPairItem = PAIR) -> Label:
    return await bench.labeller.label(pair, await bench.labeller.plan(bench.labeller.settings(judge)), ORIGIN)


def swapped(pair: LabelPairItem) -> LabelPairItem:
    return replace(pair, response_a=pair.response_b, response_b=pair.response_a)


def writer(texts: Iterator[str]) -> Callable[[str], str]:
    return lambda prompt: next(texts)


async def test_a_chain_of_thought_rubric_has_its_rationale_without_being_asked(make_bench: MakeBench) -> None:
    bench = make_bench(FakePolicy(write=lambda prompt: "Both have the cat."))
    made = await label(bench, Judge("verdict", rubric="summarization/cot/1"))
    assert [item.rationale for item in made.judgements] == ["Both have the cat."] * 2
    assert [item.sampling.temperature for item in bench.policy.generated] == [0.0, 0.0], "one rationale is greedy"
    assert made.judgements[0].probability_a == pytest.approx(1 / (1 + math.exp(-4))), "the verdict is read behind the rationale"
    assert read_settings(Judge("verdict", rubric="summarization/cot-few-shot/1"), "verdict").rationale
    assert not read_settings(Judge("verdict", rubric="summarization/base-few-shot/1"), "verdict").rationale


async def test_self_consistency_averages_over_samples_and_orders(make_bench: MakeBench) -> None:
    """The fake doubles its odds behind a rationale: a sample that goes straight to its verdict counts with simple odds."""
    texts = itertools.cycle(["Short.", '"rank": [1]', "Long and good."])
    bench = make_bench(FakePolicy(write=writer(texts)))
    made = await label(bench, CONSISTENT)
    assert [(item.a_first, item.sample) for item in made.judgements] == [(first, sample) for first in (True, False) for sample in range(3)]
    assert len({item.ledger_key for item in made.judgements}) == 6, "each sample is a judgement of its own"
    sampled = [(item.sampling.temperature, item.sampling.seed) for item in bench.policy.generated]
    assert sampled == [(0.7, seed) for seed in (0, 1, 2)] * 2
    means = [math.fsum(item.probability_a or 0.0 for item in made.judgements if item.a_first is first) / 3 for first in (True, False)]
    assert made.preference == pytest.approx(math.fsum(means) / 2)
    simple, double = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-4))
    assert made.preference == pytest.approx((2 * double + simple) / 3)


async def test_no_sample_is_bought_twice_and_a_swap_is_exact(make_bench: MakeBench) -> None:
    bench = make_bench(FakePolicy(bias=1.3, write=lambda prompt: f"{len(prompt)} characters."))
    made = await label(bench, CONSISTENT)
    asked = len(bench.policy.generated)
    more = await label(bench, replace(CONSISTENT, consistency_samples=4))
    assert len(bench.policy.generated) == asked + 2, "three samples of each order are there already"
    assert [item.cached for item in more.judgements] == [True, True, True, False] * 2
    turned = await label(bench, CONSISTENT, swapped(PAIR))
    assert turned.preference == 1 - made.preference  # type: ignore[operator]
    assert all(item.cached for item in turned.judgements)
    greedy = await label(bench, Judge("verdict", rubric="summarization/cot/1"))
    assert not any(item.cached for item in greedy.judgements), "the greedy rationale is another judgement"


async def test_samples_without_a_verdict_are_left_out(make_bench: MakeBench) -> None:
    texts = iter(["Fine.", "", "Fine."] + ["Fine."] * 3)
    made = await label(make_bench(FakePolicy(write=writer(texts))), CONSISTENT)
    assert [item.abstention_reason for item in made.judgements] == ["", "empty answer", "", "", "", ""]
    assert made.preference == pytest.approx(1 / (1 + math.exp(-4)))


async def test_an_order_without_any_verdict_is_an_abstention(make_bench: MakeBench) -> None:
    none = await label(make_bench(FakePolicy(write=writer(iter(["Fine."] * 3 + [""] * 3)))), CONSISTENT)
    assert (none.preference, none.outcome, none.abstention_reason) == (None, "abstain", "empty answer")


@pytest.mark.parametrize(
    ("texts", "preference", "outcome", "reason"),
    [
        (["Response 1 is better.", "Response 2 is better."], 1.0, "a", ""),
        (['"rank": [1]', '"rank": [1]'], 0.5, "tie", ""),
        (["It is a tie.", "It is a tie."], 0.5, "tie", ""),
        (["It is a tie.", "**2**"], 0.75, "a", ""),
        (["I cannot say.", "**2**"], None, "abstain", "names no response"),
        (["", "**2**"], None, "abstain", "empty answer"),
    ],
)
async def test_a_verdict_read_as_text(make_bench: MakeBench, texts: list[str], preference: float | None, outcome: str, reason: str) -> None:
    bench = make_bench(FakePolicy(write=writer(iter(texts))))
    made = await label(bench, TEXT)
    assert (made.preference, made.outcome, made.abstention_reason) == (preference, outcome, reason)
    assert bench.policy.calls == [], "no logprobs are asked for"
    assert all(item.evidence_a is None for item in made.judgements)


async def test_text_and_logprobs_are_judgements_of_their_own(make_bench: MakeBench) -> None:
    bench = make_bench(FakePolicy(write=lambda prompt: "1"))
    keys = [{item.ledger_key for item in (await label(bench, judge)).judgements} for judge in (TEXT, replace(TEXT, verdict_source="logprobs"))]
    assert not keys[0] & keys[1]


async def test_a_verdict_that_its_room_cut_off_says_so(make_bench: MakeBench) -> None:
    policy = FakePolicy(write=lambda prompt: "Let me think about")
    policy.finish = "length"
    assert (await label(make_bench(policy), TEXT)).abstention_reason == "cut off: the answer's room ended before its verdict"


async def test_a_batch_of_ratings(make_bench: MakeBench) -> None:
    bench = make_bench(FakePolicy(context_tokens=2000))
    responses = ["good good", "plain", "x" * 3000, "nul\0"]
    seat, results = await bench.labeller.rate_many(Task.SUMMARIZATION, [(PROMPT, each) for each in responses], Judge("rating"), ORIGIN)
    good, plain, long, nul = results
    assert isinstance(good, Rating)
    assert isinstance(plain, Rating)
    assert good.score > plain.score
    assert isinstance(long, OutOfRangeError)
    assert isinstance(nul, InvalidArgumentError)
    assert (long.field, nul.field) == ("items[2].response", "items[3].response")
    assert (long.metadata, nul.metadata) == ({ABSTENTION: "context overflow"}, {}), "whether a judge was asked shows"
    assert seat.name == "fake"
    alone = await bench.labeller.rate(Task.SUMMARIZATION, PROMPT, "good good", Judge("rating"), ORIGIN)
    assert alone == good


async def test_a_rating_that_is_no_number_says_so_for_programs(make_bench: MakeBench) -> None:
    policy = FakePolicy()
    policy.logprob_of = lambda prompt, text: float("nan")
    _, (result,) = await make_bench(policy).labeller.rate_many(Task.SUMMARIZATION, [(PROMPT, "good")], Judge("rating"), ORIGIN)
    assert isinstance(result, InvalidArgumentError)
    assert (result.field, result.metadata) == ("items[0].response", {ABSTENTION: "not finite"})


async def test_a_batch_that_no_judge_can_answer_fails_as_a_whole(make_bench: MakeBench) -> None:
    policy = FakePolicy()
    bench = make_bench(policy)
    policy.failures = [UnavailableError("away")] * 9
    with pytest.raises(UnavailableError):
        await bench.labeller.rate_many(Task.SUMMARIZATION, [(PROMPT, "a"), (PROMPT, "b")], Judge("rating"), ORIGIN)
    policy.failures = []
    with pytest.raises(InvalidArgumentError, match="is for verdict, not rating"):
        await bench.labeller.rate_many(Task.SUMMARIZATION, [(PROMPT, "a")], Judge("rating", rubric="summarization/cot/1"), ORIGIN)


def test_a_sampled_rationale_that_is_asked_for_again_has_a_seed_and_a_key_of_its_own() -> None:
    settings = replace(read_settings(CONSISTENT, "verdict"), samples=64)
    asked = [shown.question for repeat in (0, 1) for shown in questions_of(PAIR, replace(settings, repeat=repeat), IDENTITY) if shown.a_first]
    assert len({question.seed for question in asked}) == len({question.key for question in asked}) == 128
    assert [question.options["seed"] for question in asked] == [question.seed for question in asked]
    assert [question.seed for question in asked[:64]] == list(range(64)), "without a repeat nothing has changed"
