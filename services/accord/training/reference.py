"""Logprobs of preference pairs under a frozen reference, kept on disk by content: later epochs, reruns and other runs pay nothing for them.

Kept where the run directories of a workspace are, in `.reference-logprobs/{space}/{sha256 of the file}.jsonl`, a line a pair. A space is all
that a number depends on besides the pair: base model, adapter, type, device, and what on a machine decides its last bits. Files are written at
once and never changed, so that runs may share the folder and be killed; one whose content is not what its name says is removed and its pairs
are computed again. The folder is bounded, least recently used files go first, and it may be deleted at any time. What does not belong here:
losses (`accord.training.pair_loss`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Protocol

import torch
import transformers
from torch import Tensor

from accord.models.base import BaseModel
from accord.training.context import RunContext
from accord.training.examples import EncodedPair
from accord.training.pairs import passes

FOLDER = ".reference-logprobs"
_MOST_BYTES = 256 * 2**20  # some two million pairs
_FLUSH_SECONDS = 30.0
Sums = tuple[float, float]


class PairSums(Protocol):
    """Summed logprobs of chosen and rejected responses under an adapter, (pairs,) each."""

    def __call__(self, pairs: Sequence[EncodedPair], adapter: str | None) -> tuple[Tensor, Tensor]: ...


class ReferenceLogprobs:
    """Summed logprobs of chosen and rejected responses under the reference, by pair.

    Args:
        context: of the run.
        adapter: the name to compute under, None for the bare base model.
        version: of the reference adapter, empty for the bare base model.
        compute: one pass over the model.
    """

    def __init__(self, context: RunContext, adapter: str | None, version: str, compute: PairSums) -> None:
        self._context = context
        self._adapter = adapter
        self._compute = compute
        digest = context.manifest(version).digest if version else "base"
        self._cache = LogprobCache(context.directory.path.parent / FOLDER, space_of(context.base, digest), context.events.message)
        self._known: dict[str, Sums] = {}

    def prepare(self, pairs: Sequence[EncodedPair]) -> None:
        """Has the logprobs of these pairs at hand: those on disk, the others computed and put there, also where a stop comes between.

        Raises:
            RunStopped: the run was asked to stop.
        """
        wanted = {pair_key(pair): pair for pair in pairs}
        world = self._context.world
        self._known |= {key: (first, second) for key, (first, second) in world.from_first(lambda: self._cache.find(wanted.keys())).items()}
        missing = [pair for key, pair in wanted.items() if key not in self._known]
        self._context.events.message(f"reference logprobs: {len(wanted) - len(missing)} of {len(wanted)} pairs were on disk")
        fresh: dict[str, Sums] = {}
        flushed = time.monotonic()
        try:
            for some in self._context.read_slices(passes(self._context, missing)):
                own: dict[str, Sums] = {}
                for part in world.share(some):
                    own |= self._computed(part)
                fresh |= {key: (first, second) for others in world.gather(own) for key, (first, second) in others.items()}
                if world.leads and time.monotonic() - flushed > _FLUSH_SECONDS:  # a killed run has not worked in vain
                    self._cache.add(fresh)
                    flushed = time.monotonic()
        finally:  # nor has one that is stopped
            if world.leads:
                self._cache.add(fresh)
        self._known |= fresh

    def of(self, pairs: Sequence[EncodedPair]) -> tuple[Tensor, Tensor]:
        """Logprobs of chosen and rejected responses, (pairs,) each; computed here and now where they were not prepared, and then not kept."""
        keys = [pair_key(pair) for pair in pairs]
        found = self._known if all(key in self._known for key in keys) else self._computed(pairs)
        chosen, rejected = zip(*(found[key] for key in keys), strict=True)
        device = self._context.base.device
        return torch.tensor(chosen, device=device), torch.tensor(rejected, device=device)

    def _computed(self, pairs: Sequence[EncodedPair]) -> dict[str, Sums]:
        with torch.no_grad():
            chosen, rejected = self._compute(pairs, self._adapter)
        return dict(zip(map(pair_key, pairs), zip(chosen.tolist(), rejected.tolist(), strict=True), strict=True))


class LogprobCache:
    """Pairs of numbers by key, in files that are written once.

    Args:
        folder: shared by all spaces; its files together are bounded.
        space: digest of what all keys have in common.
        report: takes a sentence about a file that is damaged, or could not be written.
        most_bytes: of all files in the folder.
    """

    def __init__(self, folder: Path, space: str, report: Callable[[str], None], *, most_bytes: int = _MOST_BYTES) -> None:
        self._root = folder
        self._folder = folder / space
        self._report = report
        self._most_bytes = most_bytes
        self._mine: Path | None = None

    def find(self, keys: Set[str]) -> dict[str, Sums]:
        """Those of the keys that are there. Files that had any count as used now."""
        found: dict[str, Sums] = {}
        for path in sorted(self._folder.glob("*.jsonl")):
            rows = self._read(path)
            used = {key: value for key, value in rows.items() if key in keys}
            if used:
                found |= used
                _touch(path)
        return found

    def add(self, values: Mapping[str, Sums]) -> None:
        """Keeps these, in place of what this object kept before: give all of them each time. Numbers that are not finite are not kept."""
        rows = [[key, *value] for key, value in sorted(values.items()) if all(map(math.isfinite, value))]
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path = self._folder / f"{hashlib.sha256(content).hexdigest()}.jsonl"
        if not rows or path == self._mine:
            return
        try:
            _write(path, content)
        except OSError as error:
            self._report(f"reference logprobs could not be kept in {self._folder}: {error.strerror}; they are computed again next time")
            return
        if self._mine is not None:
            _remove(self._mine)
        self._mine = path
        self._prune(path)

    def _read(self, path: Path) -> dict[str, Sums]:
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # another run has pruned it
            return {}
        except OSError as error:  # as one of another user
            self._report(f"{path.name[:16]}... in {self._folder} cannot be read: {error.strerror}; its reference logprobs are computed again")
            return {}
        if hashlib.sha256(content).hexdigest() != path.stem:
            what = "it is removed, and" if _remove(path) else "it cannot be removed;"
            self._report(f"{path.name[:16]}... in {self._folder} is damaged: {what} its reference logprobs are computed again")
            return {}
        return {key: (chosen, rejected) for key, chosen, rejected in map(json.loads, content.decode().splitlines())}

    def _prune(self, kept: Path) -> None:
        """Removes the files that were used longest ago until the rest is small enough, and what killed writers left a day ago; those of another user,
        which cannot be removed, stay."""
        now = time.time()
        for path in self._root.glob("*/.*.tmp"):
            if now - _state(path)[0] > 86400:
                _remove(path)
        files = sorted((*_state(path), path) for path in self._root.glob("*/*.jsonl"))
        size = sum(each[1] for each in files)
        for _, bytes_, path in files:
            if size <= self._most_bytes:
                return
            if path != kept and _remove(path):
                size -= bytes_


def pair_key(pair: EncodedPair) -> str:
    """sha256 of a pair's tokens."""
    return hashlib.sha256(json.dumps((pair.prompt, pair.chosen, pair.rejected)).encode()).hexdigest()


def space_of(base: BaseModel, adapter_digest: str) -> str:
    """Sixteen hex digits for all that a reference logprob depends on besides its pair, to the last bit on a CPU."""
    machine = (torch.__version__, transformers.__version__, base.device, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
    return hashlib.sha256(repr(("reference/1", base.digests.base_model, adapter_digest, str(base.model.dtype), *machine)).encode()).hexdigest()[:16]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove(path: Path) -> bool:
    """Whether a file is gone now; one of another user may not be removed, and a run does without that."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _touch(path: Path) -> None:
    try:
        os.utime(path)
    except OSError:  # pruned meanwhile, or of another user
        return


def _state(path: Path) -> tuple[float, int]:
    """When a file was last used, and its bytes; nothing of one that is gone, or that cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return 0.0, 0
    return found.st_mtime, found.st_size
