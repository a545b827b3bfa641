"""Shares out of labels, each a list of hits (1, 0, or 0.5 where it cannot be said), and their intervals. Pure.

Labels do not come one by one: a pair that three people labelled is in the data three times and judged once, a judge that keeps its position says the
same of both orders, eight samples hardly differ, twins share all but an attack, and all pairs of a prompt share what is asked. So intervals draw
prompts, with all that was judged of them (`accord.data.intervals`), and n counts different pairs.

Lengths are characters, so that no tokenizer is needed. What does not belong here: cards (`accord.feedback.cards`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from accord.client.label_cards import LengthBin, Share
from accord.data import intervals
from accord.data.agreement import Estimate
from accord.data.intervals import Hit
from accord.feedback.records import JudgementFacts, LabelFacts

_RATIOS: tuple[float, ...] = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)
"""Where the bins of length ratios begin; the last has no end."""


def share_of(hits: Iterable[Hit]) -> Share | None:
    """The mean of hits with its interval over prompts and the n of different pairs; None where there are none."""
    return as_share(intervals.share_of(hits))


def as_share(found: Estimate | None) -> Share | None:
    """The same figure as cards have it."""
    return None if found is None else Share(found.value, found.low, found.high, found.n)


def hit(label: LabelFacts, value: float) -> Hit:
    """An observation on a label's pair."""
    return Hit(float(value), label.unit, label.content_key)


def compared(labels: Sequence[LabelFacts]) -> list[tuple[LabelFacts, float]]:
    """Labels with a winner, whose pair has one by people too, with P(A better) by people."""
    return [
        (label, label.human_preference)
        for label in labels
        if label.outcome in ("a", "b") and label.human_preference is not None and label.human_preference != 0.5
    ]


def human_agreement(labels: Sequence[LabelFacts]) -> list[Hit]:
    """1 for each decided label on which judge and people take the same response, 0 where not; those without a human preference are left out."""
    return [hit(label, (label.outcome == "a") == (human > 0.5)) for label, human in compared(labels)]


def length_baseline(labels: Sequence[LabelFacts]) -> list[Hit]:
    """The same as `human_agreement`, on the same labels, for a judge that takes the longer response; 0.5 where both are as long."""
    return [hit(label, _longer_is_a(label) if human > 0.5 else 1.0 - _longer_is_a(label)) for label, human in compared(labels)]


def random_baseline(labels: Sequence[LabelFacts]) -> list[Hit]:
    """The same for a judge that throws a coin, once for each pair: what it is right on is not known, so one half of each."""
    return list({label.content_key: hit(label, 0.5) for label, _ in compared(labels)}.values())


def agreement_by_length(labels: Sequence[LabelFacts]) -> tuple[LengthBin, ...]:
    """`human_agreement` and `length_baseline` in bins of the longer length over the shorter one; bins without pairs are left out."""
    bins: dict[int, list[LabelFacts]] = {}
    for label, _ in compared(labels):
        ratio = length_ratio(label.length_a, label.length_b)
        bins.setdefault(max(place for place, low in enumerate(_RATIOS) if ratio >= low), []).append(label)
    ends = (*_RATIOS[1:], None)
    return tuple(
        LengthBin(_RATIOS[place], ends[place], agreement, baseline)
        for place in sorted(bins)
        if (agreement := share_of(human_agreement(bins[place]))) and (baseline := share_of(length_baseline(bins[place])))
    )


def length_ratio(length_a: int, length_b: int) -> float:
    """The longer of two lengths over the shorter one; infinite beside 0, 1 for two zeros."""
    shorter, longer = sorted((length_a, length_b))
    return longer / shorter if shorter else (math.inf if longer else 1.0)


def longer_preferred(labels: Sequence[LabelFacts]) -> list[Hit]:
    """1 for each decided label whose preferred response is the longer one, 0 where it is the shorter one; equal lengths are left out."""
    decided = [label for label in labels if label.outcome in ("a", "b") and label.length_a != label.length_b]
    return [hit(label, (label.outcome == "a") == (label.length_a > label.length_b)) for label in decided]


def first_preferred(labels: Sequence[LabelFacts]) -> list[Hit]:
    """1 for each judgement of a verdict judge that prefers the response shown first, 0 for the second; even ones are left out."""
    return [hit(label, first > 0.5) for label in labels for shown in _shown(label) for first in shown.values() if first != 0.5]


def same_position_after_swap(labels: Sequence[LabelFacts]) -> list[Hit]:
    """1 for each time that a pair was asked in both orders and both judgements prefer the same position, 0 for the same response.

    A pair about which several judges were asked, or one several times, has one for each.
    """
    decided = [(label, shown) for label in labels for shown in _shown(label) if len(shown) == 2 and 0.5 not in shown.values()]
    return [hit(label, (shown[True] > 0.5) == (shown[False] > 0.5)) for label, shown in decided]


def _longer_is_a(label: LabelFacts) -> float:
    return 0.5 if label.length_a == label.length_b else float(label.length_a > label.length_b)


def _shown(label: LabelFacts) -> Iterator[dict[bool, float]]:
    """P(first shown is better) by whether A was first, of the judgements that a judge made, for each judge and sample."""
    found: dict[tuple[str, int], dict[bool, float]] = {}
    for judgement in label.judgements:
        if _usable(judgement):
            orders = found.setdefault((judgement.judge_digest, judgement.sample), {})
            orders[judgement.a_first] = judgement.probability_first or 0.0
    yield from found.values()


def _usable(judgement: JudgementFacts) -> bool:
    return judgement.by_judge and judgement.probability_first is not None
