"""The seam between the servicer and whatever computes: requests and results without protobuf, and the protocol of a backend.

A backend runs in the compute thread alone. What does not belong here: queues and deadlines (`accord.rpc.workqueue`), protobuf
(`accord.policy.convert`), and how one backend works (a module of its own each).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

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


@dataclass(frozen=True, slots=True)
class GeneratedSample:
    """One response; `logprobs` are nats per token of `token_ids`."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    seed: int


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
    """What a backend serves."""

    name: str
    base_model: str
    digests: ModelDigests
    context_tokens: int
    vocabulary_size: int
    eos_token_ids: tuple[int, ...]
    parameters: int


class GenerationJob(Protocol):
    """A generation request in compute, as a backend sees it."""

    @property
    def request(self) -> GenerationRequest:
        """What is asked."""
        ...

    @property
    def abandoned(self) -> bool:
        """Nobody waits any more: give its rows up."""
        ...

    def emit(self, chunk: Chunk) -> None:
        """Hands over some text, where the request streams."""
        ...

    def complete(self, samples: Sequence[GeneratedSample]) -> None:
        """Answers the request, samples in order of index."""
        ...


class Backend(Protocol):
    """What computes. Every method but `info` is called in the compute thread, one at a time."""

    @property
    def info(self) -> BackendInfo:
        """What is served; known once the backend is loaded."""
        ...

    def load_adapter(self, version: str) -> None:
        """Makes an adapter version ready.

        Raises:
            NotFoundError, FailedPreconditionError, DataLossError: it is not there, not for this base model, or damaged.
        """
        ...

    def unload_adapter(self, version: str) -> None:
        """Forgets an adapter version that is loaded."""
        ...

    def loaded_adapters(self) -> dict[str, tuple[str, int]]:
        """Digest and bytes of each loaded adapter version by name."""
        ...

    def generate(self, jobs: Sequence[GenerationJob], adapter: str, step: Callable[[], bool]) -> None:
        """Answers jobs under one loaded adapter version (empty: the bare base); each is completed as soon as its samples are done.

        `step` is called between decode steps; False asks to stop: what is unfinished is completed with finish reason aborted.
        """
        ...

    def compute_logprobs(self, requests: Sequence[LogprobsRequest], adapter: str, step: Callable[[], bool]) -> list[list[list[float]]]:
        """Logprobs in nats: for each request, for each response, one number for each token."""
        ...
