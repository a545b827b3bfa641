"""Ensembles and escalations: the arithmetic, and what is asked of whom, through a labeller over fake judges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.feedback.fakes import Bench, FakePolicy

from accord.client.feedback import Judge, Label, LabelPairItem
from accord.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, UnavailableError
from accord.feedback.panels import Finding, combined, escalated, is_unsure, mean_distribution
from accord.feedback.records import Origin
from accord.text.chat import Message
from accord.text.judge import verdict_probability
from accord.text.tasks import Task

MakeBench = Callable[..., Bench]
ORIGIN = Origin("req")
PAIR = LabelPairItem(Task.CONVERSATION, (Message("user", "hello"),), "good good", "plain", "p")
SWAPPED = LabelPairItem(PAIR.task, PAIR.messages, PAIR.response_b, PAIR.response_a, "p")
PREFERENCES = st.floats(0, 1).map(lambda value: verdict_probability(value * 10, 5.0))


def finding(preference: float | None, reason: str = "") -> Finding[str]:
    return Finding(preference, reason, (f"answer {preference}",))


# Arithmetic


def test_a_mean_and_a_majority_are_what_one_counts_by_hand() -> None:
    three = [finding(0.9), finding(0.6), finding(0.2)]
    mean = combined(three, "mean", 0.0)
    assert mean.preference == pytest.approx(1.7 / 3)
    assert mean.agreement == pytest.approx(2 / 3)
    majority = combined(three, "majority", 0.0)
    assert majority.preference == pytest.approx(2 / 3)
    assert majority.agreement == pytest.approx(2 / 3)
    assert [len(found.answered) for found in (mean, majority)] == [3, 3]


def test_mean_and_majority_can_differ_and_agreement_says_how_many_take_the_side() -> None:
    outvoted = [finding(0.55), finding(0.55), finding(0.0)]
    assert combined(outvoted, "mean", 0.0).preference == pytest.approx(1.1 / 3)
    assert combined(outvoted, "mean", 0.0).agreement == pytest.approx(1 / 3)
    assert combined(outvoted, "majority", 0.0).preference == pytest.approx(2 / 3)


def test_a_tie_is_half_a_vote_for_each() -> None:
    found = combined([finding(0.52), finding(0.9), finding(0.1)], "majority", 0.05)
    assert (found.preference, found.agreement) == (0.5, pytest.approx(1 / 3))


def test_who_abstains_has_no_say_and_lowers_agreement() -> None:
    found = combined([finding(0.9), finding(0.8), finding(None, "cut off")], "mean", 0.0)
    assert found.preference == pytest.approx(0.85)
    assert found.agreement == pytest.approx(2 / 3)
    assert len(found.answered) == 3


@pytest.mark.parametrize("known", [0, 1, 2])
def test_half_the_judges_are_no_quorum(known: int) -> None:
    found = combined([finding(0.9)] * known + [finding(None, "context overflow: long")] * (4 - known), "mean", 0.0)
    assert (found.preference, found.agreement) == (None, None)
    assert found.reason == f"no quorum: {4 - known} of 4 judges abstain: context overflow: long"


@given(st.lists(PREFERENCES, min_size=1, max_size=7), st.sampled_from(["mean", "majority"]))
def test_a_swap_turns_p_into_exactly_one_minus_p(preferences: list[float], combine: Any) -> None:
    there = combined([finding(value) for value in preferences], combine, 0.1)
    back = combined([finding(1.0 - value) for value in preferences], combine, 0.1)
    assert there.preference is not None
    assert back.preference == 1.0 - there.preference
    assert there.agreement == back.agreement


def test_an_escalation_goes_on_below_its_threshold_and_at_abstentions() -> None:
    assert is_unsure(finding(0.59), 0.1)
    assert is_unsure(finding(0.41), 0.1)
    assert not is_unsure(finding(0.6), 0.0999)
    assert is_unsure(finding(None, "empty"), 0.0)
    assert not is_unsure(finding(0.5), 0.0)
    found = escalated(finding(0.55), finding(0.1))
    assert (found.preference, found.escalated, found.answered) == (0.1, True, ("answer 0.55", "answer 0.1"))
    assert escalated(finding(0.55), finding(None, "refused")).preference is None


def test_a_mean_distribution_is_one() -> None:
    assert mean_distribution([(0.5, 0.5), (0.0, 1.0)]) == (0.25, 0.75)


# Judges that are asked

JUDGES = {
    "large": {"kind": "policy", "address": "large:1"},
    "third": {"kind": "policy", "address": "third:1"},
    "both": {"kind": "ensemble", "members": ["default", "large"]},
    "vote": {"kind": "ensemble", "members": ["default", "large", "third"], "combine": "majority"},
    "ladder": {"kind": "escalation", "first": "default", "then": "large", "threshold": 0.2},
    "tower": {"kind": "escalation", "first": "both", "then": "third", "threshold": 0.4},
}


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    others = {"large": FakePolicy(base="base-large"), "third": FakePolicy(base="base-third")}
    return make_bench(FakePolicy(base="base-small"), others, judges=JUDGES)


async def label(bench: Bench, name: str, pair: LabelPairItem = PAIR, **options: Any) -> Label:
    settings = bench.labeller.settings(Judge("verdict", name=name, **options))
    return await bench.labeller.label(pair, await bench.labeller.plan(settings), ORIGIN)


async def test_an_ensemble_names_each_judge_and_means_them(bench: Bench) -> None:
    bench.others["large"].bias = 3.0
    small, large = await label(bench, ""), await label(bench, "large")
    both = await label(bench, "both")
    assert both.preference == pytest.approx((small.preference + large.preference) / 2)  # type: ignore[operator]
    assert both.agreement == 1.0
    assert not both.escalated
    assert both.judge_digest not in (small.judge_digest, large.judge_digest)
    assert [judgement.judge_digest for judgement in both.judgements] == [small.judge_digest] * 2 + [large.judge_digest] * 2
    assert {judgement.judge for judgement in both.judgements} == {"fake"}
    assert (small.agreement, small.escalated) == (None, False)


async def test_what_a_member_has_judged_is_not_bought_again_under_any_name(bench: Bench) -> None:
    alone = await label(bench, "large")
    asked = len(bench.others["large"].asked)
    both = await label(bench, "both")
    vote = await label(bench, "vote", SWAPPED)
    assert len(bench.others["large"].asked) == asked == 2
    assert len(bench.policy.asked) == 2
    keys = {judgement.ledger_key for judgement in alone.judgements}
    assert keys < {judgement.ledger_key for judgement in both.judgements}
    assert [judgement.cached for judgement in both.judgements] == [False, False, True, True]
    assert [judgement.cached for judgement in vote.judgements] == [True, True, True, True, False, False]
    assert vote.preference == 0.0
    assert vote.agreement == 1.0


async def test_an_escalation_asks_the_larger_judge_only_where_the_small_one_is_unsure(bench: Bench) -> None:
    sure = await label(bench, "ladder")
    assert (sure.escalated, bench.others["large"].asked) == (False, [])
    assert sure.preference == (await label(bench, "")).preference
    equal = LabelPairItem(PAIR.task, PAIR.messages, "one", "another", "q")
    bench.others["large"].logprob_of = lambda shown, text: -0.01 if text.endswith("1") == ("1\n> one" in shown) else -5.0
    unsure = await label(bench, "ladder", equal)
    assert unsure.escalated
    assert unsure.preference is not None
    assert unsure.preference > 0.99
    assert [judgement.a_first for judgement in unsure.judgements] == [True, False, True, False]


async def test_an_escalation_asks_where_the_small_judge_abstains(bench: Bench) -> None:
    bench.policy.context_tokens = 10
    found = await label(bench, "ladder")
    assert (found.escalated, found.outcome) == (True, "a")
    assert "context overflow" in found.judgements[0].abstention_reason


async def test_rules_nest(bench: Bench) -> None:
    found = await label(bench, "tower")
    assert found.escalated  # 0.88 is less than 0.4 from one half
    assert len(found.judgements) == 6
    assert found.preference == (await label(bench, "third")).preference


async def test_a_judge_that_is_away_loses_nothing_of_the_others(bench: Bench) -> None:
    bench.others["large"].failures = [UnavailableError("away")]
    with pytest.raises(UnavailableError, match="large:1"):
        await label(bench, "both")
    assert len(bench.policy.asked) == 2
    assert [judgement.cached for judgement in (await label(bench, "both")).judgements] == [True, True, False, False]


async def test_an_ensemble_rates_by_the_mean_and_a_majority_refuses(bench: Bench) -> None:
    bench.others["large"].logprob_of = lambda shown, text: 0.0 if text.endswith("[9]") else -3.0
    ratings = {
        name: await bench.labeller.rate(PAIR.task, PAIR.messages, "good good", Judge("rating", name=name), ORIGIN) for name in ("", "large", "both")
    }
    assert ratings["large"].expected_rating > ratings[""].expected_rating + 1
    assert ratings["both"].expected_rating == pytest.approx((ratings[""].expected_rating + ratings["large"].expected_rating) / 2)
    assert sum(ratings["both"].distribution) == pytest.approx(1)
    for name in ("vote", "ladder"):
        with pytest.raises(FailedPreconditionError, match="take a judge, or a mean"):
            await bench.labeller.rate(PAIR.task, PAIR.messages, "good", Judge("rating", name=name), ORIGIN)


async def test_a_name_that_is_not_there_is_answered_with_those_that_are(bench: Bench) -> None:
    with pytest.raises(NotFoundError, match="there are both, default, ladder, large, third, tower, vote") as caught:
        bench.labeller.settings(Judge("verdict", name="huge"))
    assert caught.value.field == "judge.judge"


async def test_an_ensemble_takes_no_adapter(bench: Bench) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        bench.labeller.settings(Judge("verdict", name="both", adapter="adapters/x"))
    assert caught.value.field == "judge.adapter"
