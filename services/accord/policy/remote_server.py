"""What `accord.policy.remote` asks of a client of another generation server.

What does not belong here: HTTP (`accord.policy.http_peer`), the queue and adapters (`accord.policy.remote`, `remote_adapters`).
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from accord.policy.backend import FinishReason, GenerationRequest, LogprobsRequest, SamplingSettings, TopLogprobs


@dataclass(frozen=True, slots=True)
class Ask:
    """One sample to generate. `adapter` is the server's own name of an adapter, empty for the base model; `stream` asks for pieces."""

    prompt_ids: tuple[int, ...]
    sampling: SamplingSettings
    seed: int
    adapter: str
    stream: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more tokens of a sample with their logprobs in nats; `finish` is set with the last piece."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    top_logprobs: tuple[TopLogprobs, ...] = ()
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter version whose files have been verified."""

    version: str
    digest: str
    folder: Path


class RemoteServer(Protocol):
    """One other server. All methods but `check` and `rescored` run on the event loop; cancelling one ends what the server does for it."""

    name: str

    async def describe(self) -> int:
        """Returns the most tokens of prompt and response together, once the server has been found to be the one that is meant.

        Raises:
            UnavailableError: it cannot be reached, or is not ready yet.
            FailedPreconditionError: it is another kind of server, tokenizes differently, or was started in a way that cannot be used.
        """
        ...

    async def changed(self) -> str | None:
        """Returns in words what is otherwise than when the server was described, or None where it is the same; raises as `describe`."""
        ...

    def check(self, request: GenerationRequest | LogprobsRequest, field: str) -> None:
        """Raises UnimplementedError, InvalidArgumentError, OutOfRangeError or FailedPreconditionError where the server cannot do it exactly."""
        ...

    def rescored(self, sampling: SamplingSettings) -> bool:
        """Whether a generation's logprobs are not those of the contract, so that `logprobs` must be asked for them afterwards."""
        ...

    def generate(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        """Yields the pieces of one sample; closing the generator early ends the request on the server.

        Raises:
            NotFoundError: the server knows no such adapter (any more).
            AccordError: whatever the server answered instead, in our terms.
        """
        ...

    async def logprobs(self, prompt_ids: tuple[int, ...], response: tuple[int, ...], adapter: str) -> list[float]:
        """Returns the logprob of each token of a response, in nats, at temperature 1; raises as `generate`."""
        ...

    async def load_adapter(self, files: AdapterFiles) -> str:
        """Loads an adapter and returns the server's name of it; without effect where it is loaded.

        Raises:
            FailedPreconditionError: the server cannot load it.
        """
        ...

    async def unload_adapter(self, adapter: str) -> None:
        """Unloads by the server's name; without effect where it is not loaded."""
        ...

    async def health(self) -> None:
        """Raises an AccordError where the server is not healthy."""
        ...

    async def close(self) -> None:
        """Closes all connections."""
        ...


def sample_seed(seed: int, index: int) -> int:
    """Returns the seed of sample `index` of a request, in [0, 2**63): a hash, so that neighbouring seeds share no sample.

    Servers that count up themselves (vLLM's n gives sample i the seed s + i) answer seed 7 sample 1 and seed 8 sample 0 alike.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8], "big") >> 1


def differences(then: Mapping[str, object], now: Mapping[str, object]) -> str | None:
    """Returns what of a server has changed, in words, or None."""
    return ", ".join(f"its {name} was {value}, and is {now[name]}" for name, value in then.items() if now[name] != value) or None


def altered(sampling: SamplingSettings) -> bool:
    """Whether settings exclude tokens or penalize repetition, so that the distribution drawn from is not the model's at a temperature."""
    excludes = sampling.temperature > 0 and (sampling.top_p < 1 or sampling.top_k > 0 or sampling.min_p > 0)
    return excludes or sampling.repetition_penalty != 1
