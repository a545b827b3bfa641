"""The decode loop: rows of one batch, step by step, each row leaving as soon as it is done or nobody waits for it.

What does not belong here: running the model (`accord.policy.transformers_backend`) and choosing tokens (`accord.policy.sampling`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from accord.policy.backend import Chunk, FinishReason, GeneratedSample, GenerationJob, GenerationRequest
from accord.policy.sampling import RowSampling, sample
from accord.policy.text_stream import TextStream

_CHUNK_STEPS = 4


class SequenceModel(Protocol):
    """A model with a cache of the rows in compute."""

    def prefill(self, prompts: Sequence[Sequence[int]], repeats: Sequence[int]) -> Tensor:
        """Reads each prompt once, then keeps `repeats[i]` rows of prompt i; returns the next-token logits, shape (rows, vocabulary)."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Keeps only these rows, by index."""
        ...

    def advance(self, tokens: Tensor) -> Tensor:
        """Reads one more token of each row, shape (rows,); returns the next-token logits."""
        ...


@dataclass(eq=False)
class _Row:
    job: GenerationJob
    sample_index: int
    stream: TextStream
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: FinishReason | None = None
    streamed: int = 0


class Decoder:
    """Decodes the jobs of one batch.

    Args:
        model: computes; holds exactly this batch's rows.
        eos_token_ids: end a response unless the request ignores them.
        context_tokens: prompt and response together.
        decode_text: token ids to text.
    """

    def __init__(
        self,
        model: SequenceModel,
        *,
        eos_token_ids: Sequence[int],
        context_tokens: int,
        decode_text: Callable[[Sequence[int]], str],
    ) -> None:
        self._model = model
        self._eos = frozenset(eos_token_ids)
        self._context = context_tokens
        self._decode_text = decode_text
        self._open: dict[int, int] = {}
        self._done: dict[int, list[_Row]] = {}

    def run(self, jobs: Sequence[GenerationJob], step: Callable[[], bool]) -> int:
        """Completes every job that is not abandoned; returns how many tokens were sampled."""
        jobs = [job for job in jobs if not job.abandoned]
        rows = [_Row(job, index, self._stream(job.request)) for job in jobs for index in range(job.request.n)]
        if not rows:
            return 0
        self._open = {id(job): job.request.n for job in jobs}
        self._done = {id(job): [] for job in jobs}
        logits = self._model.prefill([job.request.prompt_ids for job in jobs], [job.request.n for job in jobs])
        sampling = RowSampling.build([(row.job.request.sampling, row.sample_index) for row in rows])
        seen = self._seen(rows, logits.shape[-1])
        positions = torch.zeros(len(rows), dtype=torch.long)
        sampled = 0
        while True:
            tokens, logprobs = sample(logits, sampling, positions, seen)
            sampled += len(rows)
            if seen is not None:
                seen.scatter_(1, tokens[:, None], True)
            self._append(rows, tokens.tolist(), logprobs.tolist(), abort=not step())
            kept = [index for index, row in enumerate(rows) if row.finish is None and not row.job.abandoned]
            if not kept:
                return sampled
            positions += 1
            if len(kept) < len(rows):
                chosen = torch.tensor(kept)
                self._model.keep(chosen)
                sampling, tokens, positions = sampling.select(chosen), tokens[chosen], positions[chosen]
                seen = seen[chosen] if seen is not None else None
                rows = [rows[index] for index in kept]
            logits = self._model.advance(tokens)

    def _stream(self, request: GenerationRequest) -> TextStream:
        return TextStream(self._decode_text, request.sampling.stop)

    @staticmethod
    def _seen(rows: Sequence[_Row], vocabulary: int) -> Tensor | None:
        if all(row.job.request.sampling.repetition_penalty == 1 for row in rows):
            return None
        seen = torch.zeros((len(rows), vocabulary), dtype=torch.bool)
        for index, row in enumerate(rows):
            seen[index, list(row.job.request.prompt_ids)] = True
        return seen

    def _append(self, rows: Sequence[_Row], tokens: Sequence[int], logprobs: Sequence[float], *, abort: bool) -> None:
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            row.token_ids.append(token)
            row.logprobs.append(logprob)
            row.finish = self._finish(row, token) or ("aborted" if abort else None)
            if row.job.request.stream and (row.finish or len(row.token_ids) % _CHUNK_STEPS == 0):
                self._emit(row)
            if row.finish:
                self._close(row)

    def _finish(self, row: _Row, token: int) -> FinishReason | None:
        sampling = row.job.request.sampling
        if token in self._eos and not sampling.ignore_eos:
            return "eos"
        if token in sampling.stop_token_ids or row.stream.stopped(row.token_ids):
            return "stop"
        length = len(row.token_ids)
        return "length" if length >= sampling.max_tokens or len(row.job.request.prompt_ids) + length >= self._context else None

    @staticmethod
    def _emit(row: _Row) -> None:
        text = row.stream.advance(row.token_ids, final=row.finish is not None)
        ids = tuple(row.token_ids[row.streamed :])
        row.streamed = len(row.token_ids)
        row.job.emit(Chunk(row.sample_index, text, ids))

    def _close(self, row: _Row) -> None:
        key = id(row.job)
        self._done[key].append(row)
        self._open[key] -= 1
        if self._open[key] == 0:
            rows = sorted(self._done.pop(key), key=lambda each: each.sample_index)
            row.job.complete([self._result(each) for each in rows])

    @staticmethod
    def _result(row: _Row) -> GeneratedSample:
        assert row.finish is not None
        return GeneratedSample(
            row.sample_index,
            row.stream.text(row.token_ids),
            tuple(row.token_ids),
            tuple(row.logprobs),
            row.finish,
            row.job.request.sampling.seed,
        )
