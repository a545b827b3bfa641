"""Calibration and kappa against closed forms and slow loops that share no code with them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from tests.unit.feedback.test_cards import label

from accord.client.feedback import Outcome
from accord.data.reliability import calibration_error
from accord.feedback.calibration import human_kappa, reliability
from accord.feedback.kappa import category
from accord.feedback.records import LabelFacts


def sure(preference: float, human: float | None) -> LabelFacts:
    outcome: Outcome = "tie" if preference == 0.5 else "a" if preference > 0.5 else "b"
    return label(str(random.random()), outcome, human, preference=preference)


def some_labels(seed: int, count: int) -> list[LabelFacts]:
    """Preferences and people's labels of all sorts, soft ones and ties among them."""
    chance = random.Random(seed)
    return [sure(chance.choice([0.5, 0.0, 1.0, chance.random()]), chance.choice([0.0, 1.0, 0.5, chance.random()])) for _ in range(count)]


def a_is_one(labels: list[LabelFacts]) -> list[LabelFacts]:
    """The labels with texts in such an order that A and B are kappa's categories."""
    return [replace(each, a_is_low=category(each.content_key, takes_low=True) == "one") for each in labels]


class TestCalibration:
    def test_by_hand(self) -> None:
        labels = [sure(0.9, 1.0), sure(0.1, 0.0), sure(0.9, 0.0), sure(0.9, 1.0), sure(0.6, 0.0), sure(0.6, 0.0)]
        low, high = reliability(labels)
        assert (low.low, low.high, low.confidence, low.accuracy.value, low.accuracy.n) == (0.6, 0.65, pytest.approx(0.6), 0.0, 2)
        assert (high.confidence, high.accuracy.value, high.accuracy.n) == (pytest.approx(0.9), 0.75, 4)
        assert calibration_error((low, high)) == pytest.approx((2 * 0.6 + 4 * 0.15) / 6)

    def test_a_judge_that_gives_peoples_own_shares_has_no_error(self) -> None:
        labels = [sure(step / 50, step / 50) for step in range(51)]
        assert calibration_error(reliability(labels)) == pytest.approx(0.0, abs=1e-12)
        opposite = [sure(step / 50, 1 - step / 50) for step in range(51)]
        assert calibration_error(reliability(opposite)) == pytest.approx(sum(abs(2 * step / 50 - 1) for step in range(51)) / 51)

    @pytest.mark.parametrize("seed", range(5))
    def test_against_a_slow_loop(self, seed: int) -> None:
        labels = some_labels(seed, 300)
        error, pairs = 0.0, 0
        for place in range(10):
            low, high = 0.5 + 0.05 * place, 0.55 + 0.05 * place
            confidence, accuracy, n = 0.0, 0.0, 0
            for found in labels:
                assert found.preference is not None
                assert found.human_preference is not None
                sureness = found.preference if found.preference >= 0.5 else 1 - found.preference
                if not (low <= sureness < high or (place == 9 and sureness == 1.0)):
                    continue
                people = found.human_preference if found.preference >= 0.5 else 1 - found.human_preference
                confidence, accuracy, n = confidence + sureness, accuracy + (0.5 if found.preference == 0.5 else people), n + 1
            error += abs(confidence - accuracy)
            pairs += n
        assert pairs == 300
        assert calibration_error(reliability(labels)) == pytest.approx(error / pairs, abs=1e-12)

    def test_swapping_a_and_b_changes_nothing(self) -> None:
        labels = some_labels(7, 200)
        swapped = [sure(1 - (found.preference or 0.0), 1 - (found.human_preference or 0.0)) for found in labels]
        assert calibration_error(reliability(labels)) == pytest.approx(calibration_error(reliability(swapped)) or 0.0, abs=1e-12)

    def test_nothing_to_compare_with_is_none(self) -> None:
        assert calibration_error(reliability([sure(0.9, None), label("x", "abstain", 1.0)])) is None


class TestKappa:
    def test_by_hand(self) -> None:
        """Cohen's 2 x 2: 20 A/A, 5 A/B, 10 B/A, 15 B/B: observed 0.7, chance 0.5, kappa 0.4."""
        counts = [("a", 1.0, 20), ("a", 0.0, 5), ("b", 1.0, 10), ("b", 0.0, 15)]
        labels = [label(f"{outcome}{human}{n}", outcome, human) for outcome, human, count in counts for n in range(count)]  # type: ignore[arg-type]
        kappa = human_kappa(a_is_one(labels))
        assert kappa is not None
        assert (kappa.value, kappa.n) == (pytest.approx(0.4), 50)
        assert kappa.low < 0.4 < kappa.high

    @pytest.mark.parametrize("a_is_low", [True, False])
    def test_data_that_calls_the_better_one_a_is_no_agreement_by_chance(self, a_is_low: bool) -> None:
        """People's choice is A throughout and always the same of the texts: by A and B, and by the texts, kappa would be exactly 0."""
        labels = [label(str(n), "a" if n % 10 < 8 else "b", 1.0, a_is_low=a_is_low) for n in range(1000)]
        kappa = human_kappa(labels)
        assert kappa is not None
        assert kappa.value == pytest.approx(0.6, abs=0.03)  # observed 0.8, chance one half

    def test_swapping_a_and_b_leaves_it_exactly(self) -> None:
        labels = [label(str(n), "a" if n % 10 < 8 else "b", n % 3 / 2, a_is_low=n % 7 < 3) for n in range(200)]
        swapped = [
            replace(each, outcome={"a": "b"}.get(each.outcome, "a"), human_preference=1 - (each.human_preference or 0), a_is_low=not each.a_is_low)
            for each in labels
        ]
        assert human_kappa(labels) == human_kappa(swapped)

    @pytest.mark.parametrize("seed", range(5))
    def test_against_a_slow_loop_over_all_cells(self, seed: int) -> None:
        labels = some_labels(seed, 200)
        table = [[0] * 3 for _ in range(3)]
        for found in labels:
            people = found.human_preference or 0.0
            table[["a", "tie", "b"].index(found.outcome)][0 if people > 0.5 else 1 if people == 0.5 else 2] += 1
        weights = [[sum(table[i]) * sum(row[j] for row in table) / 200 for j in range(3)] for i in range(3)]
        off = sum(table[i][j] for i in range(3) for j in range(3) if i != j)
        expected_off = sum(weights[i][j] for i in range(3) for j in range(3) if i != j)
        kappa = human_kappa(a_is_one(labels))
        assert kappa is not None
        assert kappa.value == pytest.approx(1 - off / expected_off)

    def test_where_it_is_not_defined(self) -> None:
        assert human_kappa([]) is None
        assert human_kappa(a_is_one([label("1", "a", 1.0), label("2", "a", 1.0)])) is None
        assert human_kappa([label("1", "abstain", 1.0), label("2", "a")]) is None

    @pytest.mark.parametrize(("human", "value"), [((1.0, 0.0), 1.0), ((0.0, 1.0), -1.0)])
    def test_its_ends(self, human: tuple[float, float], value: float) -> None:
        kappa = human_kappa(a_is_one([label("1", "a", human[0]), label("2", "b", human[1])]))
        assert kappa is not None
        assert kappa.value == value
