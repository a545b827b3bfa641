"""The addresses behind one address of a service: every address of a name, looked up again and again, or a fixed list.

What does not belong here: which of them a call goes to (`accord.client.replica_set`).
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from accord.errors import AccordError, InvalidArgumentError, UnavailableError

_REFRESH_SECONDS = 5.0
_REFRESH_AFTER_FAILURE_SECONDS = 1.0
_LIST_SCHEMES = {"ipv4": ipaddress.IPv4Address, "ipv6": ipaddress.IPv6Address}
_FORMS = "host:port, dns:///host:port, ipv4:1.2.3.4:50051,1.2.3.5:50051, ipv6:[::1]:50051,[::2]:50051 or unix:/path"

LookUp = Callable[[str, int], tuple[str, ...]]


def look_up(host: str, port: int) -> tuple[str, ...]:
    """Every address of a name, as gRPC targets in a fixed order.

    A name with IPv4 and IPv6 addresses is used by its IPv4 ones, so that no replica counts twice (and so that ``localhost`` is one).

    Raises:
        OSError: the name is unknown or its server does not answer.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    fours = sorted({str(info[4][0]) for info in found if info[0] == socket.AF_INET})
    sixes = sorted({str(info[4][0]) for info in found if info[0] == socket.AF_INET6})
    return tuple(f"ipv4:{ip}:{port}" for ip in fours) or tuple(f"ipv6:[{ip}]:{port}" for ip in sixes)


class Resolver:
    """Knows the addresses behind `address`; looks a name up in a thread of its own, so that a slow name server holds up nobody. Thread-safe.

    Args:
        address: as in `ChannelConfig.address`.
        lookup: of one name.

    Raises:
        InvalidArgumentError: the address has none of the forms that can be looked up here.
    """

    def __init__(self, address: str, *, lookup: LookUp = look_up) -> None:
        self.address = address
        self.host, self._port, self.addresses = _parse(address)
        self.error: AccordError | None = None
        self.first: Future[None] = Future()
        self._lookup = lookup
        self._lock = threading.Lock()
        self._busy = False
        self._asked = -_REFRESH_SECONDS
        self.first.set_running_or_notify_cancel()
        if self.addresses:
            self.first.set_result(None)

    def refresh(self, *, after_failure: bool = False) -> None:
        """Starts to look the name up again where that was long enough ago; a fixed list stays as it is.

        `first` is done after the first look-up, whatever came of it; `addresses` keeps the last good answer, `error` has the last bad one.
        """
        if not self.host:
            return
        now = time.monotonic()
        patience = _REFRESH_AFTER_FAILURE_SECONDS if after_failure or not self.addresses else _REFRESH_SECONDS
        with self._lock:
            if self._busy or now - self._asked < patience:
                return
            self._busy, self._asked = True, now
        threading.Thread(target=self._run, name=f"resolve {self.host}", daemon=True).start()

    def _run(self) -> None:
        try:
            found, error = self._lookup(self.host, self._port), None
        except (OSError, UnicodeError) as failure:
            found, error = (), UnavailableError(f"{self.host} cannot be looked up: {failure}", metadata={"address": self.address})
        with self._lock:
            self.addresses, self.error, self._busy = found or self.addresses, error, False
        if not self.first.done():
            self.first.set_result(None)


def _parse(address: str) -> tuple[str, int, tuple[str, ...]]:
    """Host and port to look up, or "" and the fixed targets."""
    scheme, _, rest = address.partition(":")
    if scheme in _LIST_SCHEMES:
        return "", 0, _parse_list(address, scheme, rest)
    if scheme == "unix":
        return "", 0, (address,)
    if scheme == "dns":
        name = rest.removeprefix("///") if rest.startswith("///") else rest
    else:
        name = address
    host, port = _host_and_port(address, name)
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return host, port, ()
    return "", 0, (f"ipv4:{host}:{port}" if version == 4 else f"ipv6:[{host}]:{port}",)


def _parse_list(address: str, scheme: str, rest: str) -> tuple[str, ...]:
    found = []
    for entry in rest.split(","):
        host, port = _host_and_port(address, entry)
        try:
            ip = _LIST_SCHEMES[scheme](host)
        except ValueError:
            raise InvalidArgumentError(f"{entry!r} in {address!r} is no {scheme} address with a port", field="address") from None
        found.append(f"ipv4:{ip}:{port}" if scheme == "ipv4" else f"ipv6:[{ip}]:{port}")
    return tuple(dict.fromkeys(found))


def _host_and_port(address: str, entry: str) -> tuple[str, int]:
    host, _, port = entry.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    digits = port.isascii() and port.isdigit()
    if not host or "/" in host or (":" in host and not entry.startswith("[")) or not digits or not 0 < int(port) < 65536:
        raise InvalidArgumentError(f"{address!r} is not an address whose replicas can be told apart; it must be {_FORMS}", field="address")
    return host, int(port)
