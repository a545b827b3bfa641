"""Which adapter versions another server holds for us: fetched and verified here, loaded there, least recently used out first, by number.

A version that a request in flight uses stays. Lives on the event loop; only the store is read in threads. What does not belong here: how a
server loads one (`accord.policy.vllm`), names (`accord.artefacts`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter as Tally
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from prometheus_client import Gauge

from accord.artefacts.store import ArtefactStore
from accord.errors import AccordError, InternalError, NotFoundError
from accord.policy.engine import AdapterFacts
from accord.policy.remote_server import AdapterFiles, RemoteServer
from accord.rpc.logs import describe_exception
from accord.serving.fields import naming
from accord.serving.reader import check_adapter_base, check_policy

_FRESH_SECONDS = 1.0  # so long a version stays for who waits for it: two that share one place would evict each other forever
_ADAPTERS = Gauge("accord_policy_remote_adapters", "Adapter versions that another server holds for this replica")
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Held:
    far_name: str
    facts: AdapterFacts
    fresh_until: float


@dataclass(slots=True)
class _Bringing:
    task: asyncio.Task[None]
    ended: float = math.inf

    @property
    def failed(self) -> bool:
        return self.task.done() and (self.task.cancelled() or self.task.exception() is not None)


class RemoteAdapters:
    """The adapters of one server.

    Args:
        server: where they go.
        store: where they come from.
        base_model: digest of the base model that they must have been trained on.
        max_adapters: most versions held at once.
        wake: called when a version has become ready, or cannot.
    """

    def __init__(self, server: RemoteServer, store: ArtefactStore, *, base_model: str, max_adapters: int, wake: Callable[[], None]) -> None:
        self._server = server
        self._store = store
        self._base_model = base_model
        self._max_adapters = max_adapters
        self._wake = wake
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._bringing: dict[str, _Bringing] = {}
        self._pins: Tally[str] = Tally()
        self._changing = asyncio.Lock()
        self._unpinned = asyncio.Event()

    @property
    def facts(self) -> dict[str, AdapterFacts]:
        """The held versions, by name."""
        return {version: held.facts for version, held in sorted(self._held.items())}

    def ready(self, version: str, asked: float) -> bool:
        """Whether a version can be used now; where not, it is being brought.

        Args:
            version: which.
            asked: `time.monotonic()` seconds when it was asked for: what failed before that failed for others, and is tried anew.

        Raises:
            NotFoundError, FailedPreconditionError, DataLossError: it is not there, not for this model, not to be loaded, or damaged.
            UnavailableError: the server or the store cannot be reached.
        """
        if not version:
            return True
        if version in self._held:
            self._held.move_to_end(version)
            self._held[version].fresh_until = time.monotonic() + _FRESH_SECONDS
            return True
        bringing = self._bringing.get(version)
        if bringing is None or (bringing.failed and bringing.ended < asked):
            bringing = self._begin(version)
        if not bringing.task.done():
            return False
        del self._bringing[version]
        with naming("adapter"):
            bringing.task.result()
        return self.ready(version, asked)

    def far_name(self, version: str) -> str:
        """The server's name of a version that is ready."""
        return self._held[version].far_name if version else ""

    def pin(self, version: str) -> None:
        """A request in flight uses it."""
        self._pins[version] += 1
        if version:
            self._held[version].fresh_until = 0.0

    def unpin(self, version: str) -> None:
        """The counterpart of `pin`."""
        self._pins[version] -= 1
        self._unpinned.set()

    def pinned(self, version: str) -> bool:
        """Whether a request in flight uses it."""
        return self._pins[version] > 0

    def forget(self, version: str) -> None:
        """The server has turned out not to hold it any more."""
        self._leave(version)

    def withdraw(self, version: str) -> tuple[str, AdapterFacts]:
        """Takes a version out of use before it is unloaded, so that nobody begins to use it meanwhile; returns the server's name of it and its facts.

        Raises:
            NotFoundError: it is not loaded.
        """
        held = self._leave(version)
        if held is None:
            raise NotFoundError(f"{version} is not loaded; loaded: {', '.join(self._held) or 'none'}", field="name")
        return held.far_name, held.facts

    async def unload(self, version: str, far_name: str) -> None:
        """Unloads a version that was withdrawn, unless it has been brought again since."""
        async with self._changing:
            if version not in self._held:
                await self._server.unload_adapter(far_name)

    async def close(self) -> None:
        """Stops bringing."""
        tasks = [bringing.task for bringing in self._bringing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, version: str) -> _Bringing:
        def ended(_: asyncio.Task[None]) -> None:
            bringing.ended = time.monotonic()
            self._wake()

        bringing = self._bringing[version] = _Bringing(asyncio.create_task(self._bring(version)))
        bringing.task.add_done_callback(ended)
        return bringing

    async def _bring(self, version: str) -> None:
        try:
            manifest = await asyncio.to_thread(self._store.manifest, version)
            check_policy(version, manifest.kind)
            check_adapter_base(version, manifest.base_model_digest, self._base_model)
            folder = await asyncio.to_thread(self._store.fetch, version)
            try:
                await self._load(AdapterFiles(version, manifest.digest, folder), manifest.size_bytes)
            except BaseException:
                self._store.release(version)
                raise
        except AccordError:
            raise
        except Exception as error:
            _log.error("adapter_not_loaded", version=version, **describe_exception(error))
            raise InternalError(f"{version} could not be loaded: {type(error).__name__}, see server log") from error

    async def _load(self, files: AdapterFiles, size_bytes: int) -> None:
        async with self._changing:
            await self._make_room()
            far_name = await self._server.load_adapter(files)
            self._held[files.version] = _Held(far_name, AdapterFacts(files.digest, size_bytes), time.monotonic() + _FRESH_SECONDS)
            self._publish()

    def _leave(self, version: str) -> _Held | None:
        """Takes a version out of use; from now on nobody makes the server read its folder again, as it may while it holds the version."""
        held = self._held.pop(version, None)
        if held is not None:
            self._store.release(version)
            self._publish()
        return held

    async def _make_room(self) -> None:
        """Lets the least recently used go until there is room for one; where all are in use, waits for one that is not."""
        while len(self._held) >= self._max_adapters:
            now = time.monotonic()
            idle = next((version for version, held in self._held.items() if not self.pinned(version) and held.fresh_until <= now), None)
            if idle is None:
                self._unpinned.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._unpinned.wait(), _FRESH_SECONDS)
                continue
            held = self._leave(idle)
            assert held is not None
            await self._server.unload_adapter(held.far_name)

    def _publish(self) -> None:
        _ADAPTERS.set(len(self._held))
