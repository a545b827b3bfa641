"""Which adapter versions the in-process engine holds: fetched and verified beside the compute thread, least recently used out first, by bytes.

A version that a request in flight uses stays. What does not belong here: the layers (`accord.models.inference`), names (`accord.artefacts`).
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prometheus_client import Gauge

from accord.artefacts.store import ArtefactStore
from accord.errors import AccordError, FailedPreconditionError, InternalError, NotFoundError
from accord.models.inference import InferenceModel
from accord.policy.engine import AdapterFacts
from accord.rpc.fairqueue import Verdict
from accord.serving.fields import naming
from accord.serving.reader import check_adapter_base, check_policy

_ADAPTERS = Gauge("accord_policy_loaded_adapters", "Adapter versions in memory")


@dataclass(frozen=True, slots=True)
class _Fetched:
    folder: Path
    facts: AdapterFacts


@dataclass(frozen=True, slots=True)
class _Failed:
    error: Exception
    at: float


class AdapterShelf:
    """Used by the compute thread alone, but for `facts`.

    Args:
        model: takes the adapters.
        store: where they come from.
        max_bytes: of all adapters in memory.
        wake: called from another thread when a fetch has ended.
    """

    def __init__(self, model: InferenceModel, store: ArtefactStore, *, max_bytes: int, wake: Callable[[], None]) -> None:
        self._model = model
        self._store = store
        self._max_bytes = max_bytes
        self._wake = wake
        self._fetcher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapter-fetch")
        self._fetching: dict[str, Future[_Fetched | _Failed]] = {}
        self._held: OrderedDict[str, AdapterFacts] = OrderedDict()
        self._pins: Tally[str] = Tally()
        self.facts: dict[str, AdapterFacts] = {}

    def ready(self, version: str, asked: float) -> Verdict | Literal["load"]:
        """Whether a version can be used now: "take"; "skip" while it is being fetched; "stop" while it needs the room of others in use; "load" once
        it has been fetched and has room: `load` it and ask again.

        Args:
            version: which.
            asked: `time.monotonic()` seconds when it was asked for: what failed before that failed for others, and is tried anew.

        Raises:
            NotFoundError, FailedPreconditionError, DataLossError: it is not there, not for this model, or damaged.
        """
        if not version:
            return "take"
        if version in self._held:
            self._held.move_to_end(version)
            return "take"
        future = self._fetching.get(version)
        if future is None or _failed_before(future, asked):
            future = self._fetching[version] = self._fetcher.submit(self._fetch, version, self._model)
            future.add_done_callback(lambda _: self._wake())
        if not future.done():
            return "skip"
        try:
            with naming("adapter"):
                return "load" if self._make_room(version, _result(future).facts.size_bytes) else "stop"
        except AccordError:
            self._drop(version)
            raise
        except Exception as error:
            self._drop(version)
            raise InternalError(f"{version} could not be loaded: {type(error).__name__}") from error

    def load(self, version: str) -> None:
        """Loads a version that is ready for it; takes as long as its files and the disk want. What is wrong with it, the next `ready` raises."""
        fetched = _result(self._fetching[version])
        try:
            self._model.load_adapter(version, fetched.folder)
        except Exception as error:  # noqa: BLE001 - `ready` says what it is to whoever wants the version
            failed: Future[_Fetched | _Failed] = Future()
            failed.set_result(_Failed(error, time.monotonic()))
            self._drop(version)
            self._fetching[version] = failed
            return
        self._drop(version)
        self._held[version] = fetched.facts
        self._publish()

    def pin(self, version: str) -> None:
        """A request in flight uses it."""
        self._pins[version] += 1

    def unpin(self, version: str) -> None:
        """The counterpart of `pin`."""
        self._pins[version] -= 1

    def pinned(self, version: str) -> bool:
        """Whether a request in flight uses it."""
        return self._pins[version] > 0

    def unload(self, version: str) -> AdapterFacts:
        """Forgets a version.

        Raises:
            NotFoundError: it is not loaded.
        """
        if version not in self._held:
            raise NotFoundError(f"{version} is not loaded; loaded: {', '.join(self._held) or 'none'}", field="name")
        facts = self._held.pop(version)
        self._model.remove_adapter(version)
        self._publish()
        return facts

    def move(self, model: InferenceModel) -> None:
        """Forgets all versions and goes on with another model; nothing may be pinned."""
        self._model = model
        self._held.clear()
        for version in list(self._fetching):
            self._drop(version)
        self._publish()

    def close(self) -> None:
        """Ends the fetching thread."""
        self._fetcher.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, version: str, model: InferenceModel) -> _Fetched | _Failed:
        try:
            manifest = self._store.manifest(version)
            check_policy(version, manifest.kind)
            check_adapter_base(version, manifest.base_model_digest, model.base.digests.base_model)
            folder = self._store.fetch(version)
        except Exception as error:  # noqa: BLE001 - `ready` raises it
            return _Failed(error, time.monotonic())
        try:
            return _Fetched(folder, AdapterFacts(manifest.digest, model.adapter_bytes(folder)))
        except Exception as error:  # noqa: BLE001 - as above
            self._store.release(version)
            return _Failed(error, time.monotonic())

    def _drop(self, version: str) -> None:
        """Forgets a fetch, now or when it ends; its folder is in memory, or not wanted."""

        def release(done: Future[_Fetched | _Failed]) -> None:
            if not done.cancelled() and isinstance(done.result(), _Fetched):
                self._store.release(version)

        self._fetching.pop(version).add_done_callback(release)

    def _make_room(self, version: str, size: int) -> bool:
        """Whether there is room for so many bytes, once what is not in use has made it: those in use leave first, and nobody new keeps them."""
        if size > self._max_bytes:
            raise FailedPreconditionError(f"{version} takes {size} bytes; this engine holds at most {self._max_bytes} of adapters", field="adapter")
        held = sum(facts.size_bytes for facts in self._held.values())
        for other in [name for name in self._held if not self.pinned(name)]:
            if held + size <= self._max_bytes:
                break
            held -= self.unload(other).size_bytes
        return held + size <= self._max_bytes

    def _publish(self) -> None:
        self.facts = dict(sorted(self._held.items()))
        _ADAPTERS.set(len(self._held))


def _failed_before(future: Future[_Fetched | _Failed], asked: float) -> bool:
    result = future.result() if future.done() and not future.cancelled() else None
    return isinstance(result, _Failed) and result.at < asked


def _result(future: Future[_Fetched | _Failed]) -> _Fetched:
    result = future.result()
    if isinstance(result, _Failed):
        raise result.error
    return result
