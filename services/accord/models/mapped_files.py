"""Pages of weight files that were read and are not needed again.

Weights are loaded as views of mapped files, so each page that was read stays resident until the last view is gone; packing layer after layer would
hold a model twice. Pages of a file that nobody has written can be let go at any time: who reads them again gets them from the file.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor

from accord.models.memory_advice import adviser

_MADV_DONTNEED = 4
_MAPS = Path("/proc/self/maps")
_FILE = re.compile(r"(?P<first>[0-9a-f]+)-(?P<end>[0-9a-f]+) \S+ \S+ \S+ [1-9]\d*\s+\S.*\.safetensors$")


class MappedWeights:
    """The safetensors files that this process has mapped when this is made; nothing where the system is not Linux."""

    def __init__(self) -> None:
        self._advise: Callable[[int, int, int], int] | None = adviser()
        lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines() if self._advise is not None else []
        found = [match for line in lines if (match := _FILE.match(line)) is not None]
        self._ranges = [(int(match["first"], 16), int(match["end"], 16)) for match in found]

    def let_go(self, tensors: Iterable[Tensor]) -> int:
        """Lets the whole pages of those tensors go that are views of such a file; returns how many bytes that was. Values stay as they are."""
        bytes_let_go = 0
        for tensor in tensors:
            first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
            end = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // mmap.PAGESIZE * mmap.PAGESIZE
            if self._advise is None or first >= end or not any(low <= first and end <= high for low, high in self._ranges):
                continue
            if self._advise(first, end - first, _MADV_DONTNEED) == 0:
                bytes_let_go += end - first
        return bytes_let_go
