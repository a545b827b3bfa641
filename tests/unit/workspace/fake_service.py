"""A service without work: `python fake_service.py NAME CONFIG`. behaviour.json in the workspace says how it fails.

Bare grpc instead of `accord.rpc.server`, so that a test which starts four of them takes a second; the real ones are in tests/e2e.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import yaml
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def main(name: str, config: Path) -> None:
    """Starts at once, or as it is told: dies, defect, hangs, faulty, stubborn (takes no SIGTERM)."""
    home = config.parents[1]
    told = home / "behaviour.json"
    behaviour = json.loads(told.read_text()).get(name, "") if told.exists() else ""
    with (home / "starts.txt").open("a") as starts:
        starts.write(f"{name}\n")
    over = threading.Event()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "stubborn" else lambda *_: over.set())
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    board = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(board, server)
    settings = yaml.safe_load(config.read_text())["server"]
    port = server.add_insecure_port(settings["listen"])
    board.set("", NOT_SERVING)
    server.start()
    if behaviour == "defect":
        sys.exit("Traceback (most recent call last):\nImportError: no module named cheese")
    announcement = Path(settings["announce_path"])
    partial = announcement.with_suffix(".tmp")
    partial.write_text(json.dumps({"address": f"127.0.0.1:{port}", "pid": os.getpid()}))
    partial.replace(announcement)
    if behaviour == "dies":
        print(json.dumps({"level": "error", "event": "failed", "reason": "RuntimeError: the weights are made of cheese"}), flush=True)
        print(json.dumps({"level": "info", "event": "closing"}), flush=True)
        sys.exit(1)
    if behaviour != "hangs":
        board.set("", SERVING)
        print(json.dumps({"level": "info", "event": "serving"}), flush=True)
    if behaviour == "faulty" and not over.wait(2):
        board.set("", NOT_SERVING)
    over.wait()
    server.stop(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
