"""Memory that was freed leaves the process before a pass that keeps activations, where the process has grown, and before no other."""

from __future__ import annotations

import subprocess
import sys

import pytest

from accord.training.allocation import _Growth

_SCRIPT = """\
import ctypes, sys
ctypes.CDLL(None).mallopt(-3, 32 * 2**20)  # as it comes to be by itself: blocks below 32 MiB on the heap
def resident():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon"))) // 1024
import torch
from accord.training.allocation import give_back_what_grows
decoder = torch.nn.Linear(1, 1)
assert give_back_what_grows(decoder)
decoder(torch.ones(1, 1))
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


def test_growth_is_measured_against_passes_that_began_with_nothing_freed() -> None:
    growth = _Growth()
    asked = [
        100,
        400,
        390,
        440,
        470,
        400,
        400,
    ]  # loaded; a pass's worth is freed, so given back; what it leaves is the measure; ...; grown; given back
    assert [growth.too_much(resident) for resident in asked] == [False, True, False, False, True, False, False]


def test_a_longer_pass_after_a_short_one_is_a_new_measure_and_no_growth() -> None:
    growth = _Growth()
    asked = [100, 200, 200, 300, 300, 200, 300, 340]
    assert [growth.too_much(resident) for resident in asked] == [False, True, False, True, False, False, False, False]
