"""Weights that were read leave memory and keep their values; what is no view of a file is not touched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from accord.models.mapped_files import MappedWeights

SCRIPT = """
import sys, torch
from safetensors import safe_open
from accord.models.mapped_files import MappedWeights
def resident():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS"))) // 1024
with safe_open(sys.argv[1], framework="pt") as file:
    weights = file.get_tensor("weights")
total = weights.sum()
before = resident()
let_go = MappedWeights().let_go([weights])
print(before - resident(), let_go // 2**20, bool(weights.sum() == total))
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux alone")
def test_pages_of_a_file_leave_memory_and_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weights": torch.arange(16 * 2**20, dtype=torch.float32)}, path)  # 64 MiB
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, timeout=100, check=True)
    freed, let_go, same = done.stdout.split()
    assert int(freed) > 55
    assert int(let_go) == 63
    assert same == "True"


def test_memory_that_is_no_file_is_left_alone() -> None:
    values = torch.arange(2**20, dtype=torch.float32)
    assert MappedWeights().let_go([values]) == 0
    assert torch.equal(values, torch.arange(2**20, dtype=torch.float32))
