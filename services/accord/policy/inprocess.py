"""The in-process engine: one compute thread that lets requests in between passes, under any mix of adapters.

What does not belong here: what a pass computes (`accord.policy.stepper`), the order of the queue (`accord.rpc.fairqueue`), protobuf.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter as Tally
from collections.abc import Collection, Iterable, Sequence
from typing import cast

import structlog
from prometheus_client import Histogram

from accord.artefacts.names import AdapterName
from accord.artefacts.store import ArtefactStore
from accord.client.messages import ModelDigests
from accord.errors import (
    AccordError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)
from accord.models.base import BaseModel
from accord.models.inference import InferenceModel
from accord.policy.adapters import AdapterShelf
from accord.policy.backend import BackendInfo, GenerationRequest, LogprobsRequest, aborted_samples
from accord.policy.config import PolicyConfig
from accord.policy.engine import AdapterCommand, AdapterFacts, Item, PauseMode, Payload, Result, Terms
from accord.policy.places import Places
from accord.policy.stepper import Stepper, Unit, request_of
from accord.policy.weights import load_update
from accord.rpc.fairqueue import FairQueue, Verdict
from accord.rpc.logs import describe_exception
from accord.rpc.workitem import WorkRequest
from accord.serving.fields import naming

_STEP_SECONDS = Histogram("accord_policy_step_seconds", "Time of one pass", buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5))
_IDLE_SECONDS, _PAUSED_SECONDS, _POLL_SECONDS, _AGAIN_SECONDS = 0.5, 0.05, 0.01, 0.1
_log = structlog.get_logger(__name__)


class InProcessEngine:
    """Implements `accord.policy.engine.Engine` over a transformers model in this process.

    Args:
        base: loaded; the engine takes it over.
        store: where adapter names are resolved.
        config: limits.
    """

    def __init__(self, base: BaseModel, store: ArtefactStore, config: PolicyConfig) -> None:
        self._store = store
        self._config = config
        self._in_use: Tally[str] = Tally()
        self._queue: FairQueue[Payload, Result] = FairQueue(
            max_items=config.max_queue_items, max_cost=config.max_queue_tokens, name="policy",
            max_caller_cost=max(1, round(config.caller_share * config.max_queue_tokens)),
            max_wait_seconds=config.max_wait_seconds, aging_seconds=config.aging_seconds,
            refuses=self._busy if config.refuse_when_busy else None,
        )  # fmt: skip
        self._rows = 0
        self._places = Places(config.max_batch_rows, config.interactive_rows)
        self._serve(base)
        self._shelf = AdapterShelf(self._model, store, max_bytes=config.max_adapter_bytes, wake=self._queue.wake)
        self._pause: PauseMode | None = None
        self._paused = threading.Event()
        self._aborted_samples = 0
        self._update: tuple[BaseModel, asyncio.Future[str], asyncio.AbstractEventLoop] | None = None
        self._pass_since: float | None = None
        self._doing = ""
        self._to_load = ""
        self._thread = threading.Thread(target=self._run, name="policy-compute", daemon=True)
        self._thread.start()

    @property
    def info(self) -> BackendInfo:
        """What is served now."""
        return self._info

    def check(self, request: GenerationRequest | LogprobsRequest, field: str) -> None:
        """Raises InvalidArgumentError where a request needs more rows or memory than there is."""
        limit = self._config.max_batch_tokens
        needed = self._stepper.needs(request)
        if isinstance(request, GenerationRequest) and request.n > self._config.max_batch_rows:
            raise InvalidArgumentError(f"n is {request.n}; at most {self._config.max_batch_rows} is allowed", field=f"{field}.n")
        if needed > limit:
            what = "n x (prompt + max_tokens)" if isinstance(request, GenerationRequest) else "the prompt and its responses"
            where = f"{field}.n" if isinstance(request, GenerationRequest) else field
            raise InvalidArgumentError(f"{what} takes {needed} tokens of memory in whole slots; at most {limit} is allowed", field=where)

    def resolve(self, adapter: str) -> str:
        """The version that a name means now; see `Engine.resolve`."""
        if not adapter:
            return ""
        with naming("adapter"):
            return self._store.resolve(str(AdapterName.parse(adapter)))

    def submit(self, requests: Sequence[GenerationRequest | LogprobsRequest], terms: Terms) -> list[Item]:
        """Queues the requests of a call; see `Engine.submit`."""
        if self._pause == "abort":
            raise UnavailableError("generation is paused", retry_after_seconds=1.0)
        asked: list[WorkRequest[Payload]] = [
            WorkRequest(request, request.cost, (terms.version, terms.digests.base_model), terms.deadline, terms.priority, terms.caller)
            for request in requests
        ]
        if self._config.refuse_when_busy and (rows := sum(map(_rows_of, requests))) > self._config.max_batch_rows:
            raise InvalidArgumentError(
                f"{rows} samples in one call; this server never queues, and has {self._config.max_batch_rows} rows", field="items"
            )
        items = self._queue.submit_all(asked)
        if terms.version:
            self._in_use[terms.version] += 1
        return items

    def release(self, version: str) -> None:
        """Counts a call as answered."""
        if version:
            self._in_use[version] -= 1

    async def command(self, version: str, *, load: bool, deadline: float | None) -> AdapterFacts:
        """Loads or unloads an adapter version; see `Engine.command`."""
        item = self._queue.submit(AdapterCommand(version, load), deadline=deadline)
        return cast(AdapterFacts, await item.result())

    def adapters(self) -> dict[str, AdapterFacts]:
        """The loaded versions, by name."""
        return dict(self._shelf.facts)

    def calls_with(self, version: str) -> int:
        """How many calls use a version now."""
        return self._in_use[version]

    async def pause(self, mode: PauseMode, *, timeout_seconds: float) -> int:
        """Stops generation; see `Engine.pause`."""
        self._paused.clear()
        self._aborted_samples = 0
        self._pause = mode
        self._queue.wake()
        give_up = time.monotonic() + timeout_seconds
        while not self._paused.is_set() and self._pause == mode:  # another call may have resumed
            if time.monotonic() > give_up:
                raise DeadlineExceededError("generation did not stop in time; it stops when it can, ResumeGeneration takes that back")
            await asyncio.sleep(_POLL_SECONDS)
        return self._aborted_samples

    def resume(self) -> None:
        """Lets generation go on."""
        self._pause = None
        self._queue.wake()

    async def update_weights(self, uri: str, digest: str, *, deadline: float | None) -> str:
        """Replaces the base model's weights; see `Engine.update_weights`."""
        base = await asyncio.to_thread(load_update, uri, digest, self._model.base, self._config.threads)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[str] = loop.create_future()
        if self._update is not None:
            raise FailedPreconditionError("other weights wait to be served already; try again when they are", field="uri")
        self._update = update = (base, done, loop)
        self._queue.wake()
        try:
            return await asyncio.wait_for(done, None if deadline is None else max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise DeadlineExceededError("what computes did not end in time for the new weights; the old ones are served") from None
        finally:
            if self._update is update:
                self._update = None

    def fault(self) -> str | None:
        """Why the compute thread cannot be counted on, and what it does, or None."""
        if not self._thread.is_alive() and not self._queue.closed:
            return "the compute thread of the policy has died"
        since = self._pass_since
        stuck = 0.0 if since is None else time.monotonic() - since
        if stuck > self._config.stall_seconds:
            return f"the policy has computed one pass for {stuck:.0f} s ({self._doing}); {self._config.stall_seconds:g} s are allowed"
        return None

    def stop(self, timeout_seconds: float) -> bool:
        """Closes the queue; what is in compute ends at the next pass."""
        self._queue.close()
        self._thread.join(timeout_seconds)
        self._shelf.close()
        return not self._thread.is_alive()

    # The compute thread.

    def _run(self) -> None:
        while not self._queue.closed:
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001 - the thread must outlive any defect of one pass
                self._fail(error)
            finally:
                self._pass_since = None
        self._end_all(UnavailableError("policy: the service is stopping", retry_after_seconds=1.0))

    def _turn(self) -> None:
        self._let_go(self._stepper.leave())
        if self._update is not None and not self._stepper.active:
            self._replace_weights()
        if self._update is None:
            self._admit()
        if self._pause is not None and self._stand_still(self._pause):
            return
        if not self._stepper.active:
            self._queue.wait(_IDLE_SECONDS)
            return
        self._pass_since, self._doing = time.monotonic(), self._stepper.describe()
        self._stepper.step()
        _STEP_SECONDS.observe(time.monotonic() - self._pass_since)
        self._pass_since = None

    def _stand_still(self, mode: PauseMode) -> bool:
        """Whether nothing is to be computed under a pause."""
        if mode == "abort":
            self._aborted_samples += self._abort()
        elif mode == "wait" and self._stepper.active:
            return False
        self._paused.set()
        time.sleep(_PAUSED_SECONDS)
        return True

    def _abort(self) -> int:
        samples, gone = self._stepper.abort()
        self._let_go(gone)
        waiting = self._queue.admit(lambda item: "skip" if isinstance(item.payload, AdapterCommand) else "take")
        for item in waiting:
            if isinstance(item.payload, GenerationRequest):
                item.complete(aborted_samples(item.payload))
                samples += item.payload.n
        for item in [*(unit.item for unit in gone), *waiting]:
            item.fail(UnavailableError("generation is paused", retry_after_seconds=1.0))  # without effect on what is answered
        return samples

    def _admit(self) -> None:
        """Lets in who has room. Adapters are loaded without the queue's lock, which the event loop needs too."""
        while True:
            self._to_load = ""
            self._places.begin()
            self._queue.admit(self._decide)
            if not self._to_load:
                return
            self._pass_since, self._doing = time.monotonic(), f"loading {self._to_load}"
            self._shelf.load(self._to_load)
            self._pass_since = None

    def _ready(self, version: str, item: Item) -> Verdict:
        """As the shelf's; what is to be loaded is noted, and whoever wants it stays the next in turn."""
        ready = self._shelf.ready(version, item.submitted)
        if ready == "load":
            self._to_load = version
            return "stop"
        return ready

    def _decide(self, item: Item) -> Verdict:
        """Called in the queue's order: who comes in now; under a pause commands alone."""
        if isinstance(item.payload, AdapterCommand):
            return self._obey(item, item.payload)
        if self._pause is not None or self._places.barred(item.priority):
            return "skip"
        version, base_model = cast(tuple[str, str], item.key)
        if base_model not in ("", self._info.digests.base_model):
            item.fail(UnavailableError("other weights are served since the call came; ask again", retry_after_seconds=_AGAIN_SECONDS))
            return "skip"
        try:
            ready = self._ready(version, item)
        except AccordError as error:
            item.fail(error)
            return "skip"
        if ready != "take":
            return ready
        rows = _rows_of(request_of(item))
        place = self._places.verdict(item.priority, rows, held=self._stepper.rows, interactive=self._stepper.interactive_rows)
        if place != "take":
            return place
        if not self._stepper.admit(item, version):
            return "stop"
        self._rows = self._stepper.rows
        self._shelf.pin(version)
        return "take"

    def _busy(self, requests: Sequence[WorkRequest[Payload]], waiting: Collection[Item]) -> str | None:
        """On the event loop, with the queue's lock: no item moves from the queue into compute meanwhile."""
        asked = sum(_rows_of(request.payload) for request in requests)
        held = self._rows + sum(_rows_of(item.payload) for item in waiting)
        most = self._config.max_batch_rows
        return f"{held} of {most} rows are taken and the call needs {asked}; nothing is queued here" if asked and held + asked > most else None

    def _obey(self, item: Item, command: AdapterCommand) -> Verdict:
        """Obeys at once, or not yet: what is decided next may take the place of a version, or begin to use one."""
        version = command.version
        try:
            if not command.load and self._shelf.pinned(version):
                return "skip"
            ready = self._ready(version, item) if command.load else "take"
            if ready != "take":
                return ready
            item.complete(self._shelf.facts[version] if command.load else self._shelf.unload(version))
        except AccordError as error:
            item.fail(error)
        return "skip"  # it is answered, and has left the queue

    def _let_go(self, units: Iterable[Unit]) -> None:
        for unit in units:
            self._shelf.unpin(unit.prompt.adapter)
            if unit.item.expired:
                unit.item.fail(DeadlineExceededError("the deadline passed during compute in policy"))
        self._rows = self._stepper.rows

    def _fail(self, error: Exception) -> None:
        units = self._stepper.drop_all()
        self._let_go(units)
        private = b"\0".join(repr(unit.item.payload).encode(errors="replace") for unit in units)
        _log.error("compute_failed", queue="policy", items=len(units), **describe_exception(error, private))
        for unit in units:
            unit.item.fail(InternalError("compute failed in policy, see server log"))

    def _end_all(self, error: AccordError) -> None:
        units = self._stepper.drop_all()
        for unit in units:
            unit.item.fail(error)

    def _replace_weights(self) -> None:
        update, self._update = self._update, None
        if update is None:  # its caller has given up meanwhile
            return
        base, done, loop = update
        try:
            self._serve(base)
            self._shelf.move(self._model)
            outcome: str | AccordError = self._info.digests.base_model
        except AccordError as error:
            outcome = error
        except Exception as error:  # noqa: BLE001 - no memory for both, say: the old ones are served
            _log.error("weights_not_replaced", **describe_exception(error))
            outcome = InternalError("the weights could not be replaced, see server log")
        loop.call_soon_threadsafe(_settle, done, outcome)

    def _serve(self, base: BaseModel) -> None:
        config = self._config
        model = InferenceModel(base)
        self._stepper = Stepper(
            model, max_tokens=config.max_batch_tokens, step_tokens=config.step_tokens, prefix_cache_bytes=config.prefix_cache_bytes
        )
        self._model = model
        digests = base.digests
        self._info = BackendInfo(
            name="transformers", base_model=base.name, digests=ModelDigests(digests.base_model, digests.tokenizer, digests.chat_template),
            context_tokens=base.context_tokens, vocabulary_size=self._model.vocabulary_size, eos_token_ids=base.eos_token_ids,
            parameters=base.parameters,
        )  # fmt: skip


def _rows_of(payload: Payload) -> int:
    """Rows of a pass that a request takes."""
    if isinstance(payload, AdapterCommand):
        return 0
    return payload.n if isinstance(payload, GenerationRequest) else 1


def _settle(done: asyncio.Future[str], outcome: str | AccordError) -> None:
    if done.done():
        return
    if isinstance(outcome, AccordError):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)
