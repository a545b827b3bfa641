"""A disk that is really full: a small tmpfs, where this process may mount one. The run fails cleanly and its last checkpoint stays whole."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.runs import TrainingRun

from accord.checkpoint import latest_checkpoint
from accord.models.testing import tiny_model_folder
from accord.rundir import read_run_file

STEPS = 16
WORDS = ("alpha", "beta", "gamma", "delta", "omega", "kappa", "sigma", "theta")
pytestmark = [pytest.mark.training, pytest.mark.timeout(300)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Eight megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path, *, leave: int) -> Path:
    """A file that leaves so many bytes free."""
    filler = disk / "filler"
    filler.write_bytes(b"\0" * max(0, shutil.disk_usage(disk).free - leave))
    return filler


@pytest.mark.parametrize("leave", [pytest.param(48 * 1024, id="room-for-events"), pytest.param(0, id="no-byte", marks=pytest.mark.slow)])
def test_a_full_disk_fails_the_run_and_keeps_its_last_checkpoint(tmp_path: Path, small_disk: Path, leave: int) -> None:
    model = tiny_model_folder(tmp_path / "model")
    rows = [{"prompt": f"say {word} " * 6, "chosen": word * 5, "rejected": "no"} for word in WORDS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec: dict[str, Any] = {
        "steps": STEPS, "batch_size": 8, "micro_batch_size": 1, "checkpoint_every_steps": 3, "max_prompt_tokens": 200, "max_response_tokens": 60,
        "lora": {"rank": 8}, "sft": {"data": {"uri": str(tmp_path / "rows.jsonl")}},
    }  # fmt: skip
    straight = TrainingRun(tmp_path, "straight", model, spec).start()
    run = TrainingRun(small_disk, "full", model, spec).start()
    run.until(lambda: run.last_step() >= 3)
    assert run.send(signal.SIGTERM) == 3
    kept = max(int(path.name) for path in run.directory.checkpoints.glob("0*"))
    assert kept < STEPS - 2, "it must still have something to do"
    filler = fill(small_disk, leave=leave)
    assert run.start().wait() == 1
    result = run.directory.result()
    if leave:
        assert result is not None
        assert "No space left on device" in result.message
    said: list[str] = []
    asked = read_run_file(run.directory.path / "run.yaml").spec.learning_values
    found = latest_checkpoint(run.directory.checkpoints, spec=asked, report=said.append)
    assert found is not None
    assert found.step == kept
    assert not said
    filler.unlink()
    run.start().finish()
    straight.finish()
    assert run.published() == straight.published()
    assert run.curve() == straight.curve()
