"""Errors as one line that says what is wrong and what to do, and as an exit code.

What does not belong here: catching (`accord.cli.app`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import typer

from accord.cli.output import harmless
from accord.errors import (
    AccordError,
    AlreadyExistsError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    ResourceExhaustedError,
    UnavailableError,
    UnimplementedError,
)

FAILED, WRONG = 1, 2
_WRONG = (InvalidArgumentError, OutOfRangeError, NotFoundError, AlreadyExistsError, FailedPreconditionError, UnimplementedError)
_ADVICE: tuple[tuple[type[AccordError], str], ...] = (
    (UnavailableError, "see `accord status`; `accord up` starts what does not run"),
    (DeadlineExceededError, "give it more time with --timeout"),
    (ResourceExhaustedError, "try again when it has less to do"),
    (InternalError, "the service's log says more: `accord status` shows where it is"),
    (DataLossError, "restore the file from a copy, or make it anew"),
)


@contextlib.contextmanager
def advice(*kinds: type[AccordError], text: str) -> Iterator[None]:
    """Adds to errors of these kinds, raised inside, what to do about them."""
    try:
        yield
    except kinds as error:
        error.add_note(text)
        raise


def exit_code_of(error: BaseException) -> int:
    """The exit code that an error stands for."""
    if isinstance(error, typer.TyperException):
        return error.exit_code
    return WRONG if isinstance(error, _WRONG) else FAILED


def line_of(error: BaseException) -> str | None:
    """`error: what is wrong; what to do`, None for what nobody foresaw (a defect, whose traceback is worth more)."""
    if isinstance(error, AccordError):
        return _line(str(error), _advice_for(error))
    if isinstance(error, typer.TyperException):
        return _line(_lower(error.format_message()), _usage_advice(error))
    if isinstance(error, typer.Abort):
        return _line("aborted", "")
    if isinstance(error, OSError):
        name = f": {error.filename}" if error.filename else ""
        return _line(f"{error.strerror or error}{name}", "")
    return None


def _advice_for(error: AccordError) -> str:
    notes = list(getattr(error, "__notes__", ()))
    if not notes:
        notes = [text for kind, text in _ADVICE if isinstance(error, kind)]
    if error.retry_after_seconds is not None:
        notes.append(f"a retry may help in {error.retry_after_seconds:.0f} s")
    return "; ".join(notes)


def _usage_advice(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f"see `{context.command_path} --help`" if context is not None else ""


def _line(text: str, what_to_do: str) -> str:
    words = " ".join(harmless(text).split()).rstrip(".;")
    return f"error: {words}; {harmless(what_to_do)}" if what_to_do else f"error: {words}"


def _lower(text: str) -> str:
    """Click's sentences begin with a capital."""
    return text[:1].lower() + text[1:]
