"""One pass after another over the requests in compute: which tokens are read in a pass, and what is sampled from it.

Each pass reads the last token of every row that decodes, and prompts with what is left of a budget of tokens, so that a long prompt does not
hold up the others. Rows join and leave between passes. What does not belong here: who is let in (`accord.policy.inprocess`), the model's own
work (`accord.models.inference`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from prometheus_client import Counter, Gauge, Histogram
from torch import Tensor

from accord.errors import FailedPreconditionError
from accord.models.inference import InferenceModel
from accord.models.kvpool import KvPool
from accord.models.ragged import Piece
from accord.policy.backend import GenerationRequest, LogprobsRequest, TopLogprobs
from accord.policy.engine import INTERACTIVE, Item
from accord.policy.flight import Endings, Generation, Row, Scoring, Target, scoring_tokens
from accord.policy.prefix_cache import BLOCK, Key, PrefixCache
from accord.policy.sampling import RowSampling, sample

_TOKENS = Counter("accord_policy_tokens_total", "Tokens computed", ["kind"])
_BEGUN = Counter("accord_policy_requests_begun_total", "Requests that reached compute")
_STEPS = Counter("accord_policy_decode_steps_total", "Passes of the model")
_ROWS = Histogram("accord_policy_batch_rows", "Sequences in a pass", buckets=(1, 2, 4, 8, 16, 32, 64, 128))
_KV_BYTES = Gauge("accord_policy_kv_bytes", "Bytes of key-value slots")

Unit = Generation | Scoring


@dataclass(slots=True)
class _Read:
    """A piece of the pass, whose it is, and what its positions are asked for: offsets with targets (none: a token is sampled)."""

    piece: Piece
    owner: Row | Generation | Scoring
    asks: list[tuple[int, list[Target]]] = field(default_factory=list)

    @property
    def order(self) -> tuple[str, bool, int, int]:
        return (self.piece.adapter, not self.piece.single, id(self.piece.slot.bank), self.piece.slot.index)


class Stepper:
    """Holds the requests in compute. Used by one thread.

    Args:
        model: computes.
        max_tokens: of key-value slots.
        step_tokens: most tokens of a pass, rows that decode always included.
        prefix_cache_bytes: as `PrefixCache`.
    """

    def __init__(self, model: InferenceModel, *, max_tokens: int, step_tokens: int, prefix_cache_bytes: int) -> None:
        base = model.base
        self._model = model
        self._pool = KvPool(model.shape, max_tokens=max_tokens)
        self._cache = PrefixCache(max_bytes=prefix_cache_bytes)
        self._step_tokens = step_tokens
        self._ends = Endings(frozenset(base.eos_token_ids), base.context_tokens)
        self._units: list[Unit] = []
        self._sampling: tuple[tuple[Row, ...], RowSampling] | None = None

    @property
    def active(self) -> bool:
        """Whether anything is in compute."""
        return bool(self._units)

    @property
    def rows(self) -> int:
        """Sequences in compute."""
        return sum(len(list(unit.slots)) for unit in self._units)

    @property
    def interactive_rows(self) -> int:
        """Those of them that belong to interactive calls."""
        return sum(len(list(unit.slots)) for unit in self._units if unit.item.priority <= INTERACTIVE)

    def needs(self, request: GenerationRequest | LogprobsRequest) -> int:
        """Tokens of key-value slots that a request takes."""
        if isinstance(request, GenerationRequest):
            return request.n * self._pool.slot_tokens(len(request.prompt_ids) + request.sampling.max_tokens)
        return self._pool.slot_tokens(scoring_tokens(request))

    def admit(self, item: Item, version: str) -> bool:
        """Lets a request in; False, and nothing has changed, while there is no room."""
        unit: Unit | None
        if isinstance(item.payload, GenerationRequest):
            unit = Generation.begin(item, version, self._pool, self._model.base.encoder.decode, self._model.vocabulary_size)
        else:
            unit = Scoring.begin(item, version, self._pool)
        if unit is None:
            return False
        self._units.append(unit)
        _BEGUN.inc()
        _KV_BYTES.set(self._pool.held_bytes)
        return True

    def leave(self) -> list[Unit]:
        """Drops what nobody waits for and what is complete; returns it, its slots freed."""
        gone = [unit for unit in self._units if unit.complete or unit.item.abandoned]
        if gone:
            self._units = [unit for unit in self._units if unit not in gone]
            for unit in gone:
                self._free(unit)
        return gone

    def abort(self) -> tuple[int, list[Unit]]:
        """Ends everything: generations are answered with what they have; returns how many samples that were and what has left."""
        samples = 0
        for unit in self._units:
            if isinstance(unit, Generation) and not unit.item.abandoned:
                for row in unit.rows:
                    if row.finish is None:
                        self._pool.give_back(row.slot)
                        row.end("aborted")
                        samples += 1
                unit.answer()
            else:
                self._free(unit)
        gone, self._units = self._units, []
        return samples, gone

    def drop_all(self) -> list[Unit]:
        """Forgets everything without an answer, after a pass has failed."""
        gone, self._units = self._units, []
        for unit in gone:
            self._free(unit)
        return gone

    def describe(self) -> str:
        """What a pass computes now, in words."""
        generations = [unit for unit in self._units if isinstance(unit, Generation)]
        decoding = sum(len(list(unit.slots)) for unit in generations if unit.prompt.complete)
        reading = sum(not unit.prompt.complete for unit in self._units)
        scoring = len(self._units) - len(generations)
        adapters = sorted({unit.prompt.adapter or "the bare base model" for unit in self._units})
        return f"{decoding} rows decoding, {reading} prompts being read, {scoring} requests scored, under {', '.join(adapters) or 'nothing'}"

    def step(self) -> None:
        """One pass. Completes items that end by it."""
        reads = sorted(self._compose(), key=lambda read: read.order)
        if not reads:
            return
        with torch.inference_mode():
            hidden = self._model.forward([read.piece for read in reads])
            asked, samplers, scores = self._asked(reads)
            logits = self._model.logits(hidden[torch.tensor(asked, device=hidden.device)]) if asked else hidden
            self._advance(reads)
            # Counted before anybody is answered: who looks at the metrics after a reply finds its work in them.
            _STEPS.inc()
            _ROWS.observe(len(reads))
            _TOKENS.labels("read").inc(hidden.shape[0])
            self._score(logits, scores)
            self._sample(logits, samplers)

    def _compose(self) -> Iterator[_Read]:
        decoding = [row for unit in self._units if isinstance(unit, Generation) and unit.prompt.complete for row in unit.rows if row.finish is None]
        for row in decoding:
            yield _Read(row.next_piece(), row, [(0, [])])
        budget = max(self._step_tokens - len(decoding), BLOCK)
        being_read: set[Key] = set()
        for unit in self._units:
            if budget <= 0:
                return
            for read in self._next_reads(unit, budget, being_read):
                budget -= len(read.piece.tokens)
                yield read

    def _next_reads(self, unit: Unit, budget: int, being_read: set[Key]) -> Iterator[_Read]:
        prompt = unit.prompt
        if prompt.complete:
            if isinstance(unit, Scoring):
                for response_piece, predicted in unit.next_pieces(budget):
                    yield _Read(response_piece, unit, list(enumerate(predicted)))
            return
        if self._cache.enabled:
            prompt.reuse(self._cache)
        piece = prompt.next_piece(budget, being_read if self._cache.enabled else set())
        if piece is None:
            return
        last = prompt.read + len(piece.tokens) == len(prompt.tokens)
        targets = unit.first_targets() if isinstance(unit, Scoring) else []
        yield _Read(piece, unit, [(len(piece.tokens) - 1, targets)] if last else [])

    @staticmethod
    def _asked(reads: Sequence[_Read]) -> tuple[list[int], list[tuple[Row, int]], list[tuple[Scoring, int, list[Target]]]]:
        """Rows of the pass whose logits are wanted; then who samples and who scores from which of those."""
        asked: list[int] = []
        samplers: list[tuple[Row, int]] = []
        scores: list[tuple[Scoring, int, list[Target]]] = []
        first = 0
        for read in reads:
            for offset, targets in read.asks:
                owner = read.owner
                if isinstance(owner, Scoring):
                    scores.append((owner, len(asked), targets))
                else:
                    samplers += [(row, len(asked)) for row in ([owner] if isinstance(owner, Row) else owner.rows)]
                asked.append(first + offset)
            first += len(read.piece.tokens)
        return asked, samplers, scores

    def _advance(self, reads: Sequence[_Read]) -> None:
        for read in reads:
            owner = read.owner
            if isinstance(owner, Row) or owner.prompt.complete:
                continue
            owner.prompt.advance(read.piece, self._cache)
            if owner.prompt.complete:
                self._cache.count(reused=owner.prompt.reused, computed=len(owner.prompt.tokens) - owner.prompt.reused)
                if isinstance(owner, Generation):
                    owner.fork()

    def _score(self, logits: Tensor, scores: Sequence[tuple[Scoring, int, list[Target]]]) -> None:
        if not scores:
            return
        flat = [(unit, target, place) for place, (unit, _, targets) in enumerate(scores) for target in targets]
        rows = logits[torch.tensor([row for _, row, _ in scores], device=logits.device)]
        temperatures = torch.tensor([unit.request.temperature for unit, _, _ in scores], device=logits.device)
        scaled = rows / temperatures[:, None]
        normalizers = torch.logsumexp(scaled, dim=-1)
        places = torch.tensor([place for _, _, place in flat], device=logits.device)
        tokens = torch.tensor([target.token for _, target, _ in flat], device=logits.device)
        found = (scaled[places, tokens] - normalizers[places]).tolist()
        _TOKENS.labels("scored").inc(len(flat))
        for (unit, target, _), logprob in zip(flat, found, strict=True):
            unit.take(target, logprob)
        for unit in {id(unit): unit for unit, _, _ in scores}.values():
            if unit.complete:
                if not all(math.isfinite(logprob) for response in unit.results for logprob in response):
                    _clear(unit)
                unit.answer()

    def _sample(self, logits: Tensor, samplers: Sequence[tuple[Row, int]]) -> None:
        if not samplers:
            return
        rows = tuple(row for row, _ in samplers)
        places = [place for _, place in samplers]
        if places != list(range(logits.shape[0])):
            logits = logits[torch.tensor(places, device=logits.device)]
        if self._sampling is None or self._sampling[0] != rows:
            self._sampling = rows, RowSampling.build([row.owner.request.sampling for row in rows], logits.device)
        sampling = self._sampling[1]
        uniforms = torch.tensor(
            [row.uniforms[len(row.token_ids)] if row.uniforms else 0.0 for row in rows], dtype=torch.float64, device=logits.device
        )
        seen = None
        if any(row.seen is not None for row in rows):
            none = torch.zeros(logits.shape[1], dtype=torch.bool)
            seen = torch.stack([none if row.seen is None else row.seen for row in rows]).to(logits.device)
        tokens, logprobs = sample(logits, sampling, uniforms, seen)
        top = _top_logprobs(logits, rows, sampling)
        _TOKENS.labels("generated").inc(len(rows))
        for row, token, logprob, likeliest in zip(rows, tokens.tolist(), logprobs.tolist(), top, strict=True):
            if not math.isfinite(logprob):
                _refuse(row.owner)
                continue
            row.append(token, logprob, likeliest, self._ends)
            if row.finish is not None:
                self._pool.give_back(row.slot)
                if row.owner.complete:
                    row.owner.answer()

    def _free(self, unit: Unit) -> None:
        for slot in unit.slots:
            self._pool.give_back(slot)


def _refuse(unit: Generation) -> None:
    """Fails what the model has no probabilities for; it leaves before the next pass."""
    if unit.item.done:  # by another of its samples
        return
    _clear(unit)
    whose = unit.prompt.adapter or "the base model"
    unit.item.fail(FailedPreconditionError(f"{whose} gives logits that are no finite numbers: its weights are broken", field="adapter"))


def _clear(unit: Unit) -> None:
    """A NaN that is masked would still spoil the sums of whoever has the slot next."""
    for slot in unit.slots:
        slot.kv.zero_()


def _top_logprobs(logits: Tensor, rows: Sequence[Row], sampling: RowSampling) -> list[TopLogprobs | None]:
    """The likeliest tokens of rows that ask for them, at the sampling temperature and before truncation."""
    wanted = [row.owner.request.sampling.top_logprobs for row in rows]
    if not any(wanted):
        return [None] * len(rows)
    temperature = torch.where(sampling.temperature == 0, torch.ones_like(sampling.temperature), sampling.temperature)[:, None]
    best = torch.log_softmax(logits / temperature, dim=-1).topk(max(wanted), dim=-1)
    pairs = zip(wanted, best.indices.tolist(), best.values.tolist(), strict=True)
    return [tuple(zip(tokens[:count], values[:count], strict=True)) if count else None for count, tokens, values in pairs]


def request_of(item: Item) -> GenerationRequest | LogprobsRequest:
    """The request of an item that is no command."""
    return cast(GenerationRequest | LogprobsRequest, item.payload)
