"""The arithmetic of label cards, by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from accord.client.feedback import Outcome
from accord.data.agreement import wilson_interval
from accord.feedback.cards import make_cards
from accord.feedback.records import JudgementFacts, LabelFacts, PairText
from accord.feedback.shares import first_preferred, share_of
from accord.text.chat import Message
from accord.text.tasks import Task


def judgement(key: str, a_first: bool, probability_first: float | None, **changes: Any) -> JudgementFacts:
    made = JudgementFacts(key, a_first, probability_first, -0.5, -1.0, by_judge=True, tokens=10, cached=False, paid=True)
    return replace(made, **changes)


def label(
    name: str, outcome: Outcome, human: float | None = None, *, lengths: tuple[int, int] = (5, 5), judgements: Any = (), **changes: Any
) -> LabelFacts:
    made = LabelFacts(
        name, Task.SUMMARIZATION, name, *lengths, "verdict", "summarization/detailed/1", "rd", "m", "d", "{}",
        None if outcome == "abstain" else {"a": 0.9, "b": 0.2}.get(outcome, 0.5), outcome, "", human, tuple(judgements),
    )  # fmt: skip
    return replace(made, **changes)


def both_orders(name: str, first_when_ab: float, first_when_ba: float) -> tuple[JudgementFacts, JudgementFacts]:
    return judgement(f"{name}-ab", True, first_when_ab), judgement(f"{name}-ba", False, first_when_ba)


def texts_of(keys: Sequence[str]) -> dict[str, PairText]:
    return {key: PairText((Message("user", f"prompt of {key}"),), f"low of {key}", f"high of {key}" * 100) for key in keys}


def one_card(*labels: LabelFacts) -> Any:
    (card,) = make_cards(labels, texts_of)
    return card


class TestShares:
    def test_agreement_and_length_baseline_are_on_the_same_pairs(self) -> None:
        card = one_card(
            label("1", "a", 1.0, lengths=(9, 3)),  # agrees, the longer is better
            label("2", "b", 0.2, lengths=(9, 3)),  # agrees, the shorter is better
            label("3", "a", 0.0, lengths=(4, 8)),  # disagrees, the longer is better
            label("4", "b", 0.0, lengths=(6, 6)),  # agrees, equal lengths: half a hit for the baseline
            label("5", "tie", 1.0, lengths=(9, 3)),  # not decided by the judge
            label("6", "a", 0.5, lengths=(9, 3)),  # not decided by people
            label("7", "a", None, lengths=(9, 3)),  # nobody asked
            label("8", "abstain", 1.0),
        )
        assert (card.human_agreement.value, card.human_agreement.n) == (3 / 4, 4)
        assert (card.length_baseline.value, card.length_baseline.n) == (2.5 / 4, 4)
        assert (card.human_agreement.low, card.human_agreement.high) == wilson_interval(3, 4)
        assert card.pairs == 8

    def test_a_pair_that_several_people_labelled_is_one_pair(self) -> None:
        """Three people on each of two pairs: the judge, asked once about each, agrees with five of six; that is no sample of six."""
        people = [label(f"1-{n}", "a", 1.0, lengths=(9, 3), content_key="1", judgements=both_orders("1", 0.9, 0.2)) for n in range(3)]
        people += [label(f"2-{n}", "a", float(n > 0), lengths=(3, 9), content_key="2", judgements=both_orders("2", 0.9, 0.2)) for n in range(3)]
        card = one_card(*people)
        assert (card.human_agreement.value, card.human_agreement.n) == (5 / 6, 2)
        assert card.human_agreement.high - card.human_agreement.low > 0.9  # of two pairs, little is known of a third
        assert (card.length_baseline.value, card.length_baseline.n) == (4 / 6, 2)
        assert (card.longer_preferred.value, card.longer_preferred.n) == (0.5, 2)
        assert (card.first_preferred.n, card.same_position_after_swap.n, card.random_baseline.n) == (2, 2, 2)
        assert [found.agreement.n for found in card.agreement_by_length] == [2]

    def test_the_longer_is_preferred_among_decided_pairs_of_different_length(self) -> None:
        card = one_card(
            label("1", "a", lengths=(9, 3)), label("2", "a", lengths=(3, 9)), label("3", "b", lengths=(3, 9)),
            label("4", "b", lengths=(5, 5)), label("5", "tie", lengths=(9, 3)),
        )  # fmt: skip
        assert (card.longer_preferred.value, card.longer_preferred.n) == (2 / 3, 3)

    def test_the_position_that_a_judge_prefers(self) -> None:
        card = one_card(
            label("1", "a", judgements=both_orders("1", 0.9, 0.8)),  # first, first: the same position
            label("2", "a", judgements=both_orders("2", 0.9, 0.2)),  # first, second: the same response
            label("3", "b", judgements=both_orders("3", 0.4, 0.3)),  # second, second: the same position
            label("4", "tie", judgements=both_orders("4", 0.5, 0.9)),  # even, first: no pair
            label("5", "a", judgements=[judgement("5-ab", True, 0.7)]),  # one order
            label("6", "abstain", judgements=(judgement("6-ab", True, 0.9), judgement("6-ba", False, None))),
            label("7", "a", judgements=[judgement("7-ab", True, 1.0, by_judge=False), judgement("7-ba", False, 0.0, by_judge=False)]),
        )
        assert (card.first_preferred.value, card.first_preferred.n) == (6 / 9, 6)  # 1: 2 of 2, 2: 1 of 2, 3: 0 of 2, 4: 1 of 1, 5: 1, 6: 1
        assert (card.same_position_after_swap.value, card.same_position_after_swap.n) == (2 / 3, 3)

    @pytest.mark.parametrize(("by_position", "samples"), [(1.0, 1), (1.0, 8), (0.3, 8), (0.0, 1)])
    def test_intervals_of_positions_cover_the_truth_though_judgements_of_a_pair_go_together(self, by_position: float, samples: int) -> None:
        """A judge that goes by position alone for some pairs, and takes the first one for 70 % of these; every sample of a pair says the same."""
        draw, pairs, tries = random.Random(7), 60, 200
        covered = 0
        for _ in range(tries):
            labels = []
            for name in map(str, range(pairs)):
                if draw.random() < by_position:
                    orders = both_orders(name, *[0.9 if draw.random() < 0.7 else 0.1] * 2)
                else:
                    orders = both_orders(name, 0.9, 0.1)
                labels.append(label(name, "tie", judgements=[replace(order, sample=sample) for sample in range(samples) for order in orders]))
            found = share_of(first_preferred(labels))
            assert found is not None
            covered += found.low <= by_position * 0.7 + (1 - by_position) * 0.5 <= found.high
        assert covered >= 0.91 * tries

    @pytest.mark.parametrize("kind", ["likelihood", "rating"])
    def test_kinds_that_read_one_response_at_a_time_have_no_position(self, kind: str) -> None:
        card = one_card(label("1", "a", judgements=[judgement("1", True, 0.9)], kind=kind))
        assert card.first_preferred is None
        assert card.same_position_after_swap is None

    def test_nothing_measured_is_none_and_not_zero(self) -> None:
        card = one_card(label("1", "abstain"))
        assert [card.human_agreement, card.length_baseline, card.longer_preferred, card.first_preferred] == [None] * 4
        assert share_of([]) is None

    def test_wilson_by_hand(self) -> None:
        """n = 10, 8 successes, z = 1.96: centre (0.8 + 0.19208) / 1.38416, half 0.2407."""
        low, high = wilson_interval(8, 10)
        assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
        assert wilson_interval(0, 0) == (0.0, 1.0)
        assert wilson_interval(0, 20)[0] == 0.0
        assert wilson_interval(20, 20)[1] == 1.0
        assert wilson_interval(5, 10) == pytest.approx((1 - wilson_interval(5, 10)[1], 1 - wilson_interval(5, 10)[0]))


class TestCounts:
    def test_there_is_a_card_for_each_judge_kind_rubric_and_task(self) -> None:
        base = label("1", "a")
        changes: list[dict[str, Any]] = [
            {}, {"judge": "n", "judge_digest": "e"}, {"judge_digest": "e"}, {"kind": "rating"}, {"rubric": "r/2"}, {"task": Task.CONVERSATION},
        ]  # fmt: skip
        cards = make_cards((replace(base, **change) for change in changes), texts_of)
        assert len(cards) == 6
        assert {card.pairs for card in cards} == {1}

    def test_a_pair_labelled_twice_counts_once_with_its_last_label(self) -> None:
        card = one_card(label("1", "a", 1.0), label("1", "b", 1.0), label("1", "a", 1.0, options='{"tie_margin": 0.1}'))
        assert card.pairs == 2
        assert (card.human_agreement.value, card.human_agreement.n) == (0.5, 1)  # two labels, of one pair

    def test_abstentions_are_counted_by_reason_without_their_particulars(self) -> None:
        card = one_card(
            label("1", "abstain", abstention_reason="context overflow: 700 tokens; at most 512"),
            label("2", "abstain", abstention_reason="context overflow: 900 tokens; at most 512"),
            label("3", "abstain", abstention_reason="empty answer"),
            label("4", "a"),
        )
        assert card.abstentions == {"context overflow": 2, "empty answer": 1}

    def test_tokens_are_counted_once_and_only_where_they_were_paid(self) -> None:
        shared = judgement("k", True, 0.9, tokens=100)
        card = one_card(
            label("1", "a", judgements=[shared]),
            label("2", "a", judgements=[replace(shared, cached=True)]),
            label("3", "a", judgements=[judgement("other job's", True, 0.9, tokens=1000, cached=True, paid=False)]),
            label("4", "a", judgements=[judgement("4", True, 0.9, tokens=7)]),
        )
        assert card.tokens == 107
        assert card.cached_judgements == 2

    def test_cost_is_counted_once_and_what_a_thousand_pairs_cost_whoever_paid(self) -> None:
        shared = judgement("k", True, 0.9, cost=0.5)
        card = one_card(
            label("1", "a", judgements=[shared]),
            label("2", "a", judgements=[replace(shared, cached=True)]),
            label("3", "a", judgements=[judgement("other job's", True, 0.9, cost=0.25, cached=True, paid=False)]),
            label("accord-repeat:1", "a", content_key="1", judgements=[judgement("again", True, 0.9, cost=0.125)]),
        )
        assert card.cost == 0.625
        assert card.cost_per_thousand_pairs == pytest.approx(1000 * 0.75 / 3)
        assert one_card(label("1", "a", judgements=[judgement("free", True, 0.9)])).cost_per_thousand_pairs is None

    def test_repeats_say_how_often_the_label_stays_and_count_nowhere_else(self) -> None:
        again = [("1", "a"), ("2", "a"), ("3", "abstain"), ("4", "abstain"), ("5", "b")]
        first = {"1": "a", "2": "b", "3": "abstain", "4": "a", "6": "b"}
        labels = [label(name, outcome, 1.0, content_key=name) for name, outcome in first.items()]  # type: ignore[arg-type]
        asked = both_orders("again", 0.9, 0.1)
        repeats = [label(f"accord-repeat:{name}", outcome, 1.0, content_key=name, judgements=asked) for name, outcome in again]  # type: ignore[arg-type]
        card = one_card(*labels, *repeats)
        assert (card.repeat_consistency.value, card.repeat_consistency.n) == (1 / 3, 3)  # 3 says nothing twice, 5 has no first label
        assert (card.pairs, card.abstentions, card.human_agreement.n) == (5, {"": 1}, 4)
        assert one_card(*labels).repeat_consistency is None
        assert one_card(*labels, *(replace(again, judgements=()) for again in repeats)).repeat_consistency is None  # nobody was asked

    def test_an_ensemble_and_an_escalation(self) -> None:
        card = one_card(label("1", "a", agreement=1.0), label("2", "a", agreement=0.5, escalated=True), label("3", "a"), label("4", "a"))
        assert card.ensemble_agreement == 0.75
        assert (card.escalated.value, card.escalated.n) == (0.25, 4)
        alone = one_card(label("1", "a"))
        assert (alone.ensemble_agreement, alone.escalated) == (None, None)

    def test_positions_are_compared_within_one_judge_and_sample(self) -> None:
        judgements = [
            judgement("s1", True, 0.9, judge_digest="small"), judgement("s2", False, 0.2, judge_digest="small"),  # the same response
            judgement("l1", True, 0.9, judge_digest="large"), judgement("l2", False, 0.8, judge_digest="large"),  # the same position
            judgement("t1", True, 0.3, judge_digest="large", sample=1), judgement("t2", False, 0.4, judge_digest="large", sample=1),
        ]  # fmt: skip
        card = one_card(label("1", "a", judgements=judgements))
        assert (card.same_position_after_swap.value, card.same_position_after_swap.n) == (2 / 3, 1)
        assert (card.first_preferred.value, card.first_preferred.n) == (3 / 6, 1)


class TestByLength:
    def test_bins_of_the_ratio_hold_their_lower_end(self) -> None:
        lengths = [(10, 10), (11, 10), (10, 12), (30, 10), (29, 10), (5, 0)]
        card = one_card(*(label(str(place), "a", 1.0, lengths=pair) for place, pair in enumerate(lengths)))
        found = [(bin.ratio_low, bin.ratio_high, bin.agreement.n, bin.length_baseline.value) for bin in card.agreement_by_length]
        assert found == [(1.0, 1.1, 1, 0.5), (1.1, 1.25, 2, 0.5), (2.0, 3.0, 1, 1.0), (3.0, None, 2, 1.0)]

    def test_a_coin_is_right_half_the_time_on_the_pairs_that_are_compared(self) -> None:
        card = one_card(label("1", "a", 1.0), label("2", "b", 1.0), label("3", "tie", 1.0))
        assert (card.random_baseline.value, card.random_baseline.n) == (0.5, 2)
        assert card.random_baseline.low == wilson_interval(1, 2)[0]


class TestDisagreements:
    def test_the_surest_wrong_labels_come_first_with_what_each_side_takes(self) -> None:
        sure = {"1": 0.9, "2": 0.97, "3": 0.02, "4": 0.6, "5": 0.7, "6": 0.8, "7": 0.99}
        labels = [
            label(name, "a" if p > 0.5 else "b", 0.0 if name != "7" and p > 0.5 else 1.0, judgements=both_orders(name, p, 1 - p), preference=p)
            for name, p in sure.items()
        ]
        found = one_card(*labels).disagreements
        assert [(each.pair_id, each.confidence) for each in found] == [("3", 0.98), ("2", 0.97), ("1", 0.9), ("6", 0.8), ("5", 0.7)]
        b_wins, a_wins = found[:2]
        assert (b_wins.people_take, a_wins.judge_takes, a_wins.prompt) == ("low of 3", "low of 2", "prompt of 2")
        assert len(b_wins.judge_takes) == len(a_wins.people_take) == 400
        assert (b_wins.judge_takes[:9], b_wins.judge_takes[-1]) == ("high of 3", "…")

    def test_where_a_is_the_response_with_the_greater_text(self) -> None:
        (found,) = one_card(label("1", "a", 0.0, a_is_low=False)).disagreements
        assert (found.people_take, found.judge_takes[:9]) == ("low of 1", "high of 1")

    def test_a_pair_whose_text_the_ledger_does_not_have_is_left_out(self) -> None:
        (card,) = make_cards([label("1", "a", 0.0), label("2", "a", 0.0)], lambda keys: texts_of(keys[1:]))
        assert [found.pair_id for found in card.disagreements] == ["2"]

    def test_no_texts_are_asked_for_where_nobody_disagrees(self) -> None:
        def refuse(keys: Sequence[str]) -> dict[str, PairText]:
            raise AssertionError(keys)

        (card,) = make_cards([label("1", "a", 1.0, judgements=both_orders("1", 0.9, 0.1))], refuse)
        assert card.disagreements == ()


class TestNotes:
    @staticmethod
    def agreeing(count: int, of: int, **changes: Any) -> list[LabelFacts]:
        return [label(str(index), "a" if index < count else "b", 1.0, **changes) for index in range(of)]

    def says(self, labels: list[LabelFacts], text: str) -> bool:
        return any(text in note for note in one_card(*labels).notes)

    def test_few_human_labels(self) -> None:
        assert self.says(self.agreeing(3, 3), "Only 3 decided pairs have a human label")
        assert self.says(self.agreeing(1, 1), "Only 1 decided pair has a human label")
        assert not self.says(self.agreeing(40, 40), "Only")
        assert self.says([label("1", "a")], "not known how often this judge is right")

    def test_no_better_than_a_coin(self) -> None:
        assert self.says(self.agreeing(25, 40), "cannot be told from a coin")  # 0.625, low end 0.47
        assert not self.says(self.agreeing(35, 40), "coin")
        assert self.says(self.agreeing(5, 40), "contradicts people")
        assert not self.says(self.agreeing(5, 40), "coin")

    def test_no_better_than_length(self) -> None:
        assert self.says(self.agreeing(35, 40, lengths=(9, 3)), "is not above that of always taking the longer response (100 %)")
        assert not self.says(self.agreeing(35, 40, lengths=(3, 9)), "longer response")
        mixed = [label(str(i), "a" if i < 33 else "b", 1.0, lengths=(9, 3) if i < 30 else (3, 9)) for i in range(40)]  # 0.825 against 0.75
        assert self.says(mixed, "reaches the length baseline (75 %)")

    def test_always_the_first(self) -> None:
        always = [label(str(i), "a", 1.0, judgements=both_orders(str(i), 0.99, 0.98)) for i in range(10)]
        assert self.says(always, "prefers the response shown first in 100 % of its judgements")
        never = [label(str(i), "a", 1.0, judgements=both_orders(str(i), 0.01, 0.02)) for i in range(10)]
        assert self.says(never, "prefers the response shown second in 100 %")
        fair = [label(str(i), "a", 1.0, judgements=both_orders(str(i), 0.9, 0.1)) for i in range(10)]
        assert not self.says(fair, "shown")

    def test_one_order_only(self) -> None:
        assert self.says([label("1", "a", judgements=[judgement("1", True, 0.9)])], "one order only")

    def test_likelihood_says_what_it_does_not_measure(self) -> None:
        assert self.says([label("1", "a", kind="likelihood", rubric="")], "nothing on harmlessness")
        assert not self.says([label("1", "a")], "harmlessness")

    def test_a_judge_that_does_not_keep_the_form(self) -> None:
        def with_mass(mass: float) -> list[LabelFacts]:
            half = math.log(mass / 2)
            return [label("1", "a", judgements=[judgement("1", True, 0.5, evidence_first=half, evidence_second=half)])]

        assert self.says(with_mass(0.02), "less than 2 % probability")
        assert not self.says(with_mass(0.8), "probability")

    def test_surer_than_right(self) -> None:
        assert self.says(self.agreeing(24, 40), "surer than it is right: its mean confidence is 86 %, and people take its response in 60 %")
        assert not self.says(self.agreeing(35, 40), "mean confidence")
        humble = [label(str(i), "a", 1.0, preference=0.6) for i in range(40)]
        assert self.says(humble, "more often right than it is sure")

    def test_another_label_when_asked_again(self) -> None:
        labels = [label(str(i), "a", content_key=str(i)) for i in range(10)]
        asked = both_orders("again", 0.9, 0.1)
        same = [replace(found, pair_id=f"accord-repeat:{found.pair_id}", judgements=asked) for found in labels]
        assert not self.says([*labels, *same], "Asked again")
        assert self.says([*labels, *same[1:], replace(same[0], outcome="b")], "another label for 10 % of the pairs")

    def test_many_abstentions(self) -> None:
        assert self.says([label("1", "a"), label("2", "abstain", abstention_reason="x")], "abstained on 1 of 2 pairs")
        assert not self.says([label("1", "a")], "abstained")
