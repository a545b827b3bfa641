"""A port of a pod on this machine, by `kubectl port-forward`."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_PATIENCE_SECONDS = 90
_FORWARDING = re.compile(r"^Forwarding from 127\.0\.0\.1:(\d+) ", re.MULTILINE)


@contextlib.contextmanager
def forwarded(namespace: str, target: str, remote_port: int = 50051) -> Iterator[str]:
    """host:port at which a Deployment's or a Service's pod answers; kubectl chooses the port and says it.

    kubectl takes a pod when it starts, and ends where that one is not running or does not listen yet, as just after another has been deleted: it is
    then started again.
    """
    command = ["kubectl", "--namespace", namespace, "port-forward", target, f":{remote_port}"]
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        deadline = time.monotonic() + _PATIENCE_SECONDS
        process = _start(command, said)
        try:
            while (port := _port(said)) is None or not _stays_open(port):
                if process.poll() is not None:
                    process = _start(command, said)
                assert time.monotonic() < deadline, f"nothing of {target} was forwarded within {_PATIENCE_SECONDS} s: {said.read_text()[-2000:]}"
                time.sleep(0.2)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(10)


def _start(command: list[str], said: Path) -> subprocess.Popen[bytes]:
    with said.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=output)


def _port(said: Path) -> int | None:
    found = _FORWARDING.search(said.read_text())
    return int(found.group(1)) if found else None


def _stays_open(port: int) -> bool:
    """Whether somebody is behind the port: kubectl takes a connection first and closes it where nobody listens in the pod."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(("127.0.0.1", port))
            return probe.recv(1) != b""  # a gRPC server says its settings; over TLS it waits for the client
        except TimeoutError:
            return True
        except OSError:
            return False
