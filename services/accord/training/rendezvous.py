"""Where the processes of a run find each other: a file on one machine, else the store at MASTER_ADDR and MASTER_PORT.

What does not belong here: what they say to each other then (`accord.training.distribution`).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from torch._C._distributed_c10d import FileStore, PrefixStore, Store, TCPStore

from accord.errors import UnavailableError
from accord.training.place import Place
from accord.training.stopping import RunStopped, StopSignal

T = TypeVar("T")
_POLL_SECONDS, _CONNECT_SECONDS = 0.1, 2.0


def meet(place: Place, stop: StopSignal, patience: timedelta) -> Store:
    """The store that all processes have come to. Looks for them in short steps, for who waits inside torch hears no SIGTERM.

    Raises:
        RunStopped: this process was asked to stop before all had come.
        UnavailableError: they did not come in time.
        RuntimeError: the store cannot be kept here.
    """

    def found(look: Callable[[], T | None]) -> T:
        give_up = time.monotonic() + patience.total_seconds()
        while not (what := look()):
            if stop.is_set:
                raise RunStopped
            if time.monotonic() > give_up:
                raise UnavailableError(f"the {place.size} processes of the run did not find each other in {patience.total_seconds():g} s")
            time.sleep(_POLL_SECONDS)
        return what

    names = [f"rank-{rank}" for rank in range(place.size)]
    store = found(lambda: _store(place, patience))
    store.set(names[place.rank], "here")
    found(lambda: store.check(names))
    return store


def is_local(place: Place) -> bool:
    """Whether all processes are on this machine, so that nothing but the loopback device is needed."""
    return bool(place.rendezvous) or _is_loopback(os.environ["MASTER_ADDR"])


def _store(place: Place, patience: timedelta) -> Store | None:
    """Where the processes find each other; None where the one that keeps it does not listen yet.

    A store at a loopback address listens there alone, not on every interface as env:// does. What an earlier attempt of torchrun left in its agent's
    store is not this one's.
    """
    if place.rendezvous:
        return FileStore(place.rendezvous, place.size)
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosts_it = place.leads and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    options: dict[str, Any] = {"world_size": place.size, "is_master": hosts_it, "wait_for_workers": False}
    if hosts_it and _is_loopback(host):
        listening = socket.create_server((host, port), backlog=place.size)
        options["master_listen_fd"] = listening.detach()
    try:
        store = TCPStore(host, port, timeout=patience if hosts_it else timedelta(seconds=_CONNECT_SECONDS), **options)
    except RuntimeError:
        if hosts_it:
            raise
        return None
    store.set_timeout(patience)
    return PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"
