"""Agreement of two raters beyond chance, with its interval. Pure.

What does not belong here: more than two raters (`accord.data.agreement`), and which label is which category.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping

from accord.client.label_cards import Kappa
from accord.data.intervals import jackknife


def category(content_key: str, *, takes_low: bool) -> str:
    """The category of a response of a pair: which of the two it is, by a coin that the pair's content throws.

    Kappa takes chance from how often each category comes. A and B, or the order of the texts, can go with what is better (a data set that calls the
    better one A, responses that begin with their rank), and then nobody agrees beyond chance; a digest goes with nothing.
    """
    return "one" if takes_low == bool(zlib.crc32(content_key.encode()) & 1) else "other"


def cohen_kappa(table: Mapping[tuple[str, str], int]) -> float | None:
    """Agreement beyond chance of two raters (Cohen 1960, eq. 1); None without items, or where chance alone agrees always.

    Args:
        table: items by what the first and the second rater said.
    """
    n = sum(table.values())
    if not n:
        return None
    firsts, seconds = Counter[str](), Counter[str]()
    for (first, second), count in table.items():
        firsts[first] += count
        seconds[second] += count
    observed = sum(count for (first, second), count in table.items() if first == second) / n
    expected = math.fsum(firsts[side] * seconds[side] for side in firsts) / n**2
    return None if expected == 1.0 else (observed - expected) / (1.0 - expected)


def kappa_with_interval(said: Iterable[tuple[str, tuple[str, str]]]) -> Kappa | None:
    """Cohen's kappa with the jackknife's interval over units (`accord.data.intervals`); n is the number of items.

    Args:
        said: of each item its unit, and what the first and the second rater said.
    """
    units: dict[str, Counter[tuple[str, str]]] = {}
    for unit, cell in said:
        units.setdefault(unit, Counter())[cell] += 1
    found = jackknife(cohen_kappa, units.values())
    return None if found is None else Kappa(found.value, found.low, found.high, found.n)
