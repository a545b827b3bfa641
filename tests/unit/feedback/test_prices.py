"""What judges behind PolicyServices cost: by the price table, in the ledger, under limits, and on the card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from tests.unit.feedback.fakes import Bench, FakePolicy
from tests.unit.feedback.job_bench import TASK, ended

from accord.client.feedback import Judge, Label, LabelJobSpec, LabelLimits, LabelPairItem
from accord.feedback.cards import make_cards
from accord.feedback.records import Origin
from accord.text.chat import Message

PRICES = {"dear": {"prompt_per_million": 2000.0, "completion_per_million": 500_000.0}}
PAIR = LabelPairItem(TASK, (Message("user", "Is the moon far?"),), "good: 384,400 km", "no", "p1")
LARGE = {"large": {"kind": "policy", "address": "large:1", "price": "dear"}}


async def label(bench: Bench, judge: Judge) -> Label:
    return await bench.labeller.label(PAIR, await bench.labeller.plan(bench.labeller.settings(judge)), Origin("req"))


def price_of(made: Label) -> float:
    """An independent sum: what each judgement read and wrote or scored, times the table."""
    return sum(0.002 * judgement.prompt_tokens + 0.5 * judgement.response_tokens for judgement in made.judgements)


@pytest.mark.parametrize("kind", ["verdict", "rating", "likelihood"])
async def test_each_kind_is_billed_by_its_tokens(make_bench: Callable[..., Bench], kind: Any) -> None:
    bench = make_bench(policy_price="dear", prices=PRICES)
    before = REGISTRY.get_sample_value("accord_feedback_judge_cost_total", {"judge": "default"}) or 0.0
    made = await label(bench, Judge(kind))
    assert price_of(made) > 0
    assert sum(judgement.cost for judgement in made.judgements) == pytest.approx(price_of(made))
    assert REGISTRY.get_sample_value("accord_feedback_judge_cost_total", {"judge": "default"}) == pytest.approx(before + price_of(made))
    (card,) = make_cards(bench.ledger.labels(), lambda keys: {})
    assert card.cost == pytest.approx(price_of(made))
    assert card.cost_per_thousand_pairs == pytest.approx(1000 * price_of(made))


async def test_an_answer_that_the_ledger_has_costs_nothing_again(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(policy_price="dear", prices=PRICES)
    paid, again = await label(bench, Judge("verdict")), await label(bench, Judge("verdict"))
    assert all(judgement.cached for judgement in again.judgements)
    (card,) = make_cards(bench.ledger.labels(), lambda keys: {})
    assert card.cost == pytest.approx(price_of(paid))


async def test_a_judge_without_a_price_costs_nothing_beside_one_with(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(FakePolicy(), {"large": FakePolicy(base="base-large")}, judges=LARGE, prices=PRICES)
    free, dear = await label(bench, Judge("verdict")), await label(bench, Judge("verdict", name="large"))
    assert [judgement.cost for judgement in free.judgements] == [0.0, 0.0]
    assert price_of(dear) > 0
    assert sum(judgement.cost for judgement in dear.judgements) == pytest.approx(price_of(dear))


async def test_what_could_not_be_read_is_not_billed(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(FakePolicy(context_tokens=10), policy_price="dear", prices=PRICES)
    made = await label(bench, Judge("verdict"))
    assert made.outcome == "abstain"
    assert [judgement.cost for judgement in made.judgements] == [0.0, 0.0]


async def test_a_job_ends_at_its_limit_of_money(make_jobs: Any, spec: LabelJobSpec) -> None:
    jobs, _ = await make_jobs(policy_price="dear", prices=PRICES)
    await jobs.create(replace(spec, limits=LabelLimits(max_cost=1e-6)))
    first = await ended(jobs)
    assert (first.at_limit, first.done_pairs) == (True, 1)
    assert first.cost > 0
    await jobs.create(replace(spec, limits=LabelLimits(max_cost=3.5 * first.cost)))
    second = await ended(jobs)
    assert (second.at_limit, second.done_pairs) == (True, 3)
    assert second.cost <= 3.5 * first.cost


LADDER = {**LARGE, "ladder": {"kind": "escalation", "first": "default", "then": "large", "threshold": 0.2}}


async def test_an_escalation_costs_what_both_judges_take(make_bench: Callable[..., Bench]) -> None:
    """Of two pairs the small judge is sure of one: of the other the card has the price of both judges, and of the thousand pairs half of each."""
    prices = {**PRICES, "cheap": {"prompt_per_million": 1.0, "completion_per_million": 1.0}}
    bench = make_bench(FakePolicy(), {"large": FakePolicy(base="base-large")}, judges=LADDER, prices=prices, policy_price="cheap")
    sure = await label(bench, Judge("verdict", name="ladder"))
    plan = await bench.labeller.plan(bench.labeller.settings(Judge("verdict", name="ladder")))
    unsure = await bench.labeller.label(replace(PAIR, pair_id="p2", response_a="one", response_b="other"), plan, Origin("req"))
    assert (sure.escalated, unsure.escalated) == (False, True)
    by_small = [
        judgement.cost for made in (sure, unsure) for judgement in made.judgements if judgement.judge_digest == sure.judgements[0].judge_digest
    ]
    by_large = [judgement.cost for judgement in unsure.judgements if judgement.judge_digest != sure.judgements[0].judge_digest]
    assert (len(by_small), len(by_large)) == (4, 2)
    assert min(by_small) > 0
    assert min(by_large) > 1000 * max(by_small)
    (card,) = make_cards(bench.ledger.labels(), lambda keys: {})
    assert card.cost == pytest.approx(sum(by_small) + sum(by_large))
    assert card.cost_per_thousand_pairs == pytest.approx(1000 * card.cost / 2)
    assert card.escalated is not None
    assert card.escalated.value == 0.5
