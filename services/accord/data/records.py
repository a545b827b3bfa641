"""What readers return: prompts, preference pairs, demonstrations and texts, with an account of what could not be used.

What does not belong here: reading files (`accord.data.readers`) and tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Generic, TypeVar

from accord.text.chat import Message
from accord.text.tasks import Task

ANNOTATOR, CONFIDENCE, SECONDS, REASON, LABELLED_AT = "annotator", "confidence", "seconds", "reason", "labelled_at"
"""Keys of `PreferencePair.metadata` that say who labelled the pair, how sure, in how much time, why and when; the same for every format."""
LABEL_JOB = "label_job"
"""Key of `PreferencePair.metadata`: the label job whose judge labelled the pair."""
CHOSEN_CANDIDATE = "chosen_candidate"
"""Key of `PreferencePair.metadata`: which of a label job's two candidates, a or b, is the chosen response."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to respond to, with a reference response where one is known."""

    prompt_id: str
    task: Task
    messages: tuple[Message, ...]
    reference: str | None = None
    split: str = "train"
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two responses to one prompt.

    `preference` is the probability that `chosen` is better: 1 for a hard label, 0.5 for a tie. `group` is the same for all pairs of one
    prompt. `human_preference` is that probability according to people, None where nobody was asked. `rating_gap` is the rating of `chosen` less
    that of `rejected`, on the raters' scale, None where they were not rated.
    """

    pair_id: str
    task: Task
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    preference: float = 1.0
    group: str = ""
    human_preference: float | None = None
    reference: str | None = None
    split: str = "train"
    metadata: Mapping[str, str] = field(default_factory=dict)
    rating_gap: float | None = None


def turned_facts(facts: Mapping[str, str]) -> dict[str, str]:
    """A pair's metadata once chosen and rejected have changed places: what is said of `chosen` under the name for `rejected` and the other way
    round, as `policy_chosen` of TL;DR. Twice turned it is as it was."""
    others = {"chosen": "rejected", "rejected": "chosen"}
    found = {"_".join(others.get(part, part) for part in key.split("_")): value for key, value in facts.items() if key != CHOSEN_CANDIDATE}
    if CHOSEN_CANDIDATE in facts:
        found[CHOSEN_CANDIDATE] = {"a": "b", "b": "a"}.get(facts[CHOSEN_CANDIDATE], facts[CHOSEN_CANDIDATE])
    return found


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt with the response to learn."""

    prompt_id: str
    task: Task
    messages: tuple[Message, ...]
    response: str
    split: str = "train"
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Text:
    """Running text, for the pretraining term."""

    text_id: str
    text: str
    split: str = "train"


Record = Prompt | PreferencePair | Demonstration | Text
RecordT = TypeVar("RecordT", bound=Record)


@dataclass(frozen=True, slots=True)
class ReadReport:
    """An account of a reading: ``seen == rows + other_splits + over_limit + repeated + sum(rejected.values())``.

    `seen` counts the rows of the source, one for each label where a row holds several people's;
    `other_splits` and `over_limit` those left out on request; `repeated` those whose prompt was
    there before, where only prompts were asked for; `examples` are "where: reason" lines. `digest` is the sha256 of the rows' canonical JSON.
    `unread` counts rows by the columns that their format does not read, `misspelt` names the field that such a column nearly has the name of.
    `splits` counts the rows of other splits by what these are called.
    """

    seen: int
    rows: int
    other_splits: int
    over_limit: int
    rejected: Mapping[str, int]
    examples: tuple[str, ...]
    digest: str
    repeated: int = 0
    unread: Mapping[str, int] = field(default_factory=dict)
    misspelt: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, int] = field(default_factory=dict)

    def misspellings(self) -> list[str]:
        """A sentence for each column that was not read and nearly has a field's name."""
        return [f"The column {name} was not read, of {self.unread[name]} rows: is it meant to be {near}?" for name, near in self.misspelt.items()]

    def account(self) -> str:
        """What was used and why the rest was not, as a sentence."""
        reasons = {
            "of other splits": self.other_splits, "over the limit": self.over_limit, "with a prompt that was there before": self.repeated,
            **self.rejected,
        }  # fmt: skip
        left_out = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
        return f"read {self.rows} of {self.seen} rows" + (f" ({left_out})" if left_out else "")


@dataclass(frozen=True, slots=True)
class Dataset(Generic[RecordT]):
    """Rows with the account of how they were read."""

    rows: tuple[RecordT, ...]
    report: ReadReport


def canonical(record: Record) -> str:
    """The record as JSON with sorted keys: equal for equal records, on any machine.

    A pair without ratings is written without them, as before there were any: the digests of such data, which studies are keyed by, stay.
    """
    values = asdict(record)
    if values.get("rating_gap", 0.0) is None:
        del values["rating_gap"]
    return json.dumps(values, sort_keys=True, ensure_ascii=False)


class RunningDigest:
    """sha256 over the canonical JSON of records, one a line: the name of a data set."""

    def __init__(self) -> None:
        self._total = hashlib.sha256()

    def add(self, record: Record) -> None:
        """Takes the next record."""
        self._total.update(canonical(record).encode("utf-8", errors="surrogatepass") + b"\n")

    def hexdigest(self) -> str:
        """The digest of the records so far."""
        return self._total.hexdigest()


def digest_of(records: Iterable[Record]) -> str:
    """The digest of the records in their order, as `RunningDigest`."""
    total = RunningDigest()
    for record in records:
        total.add(record)
    return total.hexdigest()
