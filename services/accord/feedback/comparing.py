"""Two judges on the same pairs: how often they agree, beyond chance, where not, and how each stands to people. Pure.

Opinions are turned to the order of the responses' text, so that it does not matter which was A. Intervals are at 95 % and draw prompts, each with
all of its pairs (`accord.data.intervals`). What does not belong here: reading the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from accord.client.feedback import LabelPairItem
from accord.client.label_cards import Kappa, Share
from accord.client.ledger import LabelRecord
from accord.data.intervals import Hit
from accord.data.likeness import exact_prompt_key
from accord.feedback.kappa import category, kappa_with_interval
from accord.feedback.shares import length_ratio, share_of
from accord.text.tasks import Task

Side = Literal["low", "high", "tie", "abstain"]
_LENGTH_RATIOS = (1.0, 1.1, 1.5, 2.0)


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a judge says of a pair: P(the response with the smaller text is better), and its side."""

    preference: float | None
    side: Side


@dataclass(frozen=True, slots=True)
class Part:
    """Agreement in a part of the pairs."""

    name: str
    agreement: Share


@dataclass(frozen=True, slots=True)
class Difference:
    """A pair on which two judges differ; preferences are P(response_a better)."""

    pair: LabelPairItem
    first: float
    second: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two judges on the pairs that both labelled. Figures are None where there is nothing to measure.

    `agreement` and `kappa` are over pairs that both decide or call a tie. `mean_distance` is that of their preferences. `*_takes_longer` and
    `*_human_agreement` are those of each judge on these pairs. `parts` say where they differ: by task, and by how much longer the longer response is.
    """

    pairs: int
    abstained: int
    agreement: Share | None
    kappa: Kappa | None
    mean_distance: float | None
    first_takes_longer: Share | None
    second_takes_longer: Share | None
    first_human_agreement: Share | None
    second_human_agreement: Share | None
    parts: tuple[Part, ...]
    differences: tuple[Difference, ...]


class Opinions:
    """A judge's last opinion of each pair, by content. `without_text` counts labels whose pair the ledger does not have."""

    def __init__(self) -> None:
        self.found: dict[str, Opinion] = {}
        self.without_text = 0

    def add(self, record: LabelRecord) -> None:
        """Takes the next label; a later one of the same pair takes its place."""
        if record.pair is None:
            self.without_text += 1
            return
        turned = record.pair.response_a > record.pair.response_b
        preference = record.label.preference
        side: dict[str, Side] = {"a": "high" if turned else "low", "b": "low" if turned else "high", "tie": "tie"}
        opinion = Opinion(1.0 - preference if turned and preference is not None else preference, side.get(record.label.outcome, "abstain"))
        self.found[record.content_key] = opinion


@dataclass(frozen=True, slots=True)
class _Both:
    key: str
    pair: LabelPairItem
    first: Opinion
    second: Opinion


def compare(first: Mapping[str, Opinion], second: Mapping[str, Opinion], pairs: Mapping[str, LabelPairItem], *, worst: int = 5) -> Comparison:
    """Two judges' opinions on the pairs of both.

    Args:
        first, second: opinions by content key.
        pairs: the pairs by content key, at least those of both.
        worst: how many differences to show, those farthest apart first.
    """
    both = [_Both(key, _low_first(pairs[key]), first[key], second[key]) for key in sorted(first.keys() & second.keys())]
    said = [item for item in both if "abstain" not in (item.first.side, item.second.side)]
    opinions = [(_unit(item), (_category(item, item.first), _category(item, item.second))) for item in said]
    return Comparison(
        pairs=len(both),
        abstained=len(both) - len(said),
        agreement=share_of([_hit(item, _agree(item)) for item in said]),
        kappa=kappa_with_interval(opinions),
        mean_distance=math.fsum(abs(_distance(item)) for item in said) / len(said) if said else None,
        first_takes_longer=share_of(_longer(said, lambda item: item.first)),
        second_takes_longer=share_of(_longer(said, lambda item: item.second)),
        first_human_agreement=share_of(_with_people(said, lambda item: item.first)),
        second_human_agreement=share_of(_with_people(said, lambda item: item.second)),
        parts=_parts(said),
        differences=_differences(said, worst),
    )


def _low_first(pair: LabelPairItem) -> LabelPairItem:
    if pair.response_a <= pair.response_b:
        return pair
    human = None if pair.human_preference is None else 1.0 - pair.human_preference
    return LabelPairItem(pair.task, pair.messages, pair.response_b, pair.response_a, pair.pair_id, human)


def _category(item: _Both, opinion: Opinion) -> str:
    return opinion.side if opinion.side == "tie" else category(item.key, takes_low=opinion.side == "low")


def _agree(item: _Both) -> float:
    return float(item.first.side == item.second.side)


def _hit(item: _Both, value: float) -> Hit:
    return Hit(float(value), _unit(item), item.key)


def _unit(item: _Both) -> str:
    """Pairs of one prompt go together in intervals."""
    return f"{exact_prompt_key(item.pair.messages):016x}"


def _distance(item: _Both) -> float:
    return (item.first.preference or 0.0) - (item.second.preference or 0.0)


def _longer(items: Sequence[_Both], whose: Callable[[_Both], Opinion]) -> list[Hit]:
    """1 where a judge takes the longer response, over pairs of differing lengths that it decides."""
    decided = [(item, whose(item).side) for item in items if len(item.pair.response_a) != len(item.pair.response_b) and whose(item).side != "tie"]
    return [_hit(item, (side == "low") == (len(item.pair.response_a) > len(item.pair.response_b))) for item, side in decided]


def _with_people(items: Sequence[_Both], whose: Callable[[_Both], Opinion]) -> list[Hit]:
    """1 where a judge takes the response that people take, over pairs that both decide."""
    found = []
    for item in items:
        human, side = item.pair.human_preference, whose(item).side
        if human is not None and human != 0.5 and side != "tie":
            found.append(_hit(item, (side == "low") == (human > 0.5)))
    return found


def _ratio(item: _Both) -> float:
    return length_ratio(len(item.pair.response_a), len(item.pair.response_b))


def _parts(items: Sequence[_Both]) -> tuple[Part, ...]:
    groups = {f"task {task.value}": [_hit(item, _agree(item)) for item in items if item.pair.task == task] for task in Task}
    for low, high in zip(_LENGTH_RATIOS, (*_LENGTH_RATIOS[1:], math.inf), strict=True):
        name = f"longer {low:g} to {high:g} times" if high != math.inf else f"longer {low:g} times or more"
        inside = [item for item in items if low <= _ratio(item) < high or high == math.inf == _ratio(item)]
        groups[name] = [_hit(item, _agree(item)) for item in inside]
    return tuple(Part(name, share) for name, hits in groups.items() if (share := share_of(hits)) is not None)


def _differences(items: Sequence[_Both], worst: int) -> tuple[Difference, ...]:
    """Pairs on which the judges take different sides, farthest apart first."""
    found = sorted((item for item in items if not _agree(item)), key=lambda item: (-abs(_distance(item)), item.pair.pair_id))
    return tuple(Difference(item.pair, item.first.preference or 0.0, item.second.preference or 0.0) for item in found[:worst])
