"""What both doubles share of HTTP: a threading server that counts open requests, notices callers that leave, and fails when it is told to.

`POST /double` sets `step_seconds` (time a token takes), `fail` ({path, status, body, type, after}), `hang` (a path that never answers) and what one
double knows;
`GET /double` tells what was seen. What does not belong here: what a path answers.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar


class CallerLeft(Exception):
    """Nobody waits for the answer."""


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.status, self.body = status, body


class Watch:
    """What tests look at and set."""

    def __init__(self, api_key: str) -> None:
        self.api_key = api_key
        self.lock = threading.Lock()
        self.seen = {"open": 0, "most_open": 0, "left": 0, "requests": 0, "tokens": 0}
        self.settings: dict[str, Any] = {"step_seconds": 0.0, "fail": None, "hang": None}
        self.bodies: list[dict[str, Any]] = []

    def count(self, **changes: int) -> None:
        with self.lock:
            for name, change in changes.items():
                self.seen[name] += change
            self.seen["most_open"] = max(self.seen["most_open"], self.seen["open"])


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # the library's 5 resets connections of a caller that opens twenty at once on a busy machine


class Handler(BaseHTTPRequestHandler):
    """One request; a subclass has `routes`: (method, path) to a method that takes the body and returns JSON, or an iterator of events."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    watch: Watch
    _open = 0
    routes: ClassVar[dict[tuple[str, str], str]] = {}

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def log_message(self, *_: Any) -> None:
        pass

    def step(self) -> None:
        """To be called before each token; raises CallerLeft."""
        time.sleep(self.watch.settings["step_seconds"])
        readable, _, _ = select.select([self.connection], [], [], 0)
        if readable and not self.connection.recv(1, socket.MSG_PEEK):
            raise CallerLeft
        self.watch.count(tokens=1)

    def reset(self) -> None:
        """Forgets what earlier tests left."""

    def unauthorized(self) -> Any:
        return {"error": "Unauthorized"}

    def _answer(self, method: str) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or "{}")
        if self.path == "/double":
            self._control(method, body)
            return
        work = int(method == "POST")  # health probes come when they like
        self._open = work
        self.watch.count(open=work, requests=work)
        self.watch.bodies += [body] * work
        try:
            self._route(method, body)
        except (CallerLeft, BrokenPipeError, ConnectionResetError):
            self.watch.count(left=1)
            self.close_connection = True
        finally:
            self._end()

    def _end(self) -> None:
        """Counts the request as ended: before its last bytes go out, or a fast caller's next one would be counted beside it."""
        self.watch.count(open=-self._open)
        self._open = 0

    def _control(self, method: str, body: Any) -> None:
        if method == "POST":
            if body.pop("reset", False):
                self.reset()
            self.watch.settings.update(body)
            self.watch.bodies.clear()
            self.watch.seen["most_open"] = self.watch.seen["open"]
        self.send_json(200, {**self.watch.seen, "bodies": self.watch.bodies})

    def _route(self, method: str, body: Any) -> None:
        settings = self.watch.settings
        while settings["hang"] == self.path:
            time.sleep(0.05)
        if (fail := settings["fail"]) and fail["path"] == self.path and self._due(fail):
            self.send_bytes(fail["status"], fail["body"].encode(), fail.get("type", "application/json"), fail.get("headers", {}))
            return
        if self.watch.api_key and self.path not in ("/health",) and self.headers.get("authorization") != f"Bearer {self.watch.api_key}":
            self.send_json(401, self.unauthorized())
            return
        name = self.routes.get((method, self.path))
        if name is None:
            self.send_json(404, {"detail": "Not Found"})
            return
        try:
            found = getattr(self, name)(body)
            if isinstance(found, Iterator):
                self.send_events(found)
            else:
                self.send_json(200, found)
        except Refused as refusal:
            self.send_json(refusal.status, refusal.body)

    def _due(self, fail: dict[str, Any]) -> bool:
        """Whether as many requests as `after` says have been let through."""
        with self.watch.lock:
            fail["after"] = fail.get("after", 0) - 1
            return fail["after"] < 0

    def send_json(self, status: int, body: Any) -> None:
        content = body.encode() if isinstance(body, str) else json.dumps(body, ensure_ascii=False).encode()
        self.send_bytes(status, content, "application/json", {})

    def send_bytes(self, status: int, content: bytes, kind: str, headers: dict[str, str]) -> None:
        self._end()
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def send_events(self, events: Iterator[str]) -> None:
        """`data:` lines in chunked coding; the first event is computed before the status is sent, so that it can be refused."""
        first = next(events, None)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in [] if first is None else _chain(first, events):
            content = f"{event}\n\n".encode()
            self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
        self._end()
        self.wfile.write(b"0\r\n\r\n")


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def serve(handler: Callable[[argparse.Namespace], type[Handler]], parser: argparse.ArgumentParser) -> None:
    """Runs a double until it is killed, or its parent is gone; writes its URL to `--announce` once it listens."""
    parser.add_argument("--announce", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--api-key", default="")
    options = parser.parse_args()
    kind = handler(options)
    kind.watch = Watch(options.api_key)
    server = _Server(("127.0.0.1", options.port), kind)
    server.daemon_threads = True
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    partial = options.announce.with_suffix(".partial")
    partial.write_text(f"http://127.0.0.1:{server.server_address[1]}", encoding="utf-8")
    partial.rename(options.announce)
    server.serve_forever()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)
