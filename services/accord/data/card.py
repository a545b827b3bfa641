"""The card of a data set: what is in it, what could not be used, and what a reader should know before training on it.

Pairs come one at a time. What stays in memory are digests, lengths and labels: 900 bytes a pair that names its annotator (100,000 took some 80 MB and
33 s of one core), whatever the length of their texts. What does not belong here: the card as text (`accord.data.card_text`).
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from accord.data.agreement import Estimate
from accord.data.annotations import AgreementCard, Annotations
from accord.data.duplicates import Duplicates
from accord.data.intervals import share_of_sums
from accord.data.likeness import prompt_key
from accord.data.privacy import KINDS, personal_data, swear_words
from accord.data.ratings import FIRST
from accord.data.readers import PairStream
from accord.data.records import ANNOTATOR, PreferencePair, ReadReport, RunningDigest

_LONG_CHARACTERS = 32_000
_FEW = 30
_PERCENTILES = (0, 10, 50, 90, 100)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Percentiles of lengths in characters."""

    least: int
    p10: int
    median: int
    p90: int
    most: int


@dataclass(frozen=True, slots=True)
class Found:
    """How often something was found, and in how many rows."""

    count: int
    rows: int


@dataclass(frozen=True, slots=True)
class DataCard:
    """What a data set is. `splits` are rows and `digests` sha256 by split: the digest is what a run's manifest names that was trained on that split.

    `labels` counts rows whose chosen response is better, worse or as good; `soft` of them are neither 0, 0.5 nor 1. `longer_is_better` is over
    decided rows of responses of differing length; its interval draws prompts, each with all of its rows. Of duplicates, each but the first is
    counted: `exact` and `near` by prompt, responses and annotator, `contradicting` with another label than the first. `metadata` counts rows by what
    they tell of themselves, `unread` by the columns that nobody read.
    """

    source: str
    seen: int
    rows: int
    rejected: Mapping[str, int]
    examples: tuple[str, ...]
    splits: Mapping[str, int]
    digests: Mapping[str, str]
    tasks: Mapping[str, int]
    prompts: int
    prompt_characters: Lengths | None
    response_characters: Lengths | None
    long_rows: int
    turns: Mapping[int, int]
    labels: Mapping[str, int]
    human_labels: int
    rated_rows: int
    longer_is_better: Estimate | None
    identical_responses: int
    exact_duplicates: int
    near_duplicates: int
    contradicting_duplicates: int
    personal_data: Mapping[str, Found]
    personal_rows: int
    profanity: Found
    metadata: Mapping[str, int]
    agreement: AgreementCard | None
    notes: tuple[str, ...] = ()
    unread: Mapping[str, int] = field(default_factory=dict)


def make_card(stream: PairStream, source: str) -> DataCard:
    """The card of all pairs of a stream, which is read to its end."""
    maker = CardMaker()
    for pair in stream:
        maker.add(pair)
    return maker.card(source, stream.report)


