"""Pairs that a label job judges a second time, to measure how often the judge says the same.

A repeat is labelled in the same job under an id of its own, and its questions have keys of their own: the ledger's first answer does not answer
them, and a repeat that is there already is not bought again. What does not belong here: when they are judged (`accord.feedback.job_stages`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from accord.client.feedback import LabelPairItem
from accord.data.intervals import Hit
from accord.feedback.records import ADDED, LabelFacts
from accord.feedback.shares import hit

_PREFIX = f"{ADDED}repeat:"


def repeat_of(pair: LabelPairItem) -> LabelPairItem:
    """The pair to judge once more."""
    return replace(pair, pair_id=f"{_PREFIX}{pair.pair_id}")


def is_repeat(label: LabelFacts) -> bool:
    """Whether a label is the second one of a pair."""
    return label.pair_id.startswith(_PREFIX)


def repeated_alike(labels: Sequence[LabelFacts]) -> list[Hit]:
    """1 for each pair that was judged twice with the same outcome, 0 with another.

    Left out are pairs on which the judge abstained both times, and those about which no judge had to be asked.
    """
    first: Mapping[tuple[str, str, str], LabelFacts] = {_key(label): label for label in labels if not is_repeat(label)}
    found = []
    for again in labels:
        known = first.get(_key(again)) if is_repeat(again) else None
        asked = any(judgement.by_judge for judgement in again.judgements)
        if known is not None and asked and (known.outcome, again.outcome) != ("abstain", "abstain"):
            found.append(hit(again, known.outcome == again.outcome))
    return found


def _key(label: LabelFacts) -> tuple[str, str, str]:
    return label.pair_id.removeprefix(_PREFIX), label.content_key, label.options
