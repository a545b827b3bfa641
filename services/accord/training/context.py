"""What every algorithm of a run works with: the model with its adapters, the store, the run's directory, its events and its stop signal.

What does not belong here: algorithms, and the loop that drives them (`accord.training.loop`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from accord.artefacts.manifest import Manifest
from accord.artefacts.store import ArtefactStore
from accord.models.base import BaseModel
from accord.models.lora import AdaptedModel
from accord.rundir import RunDirectory, RunEvent, RunFile
from accord.runspec import RunSpec
from accord.training.distribution import World
from accord.training.examples import Limits
from accord.training.stopping import RunStopped, StopSignal
from accord.training.waiting import store_in_words, with_patience

__all__ = ["EventLog", "Heartbeat", "RunContext", "RunStopped", "StopSignal"]

T = TypeVar("T")
_HEARTBEAT_SECONDS = 4.0
_ROUNDS = 16  # passes of each of several processes between two questions whether to stop: far below a grace of 120 s


class EventLog:
    """Appends events of one run, from the loop and from the heartbeat's thread; with `silent`, as in all processes but the first, none."""

    def __init__(self, directory: RunDirectory, *, silent: bool = False) -> None:
        self._directory = directory
        self._silent = silent
        self._lock = threading.Lock()
        self.step = 0
        self.phase = ""
        self.listener: Callable[[int, Mapping[str, float]], None] | None = None
        """Is told all metrics; see `accord.training.tracking`."""

    def state(self, phase: str, waiting_on: str = "") -> None:
        """The run is in this phase now, and waits for this, if for anything."""
        self.phase = phase
        self._append(RunEvent("state", time.time(), self.step, phase=phase, waiting_on=waiting_on))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics after a step."""
        self.step = step
        numbers = {name: float(value) for name, value in values.items()}
        self._append(RunEvent("metrics", time.time(), step, values=numbers))
        if self.listener is not None:
            self.listener(step, numbers)

    def message(self, text: str) -> None:
        """A line for people."""
        self._append(RunEvent("message", time.time(), self.step, text=text))

    def heartbeat(self) -> None:
        """The process lives."""
        self._append(RunEvent("heartbeat", time.time(), self.step))

    def _append(self, event: RunEvent) -> None:
        if self._silent:
            return
        with self._lock:
            self._directory.append_event(event)


class Heartbeat:
    """Appends a heartbeat every few seconds while the block runs."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):  # a full disk is the run's to report, which it does at its next write
                self._events.heartbeat()


class RunContext:
    """One run's surroundings."""

    def __init__(self, run: RunFile, directory: RunDirectory, base: BaseModel, store: ArtefactStore, world: World | None = None) -> None:
        self.run = run
        self.world = world or World()
        self.directory = directory
        self.base = base
        self.store = store
        self.adapted = AdaptedModel(base)
        self.events = EventLog(directory)
        self.stop = StopSignal()

    @property
    def spec(self) -> RunSpec:
        """What the run is asked to do."""
        return self.run.spec

    @property
    def micro_batch_size(self) -> int:
        """Rows (pairs, rollouts) computed at once; so few that a batch has a part for each process."""
        asked, share = self.spec.micro_batch_size, -(-self.spec.batch_size // self.world.size)
        return asked or share if self.world.size == 1 else min(asked or share, share)

    @property
    def limits(self) -> Limits:
        """Most tokens of a row."""
        return Limits(self.spec.max_prompt_tokens, self.spec.max_response_tokens, self.base.context_tokens)

    def shared_trunk(self) -> contextlib.AbstractContextManager[None]:
        """As the model's; with weights that are gathered in each pass nothing is shared, for all processes must make the same passes."""
        return contextlib.nullcontext() if self.world.lockstep else self.adapted.shared_trunk()

    def read_store(self, read: Callable[[ArtefactStore], T]) -> T:
        """What all processes read of the store, each for itself; waits for one that is away. Raises as `World.each` and `with_patience`."""
        return self.world.each(lambda: self._read_alone(read))

    def _read_alone(self, read: Callable[[ArtefactStore], T]) -> T:
        return with_patience(self, "", store_in_words(self), lambda: read(self.store))

    def read_parts(self, parts: Sequence[T]) -> Iterator[T]:
        """This process's share of parts that are read and not learnt from, as an evaluation's; heeds a stop as `read_slices`."""
        for some in self.read_slices(parts):
            yield from self.world.share(some)

    def read_slices(self, parts: Sequence[T]) -> Iterator[Sequence[T]]:
        """Parts that are read and not learnt from, in slices that are the same in all processes; each takes its share of every one.

        A stop is heeded before each slice: alone a slice is one part, and several processes, which must agree on it, take so many each.
        Shares of the slices are together those of all parts.

        Raises:
            RunStopped: the run was asked to stop; in all processes.
        """
        most = 1 if self.world.size == 1 else _ROUNDS * self.world.size
        for start in range(0, len(parts), most):
            if self.world.agree(self.stop.is_set):
                raise RunStopped
            yield parts[start : start + most]

    def manifest(self, version: str) -> Manifest:
        """The manifest of a version, which the first process reads for all: a store that one process alone cannot reach parts none from the others.

        Raises as `with_patience` and the store in the first process, as `from_first` in the others.
        """
        stored = self.world.from_first(lambda: self._read_alone(lambda store: store.manifest(version).to_bytes().decode()))
        return Manifest.from_bytes(stored.encode(), name=version)

    def fetch_parent(self, name: str) -> str:
        """The full version name of an adapter: the one that the run began with, whatever is published and however often it is resumed.

        Raises:
            NotFoundError: there is none.
            FailedPreconditionError: it was trained on another base model.
            AbortedError: as either, in all processes but the first.
        """
        return self.world.from_first(lambda: self._read_alone(lambda _: self._version(name)))

    def _version(self, name: str) -> str:
        from accord.serving.reader import check_adapter_base

        kept = self.directory.versions().get(name)
        version = kept or self.store.resolve(name)
        check_adapter_base(version, self.store.manifest(version).base_model_digest, self.base.digests.base_model)
        if kept is None:
            self.directory.keep_version(name, version)
        return version
