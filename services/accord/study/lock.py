"""One study at a time in a home: of two, the one that ends first would stop the other one's services, and each write over the other one's results.

What does not belong here: the lock of whoever starts or stops services, which is the workspace's (`accord.workspace.state`).
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from accord.errors import FailedPreconditionError

_FILE = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def held(home: Path, study_folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Holds a study's folder for the block; the system lets go of it when its process dies. Where files cannot be locked, that is reported.

    Raises:
        FailedPreconditionError: another process runs a study there; the message says which.
    """
    with (study_folder / _FILE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FailedPreconditionError(
                f"process {_holder(file)} runs a study in {home}; wait for its end, or give another --home", field="home"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            report(f"note: {study_folder} cannot be locked ({error.strerror}): nothing keeps a second study away from it")
        file.truncate(0)
        file.write(f"{os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


def _holder(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip() or "unknown"
