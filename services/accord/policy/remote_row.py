"""One sample that another server generates: its tokens as they come, why it ends, and its text.

The same rules as those of the in-process engine end it here, whatever the server watches itself. What does not belong here: the request to
the server (`accord.policy.remote`).
"""

from __future__ import annotations

from accord.policy.backend import Chunk, FinishReason, GeneratedSample, GenerationRequest, TopLogprobs
from accord.policy.remote_server import Piece
from accord.policy.text_stream import TextStream

_CHUNK_TOKENS = 4


class RemoteRow:
    """Sample `index` of a request.

    Args:
        request: what is asked.
        index: of the sample.
        stream: a new one for this sample.
        eos_token_ids: what ends a response unless the request ignores it.
    """

    def __init__(self, request: GenerationRequest, index: int, stream: TextStream, eos_token_ids: frozenset[int]) -> None:
        self._request = request
        self.index = index
        self._stream = stream
        self._eos = frozenset() if request.sampling.ignore_eos else eos_token_ids
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self._top: list[TopLogprobs] = []
        self._streamed = 0
        self.finish: FinishReason | None = None

    def take(self, piece: Piece) -> Chunk | None:
        """Takes tokens up to the one that ends the sample; returns a chunk where there is one to hand on."""
        for position, token in enumerate(piece.token_ids):
            self.token_ids.append(token)
            self.logprobs.append(piece.logprobs[position])
            self._top += piece.top_logprobs[position : position + 1]
            self.finish = self._reason(token)
            if self.finish is not None:
                break
        self.finish = self.finish or piece.finish
        return self._chunk() if self._request.stream else None

    def abort(self) -> Chunk | None:
        """Ends it with what has come; returns what a stream has not been handed."""
        if self.finish is not None:
            return None
        self.finish = "aborted"
        return self._chunk() if self._request.stream else None

    def sample(self) -> GeneratedSample:
        """What the request is answered with; the sample must have ended."""
        assert self.finish is not None
        return GeneratedSample(
            self.index, self._stream.text(self.token_ids), tuple(self.token_ids), tuple(self.logprobs), self.finish,
            self._request.sampling.seed, tuple(self._top),
        )  # fmt: skip

    def _reason(self, token: int) -> FinishReason | None:
        sampling = self._request.sampling
        if token in self._eos:
            return "eos"
        if token in sampling.stop_token_ids or self._stream.stopped(self.token_ids):
            return "stop"
        return "length" if len(self.token_ids) >= sampling.max_tokens else None

    def _chunk(self) -> Chunk | None:
        new = len(self.token_ids) - self._streamed
        if self.finish is None and new < _CHUNK_TOKENS:
            return None
        text = self._stream.advance(self.token_ids, final=self.finish is not None)
        ids, self._streamed = tuple(self.token_ids[self._streamed :]), len(self.token_ids)
        return Chunk(self.index, text, ids) if text or ids else None
