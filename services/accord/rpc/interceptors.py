"""The one server interceptor: admission, deadlines, validation, the mapping of errors, a log line and metrics for each call.

It receives and answers bytes and runs the real handler in between, so that no defect of a handler, no malformed request and no reply that
cannot be serialized reaches gRPC's own error path, which answers UNKNOWN with Python's type names.

What does not belong here: anything that one service needs and another does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import grpc
import structlog
from prometheus_client import Counter, Gauge, Histogram

from accord.errors import AccordError, InternalError
from accord.rpc.admission import Admission
from accord.rpc.calls import Call, Method
from accord.rpc.config import ServerConfig
from accord.rpc.logs import describe_exception, request_id, without_private
from accord.rpc.status import code_name, to_status

_log = structlog.get_logger(__name__)

REQUEST_ID_KEY = "x-request-id"
EXEMPT_SERVICES = frozenset({"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection"})

_CALLS = Counter("accord_rpc_calls_total", "Calls ended, by status code", ["service", "method", "code"])
_SECONDS = Histogram(
    "accord_rpc_seconds",
    "Time from the request's arrival to the end of the call",
    ["service", "method"],
    buckets=(0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
)
_IN_FLIGHT = Gauge("accord_rpc_in_flight", "Calls in progress", ["service"])

# gRPC itself ends a call at the client's deadline; our own clock, needed for the server's default and cap, must not race it.
_GRACE_SECONDS = 0.1
_SEND_SECONDS = 1.0

Work = Callable[[Call], Awaitable[Any]]


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Wraps every handler of an asyncio server whose handlers are coroutines or async generators.

    Args:
        config: deadlines, limits and the long-lived methods.
        admission: decides whether a call may begin.
    """

    def __init__(self, config: ServerConfig, admission: Admission) -> None:
        self._config = config
        self._admission = admission
        self._wrapped: dict[str, tuple[grpc.RpcMethodHandler, grpc.RpcMethodHandler]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """The wrapped handler, or None for a method that nobody registered (gRPC answers UNIMPLEMENTED)."""
        handler = await continuation(handler_call_details)
        name = handler_call_details.method
        name = name.decode() if isinstance(name, bytes) else name
        if handler is None:
            _CALLS.labels("unknown", "unknown", "UNIMPLEMENTED").inc()
            return None
        known = self._wrapped.get(name)
        if known is None or known[0] is not handler:
            known = self._wrapped[name] = (handler, self._wrap(name, handler))
        return known[1]

    def _wrap(self, name: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        service = name.strip("/").partition("/")[0]
        exempt = service in EXEMPT_SERVICES
        long_lived = handler.response_streaming and (exempt or name in self._config.long_lived_methods)
        method = Method(name, handler, exempt=exempt, long_lived=long_lived)
        behaviour = _behaviour(handler)

        async def unary_reply(request: Any, context: grpc.aio.ServicerContext) -> bytes:
            async def work(call: Call) -> bytes:
                return call.encode(await behaviour(_decoded(call, request), call.context))

            reply: bytes = await self._serve(method, context, work)
            return reply

        async def streamed_reply(request: Any, context: grpc.aio.ServicerContext) -> None:
            async def work(call: Call) -> None:
                await _stream_replies(behaviour(_decoded(call, request), call.context), call)

            await self._serve(method, context, work)

        if handler.request_streaming:
            if handler.response_streaming:
                return grpc.stream_stream_rpc_method_handler(streamed_reply)
            return grpc.stream_unary_rpc_method_handler(unary_reply)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(streamed_reply)
        return grpc.unary_unary_rpc_method_handler(unary_reply)

    async def _serve(self, method: Method, context: grpc.aio.ServicerContext, work: Work) -> Any:
        """Runs `work` under the call's deadline and ends the call with the status of what it raises."""
        metadata = {entry[0]: entry[1] for entry in context.invocation_metadata() or ()}
        deadline = self._deadline(method, context.time_remaining())
        call = Call(
            method,
            context,
            request_id=request_id(metadata.get(REQUEST_ID_KEY)),
            deadline=deadline,
            max_message_bytes=self._config.max_message_bytes,
        )
        structlog.contextvars.bind_contextvars(request_id=call.request_id)
        with _Record(call) as record:
            try:
                with self._admission.admit(method) as slot:
                    left = call.seconds_left
                    async with slot.limit(None if left is None else left + _GRACE_SECONDS):
                        result = await work(call)
                record.code = code_name(context.code())
            except grpc.aio.AbortError:
                record.code = code_name(context.code())
                raise
            except asyncio.CancelledError:
                record.code = "DEADLINE_EXCEEDED" if call.seconds_left == 0.0 else "CANCELLED"
                raise
            except AccordError as error:
                failure = error
            except Exception as error:  # noqa: BLE001 - nothing that a handler raises may reach the wire as it is
                _log.error("rpc_defect", method=method.full_name, **describe_exception(error, call.last_request))
                failure = InternalError(f"internal error, see server log (request {call.request_id})")
            else:
                return result
            record.error = failure
            return await _abort(call, failure)

    def _deadline(self, method: Method, given: float | None) -> float | None:
        """When the call ends (`time.monotonic()`): the client's wish within the server's default and cap; None for never."""
        if method.long_lived:
            return None if given is None else time.monotonic() + given
        seconds = self._config.default_deadline_seconds if given is None else min(given, self._config.max_deadline_seconds)
        return time.monotonic() + seconds


class _Record(contextlib.AbstractContextManager["_Record"]):
    """Counts a call and writes its log line when it ends; the line never holds what the request said."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.code = "UNKNOWN"
        self._error: AccordError | None = None

    @property
    def error(self) -> AccordError | None:
        """What ends the call, if it is an error of ours."""
        return self._error

    @error.setter
    def error(self, error: AccordError) -> None:
        self._error, self.code = error, error.code

    def __enter__(self) -> _Record:
        self._began = time.perf_counter()
        self._gauge = _IN_FLIGHT.labels(self._call.method.service)
        self._gauge.inc()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._began
        method = self._call.method
        self._gauge.dec()
        _CALLS.labels(method.service, method.name, self.code).inc()
        _SECONDS.labels(method.service, method.name).observe(seconds)
        fields: dict[str, object] = {
            "method": method.full_name,
            "code": self.code,
            "seconds": round(seconds, 6),
            "request_bytes": self._call.request_bytes,
            "peer": self._call.grpc_context.peer(),
        }
        if self._error is not None:
            fields["error"] = without_private(str(self._error), self._call.last_request)
        (_log.debug if method.exempt else _log.info)("rpc", **fields)


async def _abort(call: Call, failure: AccordError) -> Any:
    """Ends the call with the status of `failure`; one that the client has ended meanwhile can be told nothing, and that is no defect."""
    await call.sent(_SEND_SECONDS)
    try:
        return await call.grpc_context.abort_with_status(to_status(failure, seconds_left=call.seconds_left))
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None


def _behaviour(handler: grpc.RpcMethodHandler) -> Callable[..., Any]:
    """The handler's function, whichever of the four kinds it is."""
    found: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    return cast(Callable[..., Any], found)


def _decoded(call: Call, request: Any) -> Any:
    return call.decode_all(request) if call.method.handler.request_streaming else call.decode(request)


async def _stream_replies(replies: Any, call: Call) -> None:
    """Sends what an async generator yields and closes it, whatever happens; a coroutine writes through its context itself."""
    if not hasattr(replies, "__aiter__"):
        await replies
        return
    stream: AsyncIterator[Any] = replies
    try:
        async for reply in stream:
            await call.context.write(reply)
    finally:
        if hasattr(stream, "aclose"):
            await stream.aclose()
