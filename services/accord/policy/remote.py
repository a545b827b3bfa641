"""The engine of a replica that forwards to another server: a queue, requests in flight on the event loop, adapters by our names.

A cancelled or expired item closes its requests within `_TICK_SECONDS`, and the server ends them. What does not belong here: what one server is
asked for (`remote_flight`, `vllm`, `tgi`), which adapters it holds (`remote_adapters`), protobuf.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter as Tally
from collections.abc import Sequence
from typing import cast

import structlog

from accord.artefacts.names import AdapterName
from accord.artefacts.store import ArtefactStore
from accord.errors import (
    AccordError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    UnimplementedError,
)
from accord.models.encoding import PromptEncoder
from accord.policy.backend import BackendInfo, GenerationRequest, LogprobsRequest, aborted_samples
from accord.policy.config import PolicyConfig
from accord.policy.engine import INTERACTIVE, AdapterCommand, AdapterFacts, Item, PauseMode, Payload, Result, Terms
from accord.policy.places import Places
from accord.policy.remote_adapters import RemoteAdapters
from accord.policy.remote_config import RemoteConfig
from accord.policy.remote_flight import Flight, Forwarder, requests_of
from accord.policy.remote_server import RemoteServer
from accord.rpc.fairqueue import FairQueue, Verdict
from accord.rpc.logs import describe_exception
from accord.rpc.workitem import WorkRequest
from accord.serving.fields import naming

_TICK_SECONDS, _IDLE_SECONDS, _FAILED_PROBES = 0.05, 0.5, 2
_log = structlog.get_logger(__name__)


class RemoteEngine:
    """Implements `accord.policy.engine.Engine` over another server. To be made on the event loop that uses it.

    Args:
        server: described already; the engine closes it.
        store: where adapter names are resolved and their files come from.
        encoder: decodes what comes back.
        info: what is served.
        remote, config: limits.
    """

    def __init__(
        self, server: RemoteServer, store: ArtefactStore, encoder: PromptEncoder, info: BackendInfo, remote: RemoteConfig, config: PolicyConfig
    ) -> None:
        self._server, self._store, self._info = server, store, info
        self._remote, self._config = remote, config
        self._loop = asyncio.get_running_loop()
        self._queue: FairQueue[Payload, Result] = FairQueue(
            max_items=config.max_queue_items, max_cost=config.max_queue_tokens, name="policy",
            max_caller_cost=max(1, round(config.caller_share * config.max_queue_tokens)),
            max_wait_seconds=config.max_wait_seconds, aging_seconds=config.aging_seconds,
        )  # fmt: skip
        self._places = Places(remote.max_concurrency, config.interactive_rows)
        self._woken = asyncio.Event()
        self._adapters = RemoteAdapters(
            server, store, base_model=info.digests.base_model, max_adapters=remote.max_adapters, wake=self._woken.set
        )  # fmt: skip
        self._forwarder = Forwarder(server, encoder, info.eos_token_ids, remote.max_concurrency)
        self._in_use: Tally[str] = Tally()
        self._flights: set[Flight] = set()
        self._pause: PauseMode | None = None
        self._fault: str | None = None
        self._changed: str | None = None
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._probe())]

    @property
    def info(self) -> BackendInfo:
        """What is served."""
        return self._info

    def check(self, request: GenerationRequest | LogprobsRequest, field: str) -> None:
        """Raises where the server could never do it exactly; see `RemoteServer.check`."""
        if isinstance(request, GenerationRequest) and request.n > self._remote.max_concurrency:
            raise InvalidArgumentError(f"n is {request.n}; at most {self._remote.max_concurrency} is allowed", field=f"{field}.n")
        self._server.check(request, field)

    def resolve(self, adapter: str) -> str:
        """The version that a name means now; see `Engine.resolve`."""
        if not adapter:
            return ""
        with naming("adapter"):
            return self._store.resolve(str(AdapterName.parse(adapter)))

    def submit(self, requests: Sequence[GenerationRequest | LogprobsRequest], terms: Terms) -> list[Item]:
        """Queues the requests of a call; see `Engine.submit`."""
        if self._pause == "abort":
            raise _paused()
        asked: list[WorkRequest[Payload]] = [
            WorkRequest(request, request.cost, terms.version, terms.deadline, terms.priority, terms.caller) for request in requests
        ]
        items = self._queue.submit_all(asked)
        if terms.version:
            self._in_use[terms.version] += 1
        self._woken.set()
        return items

    def release(self, version: str) -> None:
        """Counts a call as answered."""
        if version:
            self._in_use[version] -= 1

    async def command(self, version: str, *, load: bool, deadline: float | None) -> AdapterFacts:
        """Loads or unloads an adapter version; see `Engine.command`."""
        item = self._queue.submit(AdapterCommand(version, load), deadline=deadline)
        self._woken.set()
        return cast(AdapterFacts, await item.result())

    def adapters(self) -> dict[str, AdapterFacts]:
        """The loaded versions, by name."""
        return self._adapters.facts

    def calls_with(self, version: str) -> int:
        """How many calls use a version now."""
        return self._in_use[version]

    async def pause(self, mode: PauseMode, *, timeout_seconds: float) -> int:
        """Stops generation; see `Engine.pause`. A request to another server cannot be kept: it goes on there, or is ended."""
        if mode == "keep":
            raise UnimplementedError(
                f"a replica of {self._server.name} cannot keep generations where they are; abort and wait are allowed", field="mode"
            )
        self._pause = mode
        aborted = self._abort() if mode == "abort" else 0
        give_up = time.monotonic() + timeout_seconds
        while self._flights and self._pause == mode:  # another call may have resumed
            if time.monotonic() > give_up:
                raise DeadlineExceededError("generation did not stop in time; it stops when it can, ResumeGeneration takes that back")
            await asyncio.sleep(_TICK_SECONDS / 5)
        return aborted

    def resume(self) -> None:
        """Lets generation go on."""
        self._pause = None
        self._woken.set()

    async def update_weights(self, uri: str, digest: str, *, deadline: float | None) -> str:
        """Raises UnimplementedError: the weights are the server's own."""
        raise UnimplementedError(f"the weights are those of the {self._server.name} server: restart it, and this replica, with other ones")

    def fault(self) -> str | None:
        """What the health probes say of the server, or None."""
        if self._tasks[0].done() and not self._queue.closed:
            return "the task that forwards requests has died"
        return self._fault

    def stop(self, timeout_seconds: float) -> bool:
        """Ends what is in flight and closes the connections. Blocks: call it in a thread."""
        if self._loop.is_closed():
            return True
        closing = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        with contextlib.suppress(TimeoutError):
            closing.result(timeout_seconds)
            return True
        return False

    # On the event loop.

    async def _close(self) -> None:
        self._queue.close()
        for flight in self._flights:
            flight.item.fail(UnavailableError("policy: the service is stopping", retry_after_seconds=1.0))
            flight.recall()
        tasks = [*self._tasks, *(flight.task for flight in self._flights if flight.task is not None)]
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._adapters.close()
        await self._server.close()

    async def _run(self) -> None:
        while not self._queue.closed:
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001 - forwarding must outlive any defect of one turn
                _log.error("forwarding_failed", **describe_exception(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), _TICK_SECONDS if self._flights or len(self._queue) else _IDLE_SECONDS)
            self._woken.clear()

    def _turn(self) -> None:
        for flight in self._flights:
            if flight.item.expired:
                flight.item.fail(DeadlineExceededError(f"the deadline passed while the {self._server.name} server computed"))
            if flight.item.abandoned:
                flight.recall()
        self._places.begin()
        self._queue.admit(self._decide)

    def _decide(self, item: Item) -> Verdict:
        """Called in the queue's order: who is sent now; under a pause commands alone."""
        version, payload = str(item.key or ""), item.payload
        if isinstance(payload, AdapterCommand):
            return self._obey(item, payload)
        if self._pause is not None or self._places.barred(item.priority):
            return "skip"
        try:
            self._check_same()
            if not self._adapters.ready(version, item.submitted):
                return "skip"
        except AccordError as error:
            item.fail(error)
            return "skip"
        requests = requests_of(payload, self._remote.max_concurrency)
        held = sum(flight.requests for flight in self._flights)
        interactive = sum(flight.requests for flight in self._flights if flight.item.priority <= INTERACTIVE)
        place = self._places.verdict(item.priority, requests, held=held, interactive=interactive)
        if place != "take":
            return place
        self._send(Flight(item, version, self._adapters.far_name(version), requests))
        return "take"

    def _check_same(self) -> None:
        if self._changed is not None:
            raise UnavailableError(
                f"the {self._server.name} server is not the one that this replica began with: {self._changed}; restart the replica"
            )

    def _obey(self, item: Item, command: AdapterCommand) -> Verdict:
        """Obeys, or not yet. What is decided next finds a version that is unloaded gone."""
        version = command.version
        try:
            if command.load:
                if self._adapters.ready(version, item.submitted):
                    item.complete(self.adapters()[version])
                return "skip"
            if self._adapters.pinned(version):
                return "skip"
            far_name, facts = self._adapters.withdraw(version)
        except AccordError as error:
            item.fail(error)
            return "skip"
        self._send(Flight(item, version, far_name, 0, facts))
        return "take"

    def _send(self, flight: Flight) -> None:
        if flight.requests:
            self._adapters.pin(flight.version)
        self._flights.add(flight)
        flight.task = asyncio.create_task(self._fly(flight))
        flight.task.add_done_callback(lambda _: self._landed(flight))

    def _landed(self, flight: Flight) -> None:
        self._flights.discard(flight)
        if flight.requests:
            self._adapters.unpin(flight.version)
        self._woken.set()

    async def _fly(self, flight: Flight) -> None:
        item, payload = flight.item, flight.item.payload
        try:
            if isinstance(payload, AdapterCommand):
                await self._adapters.unload(flight.version, flight.adapter)
                item.complete(flight.facts)
            else:
                item.complete(await self._forwarder.answer(flight))
        except NotFoundError:
            item.fail(self._forgotten(flight.version))
        except AccordError as error:
            item.fail(error)
        except Exception as error:  # noqa: BLE001 - a defect ends this item alone
            _log.error("compute_failed", queue="policy", items=1, **describe_exception(error, repr(payload).encode(errors="replace")))
            item.fail(InternalError("compute failed in policy, see server log"))

    def _forgotten(self, version: str) -> UnavailableError:
        """The server was restarted, say: the next request loads the version again."""
        self._adapters.forget(version)
        return UnavailableError(f"the {self._server.name} server does not hold {version} any more; it is loaded again", retry_after_seconds=1.0)

    def _abort(self) -> int:
        waiting = self._queue.admit(lambda item: "skip" if isinstance(item.payload, AdapterCommand) else "take")
        flying = [flight for flight in self._flights if not isinstance(flight.item.payload, AdapterCommand)]
        samples = sum(item.payload.n for item in waiting if isinstance(item.payload, GenerationRequest))
        for item in waiting:
            if isinstance(item.payload, GenerationRequest):
                item.complete(aborted_samples(item.payload))
        for flight in flying:
            request = flight.item.payload
            samples += 0 if flight.item.abandoned else flight.unfinished
            # What is scored again afterwards has no logprobs yet: it is asked for anew.
            if isinstance(request, GenerationRequest) and not self._server.rescored(request.sampling):
                flight.abort()
            flight.recall()
        for item in [*waiting, *(flight.item for flight in flying)]:
            item.fail(_paused())  # without effect on what is answered
        return samples

    async def _compared(self) -> str | None:
        try:
            return await self._server.changed()
        except FailedPreconditionError as error:
            return error.message

    async def _probe(self) -> None:
        failed = 0
        while True:
            await asyncio.sleep(self._remote.probe_seconds)
            try:
                async with asyncio.timeout(self._remote.probe_timeout_seconds):
                    await self._server.health()
                if failed:  # it may have been started anew, as another one
                    self._changed = await self._compared()
                if self._changed is None:
                    failed, self._fault = 0, None
                else:
                    self._fault = f"{self._server.name} at {self._remote.url}: {self._changed}; restart this replica"
            except (AccordError, TimeoutError) as error:
                failed += 1
                why = str(error) or f"no answer within {self._remote.probe_timeout_seconds:g} s"
                if failed >= _FAILED_PROBES:
                    self._fault = (
                        f"{self._server.name} at {self._remote.url}: {failed} health probes failed, {len(self._flights)} items in flight: {why}"
                    )


def _paused() -> UnavailableError:
    return UnavailableError("generation is paused", retry_after_seconds=1.0)
