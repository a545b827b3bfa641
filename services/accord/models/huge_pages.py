"""Weights on huge pages of memory.

A decode pass reads all weights once; with pages of 4 KiB the translation of addresses and the prefetchers, which stop at a page's end, hold it up:
with SmolLM2-135M on two cores a pass of one row took 29 ms before and 23 after, one of 32 rows 77 and 66. Where Linux gives huge pages on
advice only (the usual setting), nobody else asks for them: PyTorch's packed weights lie on the C library's heap. Runs that train do not ask: they
give memory back (`accord.training.allocation`), which breaks huge pages up again; when they did so before each pass they were a sixth slower
with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import structlog

from accord.models.memory_advice import adviser

_HUGE = 2 * 2**20
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # collapse: Linux 6.1; before it khugepaged follows the advice in its own time
_HEADER = re.compile(r"(?P<first>[0-9a-f]+)-(?P<end>[0-9a-f]+) rw-p 00000000 00:00 0 *(?P<name>\S*)$")
_log = structlog.get_logger(__name__)


def collapse_memory() -> int:
    """Moves what fills this process's memory onto huge pages; returns the bytes of it that lie there then, 0 where the system has none.

    For the moment after weights were loaded: what comes later is left as it is. Moving copies every page, a gigabyte in about two seconds.
    """
    advise = adviser()
    if advise is None:
        return 0
    for first, end in _filled_ranges():
        advise(first, end - first, _MADV_HUGEPAGE)
        advise(first, end - first, _MADV_COLLAPSE)
    found = _huge_bytes()
    _log.info("memory on huge pages", mebibytes=found // 2**20)
    return found


def _filled_ranges() -> Iterator[tuple[int, int]]:
    """Addresses of anonymous memory that is at least half in use, whole huge pages only; stacks of threads and what is merely reserved are not."""
    smaps = Path("/proc/self/smaps").read_text(encoding="utf-8")
    current: tuple[int, int] | None = None
    for line in smaps.splitlines():
        if (header := _HEADER.match(line)) is not None and header["name"] in ("", "[heap]"):
            first, end = int(header["first"], 16), int(header["end"], 16)
            current = -(-first // _HUGE) * _HUGE, end // _HUGE * _HUGE
        elif line[:1].islower() or line[:1].isdigit():  # another mapping begins
            current = None
        elif line.startswith("Anonymous:") and current is not None:
            used, size = 1024 * int(line.split()[1]), current[1] - current[0]
            if 0 < size <= 2 * used:
                yield current


def _huge_bytes() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines():
        if line.startswith("AnonHugePages:"):
            return 1024 * int(line.split()[1])
    return 0
