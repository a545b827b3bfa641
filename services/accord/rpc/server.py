"""The process of a service: ports, health, reflection, metrics, signals and the drain.

A service gives a `Component`; `run` does the rest. What does not belong here: what happens to one call (`accord.rpc.interceptors`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import grpc
import structlog
from pydantic import BaseModel

from accord.errors import AccordError, InvalidArgumentError
from accord.rpc.admission import Admission
from accord.rpc.config import ServerConfig, load_config
from accord.rpc.health import HealthBoard
from accord.rpc.interceptors import CallInterceptor
from accord.rpc.listener import MetricsEndpoint, announce, bind, server_options, withdraw
from accord.rpc.logs import describe_exception, setup_logging

_log = structlog.get_logger(__name__)

_FAULT_POLL_SECONDS = 1.0
_FLUSH_SECONDS = 1.0
_CLOSE_SECONDS = 5.0
_EXIT_BAD_CONFIG = 2

ConfigT = TypeVar("ConfigT", bound=BaseModel)


@dataclass(frozen=True)
class ServiceBinding:
    """One gRPC service of a component.

    Args:
        full_name: such as "accord.api.policy.v1.PolicyService"; health and reflection speak of it by this name.
        add: registers the servicer, for example ``lambda server: add_PolicyServiceServicer_to_server(servicer, server)``.
    """

    full_name: str
    add: Callable[[grpc.aio.Server], None]


class Component(Protocol):
    """What a service is to its process. Each method is called once, on the event loop, in this order; `fault` about once a second."""

    @property
    def bindings(self) -> Sequence[ServiceBinding]:
        """The gRPC services, known before `start`."""
        ...

    async def start(self) -> None:
        """Loads and warms up; calls are refused until it returns. Whatever it raises ends the process with exit code 1. Blocking work
        belongs in a thread, or health and SIGTERM go unanswered meanwhile."""
        ...

    async def drain(self) -> None:
        """Called when new calls are refused already and those in flight go on; returns when background work is safe to stop."""
        ...

    async def close(self) -> None:
        """Frees what `start` took; called also after a failed `start`."""
        ...

    def fault(self) -> str | None:
        """Why the service cannot do its work now, or None. Health follows it."""
        ...


async def serve(config: ServerConfig, component: Component) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    Health turns SERVING for each binding once `component.start()` has returned. At the first signal it turns NOT_SERVING, new calls get
    UNAVAILABLE with RetryInfo, calls in flight have `drain_seconds` to finish; a second signal ends the process at once.

    Raises:
        Exception: whatever `component.start()` raised.
        AccordError: a port cannot be bound or a certificate not be read.
    """
    await _Process(config, component).run()


def run(config: ServerConfig, component: Component) -> int:
    """Sets up logging, serves, and returns the exit code: 0 after a drain, 1 when the service could not start or failed."""
    setup_logging(config.log_level)
    code = 1

    async def guarded() -> None:
        nonlocal code
        try:
            await serve(config, component)
            code = 0
        except AccordError as error:
            _log.error("failed", reason=str(error), code=error.code)
        except Exception as error:  # noqa: BLE001 - the reason belongs into the log, the code to the caller
            _log.error("failed", reason=f"{type(error).__name__}: {error}", **describe_exception(error))
        finally:
            _exit_after(_CLOSE_SECONDS, code)  # a thread that never returns must not keep the process

    asyncio.run(guarded())
    return code


