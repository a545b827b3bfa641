"""The policy service's compute: one queue, one thread, one backend; adapters by name, pausing, and the numbers that a dashboard wants.

What does not belong here: protobuf (`accord.policy.convert`), sampling, the model.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from prometheus_client import Counter, Gauge, Histogram

from accord.artefacts.names import AdapterName
from accord.artefacts.store import ArtefactStore
from accord.errors import DeadlineExceededError, NotFoundError, UnavailableError
from accord.policy.backend import Backend, Chunk, GeneratedSample, GenerationRequest, LogprobsRequest
from accord.policy.config import PolicyConfig
from accord.rpc.worker import Worker, run_worker
from accord.rpc.workitem import WorkItem
from accord.rpc.workqueue import WorkQueue, WorkRequest
from accord.serving.fields import naming

_TOKENS = Counter("accord_policy_tokens_total", "Tokens computed", ["kind"])
_BATCH_ROWS = Histogram("accord_policy_batch_rows", "Sequences in a batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128))
_STEP_SECONDS = Histogram("accord_policy_step_seconds", "Time of one decode step", buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5))
_STEPS = Counter("accord_policy_decode_steps_total", "Decode steps")
_ADAPTERS = Gauge("accord_policy_loaded_adapters", "Adapter versions in memory")
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class AdapterCommand:
    """Loads or unloads one adapter version in the compute thread."""

    version: str
    load: bool


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """An adapter version in memory, or one that was until now."""

    digest: str
    size_bytes: int


Payload = GenerationRequest | LogprobsRequest | AdapterCommand
Result = tuple[GeneratedSample, ...] | list[list[float]] | AdapterFacts | None
Item = WorkItem[Payload, Result]


class _Job:
    """A work item as the backend sees it."""

    def __init__(self, item: Item, on_complete: Callable[[Sequence[GeneratedSample]], None]) -> None:
        self._item = item
        self._on_complete = on_complete
        self.request = cast(GenerationRequest, item.payload)

    @property
    def abandoned(self) -> bool:
        return self._item.abandoned

    def emit(self, chunk: Chunk) -> None:
        self._item.emit(chunk)

    def complete(self, samples: Sequence[GeneratedSample]) -> None:
        self._on_complete(samples)
        self._item.complete(tuple(samples))


class Engine:
    """Queues requests, computes them in one thread.

    Args:
        backend: loaded already.
        store: where adapter names are resolved.
        config: limits.
    """

    def __init__(self, backend: Backend, store: ArtefactStore, config: PolicyConfig) -> None:
        self.backend = backend
        self._store = store
        self._config = config
        self._in_use: Tally[str] = Tally()
        self._may_run = threading.Event()
        self._may_run.set()
        self._abort = threading.Event()
        self._aborted_samples = 0
        self._idle = threading.Event()
        self._idle.set()
        self._loaded: dict[str, AdapterFacts] = {}
        self._queue: WorkQueue[Payload, Result] = WorkQueue(max_items=config.max_queue_items, max_cost=config.max_queue_tokens, name="policy")
        self._worker: Worker[Payload, Result] = run_worker(
            self._queue,
            self._compute,
            max_cost=config.max_batch_tokens,
            max_items=config.max_batch_rows,
            linger_seconds=config.linger_seconds,
        )

    def resolve(self, adapter: str) -> str:
        """Returns the version that a name means now, empty for the bare base model; reads the store.

        Raises:
            InvalidArgumentError: the name is malformed.
            NotFoundError: there is no such adapter or version.
            DataLossError: its manifest is damaged.
        """
        if not adapter:
            return ""
        with naming("adapter"):
            return self._store.resolve(str(AdapterName.parse(adapter)))

    def submit(self, requests: Sequence[GenerationRequest | LogprobsRequest], version: str, deadline: float | None) -> list[Item]:
        """Queues requests of one kind under one adapter version: all of them or none.

        Raises:
            ResourceExhaustedError: the queue is full.
            UnavailableError: generation is paused with abort, or the engine is closed.
        """
        if self._abort.is_set():
            raise UnavailableError("generation is paused", retry_after_seconds=1.0)
        kind = type(requests[0]).__name__
        items = self._queue.submit_all([WorkRequest(request, request.cost, (kind, version), deadline) for request in requests])
        if version:
            self._in_use[version] += 1
        return items

    def release(self, version: str) -> None:
        """Counts a call as answered; the counterpart of `submit`."""
        if version:
            self._in_use[version] -= 1

    async def command(self, version: str, *, load: bool, deadline: float | None) -> AdapterFacts:
        """Loads or unloads an adapter version between two batches; returns its digest and bytes.

        Raises:
            NotFoundError: it is not loaded (unload), or not there (load); FailedPreconditionError, DataLossError: as `load_adapter`.
        """
        item = self._queue.submit(AdapterCommand(version, load), key=("AdapterCommand", version, load), deadline=deadline)
        return cast(AdapterFacts, await item.result())

    def adapters(self) -> dict[str, AdapterFacts]:
        """The loaded versions, by name."""
        return dict(sorted(self._loaded.items()))

    def calls_with(self, version: str) -> int:
        """How many calls use a version now."""
        return self._in_use[version]

    async def pause(self, *, abort: bool, timeout_seconds: float) -> int:
        """Stops generation; returns how many samples ended by it.

        With `abort`, what computes ends at the next step and what waits at its first; else what computes is finished and what waits, waits.

        Raises:
            DeadlineExceededError: it went on for `timeout_seconds`; it still stops when it can, until `resume`.
        """
        self._may_run.clear()
        if abort:
            self._aborted_samples = 0
            self._abort.set()
        give_up = time.monotonic() + timeout_seconds
        while not self._idle.is_set() or (abort and len(self._queue)):
            if time.monotonic() > give_up:
                raise DeadlineExceededError("generation did not stop in time; it stops when its batch is done, ResumeGeneration takes that back")
            await asyncio.sleep(_POLL_SECONDS / 10)
        return self._aborted_samples if abort else 0

    def resume(self) -> None:
        """Lets generation go on."""
        self._abort.clear()
        self._may_run.set()

    def fault(self) -> str | None:
        """Why the compute thread cannot be counted on, or None."""
        return self._worker.fault(self._config.stall_seconds)

    def stop(self, timeout_seconds: float) -> bool:
        """Closes the queue and waits for the batch in compute, which ends at its next step."""
        self._abort.set()
        self._may_run.set()
        return self._worker.stop(timeout_seconds)

    def _compute(self, batch: list[Item]) -> list[Result] | None:
        self._idle.clear()  # before the look at `_may_run`, so that `pause` sees this batch or this batch sees the pause
        try:
            while not (self._may_run.is_set() or self._abort.is_set() or self._queue.closed):
                self._idle.set()
                self._may_run.wait(_POLL_SECONDS)
                self._worker.beat()
                self._idle.clear()
            batch = [item for item in batch if not item.abandoned]
            return self._dispatch(batch) if batch else None
        finally:
            self._idle.set()

    def _dispatch(self, batch: list[Item]) -> list[Result] | None:
        payload = batch[0].payload
        if isinstance(payload, AdapterCommand):
            return [self._run_command(payload)] * len(batch)
        version = str(cast(tuple[str, str], batch[0].key)[1])
        if version:
            self._load(version)
        if isinstance(payload, LogprobsRequest):
            self._compute_logprobs(batch, version)
            return None
        for part in self._parts(batch):
            _BATCH_ROWS.observe(sum(cast(GenerationRequest, item.payload).n for item in part))
            self.backend.generate([_Job(item, self._count) for item in part], version, _Clock(self).step)
        return None

    def _parts(self, batch: list[Item]) -> list[list[Item]]:
        """The batch cut so that each part decodes at most `max_batch_rows` sequences together."""
        parts: list[list[Item]] = []
        rows = 0
        for item in batch:
            n = cast(GenerationRequest, item.payload).n
            if not parts or rows + n > self._config.max_batch_rows:
                parts.append([])
                rows = 0
            parts[-1].append(item)
            rows += n
        return parts

    def _load(self, version: str) -> None:
        try:
            with naming("adapter"):
                self.backend.load_adapter(version)
        finally:  # one may have been evicted for it
            self._publish_loaded()

    def _publish_loaded(self) -> None:
        self._loaded = {name: AdapterFacts(*facts) for name, facts in self.backend.loaded_adapters().items()}
        _ADAPTERS.set(len(self._loaded))

    def _compute_logprobs(self, batch: list[Item], version: str) -> None:
        requests = [cast(LogprobsRequest, item.payload) for item in batch]
        _TOKENS.labels("scored").inc(sum(request.cost for request in requests))

        def step() -> bool:
            self._worker.beat()
            return True

        for item, result in zip(batch, self.backend.compute_logprobs(requests, version, step), strict=True):
            item.complete(result)

    def _run_command(self, command: AdapterCommand) -> AdapterFacts:
        if command.load:
            self._load(command.version)
            return self._loaded[command.version]
        if command.version not in self._loaded:
            raise NotFoundError(f"{command.version} is not loaded; loaded: {', '.join(self._loaded) or 'none'}", field="name")
        facts = self._loaded[command.version]
        self.backend.unload_adapter(command.version)
        self._publish_loaded()
        return facts

    def _count(self, samples: Sequence[GeneratedSample]) -> None:
        _TOKENS.labels("generated").inc(sum(len(sample.token_ids) for sample in samples))
        self._aborted_samples += sum(sample.finish_reason == "aborted" for sample in samples)

    def _step(self) -> bool:
        """Called between decode steps: the watchdog hears of it; False when generation is to be aborted."""
        self._worker.beat()
        return not self._abort.is_set()


class _Clock:
    """Times decode steps and asks the engine whether to go on."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._last = time.monotonic()

    def step(self) -> bool:
        now = time.monotonic()
        _STEP_SECONDS.observe(now - self._last)
        _STEPS.inc()
        self._last = now
        return self._engine._step()
