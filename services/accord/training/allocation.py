"""How a run's process gives memory back to the system.

glibc keeps freed blocks on its heap, and finds them badly again where aligned ones are asked for, as PyTorch does: holes beside what was alive
took as much again and more, growing from micro-batch to micro-batch. Giving them back before each pass that keeps activations holds them at 0.7 of
it, for a few hundredths of the time, and the same for every algorithm, so that a plan can count them. Pages of their own for all blocks (mallopt)
left next to none, and took a quarter to two fifths more processor time here, for the system's work on fresh pages. What does not belong here:
models.
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
