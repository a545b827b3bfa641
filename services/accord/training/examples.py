"""Records to token ids, within the limits of length, with an account of what was left out; and the order in which a run sees them.

The order is a pure function of (seed, epoch, id): a resumed run continues where it was without any state. What does not belong here:
padding (`accord.models.batching`) and reading (`accord.data`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Generic, Protocol, TypeVar

from accord.data.records import Demonstration, PreferencePair, Prompt, RecordT, Text
from accord.errors import InvalidArgumentError
from accord.models.encoding import PromptEncoder


class HasId(Protocol):
    """Something with an id of its own."""

    @property
    def id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A preference pair as token ids; responses end with the end-of-turn token. `preference` and `rating_gap` are those of `PreferencePair`."""

    id: str
    group: str
    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    preference: float
    rating_gap: float | None = None

    @property
    def turned(self) -> EncodedPair:
        """The same pair with its responses in the other order."""
        gap = None if self.rating_gap is None else -self.rating_gap
        return replace(self, chosen=self.rejected, rejected=self.chosen, preference=1.0 - self.preference, rating_gap=gap)


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """A prompt with the response to learn, as token ids; the prompt is empty for running text."""

    id: str
    prompt: tuple[int, ...]
    response: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as token ids, and in words for who reads those."""

    id: str
    prompt: tuple[int, ...]
    record: Prompt | None = None


ItemT = TypeVar("ItemT", bound=HasId)


@dataclass(frozen=True)
class Encoded(Generic[ItemT]):
    """Rows that fit, in a stable order, how many did not for which reason, and the label jobs that the data's rows say they come from."""

    rows: tuple[ItemT, ...]
    left_out: Counter[str]
    source: str = ""
    label_jobs: tuple[str, ...] = ()

    def account(self, what: str) -> str:
        """What was kept and why the rest was not, as a sentence, behind the reader's account in `source`."""
        total = len(self.rows) + sum(self.left_out.values())
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.left_out.items()))
        said = f"kept {len(self.rows)} of {total} {what}" + (f": {reasons}" if reasons else "")
        return f"{self.source}; {said}" if self.source else said

    def at_least_one(self, what: str, field: str) -> Encoded[ItemT]:
        """Itself.

        Raises:
            InvalidArgumentError: no row fits.
        """
        if not self.rows:
            raise InvalidArgumentError(f"{self.account(what)}; nothing is left of {field}", field=field)
        return self


@dataclass(frozen=True, slots=True)
class Limits:
    """Most tokens of a prompt, of a response, and of both together (the model's context)."""

    prompt: int
    response: int
    context: int


def encode_pairs(encoder: PromptEncoder, pairs: Sequence[PreferencePair], limits: Limits) -> Encoded[EncodedPair]:
    """Pairs within the limits; an end-of-turn token counts as part of a response."""

    def encode(pair: PreferencePair) -> EncodedPair:
        prompt = tuple(encoder.encode_prompt(pair.messages))
        chosen, rejected = (tuple(encoder.encode_response(text, append_eos=True)) for text in (pair.chosen, pair.rejected))
        _check(len(prompt), max(len(chosen), len(rejected)), limits)
        return EncodedPair(pair.pair_id, pair.group or pair.pair_id, prompt, chosen, rejected, pair.preference, pair.rating_gap)

    return _encoded(pairs, encode)


def encode_demonstrations(encoder: PromptEncoder, rows: Sequence[Demonstration], limits: Limits) -> Encoded[EncodedExample]:
    """Demonstrations within the limits."""

    def encode(row: Demonstration) -> EncodedExample:
        prompt, response = tuple(encoder.encode_prompt(row.messages)), tuple(encoder.encode_response(row.response, append_eos=True))
        _check(len(prompt), len(response), limits)
        return EncodedExample(row.prompt_id, prompt, response)

    return _encoded(rows, encode)


def encode_prompts(encoder: PromptEncoder, rows: Sequence[Prompt], limits: Limits) -> Encoded[EncodedPrompt]:
    """Prompts within the limit that leave room for the longest response."""

    def encode(row: Prompt) -> EncodedPrompt:
        prompt = tuple(encoder.encode_prompt(row.messages))
        _check(len(prompt), limits.response, limits)
        return EncodedPrompt(row.prompt_id, prompt, row)

    return _encoded(rows, encode)


def encode_texts(encoder: PromptEncoder, rows: Sequence[Text], max_tokens: int) -> Encoded[EncodedExample]:
    """Running text for the pretraining term, cut to the first `max_tokens`: the first token predicts the rest."""
    kept: list[EncodedExample] = []
    left_out: Counter[str] = Counter()
    for row in rows:
        ids = tuple(encoder.encode_text(row.text))[:max_tokens]
        if len(ids) < 2:
            left_out["shorter than 2 tokens"] += 1
        else:
            kept.append(EncodedExample(row.text_id, ids[:1], ids[1:]))
    return Encoded(tuple(kept), left_out)


def batch_at(
    rows: Sequence[ItemT], step: int, batch_size: int, seed: int, *, key: Callable[[ItemT], str] = lambda row: row.id
) -> list[ItemT]:  # fmt: skip
    """The rows of a step, counted from 0: epoch after epoch, each in an order of its own, without state. Rows of one key stay together."""
    return rows_from(rows, step * batch_size, batch_size, seed, key=key)


def rows_from(
    rows: Sequence[ItemT], first: int, count: int, seed: int, *, key: Callable[[ItemT], str] = lambda row: row.id
) -> list[ItemT]:  # fmt: skip
    """The next `count` rows after `first` of them have been seen, in the order of `batch_at`."""
    keys = tuple(key(row) for row in rows)
    epochs = range(first // len(rows), (first + count - 1) // len(rows) + 1)
    orders = {epoch: _known_order(keys, epoch, seed) for epoch in epochs}
    places = (divmod(place, len(rows)) for place in range(first, first + count))
    return [rows[orders[epoch][position]] for epoch, position in places]


def epoch_order(ids: Sequence[str], epoch: int, seed: int) -> list[int]:
    """Indices in the order of an epoch."""
    keys = [hashlib.sha256(f"{seed} {epoch} {item}".encode()).digest() for item in ids]
    return sorted(range(len(ids)), key=lambda index: (keys[index], index))


@lru_cache(maxsize=8)
def _known_order(keys: tuple[str, ...], epoch: int, seed: int) -> list[int]:
    """An order that many steps ask for, made once: of 60,000 rows it takes a tenth of a second."""
    return epoch_order(keys, epoch, seed)


class _Unfit(Exception):
    """A row that a run leaves out; the message is the reason."""


def _encoded(rows: Sequence[RecordT], encode: Callable[[RecordT], ItemT]) -> Encoded[ItemT]:
    """What could be encoded; a row that is too long, or that the model's chat template refuses, is counted and not the end of a run."""
    kept: list[ItemT] = []
    left_out: Counter[str] = Counter()
    for row in rows:
        try:
            kept.append(encode(row))
        except _Unfit as reason:
            left_out[str(reason)] += 1
        except InvalidArgumentError as error:
            left_out[f"refused ({error.message})"] += 1
    return Encoded(tuple(kept), left_out)


def _check(prompt: int, response: int, limits: Limits) -> None:
    if prompt > limits.prompt:
        raise _Unfit(f"with a prompt over max_prompt_tokens {limits.prompt}")
    if response > limits.response:
        raise _Unfit(f"with a response over max_response_tokens {limits.response}")
    if prompt + response > limits.context:
        raise _Unfit(f"with prompt and response over the model's context of {limits.context} tokens")
