"""How the services of a workspace are: processes, addresses and gRPC health.

What does not belong here: starting and stopping them (`accord.workspace.workspace`).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Literal

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from accord.launch.processes import is_alive, last_lines
from accord.rpc.channels import ChannelConfig, open_channel
from accord.workspace.layout import Layout, ServiceName
from accord.workspace.state import ServiceRecord

Health = Literal["serving", "not_serving", "starting", "stopped", "unreachable"]
_PROBE_SECONDS = 1.0
_WORDS = 300


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """How one service is; `note` says what to know, for instance that its process ended by itself."""

    name: ServiceName
    health: Health
    address: str
    pid: int | None
    memory_bytes: int
    uptime_seconds: float
    log: str
    note: str = ""


def service_status(layout: Layout, name: ServiceName, record: ServiceRecord) -> ServiceStatus:
    """Looks at one service, for at most a second."""
    log = str(layout.log(name))
    process = record.process
    if process is None or not is_alive(process):
        note = "" if process is None else f"its process {process.pid} ended by itself: {last_words(layout, name, record)}"
        return ServiceStatus(name, "stopped", "", None, 0, 0.0, log, note)
    address = announced_address(layout, name, process.pid)
    health: Health = "starting"
    note = ""
    if address is not None:
        health, note = probe(address, ready=record.ready)
    uptime = max(0.0, time.time() - record.start_time)
    return ServiceStatus(name, health, address or "", process.pid, _memory_bytes(process.pid), uptime, log, note)


def announced_address(layout: Layout, name: ServiceName, pid: int) -> str | None:
    """The address that this process has bound and announced, None before that."""
    try:
        said = json.loads(layout.announcement(name).read_text(encoding="utf-8"))
        return str(said["address"]) if said["pid"] == pid else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def probe(address: str, *, ready: bool) -> tuple[Health, str]:
    """The health at an address and a note. NOT_SERVING is `starting` for a service that has not been ready yet."""
    with open_channel(ChannelConfig(address=address, attempts=1)) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=""), timeout=_PROBE_SECONDS)
        except grpc.RpcError as error:
            return "unreachable", f"{error.code().name}: {error.details()}"
    if reply.status == health_pb2.HealthCheckResponse.SERVING:
        return "serving", ""
    return ("not_serving", "it says that it cannot do its work; its log says why") if ready else ("starting", "")


def last_words(layout: Layout, name: ServiceName, record: ServiceRecord) -> str:
    """Why a service ended, in one line: the reason in its log, else what it printed last, else that its log says nothing about it."""
    lines = last_lines(layout.log(name), offset=record.log_offset, lines=20)
    for line in reversed(lines):
        reason = _reason(line)
        if reason:
            return reason[:_WORDS]
    if not lines or lines[-1].startswith("{"):  # a structured line of ordinary work
        return "its log gives no reason; was it killed, or was there too little memory?"
    return lines[-1].strip()[:_WORDS]


def _reason(line: str) -> str:
    """The reason in one line of a log, empty where it has none."""
    if line.startswith("error: "):
        return line.removeprefix("error: ")
    try:
        said = json.loads(line)
        return str(said["reason"]) if said.get("level") == "error" else ""
    except (ValueError, KeyError, AttributeError):
        return ""


def _memory_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
