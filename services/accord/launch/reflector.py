"""A copy of a collection of objects of an API server, kept up to date by a watch in a thread of its own.

List once, then watch from that version on. A watch that the server ends goes on behind the last object seen; after an error, and where the server
no longer knows the version (410 Gone), the collection is listed again. What does not belong here: how requests are made (`accord.launch.kubernetes`).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import structlog

from accord.errors import AccordError, UnavailableError

Object = Mapping[str, Any]
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 10.0
_log = structlog.get_logger(__name__)


class ExpiredError(UnavailableError):
    """The server no longer knows the version that a watch was to go on from."""


class Collection(Protocol):
    """What is reflected. Both methods raise AccordError where the server cannot be asked."""

    def list(self) -> tuple[list[Object], str]:
        """All objects, and the version at which this was so."""
        ...

    def watch(self, version: str) -> Iterator[tuple[str, Object]]:
        """Changes after a version as (ADDED, MODIFIED, DELETED or BOOKMARK, object), until the server ends the stream.

        Raises:
            ExpiredError: the version is too old.
        """
        ...


class Reflector:
    """A collection by name.

    Args:
        what: of what, for messages, for example `jobs`.
        collection: lists and watches.
    """

    def __init__(self, what: str, collection: Collection) -> None:
        self.what = what
        self._collection = collection
        self._objects: dict[str, Object] = {}
        self._lock = threading.Lock()
        self._synced, self._over = threading.Event(), threading.Event()
        self._problem: tuple[AccordError, float] | None = None
        self._waited_for = False
        self._thread = threading.Thread(target=self._run, name=f"watch-{what}", daemon=True)
        self._thread.start()

    def objects(self, *, timeout_seconds: float) -> dict[str, Object]:
        """The objects by name. The first call waits until they were listed, later ones do not wait.

        Raises:
            AccordError: they could not be listed so far.
        """
        patience, self._waited_for = 0.0 if self._waited_for else timeout_seconds, True
        if not self._synced.wait(patience):
            problem = self._problem
            raise UnavailableError(f"the cluster's {self.what} cannot be read: {problem[0] if problem else 'no answer'}")
        with self._lock:
            return dict(self._objects)

    def note(self, item: Object) -> None:
        """Takes in an object that was just created, before the watch brings it; an earlier one of its name that the copy still holds gives way."""
        with self._lock:
            if not self._is_same(item):
                self._objects[item["metadata"]["name"]] = item

    def problem(self) -> tuple[AccordError, float] | None:
        """Why the copy is not up to date, and for how many seconds this has been so; None where it is."""
        problem = self._problem
        return None if problem is None else (problem[0], time.monotonic() - problem[1])

    def close(self) -> None:
        """Ends the thread, at the latest when its watch ends."""
        self._over.set()

    def _run(self) -> None:
        version, pause = "", _FIRST_PAUSE_SECONDS
        while not self._over.is_set():
            started = time.monotonic()
            try:
                version = self._follow(version) if version else self._list()
                self._problem = None
            except ExpiredError:
                version = ""
            except AccordError as error:
                version = ""
                self._went_wrong(error)
                self._over.wait(pause * random.uniform(0.75, 1.25))
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
                continue
            if version and time.monotonic() - started < _FIRST_PAUSE_SECONDS:
                self._over.wait(_FIRST_PAUSE_SECONDS)  # a server that ends each watch at once is not asked in a tight loop
            pause = _FIRST_PAUSE_SECONDS

    def _went_wrong(self, error: AccordError) -> None:
        if self._problem is None:
            _log.warning("watch_failed", what=self.what, reason=str(error))
        self._problem = (error, self._problem[1] if self._problem is not None else time.monotonic())

    def _list(self) -> str:
        items, version = self._collection.list()
        with self._lock:
            self._objects = {item["metadata"]["name"]: item for item in items}
        self._synced.set()
        return version

    def _follow(self, version: str) -> str:
        for kind, item in self._collection.watch(version):
            self._problem = None
            if self._over.is_set():
                return version
            version = item["metadata"]["resourceVersion"]
            self._apply(kind, item)
        return version

    def _apply(self, kind: str, item: Object) -> None:
        if kind == "BOOKMARK":
            return
        with self._lock:
            if kind != "DELETED":
                self._objects[item["metadata"]["name"]] = item
            elif self._is_same(item):  # else an earlier object of the name went, before the one that was noted
                del self._objects[item["metadata"]["name"]]

    def _is_same(self, item: Object) -> bool:
        """Whether the copy's object of that name is this one, in whatever version."""
        known = self._objects.get(item["metadata"]["name"])
        return known is not None and known["metadata"]["uid"] == item["metadata"]["uid"]
