"""`python -m accord.rpc.probe ADDRESS`: asks one server for its health until it is SERVING or the time is over; exit code 0 where it is.

For Kubernetes before 1.24, which has no gRPC probes, and for servers with TLS, whose health the kubelet cannot ask for. A kubelet starts this every
few seconds for each pod, so it imports gRPC and nothing else: with `accord.rpc.channels` and what that needs, a probe took three times the processor
time. What does not belong here: waiting for a service from inside a program (`accord.rpc.channels.wait_ready`).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import grpc

_POLL_SECONDS, _CALL_SECONDS = 0.1, 2.0
_STATES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
"""ServingStatus of grpc.health.v1, by number."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Asks, and returns the exit code: 0 SERVING, 1 not, with the reason on stderr."""
    given = _parser().parse_args(arguments)
    try:
        state = _last_state(given)
    except OSError as error:
        state = f"{error.filename} cannot be read: {error.strerror}"
    if state == "SERVING":
        return 0
    sys.stderr.write(f"error: {given.service or 'the server'} at {given.address} was not SERVING within {given.timeout:g} s; last state: {state}\n")
    return 1


def _last_state(given: argparse.Namespace) -> str:
    give_up, state = time.monotonic() + given.timeout, "never answered"
    options = [("grpc.initial_reconnect_backoff_ms", 200), ("grpc.min_reconnect_backoff_ms", 200)]
    if given.server_name:
        options.append(("grpc.ssl_target_name_override", given.server_name))
    with _channel(given, options) as channel:
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")  # as bytes
        while (left := give_up - time.monotonic()) > 0:
            state = _ask(check, _request(given.service), min(left, _CALL_SECONDS), state)
            if state == "SERVING":
                break
            time.sleep(min(_POLL_SECONDS, max(0.0, give_up - time.monotonic())))
    return state


def _ask(check: grpc.UnaryUnaryMultiCallable[bytes, bytes], request: bytes, seconds: float, before: str) -> str:
    try:
        return _state(check(request, timeout=seconds))
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return "unknown to this server"
        return before if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else f"{error.code().name}: {error.details()}"


def _request(service: str) -> bytes:
    """HealthCheckRequest: field 1, the name of the service."""
    name = service.encode()
    return b"\x0a" + bytes([len(name)]) + name


def _state(reply: bytes) -> str:
    """HealthCheckResponse: field 1, the status, which is left out where it is 0."""
    number = reply[1] if reply[:1] == b"\x08" else 0
    return _STATES[number] if number < len(_STATES) else f"status {number}"


def _channel(given: argparse.Namespace, options: Sequence[tuple[str, object]]) -> grpc.Channel:
    if given.ca is None:
        return grpc.insecure_channel(given.address, options)
    cert, key = (None if path is None else path.read_bytes() for path in (given.cert, given.key))
    return grpc.secure_channel(given.address, grpc.ssl_channel_credentials(given.ca.read_bytes(), key, cert), options)


def _name(text: str) -> str:
    if len(text.encode()) > 127:
        raise argparse.ArgumentTypeError(f"{len(text.encode())} bytes; at most 127 are allowed")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m accord.rpc.probe", description="Asks a server for its health.")
    parser.add_argument("address", help="host:port or unix:/path")
    parser.add_argument(
        "--service", type=_name, default="", help="full name of a service, `live` for whether the process answers; default: the server as a whole"
    )
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds to wait for SERVING")
    parser.add_argument("--ca", type=Path, help="PEM roots of the server's certificate; turns TLS on")
    parser.add_argument("--cert", type=Path, help="PEM client certificate, for mutual TLS")
    parser.add_argument("--key", type=Path, help="PEM key of the client certificate")
    parser.add_argument("--server-name", help="name to expect in the certificate")
    return parser


if __name__ == "__main__":
    sys.exit(main())
