"""What of one split stands in another: prompts and responses that are equal when normalised, and those that share much of their n-grams.

Memory is that of the split in question, some 100 bytes for each word of it; the other may be of any size. What does not belong here: making splits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from accord.data.likeness import NGRAM_WORDS, digest64, ngrams, normalised, prompt_key, prompt_text
from accord.data.records import PreferencePair

OVERLAP = 0.5
_EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class Contamination:
    """How many of the `pairs` of `split` have a prompt, or a response, that stands in `other`.

    `equal` ones are the same when normalised. A text overlaps when it is equal, or at least `overlap` of its n-grams of `ngram_words` words stand
    somewhere in the other split's prompts (responses); a text of fewer words can only be equal. `examples` are ids of pairs whose prompts overlap.
    """

    split: str
    other: str
    pairs: int
    equal_prompts: int
    overlapping_prompts: int
    equal_responses: int
    overlapping_responses: int
    examples: tuple[str, ...]
    ngram_words: int = NGRAM_WORDS
    overlap: float = OVERLAP


@dataclass(frozen=True, slots=True)
class Split:
    """A split that can be read more than once."""

    name: str
    pairs: Callable[[], Iterable[PreferencePair]]


def contamination(split: Split, other: Split) -> Contamination:
    """How much of `split` stands in `other`; reads the first twice and the second once."""
    prompts, responses = _Texts(), _Texts()
    for pair in split.pairs():
        prompts.add(_prompt_digest(pair), prompt_text(pair.messages))
        for response in _responses(pair):
            responses.add(_digest(response), response)
    for pair in other.pairs():
        prompts.meet(_prompt_digest(pair), prompt_text(pair.messages))
        for response in _responses(pair):
            responses.meet(_digest(response), response)
    counts = dict.fromkeys(("pairs", "equal_prompts", "overlapping_prompts", "equal_responses", "overlapping_responses"), 0)
    examples: list[str] = []
    for pair in split.pairs():
        prompt = prompts.likeness(_prompt_digest(pair), prompt_text(pair.messages))
        same = max(responses.likeness(_digest(text), text) for text in _responses(pair))
        counts["pairs"] += 1
        counts["equal_prompts"] += prompt == 1
        counts["overlapping_prompts"] += prompt >= OVERLAP
        counts["equal_responses"] += same == 1
        counts["overlapping_responses"] += same >= OVERLAP
        if prompt >= OVERLAP and len(examples) < _EXAMPLES:
            examples.append(pair.pair_id)
    return Contamination(split.name, other.name, examples=tuple(examples), **counts)


@dataclass(slots=True)
class _Texts:
    """Texts of a split, and what of them the other split has."""

    _digests: set[int] = field(default_factory=set)
    _ngrams: set[int] = field(default_factory=set)
    _met_digests: set[int] = field(default_factory=set)
    _met_ngrams: set[int] = field(default_factory=set)

    def add(self, digest: int, text: str) -> None:
        """Takes a text of the split."""
        if digest not in self._digests:
            self._digests.add(digest)
            self._ngrams |= ngrams(text)

    def meet(self, digest: int, text: str) -> None:
        """Takes a text of the other split."""
        if digest in self._digests:
            self._met_digests.add(digest)
        self._met_ngrams |= ngrams(text) & self._ngrams

    def likeness(self, digest: int, text: str) -> float:
        """1 for a text that the other split has, else the share of its n-grams that it has, below 1."""
        if digest in self._met_digests:
            return 1.0
        found = ngrams(text)
        return min(len(found & self._met_ngrams) / len(found), 1 - 1e-9) if len(found) > 1 else 0.0


def _prompt_digest(pair: PreferencePair) -> int:
    return prompt_key(pair.messages)


def _digest(text: str) -> int:
    return digest64(normalised(text))


def _responses(pair: PreferencePair) -> tuple[str, str]:
    return pair.chosen, pair.rejected
