"""Two judges beside each other: kappa against closed forms and an independent loop, orders turned, planted differences found."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from accord.client.feedback import Label, LabelPairItem
from accord.client.ledger import LabelRecord
from accord.feedback.comparing import Opinions, compare
from accord.feedback.kappa import cohen_kappa, kappa_with_interval
from accord.feedback.records import content_key
from accord.feedback.shares import length_ratio
from accord.text.chat import Message
from accord.text.tasks import Task


def record(p: float | None, a: str, b: str, *, task: Task = Task.CONVERSATION, human: float | None = None, margin: float = 0.0) -> LabelRecord:
    prompt = (Message("user", "q"),)
    outcome = "abstain" if p is None else "tie" if abs(p - 0.5) <= margin else "a" if p > 0.5 else "b"
    label = Label(f"{a}|{b}", p, outcome, "", (), "verdict", "r", "rd", "m", "d")  # type: ignore[arg-type]
    return LabelRecord(label, LabelPairItem(task, prompt, a, b, f"{a}|{b}", human), content_key(task, prompt, a, b), "", "", 0.0, "{}")


def opinions(*records: LabelRecord) -> Opinions:
    found = Opinions()
    for each in records:
        found.add(each)
    return found


def pairs_of(*records: LabelRecord) -> dict[str, LabelPairItem]:
    return {each.content_key: each.pair for each in records if each.pair is not None}


def test_kappa_of_known_tables() -> None:
    assert cohen_kappa({("y", "y"): 20, ("y", "n"): 5, ("n", "y"): 10, ("n", "n"): 15}) == pytest.approx(0.4)  # the example in every text book
    assert cohen_kappa({("low", "low"): 10, ("high", "high"): 10, ("tie", "tie"): 3}) == 1.0
    assert cohen_kappa({("low", "high"): 10, ("high", "low"): 10}) == -1.0
    assert cohen_kappa({("low", "low"): 25, ("low", "high"): 25, ("high", "low"): 25, ("high", "high"): 25}) == 0.0
    assert cohen_kappa({}) is None
    assert cohen_kappa({("low", "low"): 9}) is None


def own_units(said: Sequence[tuple[str, str]]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Items that do not go together."""
    return ((str(number), sides) for number, sides in enumerate(said))


def test_kappas_interval_is_that_of_a_jackknife_item_by_item() -> None:
    said = [("low", "low")] * 20 + [("low", "high")] * 5 + [("high", "low")] * 10 + [("high", "high")] * 15 + [("tie", "low")]
    left: list[float] = []
    for place in range(len(said)):
        value = cohen_kappa(Counter(said[:place] + said[place + 1 :]))
        assert value is not None
        left.append(value)
    n, mean = len(said), sum(left) / len(said)
    half = 1.959964 * math.sqrt((n - 1) / n * sum((value - mean) ** 2 for value in left))
    found = kappa_with_interval(own_units(said))
    assert found is not None
    assert (found.low, found.high, found.n) == (pytest.approx(found.value - half), pytest.approx(found.value + half), 51)
    alone = kappa_with_interval(own_units([("low", "low")] * 5 + [("high", "high")]))
    assert alone is not None
    assert (alone.value, alone.low, alone.high) == (1.0, -1.0, 1.0)  # without the one, nothing is left to disagree on


def test_intervals_cover_the_truth() -> None:
    """Two judges who say the truth with 0.85 and else the other side, over a balanced truth: kappa is 2 (0.85^2 + 0.15^2) - 1 = 0.49."""
    draw = random.Random(3)
    covered = 0
    for _ in range(200):
        said = []
        for _ in range(150):
            truth = draw.random() < 0.5
            first, second = ("low" if truth == (draw.random() < 0.85) else "high" for _ in range(2))
            said.append((first, second))
        found = kappa_with_interval(own_units(said))
        assert found is not None
        covered += found.low <= 0.49 <= found.high
    assert 0.90 <= covered / 200 <= 0.99


