"""Several labels of one pair as one soft label: their mean.

Two readings: the first takes the labels, 150 bytes a pair, the second gives each pair once. What does not belong here: how far the labels agree
(`accord.data.annotations`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from accord.data.likeness import digest64, exact_key
from accord.data.records import ANNOTATOR, CONFIDENCE, LABELLED_AT, REASON, SECONDS, PreferencePair, turned_facts

LABELS = "labels"
"""Key of the metadata that says how many labels a pair is the mean of."""
_OF_ONE_LABEL = {ANNOTATOR, CONFIDENCE, SECONDS, REASON, LABELLED_AT}


@dataclass(slots=True)
class _Sum:
    """Labels of a pair, as P(response of the smaller digest is better), and how often people gave them; rating gaps likewise."""

    labels: int = 0
    preference: float = 0.0
    people: int = 0
    human: float = 0.0
    rated: int = 0
    gap: float = 0.0


class MeanLabels:
    """The labels of all pairs, by the content of a pair in either order of its responses."""

    def __init__(self, pairs: Iterable[PreferencePair]) -> None:
        self._sums: dict[int, _Sum] = {}
        for pair in pairs:
            self._add(self._sums.setdefault(exact_key(pair), _Sum()), pair, small=_chosen_is_small(pair))

    def merged(self, pair: PreferencePair) -> PreferencePair | None:
        """The pair with the mean of its labels, better response first, the first time that it comes; None each later time.

        A pair of one label stays as it is. What was said of one label alone (annotator, confidence, reason) is left out of a mean's metadata; what
        is said of a response (`policy_chosen`) goes with it.
        """
        total = self._sums.get(exact_key(pair))
        if total is None or not total.labels:
            return None
        found = pair if total.labels == 1 else _mean(pair, total)
        total.labels = 0
        return found

    @staticmethod
    def _add(total: _Sum, pair: PreferencePair, *, small: bool) -> None:
        total.labels += 1
        total.preference += pair.preference if small else 1.0 - pair.preference
        if pair.human_preference is not None:
            total.people += 1
            total.human += pair.human_preference if small else 1.0 - pair.human_preference
        if pair.rating_gap is not None:
            total.rated += 1
            total.gap += pair.rating_gap if small else -pair.rating_gap


def _mean(pair: PreferencePair, total: _Sum) -> PreferencePair:
    small = total.preference / total.labels
    turned = (small < 0.5) == _chosen_is_small(pair) and small != 0.5
    chosen_is_small = _chosen_is_small(pair) != turned
    human = total.human / total.people if total.people else None
    gap = total.gap / total.rated if total.rated else None
    metadata = {key: value for key, value in pair.metadata.items() if key not in _OF_ONE_LABEL}
    return replace(
        pair, chosen=pair.rejected if turned else pair.chosen, rejected=pair.chosen if turned else pair.rejected, preference=max(small, 1.0 - small),
        human_preference=human if human is None or chosen_is_small else 1.0 - human, rating_gap=gap if gap is None or chosen_is_small else -gap,
        metadata={**(turned_facts(metadata) if turned else metadata), LABELS: str(total.labels)},
    )  # fmt: skip


def _chosen_is_small(pair: PreferencePair) -> bool:
    return digest64(pair.chosen) <= digest64(pair.rejected)
