"""The runs of a workspace whose processes go on; a run outlives the services.

What does not belong here: the states of runs (`accord.trainer`), whose server need not run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from accord.client.trainer import TrainerClient
from accord.errors import AccordError
from accord.launch.local import LocalLauncher
from accord.workspace.layout import Layout

_POLL_SECONDS = 0.2
_CALL_SECONDS = 10.0


def running_runs(layout: Layout) -> tuple[str, ...]:
    """Names (`runs/x`) of the runs that have a living process."""
    return tuple(f"runs/{folder.name}" for folder in _running(layout))


def stop_running_runs(layout: Layout, trainer: str, *, timeout_seconds: float, report: Callable[[str], None]) -> None:
    """Asks every run to checkpoint and stop, through the trainer where it answers, so that waiting runs do not start instead.

    Those that outlast the timeout are ended at once; they can be resumed from their last checkpoint.
    """
    launcher = LocalLauncher(threads=1)
    deadline = time.monotonic() + timeout_seconds
    if trainer:
        _cancel_all(trainer, report)
    folders = _running(layout)
    if folders:
        report(f"waiting for {len(folders)} {'run' if len(folders) == 1 else 'runs'} to checkpoint and stop")
    for folder in folders:
        launcher.stop(folder, force=False)
    while folders and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        folders = _running(layout)
    for folder in folders:
        launcher.stop(folder, force=True)


def _cancel_all(trainer: str, report: Callable[[str], None]) -> None:
    try:
        with TrainerClient(trainer) as client:
            for run in client.list_runs(states=("queued", "starting", "running", "checkpointing"), timeout_seconds=_CALL_SECONDS):
                client.cancel_run(run.name, timeout_seconds=_CALL_SECONDS)
    except AccordError as error:
        report(f"the trainer does not answer ({error}); runs are stopped without it")


def _running(layout: Layout) -> list[Path]:
    launcher = LocalLauncher(threads=1)
    folders = sorted(path.parent for path in layout.runs.glob("*/process.json"))
    return [folder for folder in folders if launcher.observe(folder).state == "running"]
