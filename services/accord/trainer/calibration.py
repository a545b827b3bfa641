"""How fast this machine multiplies and reads, measured once with numpy on one thread, for estimates of time. No torch.

The products run in a short process of their own, so that numpy's threads do not count, and are timed by its processor time, so that others at
work do not count either. What does not belong here: what a run computes (`accord.trainer.workload`).
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from accord.artefacts.store import cache_folder
from accord.rundir import write_atomically

_SCRIPT = """\
import json, time
import numpy
def rate(work, amount, seconds):
    work()
    started, count = time.process_time(), 0
    while time.process_time() - started < seconds:
        work()
        count += 1
    return amount * count / (time.process_time() - started)
a, b = numpy.full((512, 576), 0.5, numpy.float32), numpy.full((576, 1536), 0.5, numpy.float32)
c = numpy.empty((512, 1536), numpy.float32)
long, vector = numpy.full((6144, 4096), 0.5, numpy.float32), numpy.full(4096, 0.5, numpy.float32)
multiply = rate(lambda: numpy.matmul(a, b, out=c), 2 * 512 * 576 * 1536, 0.15)
read = rate(lambda: long @ vector, long.nbytes, 0.1)
print(json.dumps({"operations_per_second": multiply, "bytes_per_second": read}))
"""
_PROCESS_SECONDS = 60.0
_FORM = "1"


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one thread: float32 operations in products, and bytes read from memory, each per second."""

    operations_per_second: float
    bytes_per_second: float


def measure_speed() -> Speed:
    """Measures now; takes about half a second of processor time.

    Raises:
        OSError, subprocess.SubprocessError, ValueError: the process cannot be started, is not done in a minute, or says something else.
    """
    one = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _SCRIPT], env={**os.environ, **one}, capture_output=True, text=True, check=True, timeout=_PROCESS_SECONDS
    )
    return Speed(**json.loads(done.stdout))


class Calibration:
    """The speed of this machine: from the cache, or measured in the background, so that no call waits for long.

    Args:
        path: the cached figures; default in Accord's cache, by processor.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or cache_folder() / f"speed-{_FORM}-{_processor()}.json"
        self._speed = self._read()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Measures in the background where nothing is known."""
        with self._lock:
            if self._speed is None and self._thread is None:
                self._thread = threading.Thread(target=self._measure, name="calibration", daemon=True)
                self._thread.start()

    def speed(self, wait_seconds: float) -> Speed | None:
        """The speed; None where it is still being measured after `wait_seconds`, or cannot be."""
        self.start()
        if self._thread is not None:
            self._thread.join(wait_seconds)
        return self._speed

    def _measure(self) -> None:
        try:
            speed = measure_speed()
        except (OSError, subprocess.SubprocessError, ValueError, TypeError):
            return  # plans say that the machine has not been measured
        self._speed = speed
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(asdict(speed)))
        except OSError:
            return  # the next process measures again

    def _read(self) -> Speed | None:
        try:
            return Speed(**json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def _processor() -> str:
    """A short name of the kind of processor, for a cache that several machines may share."""
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return "".join(character if character.isalnum() else "-" for character in model.lower())[:60]
