"""What the servicer asks of whatever computes: the protocol that the in-process engine and the clients of other servers share.

What does not belong here: how one of them works (`accord.policy.inprocess`, `accord.policy.remote`), protobuf (`accord.policy.convert`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from accord.client.messages import ModelDigests
from accord.policy.backend import BackendInfo, GeneratedSample, GenerationRequest, LogprobsRequest
from accord.rpc.workitem import WorkItem

PauseMode = Literal["abort", "wait", "keep"]
INTERACTIVE, ROLLOUT, LABELLING = 0, 1, 2
ANY_MODEL = ModelDigests()


@dataclass(frozen=True, slots=True)
class AdapterCommand:
    """Loads or unloads one adapter version."""

    version: str
    load: bool


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """An adapter version that an engine holds, or held until now."""

    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for every request of a call.

    Args:
        version: adapter version, empty for the bare base model.
        deadline: `time.monotonic()` seconds after which nobody wants the results; None for never.
        priority: INTERACTIVE, ROLLOUT or LABELLING.
        caller: whose turn it is.
        digests: of the model that the call was accepted for: what still waits when other weights take over fails, so that one model answers a call.
            ANY_MODEL takes whichever is served.
    """

    version: str = ""
    deadline: float | None = None
    priority: int = INTERACTIVE
    caller: str = ""
    digests: ModelDigests = ANY_MODEL


Payload = GenerationRequest | LogprobsRequest | AdapterCommand
Result = tuple[GeneratedSample, ...] | list[list[float]] | AdapterFacts | None
Item = WorkItem[Payload, Result]


class Engine(Protocol):
    """Computes what a policy service answers. Every method may be called from the event loop; none blocks it for long."""

    @property
    def info(self) -> BackendInfo:
        """What is served now."""
        ...

    def check(self, request: GenerationRequest | LogprobsRequest, field: str) -> None:
        """Raises InvalidArgumentError naming the field where a request could never be computed, however idle the engine."""
        ...

    def resolve(self, adapter: str) -> str:
        """Returns the version that a name means now, empty for the bare base model; may read the artefact store, so call it in a thread.

        Raises:
            InvalidArgumentError: the name is malformed.
            NotFoundError: there is no such adapter or version.
            DataLossError: its manifest is damaged.
        """
        ...

    def submit(self, requests: Sequence[GenerationRequest | LogprobsRequest], terms: Terms) -> list[Item]:
        """Accepts requests of one call: all of them or none. `release(version)` when the call is over.

        An item's result is a tuple of samples in order of index, or for logprobs a list of lists of nats, one number for each token of each
        response. A streaming request emits `Chunk`s. Cancelling the item, or its deadline, frees what computes it.

        Raises:
            ResourceExhaustedError: the queue is full, or the caller's share of it is.
            UnavailableError: generation is paused with abort, or the engine is closed.
        """
        ...

    def release(self, version: str) -> None:
        """Counts a call as answered; the counterpart of `submit`."""
        ...

    async def command(self, version: str, *, load: bool, deadline: float | None) -> AdapterFacts:
        """Loads an adapter version, or unloads it once no request in flight uses it; returns its digest and bytes.

        Raises:
            NotFoundError: it is not loaded (unload), or not there (load).
            FailedPreconditionError, DataLossError: it does not fit this model, or is damaged.
        """
        ...

    def adapters(self) -> dict[str, AdapterFacts]:
        """The loaded versions, by name."""
        ...

    def calls_with(self, version: str) -> int:
        """How many calls use a version now."""
        ...

    async def pause(self, mode: PauseMode, *, timeout_seconds: float) -> int:
        """Stops generation; returns how many samples ended by it.

        abort: what computes or waits ends at once; wait: what computes is finished first; keep: it stays where it is until `resume`.

        Raises:
            DeadlineExceededError: it went on for `timeout_seconds`; it still stops when it can, until `resume`.
            UnimplementedError: the engine has no such mode.
        """
        ...

    def resume(self) -> None:
        """Lets generation go on; without effect where it is not paused."""
        ...

    async def update_weights(self, uri: str, digest: str, *, deadline: float | None) -> str:
        """Replaces the base model's weights by those of a model folder, after what computes is finished; returns the digest now served.

        Raises:
            NotFoundError: there is no such folder.
            FailedPreconditionError: its digest, tokenizer, template or shape is another one.
            UnimplementedError: the engine's server has no such thing.
        """
        ...

    def fault(self) -> str | None:
        """Why the engine cannot be counted on, with what it was doing, or None."""
        ...

    def stop(self, timeout_seconds: float) -> bool:
        """Ends what computes and refuses what comes; whether it ended in time. Blocks."""
        ...
