"""Python forms of what PolicyService takes and gives; `accord.client.policy` re-exports them.

What does not belong here: their conversion (`accord.client.policy_wire`) and calls (`accord.client.policy`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from accord.client.messages import ModelDigests, PromptForm, ResponseForm, Usage
from accord.errors import AccordError

FinishReason = Literal["unspecified", "eos", "stop", "length", "aborted"]
PauseMode = Literal["abort", "wait", "keep"]
Priority = Literal["interactive", "rollout", "labelling"]
MOST_ITEMS = 512
"""Items of a call, by policy.proto."""
MOST_TOKENS = 8192
"""Of `Sampling.max_tokens`, by policy.proto."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample; what is None takes the service's default (see policy.proto)."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    ignore_eos: bool | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose work a call is: it decides whose turn it is while others wait. Without a caller, the connection is one."""

    priority: Priority = "interactive"
    caller: str = ""


@dataclass(frozen=True, slots=True)
class GenerateItem:
    """One prompt to answer n times."""

    prompt: PromptForm
    sampling: Sampling = Sampling()
    n: int = 1
    item_id: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One response; `logprobs` are nats per sampled token, `token_ids` include the end-of-turn token when it was sampled.

    `top_logprobs` are, for each sampled token where they were asked for, the likeliest tokens with their logprobs, likeliest first.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    seed: int
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """What came of one item: samples, or an error."""

    item_id: str
    error: AccordError | None
    samples: tuple[Sample, ...]
    prompt_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """The answers to a batch, in the order of its items."""

    results: tuple[GenerateResult, ...]
    adapter_version: str
    digests: ModelDigests
    usage: Usage


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event of a stream: more text, a complete sample, or an item's error."""

    item_index: int
    sample_index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    sample: Sample | None = None
    error: AccordError | None = None
    adapter_version: str = ""


@dataclass(frozen=True, slots=True)
class LogprobsItem:
    """One prompt and the responses to compute logprobs of."""

    prompt: PromptForm
    responses: tuple[ResponseForm, ...]
    item_id: str = ""


@dataclass(frozen=True, slots=True)
class ResponseLogprobs:
    """Logprobs of one response in nats, one for each token."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    sequence_logprob: float


@dataclass(frozen=True, slots=True)
class LogprobsResult:
    """What came of one item: logprobs of each response, or an error."""

    item_id: str
    error: AccordError | None
    responses: tuple[ResponseLogprobs, ...]
    prompt_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Logprobs:
    """The logprobs of a batch, in the order of its items."""

    results: tuple[LogprobsResult, ...]
    adapter_version: str
    digests: ModelDigests
    usage: Usage


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a policy replica serves."""

    base_model: str
    digests: ModelDigests
    context_tokens: int
    vocabulary_size: int
    eos_token_ids: tuple[int, ...]
    backend: str
    max_queue_items: int
    parameters: int
    server_version: str


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """An adapter version that a replica holds."""

    name: str
    digest: str
    size_bytes: int
    in_use: int
