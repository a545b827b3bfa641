"""Requests in compute: where each one stands, what it wants read next, and what it makes of the logits.

What does not belong here: composing and running a pass (`accord.policy.stepper`), waiting requests (`accord.rpc.fairqueue`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from accord.models.kvpool import KvPool, Slot
from accord.models.ragged import Piece
from accord.policy.backend import Chunk, FinishReason, GeneratedSample, GenerationRequest, LogprobsRequest, TopLogprobs
from accord.policy.engine import Item
from accord.policy.prefix_cache import BLOCK, Key, PrefixCache, block_keys
from accord.policy.sampling import row_uniforms
from accord.policy.text_stream import TextStream

_CHUNK_STEPS = 4
_SCORED_TOGETHER = 1024  # places for responses beside a prompt; more responses take turns


@dataclass(slots=True, eq=False)
class Prompt:
    """A prompt on its way into a slot; `read` tokens of it are there."""

    tokens: tuple[int, ...]
    slot: Slot
    adapter: str
    keys: list[Key]
    read: int = 0
    reused: int = 0

    @property
    def complete(self) -> bool:
        """Whether all of it is in the slot."""
        return self.read == len(self.tokens)

    def reuse(self, cache: PrefixCache) -> None:
        """Takes what the cache has; the last token is always read, for its logits."""
        while self.read % BLOCK == 0 and self.read + BLOCK < len(self.tokens):
            block = cache.get(self.keys[self.read // BLOCK])
            if block is None:
                return
            self.slot.kv[:, :, :, self.read : self.read + BLOCK].copy_(block)
            self.read += BLOCK
            self.reused += BLOCK

    def next_piece(self, budget: int, being_read: set[Key]) -> Piece | None:
        """The next tokens to read, at most about `budget`; None where another prompt reads the same block in this pass."""
        ahead = self.keys[self.read // BLOCK :] if self.read % BLOCK == 0 else []
        if ahead and ahead[0] in being_read:
            return None
        count = min(budget, len(self.tokens) - self.read)
        end = self.read + count
        if end < len(self.tokens) and end // BLOCK * BLOCK > self.read:
            end = end // BLOCK * BLOCK  # whole blocks can be shared
        being_read.update(ahead[: (end - self.read) // BLOCK])
        return Piece(self.slot, self.tokens[self.read : end], self.read, self.read, adapter=self.adapter)

    def advance(self, piece: Piece, cache: PrefixCache) -> None:
        """The piece has been read: its whole blocks go to the cache."""
        first, self.read = self.read // BLOCK, self.read + len(piece.tokens)
        for index in range(first, self.read // BLOCK):
            cache.put(self.keys[index], self.slot.kv[:, :, :, index * BLOCK : (index + 1) * BLOCK])


@dataclass(slots=True, eq=False)
class Row:
    """One sample on its way."""

    owner: Generation
    index: int
    slot: Slot
    stream: TextStream
    uniforms: list[float]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[TopLogprobs] = field(default_factory=list)
    finish: FinishReason | None = None
    streamed: int = 0
    seen: Tensor | None = None

    def next_piece(self) -> Piece:
        """The token sampled last, which is yet to be read."""
        place = len(self.owner.prompt.tokens) + len(self.token_ids) - 1
        return Piece(self.slot, self.token_ids[-1:], place, place, adapter=self.owner.prompt.adapter)

    def append(self, token: int, logprob: float, top: TopLogprobs | None, ends: Endings) -> None:
        """Takes a sampled token; `finish` says afterwards whether it was the last."""
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        if top is not None:
            self.top.append(top)
        if self.seen is not None:
            self.seen[token] = True
        self.finish = ends.reason(self, token)
        self.emit()

    def end(self, reason: FinishReason) -> None:
        """Ends it here."""
        self.finish = reason
        self.emit()

    def emit(self) -> None:
        """Hands over text, a few tokens at a time."""
        if not self.owner.request.stream or not (self.finish or len(self.token_ids) % _CHUNK_STEPS == 0):
            return
        text = self.stream.advance(self.token_ids, final=self.finish is not None)
        ids, self.streamed = tuple(self.token_ids[self.streamed :]), len(self.token_ids)
        if text or ids:
            self.owner.item.emit(Chunk(self.index, text, ids))

    def sample(self) -> GeneratedSample:
        """What the request is answered with."""
        assert self.finish is not None
        return GeneratedSample(
            self.index, self.stream.text(self.token_ids), tuple(self.token_ids), tuple(self.logprobs), self.finish,
            self.owner.request.sampling.seed, tuple(self.top),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Endings:
    """What ends a row besides its own settings."""

    eos_token_ids: frozenset[int]
    context_tokens: int

    def reason(self, row: Row, token: int) -> FinishReason | None:
        """Why a row that has just sampled this token ends, or None."""
        sampling = row.owner.request.sampling
        if token in self.eos_token_ids and not sampling.ignore_eos:
            return "eos"
        if token in sampling.stop_token_ids or row.stream.stopped(row.token_ids):
            return "stop"
        length = len(row.token_ids)
        return "length" if length >= sampling.max_tokens or len(row.owner.prompt.tokens) + length >= self.context_tokens else None


@dataclass(slots=True, eq=False)
class Generation:
    """A prompt and its n samples, which fork from it once it is read."""

    item: Item
    prompt: Prompt
    rows: list[Row] = field(default_factory=list)

    @property
    def request(self) -> GenerationRequest:
        """What is asked."""
        return cast(GenerationRequest, self.item.payload)

    @classmethod
    def begin(cls, item: Item, version: str, pool: KvPool, decode: Callable[[Sequence[int]], str], vocabulary: int) -> Generation | None:
        """Takes slots for all samples; None, and nothing is taken, while there is no room."""
        request = cast(GenerationRequest, item.payload)
        slots = _take_all(pool, [len(request.prompt_ids) + request.sampling.max_tokens] * request.n)
        if slots is None:
            return None
        found = cls(item, Prompt(request.prompt_ids, slots[0], version, block_keys(version, request.prompt_ids)))
        for index, slot in enumerate(slots):
            uniforms = row_uniforms(request.sampling.seed, index, request.sampling.max_tokens) if request.sampling.temperature else []
            row = Row(found, index, slot, TextStream(decode, request.sampling.stop), uniforms)
            if request.sampling.repetition_penalty != 1:
                row.seen = torch.zeros(vocabulary, dtype=torch.bool)
                row.seen[list(request.prompt_ids)] = True
            found.rows.append(row)
        return found

    def fork(self) -> None:
        """The prompt has been read into the first slot: the other samples get it too."""
        count = len(self.prompt.tokens)
        read = self.prompt.slot.kv[:, :, :, :count]
        for row in self.rows[1:]:
            row.slot.kv[:, :, :, :count].copy_(read)

    @property
    def slots(self) -> Iterator[Slot]:
        """The slots that are still held."""
        return (row.slot for row in self.rows if row.finish is None)

    @property
    def complete(self) -> bool:
        """Whether every sample has ended."""
        return all(row.finish is not None for row in self.rows)

    def answer(self) -> None:
        """Completes the item."""
        self.item.complete(tuple(row.sample() for row in self.rows))


@dataclass(slots=True)
class Target:
    """A token of a response whose logprob is wanted."""

    response: int
    place: int
    token: int


@dataclass(slots=True, eq=False)
class Scoring:
    """A prompt and given responses. Behind the prompt each response has a region of the slot; what does not fit takes its turn."""

    item: Item
    prompt: Prompt
    results: list[list[float]]
    next_response: int = 0
    next_place: int = 0
    done: int = 0  # tokens of the next response that are read
    open: int = 0  # targets without a logprob

    @property
    def request(self) -> LogprobsRequest:
        """What is asked."""
        return cast(LogprobsRequest, self.item.payload)

    @classmethod
    def begin(cls, item: Item, version: str, pool: KvPool) -> Scoring | None:
        """Takes a slot; None while there is no room."""
        request = cast(LogprobsRequest, item.payload)
        slots = _take_all(pool, [scoring_tokens(request)])
        if slots is None:
            return None
        prompt = Prompt(request.prompt_ids, slots[0], version, block_keys(version, request.prompt_ids))
        results = [[0.0] * len(response) for response in request.responses]
        return cls(item, prompt, results, next_place=len(request.prompt_ids), open=sum(map(len, results)))

    @property
    def slots(self) -> Iterator[Slot]:
        """The slot."""
        yield self.prompt.slot

    @property
    def complete(self) -> bool:
        """Whether every logprob is there."""
        return self.open == 0

    def answer(self) -> None:
        """Completes the item."""
        self.item.complete(self.results)

    def first_targets(self) -> list[Target]:
        """What the prompt's last position predicts: the first token of each response."""
        return [Target(index, 0, response[0]) for index, response in enumerate(self.request.responses)]

    def next_pieces(self, budget: int) -> Iterator[tuple[Piece, list[list[Target]]]]:
        """Pieces of responses, about `budget` tokens in all, each with what its positions predict. The last token of a response is not read."""
        shared = len(self.prompt.tokens)
        used = 0
        first = True
        while used < budget and self.next_response < len(self.request.responses):
            response = self.request.responses[self.next_response]
            length = len(response) - 1
            if self.done == 0 and self.next_place + length > self.prompt.slot.bank.tokens:
                if not first:
                    return  # the pieces of this pass still use the places
                self.next_place = shared
            count = min(budget - used, length - self.done)
            if count:
                place = self.next_place
                own = place if place > shared else 0
                yield (
                    Piece(self.prompt.slot, response[self.done : self.done + count], shared + self.done, place + self.done,
                          shared if own else 0, own, self.prompt.adapter),
                    [[Target(self.next_response, self.done + offset + 1, response[self.done + offset + 1])] for offset in range(count)],
                )  # fmt: skip
                first = False
            used += count
            self.done += count
            if self.done == length:
                self.next_place += length
                self.next_response, self.done = self.next_response + 1, 0

    def take(self, target: Target, logprob: float) -> None:
        """Records one logprob."""
        self.results[target.response][target.place] = logprob
        self.open -= 1


def scoring_tokens(request: LogprobsRequest) -> int:
    """Places that a scoring needs: its prompt, its longest response, and as many more as are worth it."""
    lengths = [len(response) - 1 for response in request.responses]
    return len(request.prompt_ids) + max(*lengths, min(sum(lengths), _SCORED_TOGETHER))


def _take_all(pool: KvPool, needs: Sequence[int]) -> list[Slot] | None:
    slots: list[Slot] = []
    for need in needs:
        slot = pool.take(need)
        if slot is None:
            for taken in slots:
                pool.give_back(taken)
            return None
        slots.append(slot)
    return slots
