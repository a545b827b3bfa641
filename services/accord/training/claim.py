"""One process of a run at a time: a second one waits until the first has gone.

After the node of a pod is drained, or its pod is deleted, older Kubernetes versions start the next pod while the last one still writes its
checkpoint. The lock is the kernel's: it goes with its process, however that ends. What does not belong here: who starts processes (`accord.launch`).
"""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from accord.rundir import RunDirectory
    from accord.training.context import EventLog, StopSignal

_POLL_SECONDS = 0.2
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def claimed(directory: RunDirectory, events: EventLog, stop: StopSignal) -> Iterator[None]:
    """Holds the run's folder for the block. A file system without locks cannot be held; the run says so and goes on.

    Raises:
        RunStopped: the run was asked to stop while it waited.
    """
    with directory.lock.open("ab") as file:
        try:
            _wait(file, events, stop)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            events.message(f"the run's folder cannot be locked ({error.strerror}): nothing keeps a second process of this run away from it")
        yield


def _wait(file: BinaryIO, events: EventLog, stop: StopSignal) -> None:
    said = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not said:
                events.state("starting", "the run's earlier process, which has not ended yet")
                said = True
        stop.check()
        time.sleep(_POLL_SECONDS)
