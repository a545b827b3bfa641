"""Listing, verifying and promoting the checkpoints of a run, without torch.

The form of a checkpoint is `accord.training.checkpoint`'s: a folder with manifest.json that names the sha256 of every file; the adapter
is its folder `adapter`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.artefacts.store import ArtefactStore
from accord.errors import DataLossError, InvalidArgumentError, NotFoundError
from accord.rundir import RunDirectory
from accord.trainer.registry import RunRecord

MANIFEST = "manifest.json"
ADAPTER = "adapter"


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A checkpoint on disk; `problem` is empty where every file matches its digest."""

    name: str
    path: Path
    step: int
    digest: str
    size_bytes: int
    problem: str


def list_checkpoints(record: RunRecord) -> list[CheckpointInfo]:
    """The checkpoints of a run, newest first."""
    folder = RunDirectory(record.directory).checkpoints
    if not folder.is_dir():
        return []
    steps = sorted((entry for entry in folder.iterdir() if entry.is_dir() and entry.name.isdigit()), reverse=True)
    return [_inspect(record, path) for path in steps]


def find_checkpoint(record: RunRecord, name: str) -> CheckpointInfo:
    """The checkpoint of that name.

    Raises:
        NotFoundError: there is none; DataLossError: it does not match its manifest.
    """
    for info in list_checkpoints(record):
        if info.name == name:
            if info.problem:
                raise DataLossError(f"{name}: {info.problem}", field="checkpoint")
            return info
    raise NotFoundError(f"there is no checkpoint {name!r}", field="checkpoint")


def run_of(checkpoint: str) -> str:
    """The run's name in `runs/{run}/checkpoints/{step}`.

    Raises:
        InvalidArgumentError: it is no such name.
    """
    parts = checkpoint.split("/")
    if len(parts) != 4 or parts[0] != "runs" or parts[2] != "checkpoints" or not parts[3].isdigit():
        raise InvalidArgumentError(f"{checkpoint!r} is not of the form runs/RUN/checkpoints/STEP", field="checkpoint")
    return "/".join(parts[:2])


def promote(store: ArtefactStore, record: RunRecord, info: CheckpointInfo, adapter: str) -> str:
    """Publishes a checkpoint's adapter as the next version and returns its name."""
    manifest: dict[str, Any] = json.loads((info.path / MANIFEST).read_text())
    published = manifest.get("publish") or {}
    return store.publish(
        adapter or record.spec.adapter,
        info.path / ADAPTER,
        kind=str(published.get("kind", "policy")),
        base_model_digest=str(published.get("base_model_digest", "")),
        tokenizer_digest=str(published.get("tokenizer_digest", "")),
        parents=[str(parent) for parent in published.get("parents", [])],
        run=record.name,
        data_digest=str(published.get("data_digest", "")),
        step=info.step,
        facts=published.get("facts") or {},
    )


def _inspect(record: RunRecord, path: Path) -> CheckpointInfo:
    name = f"{record.name}/checkpoints/{int(path.name)}"
    try:
        stored = (path / MANIFEST).read_bytes()
        files: dict[str, Any] = json.loads(stored)["files"]
    except (OSError, ValueError, KeyError) as error:
        return CheckpointInfo(name, path, int(path.name), "", 0, f"its manifest cannot be read: {error}")
    problem, size = "", 0
    for file, entry in files.items():
        content = (path / file).read_bytes() if (path / file).is_file() else b""
        size += len(content)
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            problem = problem or f"{file} does not match its digest"
    return CheckpointInfo(name, path, int(path.name), hashlib.sha256(stored).hexdigest(), size, problem)
