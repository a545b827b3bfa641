"""A card comes out of its wire form as it went in."""

from __future__ import annotations

from dataclasses import fields, replace

from accord.client.label_cards import (
    Disagreement,
    InjectionFamily,
    Kappa,
    LabelCard,
    LengthBin,
    ReliabilityBin,
    Share,
    card_from_proto,
    card_to_proto,
)
from accord.text.tasks import Task


def full_card() -> LabelCard:
    """A card that has every figure, each another."""
    share = iter(Share(0.01 * n, 0.005 * n, 0.02 * n, 100 + n) for n in range(1, 30))
    return LabelCard(
        "m", "verdict", "summarization/detailed/1", Task.SUMMARIZATION, 12, next(share), next(share), next(share), next(share), next(share),
        {"empty answer": 2}, 345, 6, ("a note", "another"), next(share),
        (LengthBin(1.0, 1.5, next(share), next(share)), LengthBin(3.0, None, next(share), next(share))), 0.125,
        (ReliabilityBin(0.5, 0.55, 0.52, next(share)),), next(share), next(share), 2.5,
        (Disagreement("p", "prompt", "this", "that", 0.99),), 0.75, next(share), "digest", 1.25,
        Kappa(-0.5, -0.7, -0.3, 40), next(share), (InjectionFamily("role tag", next(share), next(share), None),),
    )  # fmt: skip


def test_a_full_card_and_an_empty_one() -> None:
    card = full_card()
    assert card_from_proto(card_to_proto(card)) == card
    empty = LabelCard("m", "likelihood", "", None, 0, None, None, None, None, None, {}, 0, 0, ())
    assert card_from_proto(card_to_proto(empty)) == empty
    assert all(getattr(card, each.name) != getattr(empty, each.name) for each in fields(LabelCard) if each.name != "judge")


def test_a_measured_nought_is_not_nothing() -> None:
    card = replace(
        full_card(),
        calibration_error=0.0,
        cost_per_thousand_pairs=0.0,
        kappa=Kappa(0.0, -0.1, 0.1, 9),
        ensemble_agreement=0.0,
        escalated=Share(0, 0, 0.1, 9),
    )
    assert card_from_proto(card_to_proto(card)) == card
