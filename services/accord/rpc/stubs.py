"""Stubs whose calls raise AccordErrors, always have a deadline, and pass the request id on.

What does not belong here: channels (`accord.rpc.channels`) and typed clients (`accord.client`).
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import grpc
import structlog

from accord.rpc.status import from_rpc_error

StubT = TypeVar("StubT")
REQUEST_ID_KEY = "x-request-id"


def guard_stub(stub: StubT, default_timeout_seconds: float) -> StubT:
    """`stub` (of a sync or an aio channel) with the same methods, made safe.

    A call raises the AccordError that the server raised in place of RpcError, gets `default_timeout_seconds` unless it is given
    ``timeout=``, and carries the ``x-request-id`` that structlog's context holds (a server's handlers have one). Methods keep the stub's
    call signature; unary aio calls return a coroutine, streams an iterator (async for aio) that cancels the call when it is closed early. Where
    the requests of a stream raise, the stream of answers does, after the answers to those before.
    """
    return cast(StubT, _GuardedStub(stub, default_timeout_seconds))


class _GuardedStub:
    def __init__(self, stub: object, default_timeout_seconds: float) -> None:
        for name, method in vars(stub).items():
            setattr(self, name, _guard_method(method, default_timeout_seconds))


def _guard_method(method: Any, default_timeout_seconds: float) -> Callable[..., object]:
    if isinstance(method, grpc.aio.UnaryUnaryMultiCallable | grpc.aio.StreamUnaryMultiCallable):
        guarded: Callable[..., object] = _call_async
    elif isinstance(method, grpc.aio.UnaryStreamMultiCallable | grpc.aio.StreamStreamMultiCallable):
        guarded = _stream_async
    elif isinstance(method, grpc.UnaryUnaryMultiCallable | grpc.StreamUnaryMultiCallable):
        guarded = _call
    elif isinstance(method, grpc.UnaryStreamMultiCallable | grpc.StreamStreamMultiCallable):
        guarded = _stream
    else:
        raise TypeError(f"{type(method).__name__} is not a gRPC method; a stub's attributes are expected")

    def call(request: object, *, timeout: float | None = None, metadata: Sequence[tuple[str, str | bytes]] = (), **options: object) -> object:
        seconds = default_timeout_seconds if timeout is None else timeout
        return guarded(method, request, timeout=seconds, metadata=with_request_id(metadata), **options)

    return call


def with_request_id(metadata: Sequence[tuple[str, str | bytes]]) -> tuple[tuple[str, str | bytes], ...]:
    """`metadata` with the ``x-request-id`` that structlog's context holds, unless it has one."""
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    if request_id is None or any(key == REQUEST_ID_KEY for key, _ in metadata):
        return tuple(metadata)
    return (*metadata, (REQUEST_ID_KEY, str(request_id)))


def _call(method: Callable[..., object], request: object, **options: object) -> object:
    try:
        return method(request, **options)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None


async def _call_async(method: Callable[..., Awaitable[object]], request: object, **options: object) -> object:
    try:
        return await method(request, **options)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None


def _stream(method: Callable[..., Any], request: Any, **options: object) -> Iterator[object]:
    failed: list[Exception] = []
    streams = isinstance(method, grpc.StreamStreamMultiCallable)
    call = method(_until_one_fails(request, failed) if streams else request, **options)
    try:
        yield from call
    except grpc.RpcError as error:
        if not failed:
            raise from_rpc_error(error) from None
    finally:
        call.cancel()
    if failed:
        raise failed[0]


async def _stream_async(method: Callable[..., Any], request: Any, **options: object) -> AsyncIterator[object]:
    failed: list[Exception] = []
    streams = isinstance(method, grpc.aio.StreamStreamMultiCallable)
    call = method(_until_one_fails_async(request, failed) if streams else request, **options)
    try:
        async for reply in call:
            yield reply
    except grpc.RpcError as error:
        if not failed:
            raise from_rpc_error(error) from None
    finally:
        call.cancel()
    if failed:
        raise failed[0]


def _until_one_fails(requests: Iterable[object], failed: list[Exception]) -> Iterator[object]:
    """The requests up to one that cannot be made, whose error is kept: gRPC would end the call with an error of its own."""
    try:
        yield from requests
    except Exception as error:  # noqa: BLE001 - the caller's own, raised to it when the answers to the requests before have come
        failed.append(error)


async def _until_one_fails_async(requests: AsyncIterable[object] | Iterable[object], failed: list[Exception]) -> AsyncIterator[object]:
    """As `_until_one_fails`: gRPC would cancel the task that reads the answers."""
    try:
        if isinstance(requests, AsyncIterable):
            async for request in requests:
                yield request
        else:
            for request in requests:
                yield request
    except Exception as error:  # noqa: BLE001 - as above
        failed.append(error)
