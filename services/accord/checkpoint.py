"""Checkpoints: all of a run's state in a folder that is there whole or not at all.

A folder is written beside its place, every file and the folder synced, renamed, and only then does it count; manifest.json, written last
inside it, names the sha256 of every file and its own. Nothing is pickled, and nothing here needs torch: the run writes and resumes, the
trainer lists, verifies and promotes. What does not belong here: what the state means (`accord.training.loop`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.errors import DataLossError, FailedPreconditionError

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that matches its manifest; `state` is JSON, files are beside it in `path`. `digest` is the manifest's, sizes are bytes."""

    path: Path
    step: int
    state: Mapping[str, Any]
    publish: Mapping[str, Any]
    digest: str
    size_bytes: int


def write_checkpoint(
    folder: Path, step: int, fill: Callable[[Path], None], *, spec: Mapping[str, Any], state: Mapping[str, Any], publish: Mapping[str, Any]
) -> Path:
    """Writes the checkpoint of a step and returns its folder; one of the same step is replaced.

    Args:
        folder: of the run's checkpoints.
        step: after which it is taken.
        fill: writes the files into the folder that it is given.
        spec: JSON of what the run was asked for (`RunSpec.learning_values`), compared when it is read.
        state: JSON that the loop and the algorithm need.
        publish: what the manifest of a published adapter will say.

    Raises:
        OSError: the disk is full or broken; earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{step:08d}"
    temporary, replaced = folder / f".{target.name}.{os.getpid()}.tmp", folder / f".{target.name}.replaced.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        fill(temporary)
        files = {str(path.relative_to(temporary)): _entry(path) for path in sorted(temporary.rglob("*")) if path.is_file()}
        manifest = {"step": step, "spec": dict(spec), "files": files, "state": dict(state), "publish": dict(publish)}
        manifest["digest"] = _digest(manifest)
        _write_synced(temporary / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
        for path in sorted(temporary.rglob("*")):
            _sync(path)
        _sync(temporary)
        _put(temporary, target, replaced)
        _sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)
    return target


def read_checkpoint(path: Path, *, spec: Mapping[str, Any] | None) -> Checkpoint:
    """The checkpoint in a folder, every file compared with its digest; of any run where `spec` is None.

    Raises:
        DataLossError: a file is missing, cut short or changed.
        FailedPreconditionError: it is of a run with another specification; the first field that differs is named.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        stored = manifest.pop("digest")
        files, step, state, publish = dict(manifest["files"]), int(manifest["step"]), dict(manifest["state"]), dict(manifest["publish"])
        owner = dict(manifest.get("spec", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataLossError(f"checkpoint {path.name}: its manifest cannot be read ({type(error).__name__})") from error
    if _digest(manifest) != stored:
        raise DataLossError(f"checkpoint {path.name}: its manifest does not match its digest")
    for name, entry in files.items():
        file = path / name
        if not file.is_file() or _entry(file) != entry:
            raise DataLossError(f"checkpoint {path.name}: {name} does not match its digest")
    if spec is not None and (difference := _difference(owner, spec)) is not None:
        field, was, now = difference
        raise FailedPreconditionError(f"checkpoint {path.name} is of a run with another specification: {field} was {was}, and now it is {now}")
    return Checkpoint(path, step, state, publish, stored, sum(int(entry["size_bytes"]) for entry in files.values()))


def checkpoint_folders(folder: Path) -> list[Path]:
    """The folders that may hold checkpoints, the latest step first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()), key=lambda path: int(path.name), reverse=True)


def latest_checkpoint(folder: Path, *, spec: Mapping[str, Any], report: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are reported and passed over. None where there is none.

    Raises:
        FailedPreconditionError: as `read_checkpoint`.
    """
    _recover(folder, spec)
    paths = checkpoint_folders(folder)
    for path in paths:
        try:
            return read_checkpoint(path, spec=spec)
        except DataLossError as error:
            report(f"{error}; {'there is none before it: the run begins anew' if path == paths[-1] else 'the one before it is used'}")
    return None


def prune_checkpoints(folder: Path, keep: int, newest: int, *, wanted: Collection[int] = (), behind: int | None = None) -> None:
    """Removes all but the last `keep` checkpoints up to step `newest` and those of `wanted` steps, and what killed writers left.

    Checkpoints of later steps go too: the run passed them over as damaged when it was resumed, or it would be behind them. So do those between
    `behind`, the step of the last one that this process read or wrote, and `newest`: they would push whole ones out. None says nothing of those.
    """
    last = newest if behind is None else behind
    passed = [path for path in checkpoint_folders(folder) if int(path.name) > newest or last < int(path.name) < newest]
    known = [path for path in checkpoint_folders(folder) if path not in passed]
    older = [path for path in known[keep:] if int(path.name) not in wanted]
    for path in [*passed, *older]:
        shutil.rmtree(path)
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def _put(temporary: Path, target: Path, replaced: Path) -> None:
    """Moves the new folder into its place; the old one stays beside it until then, so that at any moment one of both is whole."""
    shutil.rmtree(replaced, ignore_errors=True)
    if not target.exists():
        temporary.rename(target)
        return
    target.rename(replaced)
    try:
        temporary.rename(target)
    except OSError:
        replaced.rename(target)
        raise


def _recover(folder: Path, spec: Mapping[str, Any]) -> None:
    """Gives a whole folder its place that its writer, killed, had not yet given it; a new one before the one that it was to replace."""
    for path in sorted(folder.glob(".*.tmp"), key=lambda each: each.name.endswith(".replaced.tmp")):
        target = folder / path.name.split(".")[1]
        if target.exists() or not (path / MANIFEST).exists():
            continue
        try:
            read_checkpoint(path, spec=spec)
        except DataLossError:
            continue
        path.rename(target)


def _difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The first field in which two specifications differ, with both values as JSON; None where they are equal. What neither gives is the default."""
    for name in sorted({*was, *now}):
        one, other = was.get(name, {}), now.get(name, {})
        if one == other:
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping) and (within := _difference(one, other)) is not None:
            return f"{name}.{within[0]}", within[1], within[2]
        one, other = (json.dumps(values[name]) if name in values else "the default" for values in (was, now))
        return name, one, other
    return None


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _entry(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
