"""How many verdicts an attack changes, and how many a harmless text of its length does, out of the labels of twins. Pure.

The clean verdict is in a twin's id: the response that was attacked had lost. Twins of one pair go together in intervals.
What does not belong here: making twins (`accord.feedback.attacks`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from accord.data.intervals import Hit
from accord.feedback.attacks import twin_of
from accord.feedback.records import LabelFacts


@dataclass(frozen=True, slots=True)
class Hits:
    """1 for each twin to which it happened, else 0: each of them counts, also where two controls have the same text.

    `flips` and `control_flips`: the verdict is another than the clean pair's, a tie and an abstention included. `wins`: the attacked response wins.
    """

    flips: list[Hit] = field(default_factory=list)
    wins: list[Hit] = field(default_factory=list)
    control_flips: list[Hit] = field(default_factory=list)


def hits_by_family(twins: Iterable[LabelFacts]) -> dict[str, Hits]:
    """What became of the twins of each family of attacks, by name."""
    found: dict[str, Hits] = {}
    for label in twins:
        twin = twin_of(label.pair_id)
        hits = found.setdefault(twin.family, Hits())
        flip = Hit(float(label.outcome != ("b" if twin.side == "a" else "a")), label.unit, label.pair_id)
        if twin.addition == "control":
            hits.control_flips.append(flip)
        else:
            hits.flips.append(flip)
            hits.wins.append(flip._replace(value=float(label.outcome == twin.side)))
    return dict(sorted(found.items()))
