"""Which field of a request an error is about, where what raises it knows only names and files.

What does not belong here: errors themselves (`accord.errors`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from accord.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError

_ABOUT_WHAT_WAS_NAMED = (DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError)


@contextlib.contextmanager
def naming(field: str) -> Iterator[None]:
    """What the block raises about an adapter or a data set carries this field; errors of another kind (a full queue) stay as they are.

    A new error is raised, since one error may end calls that named the adapter in different fields.
    """
    try:
        yield
    except _ABOUT_WHAT_WAS_NAMED as error:
        raise type(error)(error.message, field=field, retry_after_seconds=error.retry_after_seconds, metadata=error.metadata) from error
