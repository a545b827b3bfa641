"""`python -m accord.training.agent [options of torchrun] -m accord.training --config RUN.yaml`: torchrun, whose end says how the run ended.

torchrun alone ends with 1 whatever its processes ended with, and kills them 30 seconds after a SIGTERM, whatever they are writing. Here SIGTERM is
handed on and the processes take the time that they need (Kubernetes' own SIGKILL bounds it), and the exit code is one of `accord.rundir`, so
that a Job tells a stop after a checkpoint from an error of the configuration. What does not belong here: what a process does.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterable, Sequence
from types import FrameType

import psutil
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from accord.rundir import EXIT_AWAY, EXIT_CONFIGURATION, EXIT_DONE, EXIT_FAILED, EXIT_GUARDED, EXIT_STOPPED

_MOST_TELLING = (EXIT_CONFIGURATION, EXIT_GUARDED, EXIT_AWAY, EXIT_FAILED, EXIT_STOPPED)
_HEARD_BY_TORCHRUN = "SIGINT,SIGHUP,SIGQUIT"


def main(arguments: Sequence[str] | None = None) -> int:
    """Starts this node's processes and waits for them; returns the code that says most of theirs."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    signal.signal(signal.SIGTERM, _hand_on)
    try:
        torchrun([f"--signals-to-handle={_HEARD_BY_TORCHRUN}", *given])
    except ChildFailedError as error:
        return telling_code(failure.exitcode for failure in error.failures.values())
    return EXIT_DONE


def telling_code(codes: Iterable[int]) -> int:
    """One exit code for several processes: an error of the configuration and a guard's stop before other failures, those before a stop.

    A process that a signal ended (a negative code) counts as failed: the next attempt goes on from the last checkpoint.
    """
    known = {code if code in _MOST_TELLING else EXIT_FAILED for code in codes}
    return next((code for code in _MOST_TELLING if code in known), EXIT_FAILED)


def _hand_on(number: int, _: FrameType | None) -> None:
    children = psutil.Process().children()
    if not children:  # the nodes have not found each other yet
        raise SystemExit(EXIT_STOPPED)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(number)


if __name__ == "__main__":
    sys.exit(main())
