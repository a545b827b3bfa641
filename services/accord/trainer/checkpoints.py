"""Listing, verifying and promoting the checkpoints of a run, without torch.

A checkpoint is a folder of `accord.checkpoint`; the adapter is its folder `adapter`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accord.artefacts.store import ArtefactStore
from accord.checkpoint import checkpoint_folders, read_checkpoint
from accord.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from accord.rundir import RunDirectory
from accord.trainer.registry import RunRecord

ADAPTER = "adapter"


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A checkpoint on disk; `problem` is empty where every file matches its digest, `publish` is what its adapter's manifest will say."""

    name: str
    path: Path
    step: int
    digest: str
    size_bytes: int
    problem: str
    publish: Mapping[str, Any] = field(default_factory=dict)


def list_checkpoints(record: RunRecord) -> list[CheckpointInfo]:
    """The checkpoints of a run, newest first."""
    return [_inspect(record, path) for path in checkpoint_folders(RunDirectory(record.directory).checkpoints)]


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
    """Publishes a checkpoint's adapter as the next version and returns its name.

    Raises:
        FailedPreconditionError: it is a reward model's whose scores were not measured, as they are after a run's last step: they would be on another
            scale than those of every other version.
    """
    published = info.publish
    if published.get("kind") == "reward" and not (published.get("facts") or {}).get("statistics_pairs"):
        raise FailedPreconditionError(
            f"{info.name} is of a reward model whose scores' mean and spread are not known yet: they are measured after the last step, "
            f"{record.spec.steps}, and only that one's checkpoint can be published; for fewer steps, train with steps: {info.step}",
            field="checkpoint",
        )
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
    step = int(path.name)
    name = f"{record.name}/checkpoints/{step}"
    try:
        checkpoint = read_checkpoint(path, spec=None)
    except DataLossError as error:
        return CheckpointInfo(name, path, step, "", 0, error.message.removeprefix(f"checkpoint {path.name}: "))
    return CheckpointInfo(name, path, step, checkpoint.digest, checkpoint.size_bytes, "", checkpoint.publish)
