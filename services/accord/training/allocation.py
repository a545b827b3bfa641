"""How a run's process gives memory back to the system.

glibc keeps freed blocks on its heap. Micro-batches have different widths, so the activations of one leave holes that those of the next do not fit
into: a run of SFT came to hold 3.9 GiB where 2.3 were alive at once, and no plan could foretell it. So the holes are given back before each pass
that keeps activations: the peak is then about what is alive. Pages of their own for every block (mallopt) would do that too, and took a fifth to a
third more processor time, for the system's work on fresh pages; giving back once a pass takes a few hundredths. What does not belong here: models.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import torch


def give_back_before_learning(decoder: Any) -> bool:
    """Lets every forward pass of a decoder (a module) with gradients begin by giving back what was freed; False where the C library cannot."""
    trim = _trimmer()
    if trim is None:
        return False

    def hook(*_: object) -> None:
        if torch.is_grad_enabled():
            trim(0)

    decoder.register_forward_pre_hook(hook)
    return True


def _trimmer() -> Callable[[int], int] | None:
    """malloc_trim(3), which only glibc has."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    return trim