def main(model_class: type[ConfigT], build: Callable[[ConfigT], Component], arguments: Sequence[str] | None = None) -> int:
    """The body of a service's ``__main__``: reads the one YAML file, builds the component, runs it; returns the exit code.

    Args:
        model_class: the service's frozen configuration with a field ``server: ServerConfig``.
        build: makes the component; import what is slow or heavy inside it, so that a typo in the file is reported at once.
        arguments: the command line without the program's name; `sys.argv` by default.

    A wrong command line or configuration is one line on stderr and exit code 2.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(given) != 1:
        sys.stderr.write("error: give one argument, the path of a YAML configuration file\n")
        return _EXIT_BAD_CONFIG
    try:
        config = load_config(given[0], model_class)
        component = build(config)
    except InvalidArgumentError as error:
        sys.stderr.write(f"error: {error}\n")
        return _EXIT_BAD_CONFIG
    except AccordError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return run(config.server, component)  # type: ignore[attr-defined]


class _Process:
    """One run of `serve`."""

    def __init__(self, config: ServerConfig, component: Component) -> None:
        self._config = config
        self._component = component
        self._admission = Admission(config.max_concurrent_calls)
        self._stop = asyncio.Event()
        self._names = [binding.full_name for binding in component.bindings]
        self._health = HealthBoard(self._names)
        self._server = grpc.aio.server(interceptors=[CallInterceptor(config, self._admission)], options=server_options(config))

    async def run(self) -> None:
        config = self._config
        withdraw(config)
        for binding in self._component.bindings:
            binding.add(self._server)
        self._health.add_to(self._server, reflection=config.reflection)
        address = bind(self._server, config)
        with MetricsEndpoint(config.metrics_listen) as metrics, self._signals():
            await self._health.set_serving(False)  # gRPC's own servicer begins with SERVING
            await self._server.start()
            announce(config, address, metrics.address)
            _log.info("listening", address=address, metrics_address=metrics.address, services=self._names, pid=os.getpid())
            try:
                if await self._started():
                    await self._watch()
                await self._drain()
            finally:
                await self._close()
        _log.info("stopped")

    async def _started(self) -> bool:
        """Whether the component is up; False when a signal came first."""
        start = asyncio.create_task(self._component.start())
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not start.done():
            start.cancel()
            await asyncio.wait({start}, timeout=_CLOSE_SECONDS)
            return False
        start.result()
        self._admission.open()
        await self._health.set_serving(True)
        _log.info("serving")
        return True

    async def _watch(self) -> None:
        """Lets health follow the component's fault until a signal comes."""
        known: str | None = None
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _FAULT_POLL_SECONDS)
                return
            fault = self._fault()
            if (fault is None) != (known is None):
                await self._health.set_serving(fault is None)
                if fault is None:
                    _log.info("recovered", was=known)
                else:
                    _log.error("fault", reason=fault)
            known = fault

    def _fault(self) -> str | None:
        try:
            return self._component.fault()
        except Exception as error:  # noqa: BLE001 - a broken check is a fault, not the end of the process
            return f"the fault check failed: {type(error).__name__}: {error}"

    async def _drain(self) -> None:
        self._admission.refuse("the service is draining")
        await self._health.shut_down()
        self._admission.end_long_lived()
        seconds = self._config.drain_seconds
        _log.info("draining", in_progress=self._admission.in_progress, drain_seconds=seconds)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(self._component.drain(), self._admission.idle())
        except TimeoutError:
            _log.warning("drain_incomplete", in_progress=self._admission.in_progress, drain_seconds=seconds)
        except Exception as error:  # noqa: BLE001 - a failed drain must not keep the process from stopping
            _log.error("drain_failed", **describe_exception(error))

    async def _close(self) -> None:
        withdraw(self._config)
        await self._server.stop(_FLUSH_SECONDS)
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._component.close()
        except Exception as error:  # noqa: BLE001 - closing is best effort, and the first error is the one that counts
            _log.error("close_failed", **describe_exception(error))

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            _log.warning("stopping_at_once", signal=number.name)
            os._exit(128 + number)
        _log.info("signal", signal=number.name)
        self._stop.set()


def _exit_after(seconds: float, code: int) -> None:
    """Ends the process after `seconds`, unless it has ended by itself."""
    timer = threading.Timer(seconds, os._exit, [code])
    timer.daemon = True
    timer.start()
