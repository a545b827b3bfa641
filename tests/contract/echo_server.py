"""A small service on the real runtime: `python -m tests.contract.echo_server config.yaml`. It can fail in every way that a service can."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from prometheus_client import Counter
from tests.contract.echo_proto import METHODS, SERVICE, EchoReply, EchoRequest

from accord import errors
from accord.rpc.config import FrozenModel, ServerConfig
from accord.rpc.server import ServiceBinding, main
from accord.rpc.worker import Worker, run_worker
from accord.rpc.workqueue import WorkItem, WorkQueue

STEP_SECONDS = 0.01
STEPS = Counter("accord_echo_steps_total", "Steps computed for items that somebody waits for")


class EchoConfig(FrozenModel):
    """What a test may want of the server."""

    server: ServerConfig = ServerConfig()
    warm_seconds: float = 0.0
    warm_in_thread: bool = False
    start_error: str | None = None
    fault_file: Path | None = None
    queue_items: int = 64


class EchoService:
    """Handlers of all four kinds."""

    def __init__(self, queue: WorkQueue[Any, list[str]]) -> None:
        self._queue = queue

    async def Echo(self, request: Any, context: Any) -> Any:
        if request.raise_error:
            await misbehave(request, context)
        if request.raise_error == "bad_reply":
            return "no message"
        item = self._queue.submit(request, cost=max(1, request.steps), deadline=context.deadline)
        prompts = await item.result()
        return EchoReply(prompts=[*prompts, "x" * request.reply_bytes], time_remaining=context.time_remaining(), request_id=context.request_id)

    async def Stream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        item = self._queue.submit(request, cost=max(1, request.steps), deadline=context.deadline)
        async for prompt in item.values():
            yield EchoReply(prompts=[prompt])
        if request.raise_error:
            await misbehave(request, context)

    async def Collect(self, requests: AsyncIterator[Any], context: Any) -> Any:
        prompts: list[str] = []
        async for request in requests:
            prompts += request.prompts
            if request.raise_error:
                await misbehave(request, context)
        return EchoReply(prompts=prompts)

    async def Chat(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            if request.raise_error:
                await misbehave(request, context)
            yield EchoReply(prompts=request.prompts)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        while True:
            yield EchoReply(time_remaining=context.time_remaining() or -1)
            await asyncio.sleep(0.05)


async def misbehave(request: Any, context: Any) -> None:
    """Raises what `raise_error` names."""
    name, text = request.raise_error, request.prompts[0]
    known = {error_class.__name__: error_class for error_class in errors.error_classes()}
    if name in known:
        raise known[name](f"{name} was asked for", field="raise_error", retry_after_seconds=1.25, metadata={"digest": "abc", "limit": "7"})
    if name == "ValueError":
        try:
            raise KeyError(text)
        except KeyError as cause:
            raise ValueError(f"cannot digest {text!r}") from cause
    if name == "TimeoutError":
        raise TimeoutError
    if name == "abort":
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "aborted by hand")


def compute(batch: list[WorkItem[Any, list[str]]]) -> Sequence[list[str]] | None:
    """Takes `STEP_SECONDS` a step for the longest request of the batch, and stops once nobody waits."""
    pending = list(batch)
    for step in range(1, 1 + max(item.payload.steps for item in batch)):
        time.sleep(STEP_SECONDS)
        pending = [item for item in pending if not item.abandoned]
        STEPS.inc(len(pending))
        for item in pending:
            if step >= item.payload.steps:
                answer(item)
        if all(item.abandoned for item in pending):
            return None
    for item in pending:
        answer(item)
    return None


def answer(item: WorkItem[Any, list[str]]) -> None:
    if item.abandoned:
        return
    for prompt in item.payload.prompts:
        item.emit(prompt)
    item.complete(list(item.payload.prompts))


class EchoComponent:
    """The service's component."""

    def __init__(self, config: EchoConfig) -> None:
        self._config = config
        self._queue: WorkQueue[Any, list[str]] = WorkQueue(max_items=config.queue_items, max_cost=10_000_000, name="echo")
        self._service = EchoService(self._queue)
        self._worker: Worker[Any, list[str]] | None = None

    @property
    def bindings(self) -> Sequence[ServiceBinding]:
        return [ServiceBinding(SERVICE, self._add)]

    def _add(self, server: grpc.aio.Server) -> None:
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }
        handlers: dict[str, Any] = {
            name: make[streaming](
                getattr(self._service, name), request_deserializer=EchoRequest.FromString, response_serializer=EchoReply.SerializeToString
            )
            for name, *flags in METHODS
            for streaming in [(flags[0], flags[1])]
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        server.add_registered_method_handlers(SERVICE, handlers)

    async def start(self) -> None:
        if self._config.warm_in_thread:
            await asyncio.to_thread(time.sleep, self._config.warm_seconds)
        else:
            await asyncio.sleep(self._config.warm_seconds)
        if self._config.start_error is not None:
            raise errors.FailedPreconditionError(self._config.start_error)
        self._worker = run_worker(self._queue, compute, max_cost=10_000_000, max_items=8)

    async def drain(self) -> None:
        return None

    async def close(self) -> None:
        if self._worker is not None:
            await asyncio.to_thread(self._worker.stop, 2.0)

    def fault(self) -> str | None:
        if self._config.fault_file is not None and self._config.fault_file.exists():
            return self._config.fault_file.read_text()
        return None if self._worker is None else self._worker.fault(stall_limit_seconds=60)


if __name__ == "__main__":
    sys.exit(main(EchoConfig, EchoComponent))
