"""Real server processes for tests: start one from its configuration, talk to it, stop it, read its log."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import yaml
from google.protobuf.message import Message
from tests.nursery import Process, environment_of_processes, shared_nursery

from accord.rpc.channels import ChannelConfig, open_channel, wait_ready

START_SECONDS = 240.0
MAX_MESSAGE_BYTES = 2**20


@dataclass(frozen=True)
class RpcCase:
    """One unary call of a service.

    Args:
        method: full method name, "/package.Service/Method".
        request: makes the request around a text; the text stands wherever the service takes free text (prompt, response, name).
        reply: class of the reply.
        field: for a request that must be refused, the field that the refusal names.
    """

    method: str
    request: Callable[[str], Message]
    reply: type[Message]
    field: str = ""


@dataclass(frozen=True)
class ServiceEntry:
    """A service under the contract suite.

    Args:
        name: the test id.
        module: what ``python -m`` starts.
        config: the YAML as a dict, without its ``server`` block, for files below the given folder.
        services: full names of the gRPC services.
        quick: a cheap valid call.
        slow: a valid call that takes seconds of compute; it must outlive a deadline of half a second and end within `slow_seconds`.
        empty: a batch without items and the field at fault; None for a service without batches.
        compute_metric: a Prometheus counter that rises with each step of compute; None for a service that computes nothing.
        step_seconds: longest step: how long compute may go on after nobody waits.
        slow_seconds: how long `slow` may take on a busy machine.
        full_config: configuration (without ``server``) under which six `slow` calls overfill the service's own queue; None to skip.
        quick_start: the service is up within milliseconds, so that a test cannot count on seeing it before.
    """

    name: str
    module: str
    config: Callable[[Path], dict[str, Any]]
    services: tuple[str, ...]
    quick: RpcCase
    slow: RpcCase
    empty: RpcCase | None = None
    compute_metric: str | None = None
    step_seconds: float = 0.5
    slow_seconds: float = 60.0
    full_config: Callable[[Path], dict[str, Any]] | None = None
    quick_start: bool = False


class ServerProcess(contextlib.AbstractContextManager["ServerProcess"]):
    """``python -m module config.yaml`` in a process of its own, listening on a free port of the loopback.

    It is forked from the nursery of these tests, seconds earlier than one that imports torch, but where the test watches it begin (`wait` is
    "announced") or has it compute with more threads than one (OMP_NUM_THREADS, which torch reads when it is imported).

    Args:
        module: the module to run.
        config: the configuration; its ``server`` block is filled with port 0, a metrics port, and an announcement below `tmp_path`.
        tmp_path: where configuration, announcement and log go; several processes may share it.
        wait: "serving" returns once health is SERVING, "announced" once the ports are bound, "nothing" at once.
    """

    def __init__(
        self,
        module: str,
        config: Mapping[str, Any],
        tmp_path: Path,
        *,
        wait: str = "serving",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.module = module
        self._wait = wait
        self._environment = dict(environment or {})
        folder = tmp_path / f"server-{time.monotonic_ns()}"
        folder.mkdir(parents=True)
        self._announcement = folder / "announce.json"
        self._log = folder / "log.txt"
        self._config = folder / "config.yaml"
        server = {
            "listen": "127.0.0.1:0",
            "metrics_listen": "127.0.0.1:0",
            "announce_path": str(self._announcement),
            "max_message_bytes": MAX_MESSAGE_BYTES,
            **config.get("server", {}),
        }
        self._config.write_text(yaml.safe_dump({**config, "server": server}), encoding="utf-8")
        self.address = self.metrics_address = ""

    def __enter__(self) -> ServerProcess:
        self._process = self._start()
        try:
            if self._wait != "nothing":
                self._read_announcement()
            if self._wait == "serving":
                wait_ready(self.address, "", START_SECONDS)
        except BaseException:
            self.kill()
            sys.stderr.write(self.log)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _start(self) -> Process:
        folder = self._config.parent
        environment = environment_of_processes(self._environment)
        if self._wait != "announced" and environment["OMP_NUM_THREADS"] == "1":
            return shared_nursery().start(self.module, [str(self._config)], self._log, folder=folder, environment=self._environment)
        with self._log.open("wb") as log:
            return subprocess.Popen([sys.executable, "-m", self.module, str(self._config)], stdout=log, stderr=log, cwd=folder, env=environment)

    def _read_announcement(self) -> None:
        give_up = time.monotonic() + START_SECONDS
        while not self._announcement.exists():
            if self._process.poll() is not None:
                raise AssertionError(f"{self.module} ended with code {self._process.returncode} before it announced itself:\n{self.log}")
            if time.monotonic() > give_up:
                raise AssertionError(f"{self.module} announced nothing in {START_SECONDS:g} s:\n{self.log}")
            time.sleep(0.02)
        found = json.loads(self._announcement.read_text(encoding="utf-8"))
        assert found["pid"] == self._process.pid
        self.address, self.metrics_address = found["address"], found["metrics_address"]

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def log(self) -> str:
        """Everything that the process has written."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def log_lines(self) -> list[dict[str, Any]]:
        """The structured lines of the log."""
        found = []
        for line in self.log.splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found

    def channel(self, *, attempts: int = 1) -> grpc.Channel:
        """A new channel to the server, without retries by default; close it."""
        return open_channel(ChannelConfig(address=self.address, attempts=attempts, max_message_bytes=2**30))

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    def wait(self, timeout_seconds: float) -> int:
        """The exit code; raises subprocess.TimeoutExpired when the process does not end."""
        return self._process.wait(timeout_seconds)

    def stop(self, timeout_seconds: float = 60.0) -> int:
        """SIGTERM, then the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_seconds)

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(30)

    def resident_bytes(self) -> int:
        """Resident memory of the process."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of one Prometheus metric that carry these labels; 0 where there is none."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        samples = [line for line in lines if line.split("{")[0].split(" ")[0] == name and all(label in line for label in wanted)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in samples)


def invoke(channel: grpc.Channel, case: RpcCase, text: str, *, timeout: float = 60.0, metadata: Any = None) -> Any:
    """Calls and waits for the reply."""
    return begin(channel, case, text, timeout=timeout, metadata=metadata).result()


def begin(channel: grpc.Channel, case: RpcCase, text: str, *, timeout: float = 60.0, metadata: Any = None) -> Any:
    """Calls and returns gRPC's future."""
    method = channel.unary_unary(case.method, request_serializer=_serialize, response_deserializer=case.reply.FromString)
    return method.future(case.request(text), timeout=timeout, metadata=metadata)


def eventually(check: Callable[[], Any], *, timeout_seconds: float = 10.0) -> Any:
    """The first true value of `check`; fails after the timeout."""
    give_up = time.monotonic() + timeout_seconds
    while not (value := check()):
        assert time.monotonic() < give_up, f"not within {timeout_seconds:g} s"
        time.sleep(0.05)
    return value


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
