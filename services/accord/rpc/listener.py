"""Ports of a server: channel arguments, TLS, the metrics endpoint, and the file that announces what was bound.

What does not belong here: the life of the process (`accord.rpc.server`).
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import grpc
from prometheus_client import start_http_server

from accord.errors import InvalidArgumentError, UnavailableError
from accord.rpc.config import ServerConfig, ServerTls

_MAX_METADATA_BYTES = 16 * 2**10
_ANY_HOSTS = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


def server_options(config: ServerConfig) -> list[tuple[str, int]]:
    """gRPC channel arguments: message and metadata limits, keepalive, half-open connections closed after a second, no shared ports."""
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.so_reuseport", 0),
        ("grpc.server_handshake_timeout_ms", 1000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 3),
    ]


def bind(server: grpc.aio.Server, config: ServerConfig) -> str:
    """Binds the configured port and returns an address that a client on this host can dial.

    Raises:
        UnavailableError: the port cannot be bound.
        InvalidArgumentError: a certificate file cannot be read.
    """
    try:
        if config.tls is None:
            port = server.add_insecure_port(config.listen)
        else:
            port = server.add_secure_port(config.listen, _credentials(config.tls))
    except RuntimeError as error:
        raise UnavailableError(f"cannot listen on {config.listen}: {error}", field="server.listen") from error
    if config.listen.startswith("unix:"):
        return config.listen
    host = config.listen.rpartition(":")[0]
    return f"{_ANY_HOSTS.get(host, host)}:{port}"


class MetricsEndpoint(contextlib.AbstractContextManager["MetricsEndpoint"]):
    """The Prometheus HTTP server of the process, on a port of its own; does nothing where no address is configured.

    Raises:
        UnavailableError: on entering, the port cannot be bound.
    """

    def __init__(self, listen: str | None) -> None:
        self._listen = listen
        self.address: str | None = None

    def __enter__(self) -> MetricsEndpoint:
        if self._listen is not None:
            host, _, port = self._listen.rpartition(":")
            try:
                self._server, self._thread = start_http_server(int(port), host.strip("[]"))
            except OSError as error:
                raise UnavailableError(f"cannot listen on {self._listen}: {error.strerror}", field="server.metrics_listen") from error
            self.address = f"{_ANY_HOSTS.get(host, host)}:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        if self.address is not None:
            self._server.shutdown()
            self._server.server_close()


def announce(config: ServerConfig, address: str, metrics_address: str | None) -> None:
    """Writes the announcement {"address", "metrics_address", "pid"} whole or not at all; nothing where no path is configured."""
    if config.announce_path is None:
        return
    partial = config.announce_path.with_name(f".{config.announce_path.name}.{os.getpid()}")
    partial.write_text(json.dumps({"address": address, "metrics_address": metrics_address, "pid": os.getpid()}), encoding="utf-8")
    partial.replace(config.announce_path)


def withdraw(config: ServerConfig) -> None:
    """Removes the announcement: before binding, lest a launcher reads the last run's, and at the end."""
    if config.announce_path is not None:
        config.announce_path.unlink(missing_ok=True)


def _credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Credentials that read the files again once one of them changes; a change that cannot be read keeps the certificate in use."""
    seen = _stamps(tls)

    def fetch() -> Any:  # a configuration, or None for no change
        nonlocal seen
        with contextlib.suppress(InvalidArgumentError):
            stamps = _stamps(tls)
            if stamps != seen:
                configuration = _certificates(tls)
                seen = stamps
                return configuration
        return None

    return grpc.dynamic_ssl_server_credentials(_certificates(tls), fetch, require_client_authentication=tls.client_ca is not None)


def _certificates(tls: ServerTls) -> grpc.ServerCertificateConfiguration:
    pair = (_read(tls.key, "server.tls.key"), _read(tls.cert, "server.tls.cert"))
    roots = None if tls.client_ca is None else _read(tls.client_ca, "server.tls.client_ca")
    return grpc.ssl_server_certificate_configuration([pair], roots)


def _stamps(tls: ServerTls) -> list[tuple[int, int]]:
    files = [path for path in (tls.cert, tls.key, tls.client_ca) if path is not None]
    try:
        return [(status.st_mtime_ns, status.st_ino) for status in (path.stat() for path in files)]
    except OSError as error:
        raise InvalidArgumentError(f"{error.filename} cannot be read: {error.strerror}", field="server.tls") from None


def _read(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error.strerror}", field=field) from None
