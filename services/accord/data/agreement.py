"""How far people agree who labelled the same pairs: raw agreement, Fleiss' kappa, Krippendorff's alpha, each with a 95 % interval. Pure.

A table counts items by what was said of them: {(2, 0, 1): 5} is five items that two people put in the first category and one in the third. Items
with one label say nothing of agreement and are not counted. What does not belong here: which label is which category (`Annotations`, at the end, is
the one place that knows pairs).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from accord.data.likeness import digest64, exact_key
from accord.data.records import ANNOTATOR, PreferencePair

Z95 = 1.959964
Table = Mapping[tuple[int, ...], int]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval, over n items."""

    value: float
    low: float
    high: float
    n: int


def wilson_interval(successes: float, n: int, z: float = Z95) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    share, square = successes / n, z * z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = z * math.sqrt(share * (1 - share) / n + square / (4 * n * n)) / (1 + square / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def share(hits: int, n: int) -> Estimate | None:
    """hits of n with Wilson's interval; None where n is 0."""
    return Estimate(hits / n, *wilson_interval(hits, n), n) if n else None


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
    kept = _with_two(table)
    items = sum(kept.values())
    if not items:
        return None
    observed = sum(weight * sum(c * (c - 1) for c in counts) / (sum(counts) * (sum(counts) - 1)) for counts, weight in kept.items()) / items
    totals = _totals(kept)
    labels = sum(totals)
    expected = math.fsum((total / labels) ** 2 for total in totals)
    return None if max(totals) == labels else (observed - expected) / (1 - expected)


def krippendorff_alpha(table: Table) -> float | None:
    """Krippendorff's alpha for nominal data, any number of labels an item (Krippendorff 2011, section C); None as `fleiss_kappa`."""
    kept = _with_two(table)
    if not kept:
        return None
    totals = _totals(kept)
    labels = sum(totals)
    if max(totals) == labels:
        return None
    differing = sum(weight * (sum(counts) ** 2 - sum(c * c for c in counts)) / (sum(counts) - 1) for counts, weight in kept.items())
    return 1.0 - (labels - 1) * differing / (labels**2 - sum(total * total for total in totals))


def estimate(statistic: Callable[[Table], float | None], table: Table) -> Estimate | None:
    """A statistic with its interval by the jackknife over items (Efron & Stein 1981); None where the statistic has no value.

    Items that are alike are left out once, for all of them: exact, and as cheap as there are kinds of items. Where leaving out one item takes the
    statistic away, nothing is known of its spread and the interval is all of [-1, 1] ([0, 1] for a share). Where no item disagrees the interval
    has no width: a jackknife sees no spread there.
    """
    kept = _with_two(table)
    value = statistic(kept)
    if value is None:
        return None
    n = sum(kept.values())
    least = 0.0 if statistic is pairwise_agreement else -1.0
    without: list[tuple[float, int]] = []
    for counts, weight in kept.items():
        rest = {**kept, counts: weight - 1}
        left = statistic(rest) if n > 1 else None
        if left is None:
            return Estimate(value, least, 1.0, n)
        without.append((left, weight))
    mean = math.fsum(left * weight for left, weight in without) / n
    half = Z95 * math.sqrt((n - 1) / n * math.fsum(weight * (left - mean) ** 2 for left, weight in without))
    return Estimate(value, max(least, value - half), min(1.0, value + half), n)


def _with_two(table: Table) -> dict[tuple[int, ...], int]:
    return {counts: items for counts, items in table.items() if items and sum(counts) >= 2}


def _totals(table: Table) -> list[int]:
    return [sum(counts[place] * items for counts, items in table.items()) for place in range(len(next(iter(table))))]


@dataclass(frozen=True, slots=True)
class Annotator:
    """One person: labels given, and the share of comparisons with others' labels of the same pairs that agree; None without any."""

    name: str
    labels: int
    comparisons: int
    agreement: float | None


@dataclass(frozen=True, slots=True)
class AgreementCard:
    """Agreement of a data set's annotators; figures are None where they have no value. `pairs` had two labels or more.

    `people` are in the order of their agreement with the others, the least first: who labels at random is found there.
    """

    annotators: int
    labels: int
    pairs: int
    raw: Estimate | None
    fleiss_kappa: Estimate | None
    krippendorff_alpha: Estimate | None
    people: tuple[Annotator, ...]


class Annotations:
    """Who said what of which pair. Holds some 300 bytes for a labelled pair; pairs that name no annotator are not kept.

    A label is one of: the response with the smaller digest is better, the other is, a tie. So it does not matter which of the two a row calls
    chosen, and neither category is favoured, as kappa and alpha need it. Of several labels of a pair by one person the first counts.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._said: dict[int, dict[int, int]] = {}

    def add(self, pair: PreferencePair) -> None:
        """Takes the next pair."""
        name = pair.metadata.get(ANNOTATOR)
        if not name:
            return
        number = self._numbers.setdefault(name, len(self._numbers))
        self._said.setdefault(exact_key(pair), {}).setdefault(number, _category(pair))

    def table(self) -> Counter[tuple[int, ...]]:
        """Pairs by how many said (smaller digest, larger digest, tie)."""
        found: Counter[tuple[int, ...]] = Counter()
        for said in self._said.values():
            counts = Counter(said.values())
            found[counts[0], counts[1], counts[2]] += 1
        return found

    def card(self) -> AgreementCard | None:
        """The agreement; None where no pair names an annotator."""
        if not self._numbers:
            return None
        table = self.table()
        raw, kappa, alpha = (estimate(statistic, table) for statistic in (pairwise_agreement, fleiss_kappa, krippendorff_alpha))
        labels = sum(items * sum(counts) for counts, items in table.items())
        return AgreementCard(len(self._numbers), labels, sum(_with_two(table).values()), raw, kappa, alpha, self._people())

    def _people(self) -> tuple[Annotator, ...]:
        labels, comparisons, agreeing = Counter[int](), Counter[int](), Counter[int]()
        for said in self._said.values():
            counts = Counter(said.values())
            labels.update(said.keys())
            for person, category in said.items():
                comparisons[person] += len(said) - 1
                agreeing[person] += counts[category] - 1
        found = [
            Annotator(name, labels[number], comparisons[number], agreeing[number] / comparisons[number] if comparisons[number] else None)
            for name, number in self._numbers.items()
        ]
        return tuple(sorted(found, key=lambda each: (each.agreement is None, each.agreement, each.name)))


def _category(pair: PreferencePair) -> int:
    preference = pair.preference if pair.human_preference is None else pair.human_preference
    if preference == 0.5:
        return 2
    smaller = digest64(pair.chosen) <= digest64(pair.rejected)
    return int((preference > 0.5) != smaller)
