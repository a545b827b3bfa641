"""Memory that was freed leaves the process before the next pass that keeps activations, and no other."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SCRIPT = """\
import ctypes, sys
ctypes.CDLL(None).mallopt(-3, 32 * 2**20)  # as it comes to be by itself: blocks below 32 MiB on the heap
def resident():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon"))) // 1024
import torch
from accord.training.allocation import give_back_before_learning
decoder = torch.nn.Linear(1, 1)
assert give_back_before_learning(decoder)
before = resident()
blocks = [torch.ones(250_000) for _ in range(200)]  # 1 MB each
last = torch.ones(250_000)
del blocks
with torch.set_grad_enabled(sys.argv[1] == "learning"):
    decoder(torch.ones(1, 1))
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_blocks_below_a_living_one_are_given_back_before_learning_alone() -> None:
    left = {}
    for kind in ("learning", "reading"):
        done = subprocess.run([sys.executable, "-c", _SCRIPT, kind], capture_output=True, text=True, timeout=100, check=True)
        left[kind] = int(done.stdout)
    assert left["learning"] < 20  # MiB
    assert left["reading"] > 150
