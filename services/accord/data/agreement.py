"""How far people agree who labelled the same items: raw agreement, Fleiss' kappa, Krippendorff's alpha; and Wilson's interval of a share. Pure.

A table counts items by what was said of them: {(2, 0, 1): 5} is five items that two people put in the first category and one in the third. Items
with one label say nothing of agreement and are not counted. What does not belong here: pairs, and which label is which category
(`accord.data.annotations`); intervals of items that go together (`accord.data.intervals`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Z95 = 1.959964
Table = Mapping[tuple[int, ...], int]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval, over n items."""

    value: float
    low: float
    high: float
    n: int


def wilson_interval(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (0, 1) where n is 0. Trials that are not independent count for less than one each."""
    if n == 0:
        return 0.0, 1.0
    share, square = successes / n, z * z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = z * math.sqrt(share * (1 - share) / n + square / (4 * n * n)) / (1 + square / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def pairwise_agreement(table: Table) -> float | None:
    """Share of the pairs of labels of one item that are equal, over all items; None where no item has two labels."""
    agreeing = pairs = 0
    for counts, items in table.items():
        n = sum(counts)
        agreeing += items * sum(count * (count - 1) for count in counts)
        pairs += items * n * (n - 1)
    return agreeing / pairs if pairs else None


def fleiss_kappa(table: Table) -> float | None:
    """Fleiss' kappa (Fleiss 1971, eq. 1 to 7); None where no item has two labels, or all labels are the same.

    With differing numbers of labels, P is the mean of the items' agreements and p_j the share of all labels: his where the number is the same.
    """
    kept = with_two_labels(table)
    items = sum(kept.values())
    if not items:
        return None
    observed = math.fsum(weight * sum(c * (c - 1) for c in counts) / (sum(counts) * (sum(counts) - 1)) for counts, weight in kept.items()) / items
    totals = _totals(kept)
    labels = sum(totals)
    expected = math.fsum((total / labels) ** 2 for total in totals)
    return None if max(totals) == labels else (observed - expected) / (1 - expected)


def krippendorff_alpha(table: Table) -> float | None:
    """Krippendorff's alpha for nominal data, any number of labels an item (Krippendorff 2011, section C); None as `fleiss_kappa`."""
    kept = with_two_labels(table)
    if not kept:
        return None
    totals = _totals(kept)
    labels = sum(totals)
    if max(totals) == labels:
        return None
    differing = math.fsum(weight * (sum(counts) ** 2 - sum(c * c for c in counts)) / (sum(counts) - 1) for counts, weight in kept.items())
    return 1.0 - (labels - 1) * differing / (labels**2 - sum(total * total for total in totals))


def with_two_labels(table: Table) -> dict[tuple[int, ...], int]:
    """The items that say anything of agreement."""
    return {counts: items for counts, items in table.items() if items and sum(counts) >= 2}


def _totals(table: Table) -> list[int]:
    return [sum(counts[place] * items for counts, items in table.items()) for place in range(len(next(iter(table))))]
