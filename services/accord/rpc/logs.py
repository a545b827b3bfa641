"""Structured logs to stderr, and how an exception gets into them without the text that a caller sent.

What does not belong here: what is logged and when.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
import sys
import traceback
import uuid

import structlog

_SHARED_BYTES = 12
_MESSAGE_CHARACTERS = 400
_FRAMES_SHOWN = 25
_UNSENT = "ExecuteBatchError"  # of grpc._cython.cygrpc, which exports it under no public name
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def setup_logging(level: str) -> None:
    """Makes structlog write one JSON object a line to stderr, and sends the standard library's warnings (grpc's own) there too.

    Args:
        level: debug, info, warning or error; the environment variable ACCORD_LOG_LEVEL wins over it.
    """
    chosen = os.environ.get("ACCORD_LOG_LEVEL", level).upper()
    number = logging.getLevelNamesMapping().get(chosen, logging.INFO)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


class JsonFormatter(logging.Formatter):
    """One JSON object a line of what libraries log through the standard library, exceptions in the fields of `describe_exception`.

    gRPC logs an error where a client left at the very moment when it was answered (grpc/grpc#32551): its batch of operations fails before
    the server has learnt that the call is over. Nothing is wrong with the server then, so it is written at level info.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line of `record`."""
        error = record.exc_info[1] if record.exc_info else None
        fields: dict[str, object] = {"level": record.levelname.lower(), "logger": record.name, "event": record.getMessage()}
        if error is not None and type(error).__name__ == _UNSENT and record.name.startswith("grpc."):
            fields.update(level="info", event="an answer could not be sent: its call had ended", detail=record.getMessage())
        elif error is not None:
            fields.update(describe_exception(error))
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat().replace("+00:00", "Z")
        return json.dumps({**fields, "timestamp": moment})


def request_id(given: str | bytes | None) -> str:
    """`given` if it is a plain identifier of at most 64 characters, otherwise a new random one: what is logged is never free text."""
    text = given.decode("ascii", "replace") if isinstance(given, bytes) else given or ""
    return text if _REQUEST_ID.fullmatch(text) else uuid.uuid4().hex


def describe_exception(error: BaseException, private: bytes = b"") -> dict[str, object]:
    """Log fields of an exception and its causes: types, stack frames (file, line, function) and messages.

    Args:
        error: the exception.
        private: bytes that hold the caller's text, say the serialized request. A message that shares 12 bytes in a row with
            them is withheld.
    """
    causes: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in causes:
        causes.append(step)
        step = step.__cause__ or (None if step.__suppress_context__ else step.__context__)
    return {
        "error": [f"{type(cause).__name__}: {without_private(str(cause), private)}" for cause in causes],
        "traceback": [
            f"{frame.filename}:{frame.lineno} in {frame.name}" for cause in reversed(causes) for frame in traceback.extract_tb(cause.__traceback__)
        ][-_FRAMES_SHOWN:],
    }


def without_private(message: str, private: bytes) -> str:
    """`message`, cut to 400 characters, or a note in its place when it shares 12 bytes in a row with `private`."""
    text = message[:_MESSAGE_CHARACTERS].encode(errors="replace")
    windows = (text[start : start + _SHARED_BYTES] for start in range(len(text) - _SHARED_BYTES + 1))
    if private and any(window in private for window in windows):
        return "(message withheld: it repeats text of the request)"
    return message[:_MESSAGE_CHARACTERS]
