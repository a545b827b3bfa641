"""Calls to a policy service with several replicas, where the client chooses the replica: fewest items, or the same one for the same prefix.

Both classes have the methods of PolicyServiceStub, the blocking one also those of PolicyAdminServiceStub, and raise AccordErrors: they stand in
for guarded stubs.
Generate, ComputeLogprobs and GetModelInfo are tried on another replica as `accord.client.dispatch` says. A stream goes whole to one replica
(with `prefix`, that of its first item), and to another only before its first event. LoadAdapter reaches one replica, as any call: it says what
a name means, and the others load the version at its first use. What changes or lists one replica's state is refused.

What does not belong here: what to send and when (`accord.client.dispatch`), and which replica (`accord.client.replica_set`).
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import TimeoutError as NotDoneError
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn, get_args

import grpc

from accord.api.policy.v1 import policy_pb2 as pb
from accord.api.policy.v1 import policy_pb2_grpc as rpc
from accord.client.dispatch import Dispatch, Send
from accord.client.replica_set import ReplicaSet
from accord.client.resolving import Resolver
from accord.errors import AccordError, FailedPreconditionError
from accord.rpc.channels import ChannelConfig, OwnBalancing, open_async_channel, open_channel
from accord.rpc.status import from_rpc_error
from accord.rpc.stubs import guard_stub, with_request_id


def chooses_replicas(config: ChannelConfig) -> bool:
    """Whether `Replicas` is asked for, rather than a channel with gRPC's own balancing."""
    return config.load_balancing in get_args(OwnBalancing)


class _Link(NamedTuple):
    """What carries the calls to one replica: methods as gRPC makes them, and guarded."""

    channel: Any
    plain: Any
    guarded: Any


class _OneReplicaOnly:
    """The admin methods that mean one replica."""

    def __init__(self, config: ChannelConfig) -> None:
        self._config = config

    def UnloadAdapter(self, request: object, timeout: float | None = None) -> NoReturn:
        raise self._refusal("UnloadAdapter")

    def ListAdapters(self, request: object, timeout: float | None = None) -> NoReturn:
        raise self._refusal("ListAdapters")

    def PauseGeneration(self, request: object, timeout: float | None = None) -> NoReturn:
        raise self._refusal("PauseGeneration")

    def ResumeGeneration(self, request: object, timeout: float | None = None) -> NoReturn:
        raise self._refusal("ResumeGeneration")

    def UpdateWeights(self, request: object, timeout: float | None = None) -> NoReturn:
        raise self._refusal("UpdateWeights")

    def _refusal(self, method: str) -> FailedPreconditionError:
        return FailedPreconditionError(
            f"{method} is about one replica, and {self._config.load_balancing} chooses among those of {self._config.address}: "
            "call it with each replica's own address and load_balancing pick_first",
            field="load_balancing",
        )


class Replicas(_OneReplicaOnly):
    """Blocking calls; any thread may call. Close it.

    Args:
        config: `load_balancing` is least_loaded or prefix.

    Raises:
        InvalidArgumentError: the address cannot be told apart into replicas, or a TLS file cannot be read.
    """

    def __init__(self, config: ChannelConfig) -> None:
        super().__init__(config)
        resolver = Resolver(config.address)
        self._set = ReplicaSet(
            config, resolver, lambda address: _link(open_channel(_one(config, resolver.host, address)), config), lambda link: link.channel.close()
        )
        self._set.refresh()

    def close(self) -> None:
        """Closes all channels."""
        self._set.close()

    def Generate(self, request: pb.GenerateRequest, timeout: float | None = None) -> Any:
        """As the stub's."""
        return self._call("Generate", request, timeout)

    def ComputeLogprobs(self, request: pb.ComputeLogprobsRequest, timeout: float | None = None) -> Any:
        """As the stub's."""
        return self._call("ComputeLogprobs", request, timeout)

    def GetModelInfo(self, request: pb.GetModelInfoRequest, timeout: float | None = None) -> Any:
        """As the stub's, of any replica."""
        return self._call("GetModelInfo", request, timeout)

    def LoadAdapter(self, request: pb.LoadAdapterRequest, timeout: float | None = None) -> Any:
        """As the stub's, on any one replica."""
        return self._call("LoadAdapter", request, timeout)

    def GenerateStream(self, request: pb.GenerateStreamRequest, timeout: float | None = None) -> Iterator[pb.GenerateStreamResponse]:
        """As the stub's."""
        dispatch = self._dispatch(request, timeout, whole=True)
        while True:
            send, begun = self._next(dispatch), False
            try:
                with contextlib.closing(send.replica.link.guarded.GenerateStream(send.request, timeout=send.timeout_seconds)) as events:
                    for event in events:
                        begun = True
                        yield event
            except AccordError as error:
                _stream_failed(dispatch, send, error, begun=begun)
                continue
            except BaseException:
                dispatch.abandoned(send)
                raise
            dispatch.ended(send)
            return

    def _call(self, method: str, request: Any, timeout: float | None) -> Any:
        dispatch = self._dispatch(request, timeout)
        finished: queue.SimpleQueue[Send] = queue.SimpleQueue()
        flying: dict[Send, Any] = {}
        try:
            while not dispatch.complete:
                for send in dispatch.due():
                    flying[send] = _start(method, send, finished)
                try:
                    send = finished.get(timeout=dispatch.wait_seconds())
                except queue.Empty:
                    continue
                try:
                    reply = flying.pop(send).result()
                except grpc.RpcError as error:
                    dispatch.failed(send, from_rpc_error(error))
                else:
                    dispatch.answered(send, reply)
            return dispatch.reply()
        finally:
            for send, future in flying.items():
                future.cancel()
                dispatch.abandoned(send)

    def _dispatch(self, request: Any, timeout: float | None, *, whole: bool = False) -> Dispatch:
        seconds = self._config.default_timeout_seconds if timeout is None else timeout
        dispatch = Dispatch(self._set, request, seconds, whole=whole)
        self._set.refresh()
        with contextlib.suppress(NotDoneError):  # `due` says that there is no address
            self._set.resolver.first.result(timeout=seconds)
        return dispatch

    def _next(self, dispatch: Dispatch) -> Send:
        """The only request of a call that goes whole to one replica, once it is due."""
        while not (sends := dispatch.due()):
            time.sleep(dispatch.wait_seconds() or 0.0)
        return sends[0]


