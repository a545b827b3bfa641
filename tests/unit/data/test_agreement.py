"""Agreement against published worked examples, slow loops over single labels, and the coverage of the intervals."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.data.agreement import fleiss_kappa, krippendorff_alpha, pairwise_agreement, wilson_interval
from accord.data.annotations import Annotations, estimate
from accord.data.records import PreferencePair
from accord.text.chat import Message
from accord.text.tasks import Task

# Fleiss 1971, as in the article "Fleiss' kappa" of Wikipedia: 10 items, 14 raters, 5 categories.
FLEISS = [
    (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1), (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2),
    (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
]  # fmt: skip
# Krippendorff 2011, section C: four observers, twelve units, five categories, some values missing.
KRIPPENDORFF = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]


def table_of(units: Sequence[Sequence[object]], categories: Sequence[object]) -> Counter[tuple[int, ...]]:
    return Counter(tuple(list(unit).count(category) for category in categories) for unit in units)


def test_fleiss_published_example() -> None:
    assert fleiss_kappa(Counter(FLEISS)) == pytest.approx(0.210, abs=5e-4)


def test_krippendorff_published_example() -> None:
    units = list(zip(*(observer.split() for observer in KRIPPENDORFF), strict=True))
    assert krippendorff_alpha(table_of(units, "12345")) == pytest.approx(0.743, abs=5e-4)


def slow_alpha(units: Sequence[Sequence[int]]) -> float | None:
    """Observed over expected disagreement, by writing out the coincidences of values one by one."""
    units = [unit for unit in units if len(unit) >= 2]
    coincidences: Counter[tuple[int, int]] = Counter()
    for unit in units:
        for first, second in permutations(unit, 2):
            coincidences[first, second] += 1 / (len(unit) - 1)  # type: ignore[assignment]
    values = [value for unit in units for value in unit]
    expected = sum(a != b for a, b in permutations(values, 2)) / max(1, len(values) - 1)
    observed = sum(weight for (a, b), weight in coincidences.items() if a != b)
    return 1 - observed / expected if expected else None


def slow_kappa(units: Sequence[Sequence[int]]) -> float | None:
    units = [unit for unit in units if len(unit) >= 2]
    values = [value for unit in units for value in unit]
    if len(set(values)) < 2:
        return None
    observed = sum(sum(a == b for a, b in combinations(unit, 2)) / math.comb(len(unit), 2) for unit in units) / len(units)
    chance = sum((values.count(value) / len(values)) ** 2 for value in set(values))
    return (observed - chance) / (1 - chance)


def slow_raw(units: Sequence[Sequence[int]]) -> float | None:
    pairs = [a == b for unit in units for a, b in combinations(unit, 2)]
    return sum(pairs) / len(pairs) if pairs else None


@given(st.lists(st.lists(st.integers(0, 2), max_size=5), max_size=12))
def test_against_slow_loops(units: list[list[int]]) -> None:
    table = table_of(units, (0, 1, 2))
    for quick, slow in ((pairwise_agreement, slow_raw), (fleiss_kappa, slow_kappa), (krippendorff_alpha, slow_alpha)):
        wanted = slow(units)
        assert quick(table) == (None if wanted is None else pytest.approx(wanted, abs=1e-9))


def test_perfect_and_systematic_disagreement() -> None:
    same = Counter({(2, 0): 5, (0, 2): 5})
    assert [statistic(same) for statistic in (pairwise_agreement, fleiss_kappa, krippendorff_alpha)] == [1.0, 1.0, 1.0]
    never = Counter({(1, 1): 10})
    assert (pairwise_agreement(never), fleiss_kappa(never)) == (0.0, pytest.approx(-1.0))
    assert krippendorff_alpha(never) == pytest.approx(1 - 19 / 10)
    for statistic in (fleiss_kappa, krippendorff_alpha):
        assert statistic(Counter({(3, 0): 4})) is None
        assert statistic(Counter({(1, 0): 4})) is None
        assert statistic(Counter()) is None


def drawn(items: int, noise: float, generator: random.Random) -> Counter[tuple[int, ...]]:
    """Three raters who each say the truth, a fair coin, but for `noise`."""
    found: Counter[tuple[int, ...]] = Counter()
    for _ in range(items):
        truth = generator.randrange(2)
        said = Counter(truth ^ (generator.random() < noise) for _ in range(3))
        found[said[0], said[1]] += 1
    return found


def own_units(table: Counter[tuple[int, ...]]) -> list[Counter[tuple[int, ...]]]:
    """Items that do not go together."""
    return [Counter({counts: 1}) for counts in table.elements()]


@pytest.mark.parametrize("statistic", [pairwise_agreement, fleiss_kappa, krippendorff_alpha])
def test_intervals_cover_the_true_value_and_agree_with_a_bootstrap(statistic) -> None:
    generator, noise = random.Random(5), 0.2
    agreement = noise**2 + (1 - noise) ** 2
    truth = agreement if statistic is pairwise_agreement else 2 * agreement - 1  # both categories are as frequent: chance is one half
    found = [estimate(statistic, own_units(drawn(150, noise, generator))) for _ in range(400)]
    covered = sum(each is not None and each.low <= truth <= each.high for each in found)
    assert 0.92 * 400 <= covered <= 0.98 * 400
    table = drawn(150, noise, generator)
    items = list(table.elements())
    again = sorted(statistic(Counter(generator.choices(items, k=len(items)))) or 0.0 for _ in range(2000))
    one = estimate(statistic, own_units(table))
    assert one is not None
    assert (one.low, one.high) == (pytest.approx(again[50], abs=0.02), pytest.approx(again[1949], abs=0.02))
    assert one.n == 150


@pytest.mark.parametrize("statistic", [pairwise_agreement, fleiss_kappa, krippendorff_alpha])
def test_few_pairs_on_which_all_agree_prove_no_perfect_agreement(statistic) -> None:
    """Two people who agree on 92 % of pairs agree on all of eight of them every second time; intervals of no width would miss the truth then."""
    generator, noise, tries = random.Random(8), 0.04, 400
    agreement = noise**2 + (1 - noise) ** 2
    truth = agreement if statistic is pairwise_agreement else 2 * agreement - 1
    covered = whole = 0
    for _ in range(tries):
        said: list[Counter[tuple[int, ...]]] = []
        for right in (generator.randrange(2) for _ in range(8)):
            votes = Counter(right ^ (generator.random() < noise) for _ in range(2))
            said.append(Counter({(votes[0], votes[1]): 1}))
        found = estimate(statistic, said)
        if found is None or found.value < 1.0:
            continue
        whole += 1
        covered += found.low <= truth <= found.high
    assert whole > 100
    assert covered == whole


def test_intervals_at_the_edges() -> None:
    one = estimate(krippendorff_alpha, [Counter({(1, 1, 0): 1})])
    assert one is not None
    assert (one.low, one.high, one.n) == (-1.0, 1.0, 1)
    all_same = estimate(pairwise_agreement, own_units(Counter({(3, 0): 9, (1, 0): 4})))
    assert all_same is not None
    assert (all_same.value, all_same.low, all_same.high, all_same.n) == (1.0, pytest.approx(wilson_interval(9, 9)[0]), 1.0, 9)
    assert estimate(fleiss_kappa, []) is None


def test_wilsons_interval_is_the_published_one() -> None:
    assert wilson_interval(8, 10) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson_interval(0, 0) == (0.0, 1.0)


PAIR = PreferencePair("p", Task.CONVERSATION, (Message("user", "How tall?"),), "30 m", "blue", human_preference=1.0)


def labelled(number: int, annotator: str, says: str, prompt: int | None = None) -> PreferencePair:
    """`says` is first, second or tie of two responses, in an order that depends on the annotator; a pair has a prompt of its own if none is given."""
    return replace(_labelled(number, annotator, says), messages=(Message("user", f"question {number if prompt is None else prompt}"),))


def _labelled(number: int, annotator: str, says: str) -> PreferencePair:
    first, second = f"answer {number}", f"other {number}"
    if says == "tie":
        return replace(PAIR, chosen=first, rejected=second, preference=0.5, human_preference=0.5, metadata={"annotator": annotator})
    chosen, rejected = (first, second) if says == "first" else (second, first)
    if annotator > "m":  # the same label, written the other way round
        return replace(PAIR, chosen=rejected, rejected=chosen, preference=0.0, human_preference=0.0, metadata={"annotator": annotator})
    return replace(PAIR, chosen=chosen, rejected=rejected, metadata={"annotator": annotator})


def test_pairs_are_compared_by_their_responses_and_not_by_what_is_called_chosen() -> None:
    said = Annotations()
    for number in range(40):
        for annotator in ("anna", "ben", "zoe"):
            said.add(labelled(number, annotator, "tie" if number % 10 == 0 else "first" if number % 2 else "second"))
        said.add(labelled(number, "anna", "tie"))  # again, and otherwise: the first counts
    said.add(replace(PAIR, metadata={}))
    card = said.card()
    assert card is not None
    assert (card.annotators, card.labels, card.pairs) == (3, 120, 40)
    assert card.raw is not None
    assert card.raw.value == 1.0
    assert card.krippendorff_alpha is not None
    assert card.krippendorff_alpha.value == 1.0
    assert set(said.table()) == {(3, 0, 0), (0, 3, 0), (0, 0, 3)}
    said.add(labelled(1, "carl", "second"))
    assert (said.card() or card).raw.value == pytest.approx(1 - 3 / 123)  # type: ignore[union-attr]


def test_who_labels_at_random_is_the_first_of_the_people() -> None:
    said, generator = Annotations(), random.Random(3)
    for number in range(200):
        for annotator in ("anna", "ben", "carl"):
            said.add(labelled(number, annotator, "first" if annotator != "carl" or generator.random() < 0.5 else "second"))
    said.add(labelled(999, "dora", "first"))
    card = said.card()
    assert card is not None
    assert [(each.name, each.labels, each.comparisons) for each in card.people] == [
        ("carl", 200, 400), ("anna", 200, 400), ("ben", 200, 400), ("dora", 1, 0),
    ]  # fmt: skip
    carl, anna, _, dora = (each.agreement for each in card.people)
    assert carl == pytest.approx(0.5, abs=0.12)
    assert anna == pytest.approx((1 + (carl or 0.0)) / 2)
    assert dora is None


def test_nobody_named_is_no_agreement() -> None:
    said = Annotations()
    said.add(PAIR)
    assert said.card() is None


def test_intervals_draw_prompts_whose_pairs_go_together() -> None:
    """Four pairs a prompt; the three people agree on all of an easy prompt's, and throw coins on a hard one's: equal labels in 3/4 of comparisons."""
    generator, tries = random.Random(11), 150
    covered, naive = 0, 0
    for _ in range(tries):
        said = Annotations()
        for prompt in range(40):
            easy = generator.random() < 0.5
            for number in range(4):
                truth = generator.choice(("first", "second"))
                for annotator in ("anna", "ben", "zoe"):
                    said.add(labelled(4 * prompt + number, annotator, truth if easy else generator.choice(("first", "second")), prompt))
        card, alone = said.card(), estimate(fleiss_kappa, own_units(said.table()))
        assert card is not None
        assert card.fleiss_kappa is not None
        assert alone is not None
        assert (card.fleiss_kappa.value, card.fleiss_kappa.n) == (alone.value, 160)
        covered += card.fleiss_kappa.low <= 0.5 <= card.fleiss_kappa.high
        naive += alone.low <= 0.5 <= alone.high
    assert 0.90 * tries <= covered <= 0.98 * tries
    assert naive < 0.88 * tries
