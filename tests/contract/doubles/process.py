"""A double in a process of its own."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.nursery import shared_nursery

_START_SECONDS = 60.0


class Double(contextlib.AbstractContextManager["Double"]):
    """`vllm`, `tgi` or `openai`.

    Args:
        kind: which.
        options: of its command line, besides `--announce`.
        folder: for its announcement.
    """

    def __init__(self, kind: str, options: list[str], folder: Path) -> None:
        announcement = folder / f"{kind}-{time.monotonic_ns()}"
        script = Path(__file__).with_name(f"{kind}_double.py")
        self.log = announcement.with_suffix(".log")
        self._process = shared_nursery().start(str(script), ["--announce", str(announcement), *options], self.log)
        give_up = time.monotonic() + _START_SECONDS
        while not announcement.exists():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < give_up, self.log.read_text()
            time.sleep(0.02)
        self.url = announcement.read_text(encoding="utf-8")

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        self._process.kill()
        self._process.wait(10)

    def set(self, **settings: Any) -> None:
        """Puts all settings back but these, and forgets the bodies."""
        self._talk({"step_seconds": 0.0, "fail": None, "hang": None, "processed": None, **settings})

    def seen(self, name: str) -> Any:
        """One of the counts, or `bodies`."""
        return self._talk(None)[name]

    def post(self, path: str, body: Any) -> None:
        """A request past the replica."""
        request = urllib.request.Request(self.url + path, json.dumps(body).encode())
        urllib.request.urlopen(request, timeout=10).close()

    def _talk(self, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/double", data), timeout=10) as reply:
            return json.loads(reply.read())
