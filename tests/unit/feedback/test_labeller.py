"""Labels: both orders, exact symmetry, abstentions, options that contradict each other, batches with a bad pair."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.feedback.fakes import Bench, FakePolicy, quality

from accord.client.feedback import Judge, Label, LabelPairItem
from accord.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    ResourceExhaustedError,
    UnavailableError,
)
from accord.feedback.records import Origin
from accord.feedback.settings import read_settings
from accord.text.chat import Message
from accord.text.tasks import Task

MakeBench = Callable[..., Bench]
PAIR = LabelPairItem(Task.SUMMARIZATION, (Message("user", "Summarize: the cat sat on the mat"),), "good good words", "other words", "p1")
VERDICT, RATING, LIKELIHOOD = Judge("verdict"), Judge("rating"), Judge("likelihood")
ORIGIN = Origin("req")


def swapped(pair: LabelPairItem) -> LabelPairItem:
    return replace(pair, response_a=pair.response_b, response_b=pair.response_a)


async def label(bench: Bench, pair: LabelPairItem = PAIR, judge: Judge = VERDICT) -> Label:
    return await bench.labeller.label(pair, await bench.labeller.plan(bench.labeller.settings(judge)), ORIGIN)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


async def test_both_orders_are_asked_and_averaged(make_bench: MakeBench) -> None:
    bench = make_bench(FakePolicy(bias=3.0))
    made = await label(bench)
    shown_first, shown_second = sigmoid(2 + 3), sigmoid(-2 + 3)  # P(the one shown first) for A first, then for B first
    assert [judgement.a_first for judgement in made.judgements] == [True, False]
    assert made.judgements[0].probability_a == pytest.approx(shown_first)
    assert made.judgements[1].probability_a == pytest.approx(1 - shown_second)
    assert made.preference == pytest.approx((shown_first + 1 - shown_second) / 2)
    assert made.outcome == "a"
    assert made.judgements[1].evidence_a == pytest.approx(math.log(1 - shown_second) - 0.5)  # A was shown second
    assert made.judgements[1].evidence_b == pytest.approx(math.log(shown_second) - 0.5)


async def test_a_judge_that_sees_only_positions_prefers_nobody(make_bench: MakeBench) -> None:
    bench = make_bench(FakePolicy(bias=8.0))
    made = await label(bench, replace(PAIR, response_a="same", response_b="mean"))
    assert made.preference == 0.5
    assert made.outcome == "tie"
    one_order = await label(bench, replace(PAIR, response_a="same", response_b="mean"), Judge("verdict", both_orders=False))
    assert one_order.preference == pytest.approx(sigmoid(8))
    assert len(one_order.judgements) == 1


@pytest.mark.parametrize("judge", [VERDICT, RATING, LIKELIHOOD], ids=lambda judge: judge.kind)
@pytest.mark.parametrize("bias", [0.0, 1.7])
async def test_swapping_a_and_b_gives_exactly_the_complement_and_asks_nothing_new(make_bench: MakeBench, judge: Judge, bias: float) -> None:
    bench = make_bench(FakePolicy(bias=bias))
    pairs = [replace(PAIR, response_a="the cat" + " sat good" * n, response_b="a mat good " + "x" * n) for n in range(6)]
    forth = [await label(bench, pair, judge) for pair in pairs]
    asked = len(bench.policy.calls)
    back = [await label(bench, swapped(pair), judge) for pair in pairs]
    assert len(bench.policy.calls) == asked
    for one, other in zip(forth, back, strict=True):
        assert one.preference is not None
        assert other.preference is not None
        assert one.preference == 1 - other.preference
        assert other.preference == 1 - one.preference
        assert {one.outcome, other.outcome} in ({"a", "b"}, {"tie"})
        assert {item.ledger_key for item in one.judgements} == {item.ledger_key for item in other.judgements}
        assert sorted(item.evidence_a for item in one.judgements) == sorted(item.evidence_b for item in other.judgements)  # type: ignore[type-var]
    assert len({one.preference for one in forth}) > 1


async def test_the_label_says_who_judged_and_how(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.policy.adapters = {"adapters/j": ("adapters/j/versions/3", "m3")}
    made = await label(bench, judge=Judge("verdict", adapter="adapters/j"))
    assert made.judge == "fake with adapters/j/versions/3"
    assert (made.kind, made.rubric) == ("verdict", "summarization/detailed/1")
    assert len(made.rubric_digest) == len(made.judge_digest) == 64
    bare = await label(bench)
    assert bare.judge_digest != made.judge_digest
    likelihood = await label(bench, judge=LIKELIHOOD)
    assert (likelihood.rubric, likelihood.rubric_digest) == ("", "")


async def test_what_the_judge_wrote_is_told_by_response_and_not_by_position(make_bench: MakeBench) -> None:
    bench = make_bench(FakePolicy(write=lambda prompt: 'Hm.\n"rank": [1]'))
    made = await label(bench, judge=Judge("verdict", rationale=True))
    assert [judgement.parsed for judgement in made.judgements] == ["a", "b"]


async def test_one_order_without_an_answer_makes_the_label_an_abstention(make_bench: MakeBench) -> None:
    bench = make_bench(FakePolicy(write=lambda prompt: "" if prompt.index("good") > prompt.index("other") else "Fine."))
    made = await label(bench, judge=Judge("verdict", rationale=True))
    assert [judgement.probability_a is None for judgement in made.judgements] == [False, True]
    assert (made.preference, made.outcome, made.abstention_reason) == (None, "abstain", "empty answer")


@pytest.mark.parametrize("judge", [VERDICT, RATING, LIKELIHOOD], ids=lambda judge: judge.kind)
async def test_an_empty_response_loses_to_any_other_without_a_judge(make_bench: MakeBench, judge: Judge) -> None:
    bench = make_bench(FakePolicy(bias=5))
    assert (await label(bench, replace(PAIR, response_b=""), judge)).preference == 1.0
    assert (await label(bench, replace(PAIR, response_a="", response_b="x"), judge)).preference == 0.0
    both = await label(bench, replace(PAIR, response_a="", response_b=""), judge)
    assert (both.preference, both.outcome) == (0.5, "tie")
    assert bench.policy.calls == []


async def test_identical_responses_tie_and_no_judge_is_asked(make_bench: MakeBench) -> None:
    bench = make_bench(FakePolicy(bias=2.0))
    made = await label(bench, replace(PAIR, response_b=PAIR.response_a))
    assert (made.preference, made.outcome) == (0.5, "tie")
    assert bench.policy.calls == []


async def test_the_tie_margin_is_inclusive_and_does_not_touch_the_preference(make_bench: MakeBench) -> None:
    bench = make_bench()
    plain = await label(bench)
    assert plain.preference is not None
    wide = await label(bench, judge=Judge("verdict", tie_margin=plain.preference - 0.5))
    assert (wide.preference, wide.outcome) == (plain.preference, "tie")
    assert (await label(bench, judge=Judge("verdict", tie_margin=plain.preference - 0.501))).outcome == "a"
    assert len(bench.policy.calls) == 1  # a judgement does not depend on the margin


async def test_a_human_preference_is_recorded_and_never_shown(make_bench: MakeBench) -> None:
    bench = make_bench()
    first = await label(bench, replace(PAIR, human_preference=0.123456))
    second = await label(bench, replace(PAIR, human_preference=0.9))
    assert [item.ledger_key for item in first.judgements] == [item.ledger_key for item in second.judgements]
    assert not any("123456" in prompt for prompt in bench.policy.asked)
    assert [facts.human_preference for facts in bench.ledger.labels()] == [0.123456, 0.9]


@pytest.mark.parametrize(
    ("judge", "error", "field"),
    [
        (Judge("likelihood", rubric="summarization/detailed/1"), InvalidArgumentError, "judge.rubric"),
        (Judge("rating", rubric="summarization/detailed/1"), InvalidArgumentError, "judge.rubric"),
        (Judge("verdict", rubric="summarization/rating/1"), InvalidArgumentError, "judge.rubric"),
        (Judge("verdict", rubric="summarization/detailed/99"), NotFoundError, "judge.rubric"),
        (Judge("likelihood", rationale=True), InvalidArgumentError, "judge.rationale"),
        (Judge("rating", rationale=True), InvalidArgumentError, "judge.rationale"),
        (Judge("verdict", max_rationale_tokens=9), InvalidArgumentError, "judge.max_rationale_tokens"),
        (Judge("verdict", consistency_samples=4), InvalidArgumentError, "judge.consistency_samples"),
        (Judge("rating", consistency_samples=4), InvalidArgumentError, "judge.consistency_samples"),
        (Judge("verdict", rationale=True, consistency_temperature=0.5), InvalidArgumentError, "judge.consistency_temperature"),
        (Judge("verdict", rubric="summarization/cot/1", rationale=False), InvalidArgumentError, "judge.rationale"),
        (Judge("rating", verdict_source="text"), InvalidArgumentError, "judge.verdict_source"),
        (Judge("likelihood", verdict_source="logprobs"), InvalidArgumentError, "judge.verdict_source"),
    ],
)
def test_options_that_contradict_each_other_are_refused(judge: Judge, error: type[Exception], field: str) -> None:
    with pytest.raises(error) as caught:
        read_settings(judge, "likelihood")
    assert caught.value.field == field  # type: ignore[attr-defined]


def test_defaults() -> None:
    assert read_settings(Judge(), "likelihood").kind == "likelihood"
    assert read_settings(Judge(), "rating").kind == "rating"
    verdict = read_settings(Judge("verdict", rationale=True), "likelihood")
    assert (verdict.both_orders, verdict.max_rationale_tokens, verdict.tie_margin) == (True, 256, 0.0)


async def test_a_rubric_of_another_task_is_refused(make_bench: MakeBench) -> None:
    with pytest.raises(InvalidArgumentError, match="judges conversation, not summarization"):
        await label(make_bench(), judge=Judge("verdict", rubric="conversation/detailed/1"))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"response_a": "a\x00b"}, "pairs[3].response_a"),
        ({"response_b": "\ud800"}, "pairs[3].response_b"),
        ({"response_b": "é" * 51}, "pairs[3].response_b"),
        ({"messages": (Message("user", "x\x00"),)}, "pairs[3].prompt.messages[0].content"),
        ({"messages": (Message("user", "hi"), Message("assistant", "ho"))}, "pairs[3].prompt.messages"),
        ({"messages": (Message("user", "x" * 60), Message("assistant", "x" * 30), Message("user", "x" * 30))}, "pairs[3].prompt.messages"),
    ],
)
def test_a_pair_that_nobody_can_read_is_refused_by_field(make_bench: MakeBench, change: dict[str, Any], field: str) -> None:
    bench = make_bench(max_text_bytes=100)
    bench.labeller.check_pair(PAIR, "pairs[3]")
    with pytest.raises(InvalidArgumentError) as caught:
        bench.labeller.check_pair(replace(PAIR, **change), "pairs[3]")
    assert caught.value.field == field


class TestBatches:
    async def test_a_bad_pair_does_not_fail_its_neighbours(self, make_bench: MakeBench) -> None:
        bench = make_bench(FakePolicy(context_tokens=2000))
        plan = await bench.labeller.plan(bench.labeller.settings(VERDICT))
        wrong = InvalidArgumentError("bad", field="pairs[1]")
        pairs = [PAIR, wrong, replace(PAIR, response_a="x" * 4000), replace(PAIR, response_a="plain")]
        first, second, third, fourth = await bench.labeller.label_many(pairs, plan, ORIGIN)
        assert second is wrong
        assert isinstance(first, Label)
        assert isinstance(third, Label)
        assert isinstance(fourth, Label)
        assert (first.outcome, third.outcome, fourth.preference) == ("a", "abstain", 0.5)
        assert len(bench.ledger.labels()) == 3

    async def test_a_judge_that_is_away_fails_the_call(self, make_bench: MakeBench) -> None:
        bench = make_bench()
        plan = await bench.labeller.plan(bench.labeller.settings(VERDICT))
        bench.policy.down = UnavailableError("refused")
        with pytest.raises(UnavailableError, match="fake:1"):
            await bench.labeller.label_many([PAIR, replace(PAIR, response_a="x")], plan, ORIGIN)
        assert bench.ledger.labels() == []

    async def test_but_not_the_pairs_that_the_ledger_knows(self, make_bench: MakeBench) -> None:
        bench = make_bench()
        plan = await bench.labeller.plan(bench.labeller.settings(VERDICT))
        await bench.labeller.label(PAIR, plan, ORIGIN)
        bench.policy.down = UnavailableError("refused")
        known, unknown = await bench.labeller.label_many([PAIR, replace(PAIR, response_a="x")], plan, ORIGIN)
        assert isinstance(known, Label)
        assert all(judgement.cached for judgement in known.judgements)
        assert isinstance(unknown, UnavailableError)

    async def test_a_rubric_of_another_task_is_each_pairs_own_fault(self, make_bench: MakeBench) -> None:
        bench = make_bench()
        plan = await bench.labeller.plan(bench.labeller.settings(Judge("verdict", rubric="summarization/detailed/1")))
        talk = replace(PAIR, task=Task.CONVERSATION)
        wrong, right = await bench.labeller.label_many([talk, PAIR], plan, ORIGIN)
        assert isinstance(wrong, InvalidArgumentError)
        assert isinstance(right, Label)


class TestAJudgeThatChanges:
    async def test_a_call_goes_on_with_the_new_judge(self, make_bench: MakeBench) -> None:
        bench = make_bench()
        plan = await bench.labeller.plan(bench.labeller.settings(LIKELIHOOD))
        bench.policy.base = "base-2"
        made = await bench.labeller.label(PAIR, plan, ORIGIN)
        assert made.judge_digest != plan.judge.digest
        assert made.judge_digest == (await bench.model.identify("")).digest

    async def test_a_pinned_plan_does_not(self, make_bench: MakeBench) -> None:
        bench = make_bench()
        plan = await bench.labeller.plan(bench.labeller.settings(LIKELIHOOD), pinned=True)
        bench.policy.base = "base-2"
        with pytest.raises(FailedPreconditionError, match="has changed"):
            await bench.labeller.label(PAIR, plan, ORIGIN)


class TestRating:
    async def rate(self, bench: Bench, response: str = "good answer", rubric: str = "") -> Any:
        return await bench.labeller.rate(Task.CONVERSATION, PAIR.messages, response, Judge("rating", rubric), ORIGIN)

    async def test_the_mean_of_the_distribution_on_both_scales(self, make_bench: MakeBench) -> None:
        bench = make_bench()
        rating = await self.rate(bench)
        assert sum(rating.distribution) == pytest.approx(1)
        assert max(range(10), key=rating.distribution.__getitem__) == 1 + quality("good answer")
        assert rating.expected_rating == pytest.approx(sum(n * share for n, share in enumerate(rating.distribution, 1)))
        assert rating.score == pytest.approx((rating.expected_rating - 5.5) / 4.5)
        assert rating.rubric == "conversation/rating/1"
        assert await self.rate(bench) == rating
        assert bench.policy.calls == [1]

    async def test_what_the_judge_cannot_read_is_an_error_here(self, make_bench: MakeBench) -> None:
        with pytest.raises(OutOfRangeError, match="context overflow"):
            await self.rate(make_bench(FakePolicy(context_tokens=100)))
        with pytest.raises(InvalidArgumentError) as caught:
            await self.rate(make_bench(), "x\x00")
        assert caught.value.field == "response"
        with pytest.raises(InvalidArgumentError, match="is for verdict, not rating"):
            await self.rate(make_bench(), rubric="conversation/detailed/1")


class TestRoom:
    async def test_calls_over_it_are_refused_and_told_when_to_come_back(self, make_bench: MakeBench) -> None:
        room = make_bench(max_queue_pairs=3).labeller.room
        with room.take(2):
            with pytest.raises(ResourceExhaustedError) as caught:
                room.take(2).__enter__()
            assert (caught.value.retry_after_seconds or 0) > 0
            with room.take(1):
                pass
        with room.take(3):
            pass
        with pytest.raises(InvalidArgumentError, match="at most 3"):
            room.take(4).__enter__()

    async def test_streams_and_jobs_wait_for_it(self, make_bench: MakeBench) -> None:
        room = make_bench(max_queue_pairs=1).labeller.room
        entered: list[int] = []

        async def visit(number: int) -> None:
            async with room.wait():
                entered.append(number)
                await asyncio.sleep(0.01)
                assert len(entered) == entered.index(number) + 1  # nobody else came in meanwhile

        with room.take(1):
            tasks = [asyncio.create_task(visit(number)) for number in range(3)]
            await asyncio.sleep(0.02)
            assert entered == []
        await asyncio.gather(*tasks)
        assert len(entered) == 3