class AsyncReplicas:
    """As `Replicas`, for asyncio and without admin methods: make it, use it and close it on one event loop."""

    def __init__(self, config: ChannelConfig) -> None:
        self._config = config
        self._closing: set[asyncio.Task[None]] = set()
        resolver = Resolver(config.address)
        self._set = ReplicaSet(config, resolver, lambda address: _link(open_async_channel(_one(config, resolver.host, address)), config), self._drop)
        self._set.refresh()

    async def close(self) -> None:
        """Closes all channels."""
        self._set.close()
        await asyncio.gather(*self._closing)

    async def Generate(self, request: pb.GenerateRequest, timeout: float | None = None) -> Any:
        """As the stub's."""
        return await self._call("Generate", request, timeout)

    async def ComputeLogprobs(self, request: pb.ComputeLogprobsRequest, timeout: float | None = None) -> Any:
        """As the stub's."""
        return await self._call("ComputeLogprobs", request, timeout)

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, timeout: float | None = None) -> Any:
        """As the stub's, of any replica."""
        return await self._call("GetModelInfo", request, timeout)

    async def GenerateStream(self, request: pb.GenerateStreamRequest, timeout: float | None = None) -> AsyncIterator[pb.GenerateStreamResponse]:
        """As the stub's."""
        dispatch = await self._dispatch(request, timeout, whole=True)
        while True:
            send, begun = await self._next(dispatch), False
            try:
                async with contextlib.aclosing(send.replica.link.guarded.GenerateStream(send.request, timeout=send.timeout_seconds)) as events:
                    async for event in events:
                        begun = True
                        yield event
            except AccordError as error:
                _stream_failed(dispatch, send, error, begun=begun)
                continue
            except BaseException:
                dispatch.abandoned(send)
                raise
            dispatch.ended(send)
            return

    async def _call(self, method: str, request: Any, timeout: float | None) -> Any:
        dispatch = await self._dispatch(request, timeout)
        flying: dict[asyncio.Task[Any], Send] = {}
        try:
            while not dispatch.complete:
                for send in dispatch.due():
                    call = getattr(send.replica.link.guarded, method)(send.request, timeout=send.timeout_seconds)
                    flying[asyncio.ensure_future(call)] = send
                if not flying:
                    await asyncio.sleep(dispatch.wait_seconds() or 0.0)
                    continue
                done, _ = await asyncio.wait(flying, timeout=dispatch.wait_seconds(), return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    send = flying.pop(task)
                    if isinstance(error := task.exception(), AccordError):
                        dispatch.failed(send, error)
                    else:
                        dispatch.answered(send, task.result())
            return dispatch.reply()
        finally:
            for task, send in flying.items():
                task.add_done_callback(_look_away)
                task.cancel()
                dispatch.abandoned(send)

    async def _dispatch(self, request: Any, timeout: float | None, *, whole: bool = False) -> Dispatch:
        seconds = self._config.default_timeout_seconds if timeout is None else timeout
        dispatch = Dispatch(self._set, request, seconds, whole=whole)
        self._set.refresh()
        first = self._set.resolver.first
        if not first.done():
            await asyncio.wait([asyncio.wrap_future(first)], timeout=seconds)
        return dispatch

    async def _next(self, dispatch: Dispatch) -> Send:
        """The only request of a call that goes whole to one replica, once it is due."""
        while not (sends := dispatch.due()):
            await asyncio.sleep(dispatch.wait_seconds() or 0.0)
        return sends[0]

    def _drop(self, link: _Link) -> None:
        task = asyncio.ensure_future(link.channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _one(config: ChannelConfig, host: str, address: str) -> ChannelConfig:
    """The configuration of the channel to one replica, which must have a certificate for the name that it was found by."""
    tls = config.tls
    if tls is not None and tls.server_name is None and host:
        tls = tls.model_copy(update={"server_name": host})
    return config.model_copy(update={"address": address, "tls": tls, "attempts": 1, "load_balancing": "pick_first"})


def _link(channel: Any, config: ChannelConfig) -> _Link:
    methods = {**vars(rpc.PolicyServiceStub(channel)), "LoadAdapter": rpc.PolicyAdminServiceStub(channel).LoadAdapter}
    plain = SimpleNamespace(**methods)
    return _Link(channel, plain, guard_stub(plain, config.default_timeout_seconds))


def _start(method: str, send: Send, finished: queue.SimpleQueue[Send]) -> Any:
    """The future of a call that says through the queue that it is done."""
    call = getattr(send.replica.link.plain, method)
    future = call.future(send.request, timeout=send.timeout_seconds, metadata=with_request_id(()))
    future.add_done_callback(lambda _: finished.put(send))
    return future


def _stream_failed(dispatch: Dispatch, send: Send, error: AccordError, *, begun: bool) -> None:
    """Lets the stream go to another replica, or raises what ends it."""
    if begun:
        dispatch.broken(send, error)
        raise error
    dispatch.failed(send, error)


def _look_away(task: asyncio.Task[Any]) -> None:
    """Takes the error of a call that nobody waits for, which asyncio would write to the log."""
    if not task.cancelled():
        task.exception()
