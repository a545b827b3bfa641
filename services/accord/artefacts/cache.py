"""Folders fetched from afar, bounded by bytes: the least recently used that no process holds goes first.

Processes of one machine share a cache. Who reads a folder holds a shared lock on it, which the kernel lets go when a process dies, and only who
gets the exclusive lock removes one; on a file system without locks nothing is removed. What does not belong here: what a folder must hold
(`accord.artefacts.remote`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_STAGING = ".staging-"
_STALE_STAGING_SECONDS = 24 * 3600.0


class FolderCache:
    """Folders by key below `root`.

    Args:
        root: made at the first folder.
        max_bytes: of all folders together; those that are held stay however many they are.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._held: dict[str, tuple[int, int]] = {}  # descriptor with the lock, and how many hold it
        self._lock = threading.Lock()

    def folder(self, key: str) -> Path:
        """Where the folder of a key is, or would be."""
        return self._root / key

    def hold(self, key: str) -> bool:
        """Whether the folder is there; if so, no process removes it before `release` was called as often as this."""
        descriptor = _opened(self.folder(key))
        if descriptor is None:
            return False
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not _is_at(descriptor, self.folder(key)):  # removed before it was locked
            os.close(descriptor)
            return False
        with suppress(OSError):
            os.utime(descriptor)
        with self._lock:
            before, count = self._held.get(key, (None, 0))
            self._held[key] = descriptor, count + 1
        if before is not None:
            os.close(before)
        return True

    def release(self, key: str) -> None:
        """The counterpart of `hold`; the folder stays while there is room. Without effect where nobody here holds it."""
        with self._lock:
            descriptor, count = self._held.pop(key, (None, 0))
            if descriptor is not None and count > 1:
                self._held[key] = descriptor, count - 1
                return
        if descriptor is not None:
            os.close(descriptor)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty folder to fill; gone afterwards unless it was `put`."""
        folder = self._root / f"{_STAGING}{uuid.uuid4().hex}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put(self, key: str, staging: Path, *, intact: Callable[[Path], bool]) -> None:
        """Makes what was filled the folder of a key, unless another process was faster and its folder is `intact`: some process may read it."""
        folder, damaged = self.folder(key), self._root / f"{_STAGING}{uuid.uuid4().hex}"
        try:
            with self._alone():  # else a good folder that came between the look and the renames would be put aside, though it is read
                if intact(folder):
                    return
                with suppress(FileNotFoundError):
                    folder.rename(damaged)
                staging.rename(folder)
        except OSError:
            if not intact(folder):
                raise
        finally:
            shutil.rmtree(damaged, ignore_errors=True)

    def discard(self, key: str) -> None:
        """Removes a folder that no process holds."""
        self._remove(self.folder(key))

    def trim(self) -> None:
        """Removes the least recently used folders that no process holds until the rest has at most `max_bytes`, and what dead processes left."""
        used: list[tuple[float, int, Path]] = []
        for entry in os.scandir(self._root):
            with suppress(OSError):  # another process trims too, and what is another user's is not ours to judge
                stamp = entry.stat().st_mtime
                if not entry.name.startswith(_STAGING):
                    used.append((stamp, _size(entry.path), Path(entry.path)))
                elif stamp < time.time() - _STALE_STAGING_SECONDS:
                    shutil.rmtree(entry.path, ignore_errors=True)
        excess = sum(size for _, size, _ in used) - self._max_bytes
        for _, size, folder in sorted(used):
            if excess <= 0:
                return
            if self._remove(folder):
                excess -= size

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While this lasts no other process or thread puts; where the file system has no locks they may."""
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _remove(self, folder: Path) -> bool:
        descriptor = _opened(folder)
        if descriptor is None:
            return False
        grave = self._root / f"{_STAGING}{uuid.uuid4().hex}"
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(descriptor, folder):
                return False
            folder.rename(grave)
        except OSError:  # held, here or by another process
            return False
        finally:
            os.close(descriptor)
        shutil.rmtree(grave, ignore_errors=True)
        return True


def _opened(folder: Path) -> int | None:
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_at(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False


def _size(folder: str) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(folder))
