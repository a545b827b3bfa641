"""The copy of a collection, where what was just created and what a late watch brings meet."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

from accord.launch.reflector import Reflector

Change = tuple[str, dict[str, Any]]


def thing(uid: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": "one", "uid": uid, "resourceVersion": str(version)}}


class Things:
    """A collection that says what the test tells it to; a change is taken when the next one is asked for."""

    def __init__(self, *first: dict[str, Any]) -> None:
        self.first = list(first)
        self.changes: queue.Queue[Change | None] = queue.Queue()

    def list(self) -> tuple[list[Any], str]:
        return self.first, "1"

    def watch(self, version: str) -> Iterator[Change]:
        while (change := self.changes.get()) is not None:
            yield change
            self.changes.task_done()

    def say(self, *changes: Change) -> None:
        """Returns when all were taken in."""
        for change in changes:
            self.changes.put(change)
        self.changes.join()


def uid_of(reflector: Reflector) -> str | None:
    known = reflector.objects(timeout_seconds=5).get("one")
    return None if known is None else known["metadata"]["uid"]


def test_what_was_created_takes_the_place_of_an_earlier_object_of_its_name() -> None:
    things = Things(thing("old", 1))
    reflector = Reflector("things", things)
    assert uid_of(reflector) == "old"
    reflector.note(thing("new", 3))
    assert uid_of(reflector) == "new"
    things.say(("DELETED", thing("old", 2)))
    assert uid_of(reflector) == "new", "the earlier one went"
    things.say(("ADDED", thing("new", 3)), ("DELETED", thing("new", 4)))
    assert uid_of(reflector) is None
    reflector.close()
    things.changes.put(None)


def test_a_newer_version_that_the_watch_brought_first_stays() -> None:
    things = Things()
    reflector = Reflector("things", things)
    assert uid_of(reflector) is None
    changed = {**thing("new", 4), "status": "done"}
    things.say(("ADDED", thing("new", 3)), ("MODIFIED", changed))
    reflector.note(thing("new", 3))
    assert reflector.objects(timeout_seconds=0)["one"] == changed
    reflector.close()
    things.changes.put(None)
