"""What passes between the servicer and an engine: requests and results without protobuf.

What does not belong here: protobuf (`accord.policy.convert`), and who computes (`accord.policy.engine`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from accord.client.messages import ModelDigests

FinishReason = Literal["eos", "stop", "length", "aborted"]


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How to sample, every default filled in; temperature 0 is greedy, top_k 0 and min_p 0 are off."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    seed: int
    ignore_eos: bool
    top_logprobs: int = 0


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to answer n times; `stream` asks for chunks."""

    prompt_ids: tuple[int, ...]
    n: int
    sampling: SamplingSettings
    stream: bool = False

    @property
    def cost(self) -> int:
        """Tokens that the request may hold in memory: each sample's prompt and response."""
        return self.n * (len(self.prompt_ids) + self.sampling.max_tokens)


TopLogprobs = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class GeneratedSample:
    """One response; `logprobs` are nats per token of `token_ids`, `top_logprobs` the likeliest tokens at each place where asked for."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    seed: int
    top_logprobs: tuple[TopLogprobs, ...] = ()


def aborted_samples(request: GenerationRequest) -> tuple[GeneratedSample, ...]:
    """The samples of a request that was ended before it began."""
    return tuple(GeneratedSample(index, "", (), (), "aborted", request.sampling.seed) for index in range(request.n))


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some more text of one sample."""

    sample_index: int
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LogprobsRequest:
    """One prompt and responses whose token logprobs are wanted at a temperature; no response is empty."""

    prompt_ids: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    temperature: float

    @property
    def cost(self) -> int:
        """Tokens to compute: the prompt once, and each response."""
        return len(self.prompt_ids) + sum(map(len, self.responses))


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What an engine serves; `name` is transformers, vllm or tgi."""

    name: str
    base_model: str
    digests: ModelDigests
    context_tokens: int
    vocabulary_size: int
    eos_token_ids: tuple[int, ...]
    parameters: int
