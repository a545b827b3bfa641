"""A port of a pod on this machine, by `kubectl port-forward`."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

_PATIENCE_SECONDS = 90


@contextlib.contextmanager
def forwarded(namespace: str, target: str, remote_port: int = 50051) -> Iterator[str]:
    """host:port at which a Deployment's or a Service's pod answers.

    kubectl takes a pod when it starts, and ends where that one is not running, as just after another has been deleted: it is then started again.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["kubectl", "--namespace", namespace, "port-forward", target, f"{port}:{remote_port}"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while not _listens(port):
                if process.poll() is not None:
                    process = subprocess.Popen(command, stdout=said, stderr=said)
                if time.monotonic() > deadline:
                    said.seek(0)
                    raise AssertionError(f"nothing was forwarded to port {port} within {_PATIENCE_SECONDS} s: {said.read().decode()[-2000:]}")
                time.sleep(0.2)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(10)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