def test_pairs_are_the_same_whichever_response_was_a() -> None:
    first, turned = record(0.9, "x", "yy"), record(0.1, "yy", "x")
    found = compare(opinions(first).found, opinions(turned).found, pairs_of(first, turned))
    assert found.agreement is not None
    assert (found.agreement.value, found.mean_distance) == (1.0, pytest.approx(0.0))
    assert found.differences == ()
    opposite = record(0.9, "yy", "x")
    found = compare(opinions(first).found, opinions(opposite).found, pairs_of(first, opposite))
    assert found.agreement is not None
    assert found.agreement.value == 0.0
    (difference,) = found.differences
    assert (difference.pair.response_a, difference.first, difference.second) == ("x", 0.9, pytest.approx(0.1))


def test_a_judge_that_takes_the_longer_is_found_out_where_lengths_differ() -> None:
    lengths, truth = [], []
    for number in range(40):
        short, long = f"{number:02}", f"{number:02}" + "x" * (number % 4)  # ratios 1, 1.5, 2, 2.5
        human = float(number % 3 > 0)
        lengths.append(record(0.8 if len(short) > len(long) else 0.2 if len(short) < len(long) else 0.5, short, long, human=human))
        truth.append(record(0.7 if human else 0.3, short, long, human=human))
    found = compare(opinions(*lengths).found, opinions(*truth).found, pairs_of(*lengths))
    assert found.pairs == 40
    assert found.first_takes_longer is not None
    assert found.first_takes_longer.value == 1.0
    assert found.second_takes_longer is not None
    assert found.second_takes_longer.value < 0.5
    assert found.second_human_agreement is not None
    assert found.second_human_agreement.value == 1.0
    assert found.first_human_agreement is not None
    assert found.first_human_agreement.value < 0.5
    parts = {part.name: part.agreement for part in found.parts}
    assert parts["longer 1 to 1.1 times"].value == 0.0  # there the first calls a tie, the second never
    assert sum(share.n for name, share in parts.items() if name.startswith("longer")) == 40
    assert parts["task conversation"].n == 40
    assert "task summarization" not in parts


def test_the_worst_come_first_and_abstentions_are_apart() -> None:
    one = [record(0.6, "a1", "b1"), record(0.95, "a2", "b2"), record(None, "a3", "b3"), record(0.9, "a4", "b4"), record(0.9, "only", "one")]
    two = [record(0.4, "a1", "b1"), record(0.1, "a2", "b2"), record(0.9, "a3", "b3"), record(0.8, "a4", "b4")]
    found = compare(opinions(*one).found, opinions(*two).found, pairs_of(*one), worst=1)
    assert (found.pairs, found.abstained) == (4, 1)
    assert [difference.pair.response_a for difference in found.differences] == ["a2"]
    assert found.mean_distance == pytest.approx((0.2 + 0.85 + 0.1) / 3)
    assert found.agreement is not None
    assert found.agreement.value == pytest.approx(1 / 3)


def test_nothing_in_common_is_nothing_measured() -> None:
    found = compare(opinions(record(0.9, "a", "b")).found, opinions(record(0.9, "c", "d")).found, {})
    assert (found.pairs, found.agreement, found.kappa, found.mean_distance, found.parts) == (0, None, None, None, ())


def test_the_last_label_of_a_pair_counts_and_labels_without_text_are_counted() -> None:
    found = opinions(record(0.9, "a", "b"), record(0.2, "a", "b"))
    assert [opinion.preference for opinion in found.found.values()] == [0.2]
    bare = record(0.9, "a", "b")
    found.add(LabelRecord(bare.label, None, bare.content_key, "", "", 0.0, "{}"))
    assert found.without_text == 1


@pytest.mark.parametrize(("a", "b", "ratio"), [(2, 1, 2.0), (1, 3, 3.0), (0, 0, 1.0), (0, 1, math.inf)])
def test_length_ratios(a: int, b: int, ratio: float) -> None:
    assert length_ratio(a, b) == ratio
