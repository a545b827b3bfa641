"""Who said what of which pair, and how far these people agree; intervals draw prompts, each with all of its pairs. Pure.

What does not belong here: the statistics (`accord.data.agreement`) and their intervals (`accord.data.intervals`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from accord.data.agreement import Estimate, Table, fleiss_kappa, krippendorff_alpha, pairwise_agreement, with_two_labels
from accord.data.intervals import jackknife
from accord.data.likeness import digest64, exact_key, exact_prompt_key
from accord.data.records import ANNOTATOR, PreferencePair


@dataclass(frozen=True, slots=True)
class Annotator:
    """One person: labels given, and the share of comparisons with others' labels of the same pairs that agree; None without any."""

    name: str
    labels: int
    comparisons: int
    agreement: float | None


@dataclass(frozen=True, slots=True)
class AgreementCard:
    """Agreement of a data set's annotators; figures are None where they have no value, their intervals draw prompts. `pairs` had two labels or more.

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
    """Who said what of which pair. Holds some 400 bytes for a labelled pair; pairs that name no annotator are not kept.

    A label is one of: the response with the smaller digest is better, the other is, a tie. So it does not matter which of the two a row calls
    chosen, and neither category is favoured, as kappa and alpha need it. Of several labels of a pair by one person the first counts.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._said: dict[int, dict[int, int]] = {}
        self._prompts: dict[int, int] = {}

    def add(self, pair: PreferencePair) -> None:
        """Takes the next pair."""
        name = pair.metadata.get(ANNOTATOR)
        if not name:
            return
        number = self._numbers.setdefault(name, len(self._numbers))
        key = exact_key(pair)
        self._said.setdefault(key, {}).setdefault(number, _category(pair))
        self._prompts[key] = exact_prompt_key(pair.messages)

    def table(self) -> Counter[tuple[int, ...]]:
        """Pairs by how many said (smaller digest, larger digest, tie)."""
        return Counter(_counts(said) for said in self._said.values())

    def units(self) -> list[Counter[tuple[int, ...]]]:
        """The same of each prompt: its pairs go together."""
        found: dict[int, Counter[tuple[int, ...]]] = {}
        for key, said in self._said.items():
            found.setdefault(self._prompts[key], Counter())[_counts(said)] += 1
        return list(found.values())

    def card(self) -> AgreementCard | None:
        """The agreement; None where no pair names an annotator."""
        if not self._numbers:
            return None
        table, units = self.table(), self.units()
        raw, kappa, alpha = (estimate(statistic, units) for statistic in (pairwise_agreement, fleiss_kappa, krippendorff_alpha))
        labels = sum(items * sum(counts) for counts, items in table.items())
        return AgreementCard(len(self._numbers), labels, sum(with_two_labels(table).values()), raw, kappa, alpha, self._people())

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


def estimate(statistic: Callable[[Table], float | None], units: Iterable[Table]) -> Estimate | None:
    """A statistic of agreement with its interval by the jackknife over units (`accord.data.intervals`); None where it has no value."""
    least = 0.0 if statistic is pairwise_agreement else -1.0
    return jackknife(statistic, (with_two_labels(unit) for unit in units), least)


def _counts(said: Mapping[int, int]) -> tuple[int, ...]:
    counts = Counter(said.values())
    return counts[0], counts[1], counts[2]


def _category(pair: PreferencePair) -> int:
    preference = pair.preference if pair.human_preference is None else pair.human_preference
    if preference == 0.5:
        return 2
    smaller = digest64(pair.chosen) <= digest64(pair.rejected)
    return int((preference > 0.5) != smaller)
