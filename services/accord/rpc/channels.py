"""The client's side of a connection: channels with retries, load balancing and keepalive, and stubs that raise AccordErrors.

What does not belong here: typed clients of one service (`accord.client`).
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any, Literal, get_args

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import Field

from accord.errors import InvalidArgumentError, UnavailableError
from accord.rpc.config import FrozenModel

OwnBalancing = Literal["least_loaded", "prefix"]
"""Ways to choose a replica that gRPC does not have and `accord.client.replicas` does."""
LoadBalancing = Literal["round_robin", "pick_first"] | OwnBalancing

_ONE_REPLICA = {"accord.api.policy.v1.PolicyAdminService": ("UnloadAdapter", "PauseGeneration", "ResumeGeneration", "UpdateWeights")}
"""Calls that change the replica that they reach: a retry would change another one too."""
_METADATA_BYTES = 65_536
_POLL_SECONDS = 0.1
_PROBE_SECONDS = 1.0


class ChannelTls(FrozenModel):
    """Certificate files of a client."""

    ca: Path | None = Field(default=None, description="PEM roots that the server must chain to; the system's where absent")
    cert: Path | None = Field(default=None, description="PEM client certificate chain, for mutual TLS")
    key: Path | None = Field(default=None, description="PEM private key of the client certificate")
    server_name: str | None = Field(default=None, description="name to expect in the server's certificate instead of the address")


class ChannelConfig(FrozenModel):
    """How to reach one service. Durations in seconds, sizes in bytes."""

    address: str = Field(
        min_length=1,
        description="host:port, dns:///host:port for every address of a name, ipv4:1.2.3.4:50051,1.2.3.5:50051 (or ipv6:) for a list, or unix:/path",
    )
    tls: ChannelTls | None = Field(default=None, description="use TLS; plain text where absent")
    default_timeout_seconds: float = Field(default=60.0, gt=0, description="deadline of a call that is given none")
    max_message_bytes: int = Field(default=32 * 2**20, ge=1024, le=2**31 - 1, description="largest message received or sent")
    attempts: int = Field(
        default=4,
        ge=1,
        le=5,
        description="tries of one call while the service is unavailable or full; 1 never retries. With least_loaded and prefix a try asks each "
        "replica at most once",
    )
    initial_backoff_seconds: float = Field(default=0.2, gt=0, description="wait before the first retry; doubles each time")
    max_backoff_seconds: float = Field(default=5.0, gt=0, description="longest wait between tries")
    load_balancing: LoadBalancing = Field(
        default="round_robin",
        description="over the addresses: round_robin in turn, pick_first one of them; for a policy service also least_loaded, the replica with the "
        "fewest of this client's items, and prefix, the same replica for the same beginning of a prompt, so that its prefix cache hits (see "
        "prefix_characters, prefix_load_factor). Clients of other services refuse these two, and so do the calls that change one replica",
    )
    prefix_characters: int = Field(
        default=256, ge=1, description="with prefix: how much of a prompt's beginning chooses its replica; a token id counts as 4 characters"
    )
    prefix_load_factor: float = Field(
        default=1.5, ge=1, description="with prefix: a replica with more than this times the mean of outstanding items leaves prompts to the next"
    )


def open_channel(config: ChannelConfig) -> grpc.Channel:
    """A new synchronous channel; nothing is dialled before the first call. Close it."""
    credentials = _credentials(config.tls)
    if credentials is None:
        return grpc.insecure_channel(config.address, options=channel_options(config))
    return grpc.secure_channel(config.address, credentials, options=channel_options(config))


def open_async_channel(config: ChannelConfig) -> grpc.aio.Channel:
    """A new asyncio channel of the running loop; nothing is dialled before the first call. Close it."""
    credentials = _credentials(config.tls)
    if credentials is None:
        return grpc.aio.insecure_channel(config.address, options=channel_options(config))
    return grpc.aio.secure_channel(config.address, credentials, options=channel_options(config))


def channel_options(config: ChannelConfig) -> list[tuple[str, str | int]]:
    """Channel arguments: the service config (load balancing, retries), message limits and keepalive.

    RESOURCE_EXHAUSTED is retried because Accord's servers say with `grpc-retry-pushback-ms` when that helps and when it does not. What changes one
    replica is never retried.

    Raises:
        InvalidArgumentError: `load_balancing` is one of `OwnBalancing`: one channel cannot do it.
    """
    if config.load_balancing in get_args(OwnBalancing):
        raise InvalidArgumentError(
            f"{config.load_balancing} chooses among replicas of a policy service; calls to other services take round_robin or pick_first",
            field="load_balancing",
        )
    service: dict[str, Any] = {"loadBalancingConfig": [{config.load_balancing: {}}]}
    if config.attempts > 1:
        service["methodConfig"] = [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": config.attempts,
                    "initialBackoff": f"{config.initial_backoff_seconds:.3f}s",
                    "maxBackoff": f"{config.max_backoff_seconds:.3f}s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
                },
            },
            {"name": [{"service": name, "method": method} for name, methods in _ONE_REPLICA.items() for method in methods]},
        ]
    options: list[tuple[str, str | int]] = [
        ("grpc.service_config", json.dumps(service)),
        ("grpc.enable_retries", int(config.attempts > 1)),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        # What gRPC keeps of a call to send it again; by default 256 KiB, and a larger call is never tried again.
        ("grpc.per_rpc_retry_buffer_size", min(config.max_message_bytes + _METADATA_BYTES, 2**31 - 1)),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),  # 30 s, gRPC's own, outlast every try of a call
    ]
    if config.tls is not None and config.tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", config.tls.server_name))
    return options


def wait_ready(address: str, service_name: str, timeout_seconds: float, *, tls: ChannelTls | None = None) -> None:
    """Returns once the service's health is SERVING.

    Args:
        address: as in `ChannelConfig.address`.
        service_name: full name of the service ("accord.api.policy.v1.PolicyService"), or "" for the whole server.
        timeout_seconds: how long to wait.
        tls: as in `ChannelConfig.tls`.

    Raises:
        UnavailableError: the time is over; names the address, the service and the state last seen.
    """
    give_up = time.monotonic() + timeout_seconds
    state = "never answered"
    with open_channel(_probe_config(address, tls)) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        while (left := give_up - time.monotonic()) > 0:
            try:
                reply = check(health_pb2.HealthCheckRequest(service=service_name), timeout=min(left, _PROBE_SECONDS))
                state = _state_name(reply)
            except grpc.RpcError as error:
                state = _state_of_error(error, state)
            if state == "SERVING":
                return
            time.sleep(min(_POLL_SECONDS, max(0.0, give_up - time.monotonic())))
    raise _not_ready(address, service_name, timeout_seconds, state)


async def wait_ready_async(address: str, service_name: str, timeout_seconds: float, *, tls: ChannelTls | None = None) -> None:
    """Returns once the service's health is SERVING; `wait_ready` for asyncio."""
    give_up = time.monotonic() + timeout_seconds
    state = "never answered"
    async with open_async_channel(_probe_config(address, tls)) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        while (left := give_up - time.monotonic()) > 0:
            try:
                reply = await check(health_pb2.HealthCheckRequest(service=service_name), timeout=min(left, _PROBE_SECONDS))
                state = _state_name(reply)
            except grpc.RpcError as error:
                state = _state_of_error(error, state)
            if state == "SERVING":
                return
            await asyncio.sleep(min(_POLL_SECONDS, max(0.0, give_up - time.monotonic())))
    raise _not_ready(address, service_name, timeout_seconds, state)


