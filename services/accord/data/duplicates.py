"""Pairs that occur more than once in a data set.

What does not belong here: when texts are alike (`accord.data.likeness`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from accord.data.likeness import exact_key, near_key, normalised
from accord.data.records import ANNOTATOR, PreferencePair


@dataclass(slots=True)
class Duplicates:
    """Pairs that were there before: by prompt, both responses in any order, and annotator. Of each the first label is remembered."""

    exact: int = 0
    near: int = 0
    contradicting: int = 0
    _exact: set[int] = field(default_factory=set)
    _labels: dict[int, int] = field(default_factory=dict)

    def add(self, pair: PreferencePair) -> bool:
        """Takes the next pair; whether it was there before, exactly or nearly."""
        annotator = hash(pair.metadata.get(ANNOTATOR, ""))
        exact, near = hash((exact_key(pair), annotator)), hash((near_key(pair), annotator))
        if near not in self._labels:
            self._labels[near] = _winner(pair)
            self._exact.add(exact)
            return False
        if exact in self._exact:
            self.exact += 1
        else:
            self.near += 1
            self._exact.add(exact)
        self.contradicting += self._labels[near] != _winner(pair)
        return True


def _winner(pair: PreferencePair) -> int:
    """A hash of the better response, normalised, the same whichever is called chosen; 0 for a tie."""
    if pair.preference == 0.5:
        return 0
    return hash(normalised(pair.chosen if pair.preference > 0.5 else pair.rejected)) or 1
