"""Memory that is in use goes onto huge pages, unchanged; what is merely reserved stays reserved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import mmap, numpy
from accord.models.huge_pages import collapse_memory
reserved = mmap.mmap(-1, 64 * 2**20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
values = numpy.arange(16 * 2**20, dtype=numpy.int32)  # 64 MiB
found = collapse_memory()
assert (values == numpy.arange(16 * 2**20, dtype=numpy.int32)).all()
resident = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")][0]
print(found // 2**20, resident // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux alone tells of huge pages")
def test_what_is_in_use_moves_and_keeps_its_values() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    huge, resident = (int(number) for number in done.stdout.splitlines()[-1].split())
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        assert huge == 0
    else:
        assert huge >= 32  # of 64 MiB; a machine whose memory is in pieces may not give all
    assert resident < 64 + 128  # the reserved 64 MiB did not become resident
