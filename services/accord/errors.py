"""The errors that Accord raises, each with the gRPC status that it becomes on the wire.

Everything below a servicer raises one of these; `accord.rpc` turns them into `google.rpc.Status` and clients turn the status back into
the same class. Nothing here imports grpc: `code` is the name of a `grpc.StatusCode`.

What does not belong here: the mapping itself (`accord.rpc.status`), and errors of `accord.algos`, which raises ValueError only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class AccordError(Exception):
    """An error with a gRPC code, the field at fault and whether a retry can help.

    Args:
        message: one sentence that says what was given and what is allowed.
        field: path of the request or configuration field at fault, for example ``items[3].sampling.temperature``.
        retry_after_seconds: how long a caller should wait before it tries again; only for retryable errors.
        metadata: facts for programs (digests, names, limits); string to string.
    """

    code: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        retry_after_seconds: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_seconds = retry_after_seconds
        self.metadata = dict(metadata or {})

    def __str__(self) -> str:
        if self.field and self.field not in self.message:
            return f"{self.field}: {self.message}"
        return self.message


class InvalidArgumentError(AccordError):
    """The request is wrong whatever the state of the system."""

    code = "INVALID_ARGUMENT"


class OutOfRangeError(AccordError):
    """The request reaches past what exists, for example a prompt past the context window."""

    code = "OUT_OF_RANGE"


class NotFoundError(AccordError):
    """The named resource does not exist."""

    code = "NOT_FOUND"


class AlreadyExistsError(AccordError):
    """The name or request id is taken by something else."""

    code = "ALREADY_EXISTS"


class FailedPreconditionError(AccordError):
    """The system is not in the state that the request needs; trying again unchanged will not help."""

    code = "FAILED_PRECONDITION"


class AbortedError(AccordError):
    """A concurrent change won; reading again and retrying can help."""

    code = "ABORTED"
    retryable = True


class ResourceExhaustedError(AccordError):
    """A queue or budget is full."""

    code = "RESOURCE_EXHAUSTED"
    retryable = True


class UnavailableError(AccordError):
    """The service cannot be reached or is draining."""

    code = "UNAVAILABLE"
    retryable = True


class DeadlineExceededError(AccordError):
    """The caller's deadline passed before the work was done."""

    code = "DEADLINE_EXCEEDED"


class CancelledError(AccordError):
    """The caller, or an operator, cancelled the work."""

    code = "CANCELLED"


class PermissionDeniedError(AccordError):
    """The caller may not do this."""

    code = "PERMISSION_DENIED"


class UnauthenticatedError(AccordError):
    """The caller did not say who it is."""

    code = "UNAUTHENTICATED"


class UnimplementedError(AccordError):
    """The method is in the contract and not built yet."""

    code = "UNIMPLEMENTED"


class DataLossError(AccordError):
    """Stored bytes do not match their digest."""

    code = "DATA_LOSS"


class InternalError(AccordError):
    """A defect; details stay in the server's log."""

    code = "INTERNAL"


def error_classes() -> tuple[type[AccordError], ...]:
    """All concrete error classes, one for each gRPC code in use."""
    return tuple(AccordError.__subclasses__())
