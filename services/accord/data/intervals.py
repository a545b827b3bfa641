"""95 % intervals of figures whose observations come in units that go together: pairs of one prompt, repeats and twins of one pair. Pure.

What is drawn is the unit, with all that is in it. Where every unit has one observation these are Wilson's interval and the plain jackknife. What
does not belong here: what is a unit, and what is counted in it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from accord.data.agreement import Z95, Estimate, wilson_interval

K = TypeVar("K", bound=Hashable)
_NO_SPREAD = 1e-12
"""What rounding makes of an error of 0."""


class Hit(NamedTuple):
    """One observation: 1, 0, or 0.5 where it cannot be said; the unit that it goes with, and what it is of. Hits of one thing are one in n."""

    value: float
    unit: str
    of: str


def share_of(hits: Iterable[Hit]) -> Estimate | None:
    """The mean of hits over n different things, with Wilson's interval at the number of hits that units of their likeness are worth; None without.

    Korn & Graubard 1998: hits / design effect, times the square of the ratio of Student's quantiles for hits and for units. The design effect is the
    variance of a mean that is a ratio of the units' sums over that of independent hits. Where all hits are the same nothing shows how alike
    those of a unit are: then it is the number of units. It is never more than there are hits.
    """
    found = list(hits)
    units: dict[str, list[float]] = {}
    for hit in found:
        units.setdefault(hit.unit, []).append(hit.value)
    return share_of_sums([(math.fsum(own), len(own)) for own in units.values()], len({hit.of for hit in found}))


def share_of_sums(units: Sequence[tuple[float, int]], n: int) -> Estimate | None:
    """The same out of each unit's sum of hits and their number, at least one, for who cannot hold every hit; `n` is how many things they are of."""
    if not units:
        return None
    total, count = math.fsum(own for own, _ in units), sum(own for _, own in units)
    worth = _worth(units, count, total / count)
    return Estimate(total / count, *wilson_interval(total * (worth / count), worth), n)


def jackknife(statistic: Callable[[Mapping[K, int]], float | None], units: Iterable[Mapping[K, int]], least: float = -1.0) -> Estimate | None:
    """A statistic of a table of counts, with the interval of leaving out each unit in turn (Efron & Stein 1981); None where it has no value.

    Units that are alike are left out once, for all of them: exact, and as cheap as there are kinds of units. Where leaving out one takes the
    statistic away, nothing is known of its spread and the interval is all of [least, 1]. Where leaving out any of them changes nothing, as where all
    people agree on all pairs, a jackknife sees no spread. Then a share of units as large as Wilson's interval allows where none of so many was seen
    may be at the other end of the scale: for a share of agreement this is his interval.

    Args:
        statistic: of a table, items by what was said of them.
        units: the table of each unit; the whole is their sum.
        least: the lowest value that the statistic can have.
    """
    kinds = Counter(table for unit in units if (table := frozenset((cell, count) for cell, count in unit.items() if count)))
    whole: Counter[K] = Counter()
    for kind, number in kinds.items():
        for cell, count in kind:
            whole[cell] += count * number
    value, items, drawn = statistic(whole), whole.total(), kinds.total()
    if value is None:
        return None
    without: list[tuple[float, int]] = []
    for kind, number in kinds.items():
        left = statistic({**whole, **{cell: whole[cell] - count for cell, count in kind}}) if drawn > 1 else None
        if left is None:
            return Estimate(value, least, 1.0, items)
        without.append((left, number))
    mean = math.fsum(left * number for left, number in without) / drawn
    error = math.sqrt((drawn - 1) / drawn * math.fsum(number * (left - mean) ** 2 for left, number in without))
    if error < _NO_SPREAD:
        unseen = wilson_interval(0, drawn)[1]
        return Estimate(value, value - unseen * (value - least), value + unseen * (1.0 - value), items)
    half = Z95 * _widening(items, drawn) * error
    return Estimate(value, max(least, value - half), min(1.0, value + half), items)


def _worth(units: Sequence[tuple[float, int]], count: int, mean: float) -> float:
    """How many independent hits these are worth; 0 where all are of one unit, so that nothing is known of another."""
    drawn = len(units)
    if drawn == count:
        return count
    if drawn == 1:
        return 0.0
    independent = mean * (1.0 - mean) / (count - 1)
    if independent <= 0.0:
        return drawn
    residuals = math.fsum((own - mean * size) ** 2 for own, size in units)
    effect = drawn / (drawn - 1) * residuals / count**2 / independent
    return count / max(1.0, effect * _widening(count, drawn) ** 2)


def _widening(items: int, units: int) -> float:
    """How much wider an interval is whose spread was estimated from so many units and not from as many as there are items."""
    return _student(units - 1) / _student(items - 1) if items > units > 1 else 1.0


def _student(degrees: int) -> float:
    """The 97.5 % quantile of Student's t: exact for 1 and 2 degrees, else to 0.1 % (Abramowitz & Stegun 1964, 26.7.5)."""
    if degrees == 1:
        return math.tan(math.pi * 0.475)
    if degrees == 2:
        return 0.95 * math.sqrt(2.0 / (1.0 - 0.95**2))
    z = Z95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, start=1))
