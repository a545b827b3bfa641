"""Agreement of two raters beyond chance, with its interval. Pure.

What does not belong here: more than two raters (`accord.data.agreement`), and which label is which category.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Mapping

from accord.client.label_cards import Kappa
from accord.data.agreement import Z95


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


def kappa_with_interval(table: Mapping[tuple[str, str], int]) -> Kappa | None:
    """Cohen's kappa with the jackknife's interval over items (Efron & Stein 1981); [-1, 1] where leaving one item out takes the value away."""
    kept = {cell: count for cell, count in table.items() if count}
    value, n = cohen_kappa(kept), sum(kept.values())
    if value is None:
        return None
    without = [(cohen_kappa({**kept, cell: count - 1}), count) for cell, count in kept.items()]
    known = [(left, count) for left, count in without if left is not None]
    if len(known) < len(without):
        return Kappa(value, -1.0, 1.0, n)
    mean = math.fsum(left * count for left, count in known) / n
    half = Z95 * math.sqrt((n - 1) / n * math.fsum(count * (left - mean) ** 2 for left, count in known))
    return Kappa(value, max(-1.0, value - half), min(1.0, value + half), n)
