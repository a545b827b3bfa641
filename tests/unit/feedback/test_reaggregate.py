"""Labels under other rules: what the labeller itself would have made, votes and means by hand, symmetry, and what stays as it was."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.unit.feedback.fakes import Bench, FakePolicy

from accord.client.feedback import Judge, Judgement, Label, LabelPairItem
from accord.client.ledger import LabelQuery
from accord.errors import InvalidArgumentError
from accord.feedback.reaggregate import Changes, Rules, options_under, reaggregated
from accord.feedback.records import Origin
from accord.text.chat import Message
from accord.text.tasks import Task

MakeBench = Callable[..., Bench]
AS_IT_WAS = Rules()
MAJORITY = Rules(combine="majority")
THREE = json.dumps({"panel": {"combine": "mean", "members": ["j1", "j2", "j3"]}})
TWO = json.dumps({"panel": {"combine": "mean", "members": ["j1", "j2"]}})


def judgement(p: float | None, *, a_first: bool = True, sample: int = 0, judge: str = "j1") -> Judgement:
    reason = "" if p is not None else f"no answer from {judge}"
    return Judgement(a_first, p, None, None, "", "", reason, 10, 1, "k", cached=False, sample=sample, judge_digest=judge)


def label(*judgements: Judgement, kind: str = "verdict", escalated: bool = False) -> Label:
    return Label("p", 0.75, "a", "", judgements, kind, "r", "rd", "m", "d", escalated=escalated)  # type: ignore[arg-type]


def made(found: Label | None) -> tuple[float | None, str]:
    assert found is not None
    return found.preference, found.outcome


@pytest.mark.parametrize("kind", ["verdict", "rating", "likelihood"])
@pytest.mark.parametrize("both_orders", [True, False])
async def test_rules_that_are_the_labellers_own_change_nothing(make_bench: MakeBench, kind: str, both_orders: bool) -> None:
    """And the first order alone is what a judge says that is asked in one order: parity with the labeller over biased judges."""
    bench = make_bench(FakePolicy(bias=0.7))
    settings = bench.labeller.settings(Judge(kind, both_orders=both_orders if kind == "verdict" else None, tie_margin=0.2))  # type: ignore[arg-type]
    one_order = bench.labeller.settings(Judge(kind, both_orders=False if kind == "verdict" else None, tie_margin=0.2))  # type: ignore[arg-type]
    for number, (a, b) in enumerate(itertools.permutations(["good good x", "good y", "z", "good tie"], 2)):
        pair = LabelPairItem(Task.CONVERSATION, (Message("user", "q"),), a, b, f"p{number}")
        found = await bench.labeller.label(pair, await bench.labeller.plan(settings), Origin())
        same = reaggregated(found, AS_IT_WAS, json.dumps(settings.values))
        assert same is not None
        assert same.preference == pytest.approx(found.preference, abs=1e-15)
        assert replace(same, preference=found.preference) == found
        single = await bench.labeller.label(pair, await bench.labeller.plan(one_order), Origin())
        first = reaggregated(found, Rules(orders="first"), json.dumps(settings.values))
        assert first is not None
        assert (first.preference, first.outcome) == (pytest.approx(single.preference, abs=1e-15), single.outcome)


def test_position_bias_shows_in_the_first_order_and_is_gone_in_both() -> None:
    biased = label(judgement(0.9), judgement(0.2, a_first=False))  # likes what is first: A by 0.9, B by 0.8
    assert made(reaggregated(biased, Rules(orders="first"), "{}")) == (0.9, "a")
    assert made(reaggregated(biased, AS_IT_WAS, "{}")) == (pytest.approx(0.55), "a")
    assert made(reaggregated(biased, Rules(tie_margin=0.1), "{}")) == (pytest.approx(0.55), "tie")
    assert made(reaggregated(biased, Rules(tie_margin=0.1, hard=True), "{}")) == (0.5, "tie")
    assert made(reaggregated(biased, Rules(hard=True), "{}")) == (1.0, "a")


def test_the_margin_is_the_labels_own_unless_another_is_given() -> None:
    near = label(judgement(0.55), judgement(0.55, a_first=False))
    options = json.dumps({"tie_margin": 0.1})
    assert made(reaggregated(near, AS_IT_WAS, options))[1] == "tie"
    assert made(reaggregated(near, Rules(tie_margin=0.0), options))[1] == "a"
    assert made(reaggregated(near, AS_IT_WAS, ""))[1] == "a"


def test_samples_are_averaged_or_vote() -> None:
    values = [0.95, 0.45, 0.4]
    sampled = label(*(judgement(p, sample=number) for number, p in enumerate(values)))
    assert made(reaggregated(sampled, AS_IT_WAS, "{}")) == (pytest.approx(0.6), "a")
    assert made(reaggregated(sampled, MAJORITY, "{}")) == (pytest.approx(1 / 3), "b")
    assert made(reaggregated(sampled, Rules(combine="majority", tie_margin=0.06), "{}")) == (pytest.approx(0.5), "tie")  # votes: A, tie, B
    found = reaggregated(sampled, AS_IT_WAS, "{}")
    assert found is not None
    assert found.agreement is None  # one judge


def test_a_sample_without_a_verdict_is_left_out_of_its_order_as_when_the_label_was_made() -> None:
    sampled = label(
        judgement(0.9), judgement(None, sample=1), judgement(0.7, sample=2),
        judgement(0.4, a_first=False), judgement(0.6, a_first=False, sample=1), judgement(None, a_first=False, sample=2),
    )  # fmt: skip
    assert made(reaggregated(sampled, AS_IT_WAS, "{}")) == (pytest.approx(((0.9 + 0.7) / 2 + (0.4 + 0.6) / 2) / 2), "a")
    silent = label(judgement(0.9), judgement(0.8, sample=1), judgement(None, a_first=False), judgement(None, a_first=False, sample=1))
    assert made(reaggregated(silent, AS_IT_WAS, "{}")) == (None, "abstain")


def test_each_judge_counts_once_however_many_samples_it_has() -> None:
    panel = label(judgement(0.9, judge="j1"), judgement(0.9, judge="j1", sample=1), judgement(0.9, judge="j1", sample=2), judgement(0.2, judge="j2"))
    found = reaggregated(panel, AS_IT_WAS, TWO)
    assert made(found) == (pytest.approx(0.55), "a")
    assert found is not None
    assert found.agreement == 0.5
    three = label(judgement(0.99, judge="j1"), judgement(0.4, judge="j2"), judgement(0.45, judge="j3"))
    assert made(reaggregated(three, AS_IT_WAS, THREE))[1] == "a"
    voted = reaggregated(three, MAJORITY, THREE)
    assert made(voted) == (pytest.approx(1 / 3), "b")
    assert voted is not None
    assert voted.agreement == pytest.approx(2 / 3)


def test_who_abstains_has_no_say_and_half_is_no_quorum() -> None:
    panel = label(judgement(0.9, judge="j1"), judgement(0.8, judge="j2"), judgement(None, judge="j3"))
    found = reaggregated(panel, AS_IT_WAS, THREE)
    assert made(found) == (pytest.approx(0.85), "a")
    assert found is not None
    assert found.agreement == pytest.approx(2 / 3)
    half = reaggregated(label(judgement(0.9, judge="j1"), judgement(None, judge="j2")), AS_IT_WAS, TWO)
    assert made(half) == (None, "abstain")
    assert half is not None
    assert half.abstention_reason == "no quorum: 1 of 2 judges abstain: no answer from j2"
    assert half.agreement is None


def test_an_order_without_an_answer_takes_the_others_with_it_but_not_the_first_alone() -> None:
    broken = label(judgement(0.9), judgement(None, a_first=False))
    assert made(reaggregated(broken, AS_IT_WAS, "{}")) == (None, "abstain")
    assert made(reaggregated(broken, Rules(orders="first"), "{}")) == (0.9, "a")
    other = reaggregated(label(judgement(0.9, a_first=False)), Rules(orders="first"), "{}")
    assert other is not None
    assert (other.outcome, other.abstention_reason) == ("abstain", "it was not asked in the first order")


def test_where_the_larger_judge_was_asked_it_decides_alone() -> None:
    options = json.dumps({"panel": {"first": "small", "then": {"combine": "majority", "members": ["l1", "l2", "l3"]}, "threshold": 0.2}})
    larger = [judgement(p, judge=f"l{number}") for number, p in enumerate([0.9, 0.6, 0.1], start=1)]
    asked = reaggregated(label(judgement(0.55, judge="small"), *larger, escalated=True), AS_IT_WAS, options)
    assert made(asked) == (pytest.approx(2 / 3), "a")
    assert asked is not None
    assert (asked.escalated, asked.agreement) == (True, pytest.approx(2 / 3))
    mean = reaggregated(label(judgement(0.55, judge="small"), *larger, escalated=True), Rules(combine="mean"), options)
    assert made(mean) == (pytest.approx(1.6 / 3), "a")
    alone = reaggregated(label(judgement(0.9, judge="small")), AS_IT_WAS, options)
    assert made(alone) == (0.9, "a")
    assert alone is not None
    assert (alone.escalated, alone.agreement) == (False, None)


def test_what_has_no_rule_in_the_ledger_is_not_made_anew() -> None:
    assert reaggregated(label(judgement(0.5, judge="j1"), judgement(0.9, judge="j2")), AS_IT_WAS, "{}") is None
    assert reaggregated(label(), AS_IT_WAS, TWO) is None


def test_a_judge_that_sits_in_two_places_was_asked_in_the_second_only_where_the_first_was_unsure() -> None:
    """Values by hand: the panel was not asked of a sure judge; of two escalations to one judge, only the unsure one has asked it."""
    escalation = {"first": "small", "then": "large", "threshold": 0.2}
    panel = json.dumps({"panel": {**escalation, "then": {"combine": "mean", "members": ["small", "large"]}}})
    sure = reaggregated(label(judgement(0.95, judge="small")), AS_IT_WAS, panel)
    assert made(sure) == (0.95, "a")
    assert sure is not None
    assert not sure.escalated
    two = json.dumps({"panel": {"combine": "mean", "members": [escalation, {**escalation, "first": "small2"}]}})
    answers = [judgement(0.95, judge="small"), judgement(0.6, judge="small2"), judgement(0.1, judge="large")]
    assert made(reaggregated(label(*answers, escalated=True), AS_IT_WAS, two)) == (pytest.approx((0.95 + 0.1) / 2), "a")
    beside = json.dumps({"panel": {"combine": "mean", "members": [escalation, "large"]}})
    assert made(reaggregated(label(answers[0], judgement(0.3, judge="large")), AS_IT_WAS, beside)) == (pytest.approx((0.95 + 0.3) / 2), "a")
    orders = [judgement(0.55, judge="small"), judgement(0.95, a_first=False, judge="small"), judgement(0.3, judge="large")]
    first = reaggregated(label(*orders), Rules(orders="first"), beside)  # sure by 0.75 when the label was made, whatever the first order alone says
    assert made(first) == (pytest.approx((0.55 + 0.3) / 2), "b")


@pytest.mark.parametrize("judge", ["mean", "majority", "careful", "nested", "again", "both", "beside"])
async def test_a_panels_label_comes_out_of_the_ledger_as_it_was(make_bench: MakeBench, judge: str) -> None:
    """Ensembles, an escalation, and an ensemble of escalations, over judges of differing bias, read back from the ledger; and panels in which one
    judge sits in two places: in both parts of an escalation, as the second judge of two of them, and beside one that may ask it."""
    judges = {
        "b": {"kind": "policy", "address": "b:1"}, "c": {"kind": "policy", "address": "c:1"},
        "mean": {"kind": "ensemble", "members": ["default", "b", "c"], "combine": "mean"},
        "majority": {"kind": "ensemble", "members": ["default", "b", "c"], "combine": "majority"},
        "careful": {"kind": "escalation", "first": "default", "then": "b", "threshold": 0.4},
        "nested": {"kind": "ensemble", "members": ["careful", "c"], "combine": "mean"},
        "again": {"kind": "escalation", "first": "default", "then": "pair", "threshold": 0.4},
        "pair": {"kind": "ensemble", "members": ["default", "b"], "combine": "mean"},
        "other": {"kind": "escalation", "first": "c", "then": "b", "threshold": 0.3},
        "both": {"kind": "ensemble", "members": ["careful", "other"], "combine": "mean"},
        "beside": {"kind": "ensemble", "members": ["careful", "b"], "combine": "mean"},
    }  # fmt: skip
    bench = make_bench(FakePolicy(bias=0.7), {"b": FakePolicy(bias=-1.5, base="b"), "c": FakePolicy(bias=2.0, base="c")}, judges=judges)
    settings = bench.labeller.settings(Judge("verdict", name=judge, both_orders=False))
    plan = await bench.labeller.plan(settings)
    for number, (a, b) in enumerate(itertools.permutations(["good good x", "good y", "z", "good tie"], 2)):
        await bench.labeller.label(LabelPairItem(Task.CONVERSATION, (Message("user", "q"),), a, b, f"p{number}"), plan, Origin())
    records = [record for _, record in bench.ledger.list_labels(LabelQuery(), after=0, limit=100)]
    assert len(records) == 12
    for record in records:
        found = reaggregated(record.label, AS_IT_WAS, record.options)
        assert found is not None
        assert found.preference == pytest.approx(record.label.preference, abs=1e-15)
        assert replace(found, preference=record.label.preference) == record.label
    if judge not in ("mean", "majority"):
        assert {record.label.escalated for record in records} == {True, False}
    if judge == "mean":
        voted = [reaggregated(record.label, MAJORITY, record.options) for record in records]
        assert any(found is not None and found.preference != record.label.preference for found, record in zip(voted, records, strict=True))


@pytest.mark.parametrize("rules", [AS_IT_WAS, MAJORITY, Rules(hard=True), Rules(tie_margin=0.15, combine="majority")], ids=str)
def test_swapping_a_and_b_turns_p_into_exactly_1_minus_p(rules: Rules) -> None:
    values = [0.1, 0.3, 0.65, 0.8, 0.55]
    for p, q, r in itertools.product(values, repeat=3):
        original = label(judgement(p), judgement(q, a_first=False), judgement(r, judge="j2"), judgement(p, judge="j3"))
        turned = replace(original, judgements=tuple(replace(item, probability_a=1.0 - (item.probability_a or 0.0)) for item in original.judgements))
        one, two = reaggregated(original, rules, THREE), reaggregated(turned, rules, THREE)
        assert one is not None
        assert two is not None
        assert one.preference is not None
        assert two.preference == pytest.approx(1.0 - one.preference, abs=1e-15)
        assert {"a": "b", "b": "a", "tie": "tie"}[one.outcome] == two.outcome or abs(one.preference - 0.5) < 1e-12


def test_rows_of_other_rules_say_so() -> None:
    """A file of hard labels with the options of soft ones would say of itself what is not so."""
    assert options_under(THREE, AS_IT_WAS) == THREE
    hard = json.loads(options_under('{"tie_margin": 0.0}', Rules(orders="first", hard=True)))
    assert hard == {"tie_margin": 0.0, "reaggregated": {"orders": "first", "hard": True}}
    assert json.loads(options_under("", MAJORITY)) == {"reaggregated": {"combine": "majority"}}


def test_changes_are_counted() -> None:
    changes = Changes()
    before = label(judgement(0.75))
    changes.add(before, replace(before, preference=0.25, outcome="b"))
    changes.add(before, replace(before, preference=0.65))
    changes.add(before, replace(before, preference=None, outcome="abstain"))
    changes.add(before, None)
    assert (changes.labels, changes.changed, changes.unchangeable) == (4, 2, 1)
    assert changes.mean_move == pytest.approx((0.5 + 0.1) / 2)
    assert changes.moves["a", "b"] == changes.moves["a", "a"] == changes.moves["a", "abstain"] == 1
    assert Changes().mean_move is None


@pytest.mark.parametrize("margin", [-0.1, 0.5, float("nan")])
def test_a_margin_that_is_none_is_refused(margin: float) -> None:
    with pytest.raises(InvalidArgumentError, match=r"not in \[0, 0.5\)"):
        Rules(tie_margin=margin)