def _probe_config(address: str, tls: ChannelTls | None) -> ChannelConfig:
    return ChannelConfig(address=address, tls=tls, attempts=1)


def _state_name(reply: health_pb2.HealthCheckResponse) -> str:
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


def _state_of_error(error: grpc.RpcError, previous: str) -> str:
    code: grpc.StatusCode = error.code()
    if code is grpc.StatusCode.NOT_FOUND:
        return "unknown to this server"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return previous if previous != "SERVING" else "no answer"
    return f"{code.name}: {error.details()}"


def _not_ready(address: str, service_name: str, timeout_seconds: float, state: str) -> UnavailableError:
    name = service_name or "the server"
    return UnavailableError(
        f"{name} at {address} was not SERVING within {timeout_seconds:g} s; last state: {state}",
        metadata={"address": address, "service": service_name, "state": state},
    )


def _credentials(tls: ChannelTls | None) -> grpc.ChannelCredentials | None:
    if tls is None:
        return None
    if (tls.cert is None) != (tls.key is None):
        raise InvalidArgumentError("cert and key are given together or not at all", field="tls.cert")
    return grpc.ssl_channel_credentials(_read(tls.ca, "tls.ca"), _read(tls.key, "tls.key"), _read(tls.cert, "tls.cert"))


def _read(path: Path | None, field: str) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error.strerror}", field=field) from None
