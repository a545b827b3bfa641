"""Records to token ids, within the limits of length, with an account of what was left out; and the order in which a run sees them.

The order is a pure function of (seed, epoch, id): a resumed run continues where it was without any state. What does not belong here:
padding (`accord.models.batching`) and reading (`accord.data`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from accord.data.records import Demonstration, PreferencePair, Prompt, Text
from accord.errors import InvalidArgumentError
from accord.models.encoding import PromptEncoder


class HasId(Protocol):
    """Something with an id of its own."""

    @property
    def id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A preference pair as token ids; responses end with the end-of-turn token."""

    id: str
    group: str
    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    preference: float


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """A prompt with the response to learn, as token ids; the prompt is empty for running text."""

    id: str
    prompt: tuple[int, ...]
    response: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as token ids."""

    id: str
    prompt: tuple[int, ...]


ItemT = TypeVar("ItemT", bound=HasId)


@dataclass(frozen=True)
class Encoded(Generic[ItemT]):
    """Rows that fit, in a stable order, and how many did not for which reason."""

    rows: tuple[ItemT, ...]
    left_out: Counter[str]

    def account(self, what: str) -> str:
        """What was kept and why the rest was not, as a sentence."""
        total = len(self.rows) + sum(self.left_out.values())
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.left_out.items()))
        return f"kept {len(self.rows)} of {total} {what}" + (f": {reasons}" if reasons else "")

    def at_least_one(self, what: str, field: str) -> Encoded[ItemT]:
        """Itself.

        Raises:
            InvalidArgumentError: no row fits.
        """
        if not self.rows:
            raise InvalidArgumentError(f"{self.account(what)}; nothing is left to train on", field=field)
        return self


@dataclass(frozen=True, slots=True)
class Limits:
    """Most tokens of a prompt and of a response."""

    prompt: int
    response: int


def encode_pairs(encoder: PromptEncoder, pairs: Sequence[PreferencePair], limits: Limits) -> Encoded[EncodedPair]:
    """Pairs within the limits; an end-of-turn token counts as part of a response."""
    kept: list[EncodedPair] = []
    left_out: Counter[str] = Counter()
    for pair in pairs:
        prompt = tuple(encoder.encode_prompt(pair.messages))
        chosen, rejected = (tuple(encoder.encode_response(text, append_eos=True)) for text in (pair.chosen, pair.rejected))
        reason = _too_long(len(prompt), max(len(chosen), len(rejected)), limits)
        if reason:
            left_out[reason] += 1
        else:
            kept.append(EncodedPair(pair.pair_id, pair.group or pair.pair_id, prompt, chosen, rejected, pair.preference))
    return Encoded(tuple(kept), left_out)


def encode_demonstrations(encoder: PromptEncoder, rows: Sequence[Demonstration], limits: Limits) -> Encoded[EncodedExample]:
    """Demonstrations within the limits."""
    kept: list[EncodedExample] = []
    left_out: Counter[str] = Counter()
    for row in rows:
        prompt, response = tuple(encoder.encode_prompt(row.messages)), tuple(encoder.encode_response(row.response, append_eos=True))
        reason = _too_long(len(prompt), len(response), limits)
        if reason:
            left_out[reason] += 1
        else:
            kept.append(EncodedExample(row.prompt_id, prompt, response))
    return Encoded(tuple(kept), left_out)


def encode_prompts(encoder: PromptEncoder, rows: Sequence[Prompt], limits: Limits) -> Encoded[EncodedPrompt]:
    """Prompts within the limit."""
    kept: list[EncodedPrompt] = []
    left_out: Counter[str] = Counter()
    for row in rows:
        prompt = tuple(encoder.encode_prompt(row.messages))
        reason = _too_long(len(prompt), 0, limits)
        if reason:
            left_out[reason] += 1
        else:
            kept.append(EncodedPrompt(row.prompt_id, prompt))
    return Encoded(tuple(kept), left_out)


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


def batch_at(rows: Sequence[ItemT], step: int, batch_size: int, seed: int) -> list[ItemT]:
    """The rows of a step, counted from 0: epoch after epoch, each in an order of its own, without state."""
    first = step * batch_size
    chosen: list[ItemT] = []
    orders: dict[int, list[int]] = {}
    for place in range(first, first + batch_size):
        epoch, position = divmod(place, len(rows))
        if epoch not in orders:
            orders[epoch] = epoch_order([row.id for row in rows], epoch, seed)
        chosen.append(rows[orders[epoch][position]])
    return chosen


def epoch_order(ids: Sequence[str], epoch: int, seed: int) -> list[int]:
    """Indices in the order of an epoch."""
    keys = [hashlib.sha256(f"{seed} {epoch} {item}".encode()).digest() for item in ids]
    return sorted(range(len(ids)), key=lambda index: (keys[index], index))


def _too_long(prompt: int, response: int, limits: Limits) -> str:
    if prompt > limits.prompt:
        return f"with a prompt over max_prompt_tokens {limits.prompt}"
    if response > limits.response:
        return f"with a response over max_response_tokens {limits.response}"
    return ""