@dataclass(slots=True)
class CardMaker:
    """Counts as pairs come."""

    _splits: Counter[str] = field(default_factory=Counter)
    _digests: dict[str, RunningDigest] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)
    _tasks: Counter[str] = field(default_factory=Counter)
    _turns: Counter[int] = field(default_factory=Counter)
    _metadata: Counter[str] = field(default_factory=Counter)
    _found: Counter[str] = field(default_factory=Counter)
    _found_rows: Counter[str] = field(default_factory=Counter)
    _prompts: dict[int, tuple[int, int]] = field(default_factory=dict)  # rows in which the longer response is better, and in which either is
    _prompt_lengths: array[int] = field(default_factory=lambda: array("I"))
    _response_lengths: array[int] = field(default_factory=lambda: array("I"))
    _duplicates: Duplicates = field(default_factory=Duplicates)
    _annotations: Annotations = field(default_factory=Annotations)

    def add(self, pair: PreferencePair) -> None:
        """Takes the next pair."""
        self._splits[pair.split] += 1
        self._digests.setdefault(pair.split, RunningDigest()).add(pair)
        self._tasks[pair.task.value] += 1
        self._turns[len(pair.messages)] += 1
        self._metadata.update(pair.metadata.keys())
        self._measure(pair)
        self._label(pair)
        self._compare(pair)
        self._look(pair)
        self._duplicates.add(pair)
        self._annotations.add(pair)

    def card(self, source: str, report: ReadReport) -> DataCard:
        """The card of what came so far."""
        counts, duplicates = self._counts, self._duplicates
        card = DataCard(
            source=source, seen=report.seen, rows=report.rows, rejected=dict(report.rejected), examples=report.examples,
            splits=dict(self._splits), digests={split: digest.hexdigest() for split, digest in self._digests.items()},
            tasks=dict(self._tasks), prompts=len(self._prompts), prompt_characters=_lengths(self._prompt_lengths),
            response_characters=_lengths(self._response_lengths), long_rows=counts["long"], turns=dict(sorted(self._turns.items())),
            labels={name: counts[name] for name in ("chosen", "rejected", "tie", "soft")}, human_labels=counts["human"],
            rated_rows=counts["rated"], longer_is_better=self._longer_is_better(),
            identical_responses=counts["identical"], exact_duplicates=duplicates.exact, near_duplicates=duplicates.near,
            contradicting_duplicates=duplicates.contradicting,
            personal_data={kind: Found(self._found[kind], self._found_rows[kind]) for kind in KINDS},
            personal_rows=counts["personal"],
            profanity=Found(self._found["profanity"], self._found_rows["profanity"]), metadata=dict(sorted(self._metadata.items())),
            agreement=self._annotations.card(), unread=report.unread,
        )  # fmt: skip
        return replace(card, notes=(*report.misspellings(), *notes_on(card)))

    def _measure(self, pair: PreferencePair) -> None:
        prompt = sum(len(message.content) for message in pair.messages)
        self._prompt_lengths.append(prompt)
        self._response_lengths.extend((len(pair.chosen), len(pair.rejected)))
        self._counts["long"] += prompt + max(len(pair.chosen), len(pair.rejected)) > _LONG_CHARACTERS

    def _label(self, pair: PreferencePair) -> None:
        counts, preference = self._counts, pair.preference
        counts["tie" if preference == 0.5 else "chosen" if preference > 0.5 else "rejected"] += 1
        counts["soft"] += preference not in (0.0, 0.5, 1.0)
        counts["human"] += pair.human_preference is not None
        counts["rated"] += pair.rating_gap is not None
        counts["identical"] += pair.chosen == pair.rejected

    def _compare(self, pair: PreferencePair) -> None:
        """Whether the longer response is the better one."""
        key, longer = prompt_key(pair.messages), len(pair.chosen) - len(pair.rejected)
        hits, rows = self._prompts.get(key, (0, 0))
        if pair.preference != 0.5 and longer:
            hits, rows = hits + ((longer > 0) == (pair.preference > 0.5)), rows + 1
        self._prompts[key] = hits, rows

    def _longer_is_better(self) -> Estimate | None:
        decided = [(hits, rows) for hits, rows in self._prompts.values() if rows]
        return share_of_sums(decided, sum(rows for _, rows in decided))

    def _look(self, pair: PreferencePair) -> None:
        """Personal data and swear words of prompt and responses."""
        row: Counter[str] = Counter()
        for text in (*(message.content for message in pair.messages), pair.chosen, pair.rejected):
            row += personal_data(text)
            row["profanity"] += swear_words(text)
        self._found += row
        self._counts["personal"] += any(row[kind] for kind in KINDS)
        self._found_rows.update(kind for kind, count in row.items() if count)


def _lengths(values: array[int]) -> Lengths | None:
    if not values:
        return None
    ordered = sorted(values)
    return Lengths(*(ordered[round(percent / 100 * (len(ordered) - 1))] for percent in _PERCENTILES))


def notes_on(card: DataCard) -> Iterable[str]:
    """What a reader should know, in sentences."""
    lost = card.seen - card.rows - card.rejected.get(FIRST, 0)  # the first rating of a prompt is in the pairs with later ones
    if lost > 0.05 * card.seen:
        yield f"{lost} of {card.seen} rows could not be used."
    if card.human_labels and ANNOTATOR not in card.metadata:
        yield "No row says who labelled it. Labels count as people's: where a model gave them, agreement with people is agreement with that model."
    longer = card.longer_is_better
    if longer is not None and longer.n >= _FEW and (longer.low > 0.5 or longer.high < 0.5):
        kind = "longer" if longer.low > 0.5 else "shorter"
        value = longer.value if longer.low > 0.5 else 1 - longer.value
        yield f"The {kind} response is the better one in {value:.0%} of the decided rows: a reward model can learn length instead of quality."
    if card.exact_duplicates + card.near_duplicates:
        yield f"{card.exact_duplicates + card.near_duplicates} rows repeat an earlier one; `accord data dedupe` leaves them out."
    if card.contradicting_duplicates:
        yield f"{card.contradicting_duplicates} of them have another label than the row that they repeat."
    if card.personal_rows:
        yield f"{card.personal_rows} rows hold what looks like personal data: a policy can learn it by heart."
    if card.long_rows:
        yield f"{card.long_rows} rows are over {_LONG_CHARACTERS} characters: a run counts and leaves out what is over its limits of tokens."
    agreement = card.agreement
    if agreement is not None and agreement.krippendorff_alpha is not None and agreement.krippendorff_alpha.low <= 0:
        yield "The annotators' agreement cannot be told from chance: the interval of Krippendorff's alpha reaches 0."
