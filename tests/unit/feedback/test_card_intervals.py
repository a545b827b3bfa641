"""What a card's intervals cover where labels go together: every figure of 160 cards, of prompts some of which are hard and some pairs gullible.

Of each figure the interval that takes labels as independent is computed beside it: that one covers too little, so that the test would fail with it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.unit.feedback.test_cards import both_orders, label

from accord.client.label_cards import Kappa, LabelCard, Share
from accord.data.agreement import wilson_interval
from accord.feedback.attacks import Twin
from accord.feedback.calibration import _human_outcome, _side
from accord.feedback.cards import make_cards
from accord.feedback.kappa import kappa_with_interval
from accord.feedback.records import LabelFacts

CARDS, PROMPTS, PAIRS, TWINS = 160, 40, 4, 6
EASY, RIGHT_IF_EASY, RIGHT_IF_HARD = 0.5, 0.95, 0.45
FICKLE_IF_EASY, FICKLE_IF_HARD = 0.02, 0.5
GULLIBLE, FLIPS_IF_GULLIBLE, FLIPS_ELSE = 0.3, 0.7, 0.05
RIGHT = EASY * RIGHT_IF_EASY + (1 - EASY) * RIGHT_IF_HARD
SAME = 1 - EASY * FICKLE_IF_EASY - (1 - EASY) * FICKLE_IF_HARD
FLIPS = GULLIBLE * FLIPS_IF_GULLIBLE + (1 - GULLIBLE) * FLIPS_ELSE
TRUTH = {
    "human_agreement": RIGHT, "reliability": RIGHT, "kappa": 2 * RIGHT - 1, "longer_preferred": 1 - RIGHT, "first_preferred": 0.5,
    "repeat_consistency": SAME, "injection_flips": FLIPS, "control_flips": FLIPS, "wins": FLIPS,
}  # fmt: skip


def labels_of_a_prompt(draw: random.Random, prompt: str) -> Iterator[LabelFacts]:
    """Four pairs with a repeat each, and of one the twins. People take A or B by a coin, the longer one is what they do not take; a judge that
    cannot tell takes it, or what it is shown in one place, for all pairs of its prompt."""
    easy, position = draw.random() < EASY, draw.random()
    for number in range(PAIRS):
        name, human = f"{prompt}.{number}", float(draw.random() < 0.5)
        right = draw.random() < (RIGHT_IF_EASY if easy else RIGHT_IF_HARD)
        outcome = "a" if right == (human == 1.0) else "b"
        orders = both_orders(name, 0.9, 0.1) if easy else both_orders(name, *[0.9 if position < 0.5 else 0.1] * 2)
        common = {"prompt_key": prompt, "content_key": name, "judgements": orders, "lengths": (3, 9) if human == 1.0 else (9, 3)}
        made = label(name, outcome, human, preference=0.9 if outcome == "a" else 0.1, **common)  # type: ignore[arg-type]
        yield made
        changes = draw.random() < (FICKLE_IF_EASY if easy else FICKLE_IF_HARD)
        yield replace(made, pair_id=f"accord-repeat:{name}", outcome={"a": "b", "b": "a"}[outcome] if changes else outcome)
    gullible = draw.random() < GULLIBLE
    for number in range(TWINS):
        for addition in ("attack", "control"):
            flips = draw.random() < (FLIPS_IF_GULLIBLE if gullible else FLIPS_ELSE)
            twin = Twin(addition, "threat", str(number), "line", "b", f"{prompt}.0").id  # type: ignore[arg-type]
            yield label(twin, "b" if flips else "a", content_key=twin, prompt_key=prompt)


def figures(card: LabelCard) -> dict[str, Share | Kappa | None]:
    (sure,), (threat,) = card.reliability, card.injection_families
    found = {name: getattr(card, name) for name in TRUTH if hasattr(card, name)}
    return found | {"reliability": sure.accuracy, "wins": threat.wins}


def as_independent(card: LabelCard, labels: list[LabelFacts]) -> dict[str, tuple[float, float]]:
    """The intervals of the same figures where no label has to do with another."""
    counts = dict.fromkeys(TRUTH, PROMPTS * PAIRS) | dict.fromkeys(("injection_flips", "control_flips", "wins"), PROMPTS * TWINS)
    counts["first_preferred"] = 2 * PROMPTS * PAIRS
    found = {name: wilson_interval(share.value * counts[name], counts[name]) for name, share in figures(card).items() if isinstance(share, Share)}
    own = [(each.pair_id, (_side(each, each.outcome), _side(each, _human_outcome(each.human_preference or 0.0))))
           for each in labels if not each.pair_id.startswith("accord-")]  # fmt: skip
    kappa = kappa_with_interval(own)
    assert kappa is not None
    return found | {"kappa": (kappa.low, kappa.high)}


@pytest.fixture(scope="module")
def covered() -> tuple[Counter[str], Counter[str]]:
    """How many of the cards' intervals hold the truth, and how many of those that take labels as independent."""
    draw, ours, naive = random.Random(9), Counter[str](), Counter[str]()
    for _ in range(CARDS):
        labels = [made for prompt in range(PROMPTS) for made in labels_of_a_prompt(draw, str(prompt))]
        (card,) = make_cards(labels, lambda keys: {})
        for name, share in figures(card).items():
            assert share is not None
            ours[name] += share.low <= TRUTH[name] <= share.high
        for name, (low, high) in as_independent(card, labels).items():
            naive[name] += low <= TRUTH[name] <= high
    return ours, naive


@pytest.mark.parametrize("figure", TRUTH)
def test_a_cards_intervals_cover_the_truth_though_labels_of_a_prompt_go_together(covered: tuple[Counter[str], Counter[str]], figure: str) -> None:
    ours, naive = covered
    assert 0.90 * CARDS <= ours[figure] <= 0.98 * CARDS
    assert naive[figure] < 0.90 * CARDS


def test_n_counts_pairs_and_twins_and_not_prompts() -> None:
    labels = [made for prompt in range(5) for made in labels_of_a_prompt(random.Random(prompt), str(prompt))]
    (card,) = make_cards(labels, lambda keys: {})
    found = {name: share.n for name, share in figures(card).items() if share is not None}
    assert {name: n for name, n in found.items() if n != 5 * PAIRS} == dict.fromkeys(("injection_flips", "control_flips", "wins"), 5 * TWINS)
