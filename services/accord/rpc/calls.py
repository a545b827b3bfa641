"""One call as a handler and the interceptor see it: its deadline, its request id, and messages as bytes on one side, objects on the other.

What does not belong here: admission, logging and the mapping of errors (`accord.rpc.interceptors`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from accord.errors import InvalidArgumentError, OutOfRangeError
from accord.rpc.validation import validate


@dataclass(frozen=True)
class Method:
    """A registered method: its handler, and which rules it is under."""

    full_name: str
    handler: grpc.RpcMethodHandler
    exempt: bool
    long_lived: bool

    @property
    def service(self) -> str:
        """Full name of the service."""
        return self.full_name.strip("/").partition("/")[0]

    @property
    def name(self) -> str:
        """Name of the method within its service."""
        return self.full_name.strip("/").partition("/")[2]


class Call:
    """A call in progress.

    Args:
        method: what was called.
        context: gRPC's own servicer context.
        request_id: what the logs call this call.
        deadline: `time.monotonic()` seconds; None for long-lived and exempt streams.
        max_message_bytes: largest reply.
    """

    def __init__(self, method: Method, context: grpc.aio.ServicerContext, *, request_id: str, deadline: float | None, max_message_bytes: int) -> None:
        self.method = method
        self.grpc_context = context
        self.request_id = request_id
        self.deadline = deadline
        self.request_bytes = 0
        self.last_request = b""
        self.sending: asyncio.Future[None] | None = None
        self.context = CallContext(self)
        self._max_message_bytes = max_message_bytes

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the deadline, at least 0; None where there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def decode(self, raw: bytes) -> Any:
        """The message in `raw`, checked against its rules.

        Raises:
            InvalidArgumentError: the bytes are no such message, or the message breaks a rule.
        """
        self.request_bytes += len(raw)
        self.last_request = raw
        deserializer = self.method.handler.request_deserializer
        if deserializer is None:
            return raw
        try:
            message = deserializer(raw)
        except (DecodeError, ValueError):
            raise InvalidArgumentError(f"the request's {len(raw)} bytes are not a message of this method's request type") from None
        if isinstance(message, Message) and not self.method.exempt:
            validate(message)
        return message

    def encode(self, reply: Any) -> bytes:
        """`reply` as bytes.

        Raises:
            OutOfRangeError: the reply is larger than a message may be.
        """
        serializer = self.method.handler.response_serializer
        raw: bytes = reply if serializer is None else serializer(reply)
        if len(raw) > self._max_message_bytes:
            raise OutOfRangeError(
                f"the reply would be {len(raw)} bytes, more than the {self._max_message_bytes} allowed in a message; ask for less at once"
            )
        return raw

    async def send(self, reply: Any) -> None:
        """Sends one reply of a stream. Where the caller is cancelled meanwhile, the sending goes on: gRPC cannot take half a message back."""
        self.sending = asyncio.ensure_future(self.grpc_context.write(self.encode(reply)))
        self.sending.add_done_callback(lambda sending: sending.cancelled() or sending.exception())  # seen, if nobody waits any more
        await asyncio.shield(self.sending)

    async def sent(self, timeout_seconds: float) -> None:
        """Waits for the reply that is on its way, if there is one: until then gRPC refuses to end the call with a status."""
        if self.sending is not None and not self.sending.done():
            await asyncio.wait({self.sending}, timeout=timeout_seconds)

    async def decode_all(self, raws: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        """The messages of a client stream."""
        async for raw in raws:
            yield self.decode(raw)


class CallContext:
    """What a handler gets as its context: gRPC's own, with the deadline that really applies, and messages in place of bytes."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call.grpc_context, name)

    @property
    def request_id(self) -> str:
        """What the logs call this call."""
        return self._call.request_id

    @property
    def deadline(self) -> float | None:
        """`time.monotonic()` seconds at which nobody wants the reply any more; fits `WorkQueue.submit`."""
        return self._call.deadline

    def time_remaining(self) -> float | None:
        """Seconds to the deadline, the server's default and cap included."""
        return self._call.seconds_left

    async def read(self) -> Any:
        """The next request of a client stream, or `grpc.aio.EOF`."""
        raw = await self._call.grpc_context.read()
        return raw if raw is grpc.aio.EOF else self._call.decode(raw)

    async def write(self, message: Any) -> None:
        """Sends one reply of a server stream."""
        await self._call.send(message)
