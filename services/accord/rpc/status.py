"""`AccordError` on the wire and back: google.rpc.Status with BadRequest, RetryInfo and ErrorInfo details.

What does not belong here: when an error is raised or logged (`accord.rpc.interceptors`), and what a client does about it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from accord.errors import (
    AccordError,
    CancelledError,
    DeadlineExceededError,
    InternalError,
    UnavailableError,
    error_classes,
)

DOMAIN = "accord"
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"

# Clients refuse trailing metadata over 8 KiB (some of it) to 16 KiB (all of it). The message travels twice, once percent-encoded (to three
# times its bytes) and once within the details, which are base64 to some peers.
_MESSAGE_BYTES = 1000
_METADATA_ENTRIES = 8
_VALUE_BYTES = 160

_CODES: dict[str, int] = {code.name: code.value[0] for code in grpc.StatusCode}
_NAMES: dict[int, str] = {number: name for name, number in _CODES.items()}
_BY_CLASS_NAME = {cls.__name__: cls for cls in error_classes()}
_BY_CODE = {cls.code: cls for cls in reversed(error_classes())}


def grpc_code(error: AccordError) -> grpc.StatusCode:
    """The gRPC status code of `error`."""
    return grpc.StatusCode[error.code]


def code_name(code: int | grpc.StatusCode | None) -> str:
    """The name of a status code as `ServicerContext.code()` gives it: gRPC's number or enum member, or None while nobody has set one."""
    if code is None:
        return "OK"
    return code.name if isinstance(code, grpc.StatusCode) else _NAMES.get(code, "UNKNOWN")


def item_status(error: AccordError) -> status_pb2.Status:
    """`error` as the google.rpc.Status of one item in a batch reply; `from_item_status` gives the same error back."""
    details: list[any_pb2.Any] = [
        _pack(
            error_details_pb2.ErrorInfo(
                reason=type(error).__name__,
                domain=DOMAIN,
                metadata={_cut(key, 40): _cut(value, _VALUE_BYTES) for key, value in list(error.metadata.items())[:_METADATA_ENTRIES]},
            )
        )
    ]
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=_cut(error.field, _VALUE_BYTES), description=_cut(error.message, _VALUE_BYTES))
        details.append(_pack(error_details_pb2.BadRequest(field_violations=[violation])))
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(max(0.0, error.retry_after_seconds) * 1e9))
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=_CODES[error.code], message=_cut(error.message, _MESSAGE_BYTES), details=details)


def from_item_status(status: status_pb2.Status) -> AccordError:
    """The error that `status` stands for: the class that ErrorInfo names, else the one of the code, else InternalError."""
    info = error_details_pb2.ErrorInfo()
    request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    found = {detail.TypeName() for detail in status.details for target in (info, request, retry) if _unpack(detail, target)}
    name = _NAMES.get(status.code, "UNKNOWN")
    error_class = _BY_CLASS_NAME.get(info.reason) if info.domain == DOMAIN else None
    if error_class is None or error_class.code != name:
        error_class = _BY_CODE.get(name, InternalError)
    return error_class(
        status.message if name in _BY_CODE else f"{name}: {status.message}",
        field=request.field_violations[0].field if request.field_violations else None,
        retry_after_seconds=retry.retry_delay.ToNanoseconds() / 1e9 if retry.DESCRIPTOR.full_name in found else None,
        metadata=dict(info.metadata),
    )


def to_status(error: AccordError, *, seconds_left: float | None = None) -> RpcStatus:
    """`error` as the status that ends a call: code, message, details, and `grpc-retry-pushback-ms` for retryable errors.

    Args:
        error: what the handler raised.
        seconds_left: time to the call's deadline. A pushback past it would turn the error into DEADLINE_EXCEEDED inside a client that
            retries by itself, so such a client is told not to retry (-1); RetryInfo still says when to.
    """
    status = item_status(error)
    trailing: list[tuple[str, str | bytes]] = [(DETAILS_KEY, status.SerializeToString())]
    if error.retryable and error.retry_after_seconds is not None:
        in_time = seconds_left is None or error.retry_after_seconds < seconds_left
        trailing.append((PUSHBACK_KEY, str(max(0, round(error.retry_after_seconds * 1000))) if in_time else "-1"))
    return RpcStatus(grpc_code(error), status.message, tuple(trailing))


class RpcStatus(grpc.Status):  # type: ignore[misc]
    """What `ServicerContext.abort_with_status` takes."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing_metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        self.code = code
        self.details = details
        self.trailing_metadata = trailing_metadata


def from_rpc_error(error: grpc.RpcError) -> AccordError:
    """The AccordError that a client's RpcError (sync or aio) stands for; a status from no Accord server maps by its code.

    RESOURCE_EXHAUSTED and UNAVAILABLE from gRPC itself carry no RetryInfo, so their `retry_after_seconds` is None.
    """
    code: grpc.StatusCode = error.code()
    rich = next((value for key, value in _pairs(error.trailing_metadata()) if key == DETAILS_KEY), b"")
    with contextlib.suppress(DecodeError):
        status = status_pb2.Status.FromString(rich)
        if status.code == code.value[0]:
            return from_item_status(status)
    return from_item_status(status_pb2.Status(code=code.value[0], message=error.details() or _DEFAULT_MESSAGES.get(code.name, code.name)))


_DEFAULT_MESSAGES = {
    CancelledError.code: "the call was cancelled",
    DeadlineExceededError.code: "the deadline passed before the reply came",
    UnavailableError.code: "the service cannot be reached",
}


def _pairs(metadata: Any) -> Iterable[tuple[str, bytes]]:
    return metadata or ()


def _pack(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _unpack(detail: any_pb2.Any, target: Message) -> bool:
    try:
        return detail.Unpack(target)
    except DecodeError:  # a damaged detail is no reason to lose the code and the message
        return False


def _cut(text: str, size: int) -> str:
    raw = text.encode(errors="replace")
    return raw.decode() if len(raw) <= size else raw[: size - 3].decode(errors="ignore") + "..."
