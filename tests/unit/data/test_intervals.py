"""Intervals of observations in units, against Wilson's, tables of Student's t, a jackknife unit by unit, and what they cover."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping

import pytest

from accord.data.agreement import Z95, wilson_interval
from accord.data.intervals import Hit, _student, jackknife, share_of


def own(values: list[float]) -> list[Hit]:
    return [Hit(value, str(number), str(number)) for number, value in enumerate(values)]


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042), (120, 1.980), (10**6, 1.960)],
)
def test_students_quantiles_are_those_of_the_tables(degrees: int, quantile: float) -> None:
    assert _student(degrees) == pytest.approx(quantile, rel=1.2e-3)


@pytest.mark.parametrize("values", [[1.0, 0.0, 1.0], [0.5, 0.5], [1.0] * 20, [0.0] * 7, [0.25, 1.0, 0.5]])
def test_units_of_one_hit_have_wilsons_interval_exactly(values: list[float]) -> None:
    found = share_of(own(values))
    assert found is not None
    assert (found.low, found.high, found.n) == (*wilson_interval(sum(values), len(values)), len(values))
    assert share_of([]) is None


def test_hits_that_say_the_same_in_each_unit_are_worth_about_the_units() -> None:
    values = [float(number % 3 > 0) for number in range(60)]
    single, tenfold = share_of(own(values)), share_of([hit for hit in own(values) for _ in range(10)])
    assert single is not None
    assert tenfold is not None
    assert (tenfold.value, tenfold.n) == (single.value, 60)
    assert tenfold.high - tenfold.low == pytest.approx(single.high - single.low, rel=0.04)


def test_hits_that_do_not_go_together_are_worth_all_of_them() -> None:
    draw = random.Random(2)
    hits = [Hit(float(draw.random() < 0.4), str(number % 200), str(number)) for number in range(2000)]
    found, plain = share_of(hits), share_of(own([hit.value for hit in hits]))
    assert found is not None
    assert plain is not None
    assert found.n == plain.n == 2000
    assert plain.high - plain.low <= found.high - found.low < 1.15 * (plain.high - plain.low)


def test_hits_that_stand_against_each_other_are_worth_no_more_than_they_are_many() -> None:
    found = share_of([Hit(float(place), str(unit), str(unit)) for unit in range(50) for place in (0, 1)])
    assert found is not None
    assert (found.low, found.high, found.n) == (*wilson_interval(50, 100), 50)


def test_where_nothing_shows_how_alike_hits_of_a_unit_are_units_count() -> None:
    found = share_of([Hit(0.0, str(number % 20), str(number)) for number in range(200)])
    assert found is not None
    assert (found.value, found.high) == (0.0, wilson_interval(0, 20)[1])
    alone = share_of([Hit(float(number > 3), "the only one", str(number)) for number in range(9)])
    assert alone is not None
    assert (alone.value, alone.low, alone.high, alone.n) == (5 / 9, 0.0, 1.0, 9)


@pytest.mark.parametrize("alike", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("units", "share"), [(12, 0.5), (40, 0.15), (40, 0.75)])
def test_intervals_cover_the_truth_however_alike_the_hits_of_a_unit_are(alike: float, units: int, share: float) -> None:
    """A hit is its unit's own draw with probability `alike` (the correlation within units is its square), else a draw by itself."""
    draw, tries = random.Random(f"{alike} {units} {share}"), 400
    covered = 0
    for _ in range(tries):
        hits = []
        for unit in range(units):
            common = float(draw.random() < share)
            for place in range(draw.randint(1, 9)):
                hits.append(Hit(common if draw.random() < alike else float(draw.random() < share), str(unit), f"{unit} {place}"))
        found = share_of(hits)
        assert found is not None
        covered += found.low <= share <= found.high
    most = 0.98 if alike else 0.99  # hits by themselves are worth at most as many as they are, also where fewer would seem to do
    assert 0.90 * tries <= covered <= most * tries


def mean_of(table: Mapping[int, int]) -> float | None:
    items = sum(table.values())
    return sum(cell * count for cell, count in table.items()) / items if items else None


def test_the_jackknife_is_that_of_leaving_out_each_unit_in_turn() -> None:
    draw = random.Random(4)
    units = [Counter(draw.randint(0, 1) for _ in range(draw.randint(1, 4))) for _ in range(15)]
    left = []
    for place in range(len(units)):
        rest: Counter[int] = sum((unit for number, unit in enumerate(units) if number != place), Counter())
        left.append(mean_of(rest) or 0.0)
    centre = sum(left) / 15
    items = sum(unit.total() for unit in units)
    half = Z95 * _student(14) / _student(items - 1) * math.sqrt(14 / 15 * sum((value - centre) ** 2 for value in left))
    found = jackknife(mean_of, units, 0.0)
    assert found is not None
    assert (found.low, found.high, found.n) == (pytest.approx(found.value - half), pytest.approx(found.value + half), items)


def test_units_that_are_all_alike_leave_room_for_one_that_is_not() -> None:
    alike = jackknife(mean_of, [Counter({1: 3})] * 20, -1.0)
    assert alike is not None
    assert (alike.value, alike.low, alike.high) == (1.0, pytest.approx(1 - 2 * wilson_interval(0, 20)[1]), 1.0)
    half = jackknife(mean_of, [Counter({0: 1, 1: 1})] * 20, 0.0)
    assert half is not None
    assert (half.low, half.high) == (pytest.approx(0.5 - wilson_interval(0, 20)[1] / 2), pytest.approx(0.5 + wilson_interval(0, 20)[1] / 2))


def test_a_jackknife_of_one_unit_knows_nothing_of_another() -> None:
    found = jackknife(mean_of, [Counter({0: 3, 1: 5})], 0.0)
    assert found is not None
    assert (found.value, found.low, found.high, found.n) == (5 / 8, 0.0, 1.0, 8)
    assert jackknife(mean_of, []) is None
