"""An API server that behaves: names are unique, versions rise, watches stream and expire, deletion in the foreground waits for pods, and permissions
are checked. It speaks HTTP on the loopback; pods do what the test says, by `set_pod` and `finish`."""

from __future__ import annotations

import copy
import json
import queue
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Json = dict[str, Any]
NAMESPACE = "training"
USER = "system:serviceaccount:training:accord-trainer"
_PATH = re.compile(r"^/apis?/(?:[^/]+/)?v[^/]+/namespaces/([^/]+)/([a-z]+)(?:/([^/]+))?(/log)?$")


class Refused(Exception):
    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message}


class FakeApi:
    """The server. `forbidden` holds (verb, resource) pairs; `broken` makes every request fail with 500 while set; with `blind` it is those of
    watches, the lists that they begin with, and no others, as where watches wait to ask again after a break; each (verb, resource) in `conflicts` is
    refused once, as where somebody else changed the object, or the quota that counts it, at the same time; `requests` counts what was asked."""

    def __init__(self, *, minor: int = 34, jobset: bool = False) -> None:
        self.minor, self.jobset = minor, jobset
        self.objects: dict[tuple[str, str], Json] = {}
        self.history: list[tuple[int, str, str, Json]] = []
        self.oldest, self.version = 0, 100
        self.logs: dict[str, str] = {}
        self.forbidden: set[tuple[str, str]] = set()
        self.conflicts: list[tuple[str, str]] = []
        self.denied: str = ""
        self.broken = self.blind = False
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        self.watchers: list[tuple[str, str, queue.Queue[tuple[str, Json] | None]]] = []
        self.port = 0
        self.on_create: Callable[[str, Json], None] = lambda resource, item: None
        self.on_refusal: Callable[[str, str], None] = lambda verb, resource: None
        self.start()

    # The process

    def start(self) -> None:
        """Listens, on the same port as before."""
        handler = type("Handler", (_Handler,), {"api": self})
        for _ in range(100):
            try:
                self.server = _Server(("127.0.0.1", self.port), handler)
                break
            except OSError:
                time.sleep(0.05)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Goes away in the middle of whatever it does, as a killed process."""
        self.server.shutdown()
        self.server.server_close()
        self.server.drop_connections()
        self.end_watches()

    def kubeconfig(self, path: Path) -> str:
        """A file that leads here."""
        cluster = {"name": "fake", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
        context = {"name": "fake", "context": {"cluster": "fake", "user": "trainer", "namespace": NAMESPACE}}
        user = {"name": "trainer", "user": {"token": "not-a-secret"}}
        path.write_text(
            yaml.safe_dump(
                {"apiVersion": "v1", "kind": "Config", "current-context": "fake", "clusters": [cluster], "contexts": [context], "users": [user]}
            )
        )
        return str(path)

    # What a test does to the cluster

    def put(self, resource: str, item: Json) -> Json:
        """Creates or replaces an object, as a controller would."""
        with self.lock:
            name = item["metadata"]["name"]
            known = self.objects.get((resource, name))
            item = copy.deepcopy(item)
            item["metadata"].setdefault("uid", known["metadata"]["uid"] if known else str(uuid.uuid4()))
            item["metadata"].setdefault("namespace", NAMESPACE)
            item["metadata"].setdefault("creationTimestamp", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
            self._record("MODIFIED" if known else "ADDED", resource, item)
            self.objects[resource, name] = item
            return item

    def remove(self, resource: str, name: str) -> None:
        with self.lock:
            item = self.objects.pop((resource, name))
            self._record("DELETED", resource, item)
            if resource == "pods":
                self._collect_garbage()

    def set_pod(self, job: Json, status: Json, *, name: str = "", **more: Any) -> Json:
        """A pod of a Job with a status; its name ends in -a unless given."""
        template = job["spec"]["template"]
        metadata = {**template["metadata"], "name": name or f"{job['metadata']['name']}-a", **more}
        known = self.objects.get(("pods", metadata["name"]))
        if known is not None:
            metadata = {**known["metadata"], **more}
        return self.put("pods", {"metadata": metadata, "spec": {**template["spec"], "nodeName": "node-1"}, "status": status})

    def finish(self, job: str, condition: str, reason: str = "", message: str = "") -> None:
        """Gives a Job the condition that ends it."""
        item = copy.deepcopy(self.objects["jobs", job])
        item["status"] = {"conditions": [{"type": condition, "status": "True", "reason": reason, "message": message}]}
        self.put("jobs", item)

    def warn(self, about: str, reason: str, message: str, *, kind: str = "Warning", at: float = 0.0) -> None:
        """An event, of now or of a Unix time."""
        name = f"{about}.{uuid.uuid4().hex[:8]}"
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at or time.time()))
        self.put(
            "events",
            {
                "metadata": {"name": name},
                "type": kind,
                "reason": reason,
                "message": message,
                "lastTimestamp": now,
                "involvedObject": {"name": about},
            },
        )

    def go_blind(self) -> None:
        """Ends the watches, and lets none begin."""
        self.blind = True
        self.end_watches()

    def compact(self) -> None:
        """Forgets all versions: watches that would go on from one get 410."""
        with self.lock:
            self.version += 1
            self.oldest = self.version
            self.history.clear()

    def end_watches(self) -> None:
        with self.lock:
            for _, _, waiting in self.watchers:
                waiting.put(None)
            self.watchers.clear()

    def names(self, resource: str) -> list[str]:
        with self.lock:
            return sorted(name for kind, name in self.objects if kind == resource)

    def the_job(self) -> Json:
        """The only Job."""
        (name,) = self.names("jobs")
        return copy.deepcopy(self.objects["jobs", name])

    # Requests

    def check(self, verb: str, resource: str, namespace: str) -> None:
        self.requests.append((verb, resource))
        if self.broken:
            raise Refused(500, "InternalError", "etcdserver: request timed out")
        if (verb, resource) in self.conflicts:
            self.conflicts.remove((verb, resource))
            changed = "the object has been modified; please apply your changes to the latest version and try again"
            raise Refused(409, "Conflict", f'Operation cannot be fulfilled on resourcequotas "compute": {changed}')
        if (verb, resource) in self.forbidden:
            self.on_refusal(verb, resource)
            raise Refused(
                403,
                "Forbidden",
                f'{resource} is forbidden: User "{USER}" cannot {verb} resource "{resource}" in API group "" in the namespace "{namespace}"',
            )

    def create(self, resource: str, item: Json) -> Json:
        with self.lock:
            name = item["metadata"]["name"]
            if self.denied:
                raise Refused(403, "Forbidden", self.denied)
            if (resource, name) in self.objects:
                raise Refused(409, "AlreadyExists", f'{resource} "{name}" already exists')
            made = self.put(resource, item)
        self.on_create(resource, made)
        return made

    def get(self, resource: str, name: str) -> Json:
        try:
            return self.objects[resource, name]
        except KeyError:
            raise Refused(404, "NotFound", f'{resource} "{name}" not found') from None

    def find(self, resource: str, query: dict[str, str]) -> Json:
        with self.lock:
            items = [item for (kind, _), item in sorted(self.objects.items()) if kind == resource and matches(item, query)]
            return {"metadata": {"resourceVersion": str(self.version)}, "items": items}

    def patch(self, resource: str, name: str, change: Json) -> Json:
        with self.lock:
            return self.put(resource, merge(copy.deepcopy(self.get(resource, name)), change))

    def delete(self, resource: str, name: str, options: Json) -> Json:
        with self.lock:
            item = copy.deepcopy(self.get(resource, name))
            if resource == "pods":
                item["metadata"]["deletionGracePeriodSeconds"] = options.get(
                    "gracePeriodSeconds", item["spec"].get("terminationGracePeriodSeconds", 30)
                )
                item["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
                self.put("pods", item)
                if item.get("status", {}).get("phase") != "Running":
                    self.remove("pods", name)
            elif options.get("propagationPolicy") == "Foreground":
                item["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
                self.put(resource, item)
                for pod in self._pods_of(name):
                    self.delete("pods", pod, {})
                self._collect_garbage()
            else:
                self.remove(resource, name)
            return {"kind": "Status", "status": "Success"}

    def watch(self, resource: str, query: dict[str, str]) -> queue.Queue[tuple[str, Json] | None]:
        with self.lock:
            version = int(query["resourceVersion"])
            waiting: queue.Queue[tuple[str, Json] | None] = queue.Queue()
            if version < self.oldest:
                waiting.put(("ERROR", Refused(410, "Expired", f"too old resource version: {version} ({self.oldest})").status))
                waiting.put(None)
                return waiting
            for at, kind, what, item in self.history:
                if at > version and what == resource and matches(item, query):
                    waiting.put((kind, item))
            self.watchers.append((resource, query.get("labelSelector", ""), waiting))
            return waiting

    def _record(self, kind: str, resource: str, item: Json) -> None:
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        shown = copy.deepcopy(item)
        self.history.append((self.version, kind, resource, shown))
        for what, labels, waiting in self.watchers:
            if what == resource and matches(shown, {"labelSelector": labels}):
                waiting.put((kind, shown))

    def _pods_of(self, job: str) -> list[str]:
        return [name for (kind, name), item in self.objects.items() if kind == "pods" and item["metadata"]["labels"].get("accord.api/run") == job]

    def _collect_garbage(self) -> None:
        """Jobs that are being deleted go when their pods have gone, and take what they own along."""
        for (kind, name), item in list(self.objects.items()):
            if kind in ("jobs", "jobsets") and item["metadata"].get("deletionTimestamp") and not self._pods_of(name):
                uid = item["metadata"]["uid"]
                self.remove(kind, name)
                for (what, other), owned in list(self.objects.items()):
                    if uid in [owner["uid"] for owner in owned["metadata"].get("ownerReferences", [])]:
                        self.remove(what, other)


def matches(item: Json, query: dict[str, str]) -> bool:
    labels = item["metadata"].get("labels") or {}
    wanted = dict(part.split("=", 1) for part in query.get("labelSelector", "").split(",") if part)
    fields = dict(part.split("=", 1) for part in query.get("fieldSelector", "").split(",") if part)
    found = {"involvedObject.name": item.get("involvedObject", {}).get("name"), "type": item.get("type")}
    return wanted.items() <= labels.items() and all(found[name] == value for name, value in fields.items())


def merge(item: Any, change: Any) -> Any:
    """RFC 7396."""
    if not isinstance(change, dict):
        return change
    item = item if isinstance(item, dict) else {}
    for name, value in change.items():
        if value is None:
            item.pop(name, None)
        else:
            item[name] = merge(item.get(name), value)
    return item


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connections: list[socket.socket] = []

    def get_request(self) -> Any:
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def drop_connections(self) -> None:
        for connection in self.connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A dropped connection is meant; anything else is a mistake of this server."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    api: FakeApi
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("get")

    def do_POST(self) -> None:
        self._answer("create")

    def do_PATCH(self) -> None:
        self._answer("patch")

    def do_DELETE(self) -> None:
        self._answer("delete")

    def _answer(self, verb: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        try:
            if self.headers.get("Authorization") != "Bearer not-a-secret":
                raise Refused(401, "Unauthorized", "Unauthorized")
            found = self._handle(verb, parts.path, query, body)
        except Refused as refusal:
            self._send(refusal.status["code"], json.dumps(refusal.status).encode())
            return
        if isinstance(found, queue.Queue):
            self._stream(found)
        else:
            self._send(200, found.encode() if isinstance(found, str) else json.dumps(found).encode())

    def _handle(self, verb: str, path: str, query: dict[str, str], body: Json) -> Any:
        if path == "/version":
            return {"major": "1", "minor": f"{self.api.minor}+"}
        if path == "/apis/jobset.x-k8s.io/v1alpha2":
            if not self.api.jobset:
                raise Refused(404, "NotFound", "the server could not find the requested resource")
            return {"kind": "APIResourceList"}
        found = _PATH.match(path)
        if found is None:
            raise Refused(404, "NotFound", f"no such path: {path}")
        namespace, resource, name, log = found.groups()
        if verb == "get" and name is None:
            verb = "watch" if query.get("watch") == "true" else "list"
        if self.api.blind and verb in ("list", "watch") and "accord.api/run=" not in query.get("labelSelector", "accord.api/run="):
            raise Refused(500, "InternalError", "etcdserver: leader changed")
        self.api.check(verb, f"{resource}/log" if log else resource, namespace)
        if log:
            self.api.get(resource, name)
            return self.api.logs.get(name, "")
        calls: dict[str, Callable[[], Any]] = {
            "create": lambda: self.api.create(resource, body), "get": lambda: self.api.get(resource, name), "list": lambda: self.api.find(resource, query),
            "watch": lambda: self.api.watch(resource, query), "patch": lambda: self.api.patch(resource, name, body),
            "delete": lambda: self.api.delete(resource, name, body),
        }  # fmt: skip
        return calls[verb]()

    def _send(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, events: queue.Queue[tuple[str, Json] | None]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            while (event := events.get()) is not None:
                line = json.dumps({"type": event[0], "object": event[1]}).encode() + b"\n"
                middle = len(line) // 2  # in two chunks: a line is not a chunk
                for part in (line[:middle], line[middle:]):
                    self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                    self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True
