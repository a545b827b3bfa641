"""Versions in a folder on this machine (or on a shared file system with atomic rename).

A version is built under `.staging` and renamed into place whole, so a reader sees all of it or nothing; renaming onto a version that
another process just published fails, and that is how two publishers get two numbers.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from accord.artefacts.manifest import FileEntry, Manifest
from accord.artefacts.names import MANIFEST_FILE, REMOVED_FILE, RESERVED_FILES, AdapterName
from accord.artefacts.shelf import check_entry, check_listing, hash_file, hash_stream
from accord.errors import DataLossError

_STALE_STAGING_SECONDS = 24 * 3600.0
_Stamp = tuple[tuple[str, int, int, int], ...]


class LocalShelf:
    """Keeps versions as `{root}/adapters/{adapter}/versions/{n}/`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._verified: dict[str, _Stamp] = {}
        self._lock = threading.Lock()

    def adapters(self) -> list[str]:
        return _folders(self.root / "adapters")

    def versions(self, adapter: str) -> list[int]:
        return sorted(int(number) for number in _folders(self.root / "adapters" / adapter / "versions") if number.isdecimal())

    def read(self, name: AdapterName, file: str) -> bytes | None:
        path = self._folder(name) / file
        for place in (path, path.parent, path.parents[2]):
            if place.is_symlink():
                raise DataLossError(f"{name}: {place.name} is a link", metadata={"name": str(name), "file": file})
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, name: AdapterName, folder: Path, files: Mapping[str, FileEntry], manifest: bytes) -> bool:
        target = self._folder(name)
        if target.exists():
            return False
        staging = self._stage(name, folder, files)
        try:
            _write(staging / MANIFEST_FILE, manifest)
            _sync_folder(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            return _rename_new(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def fetch(self, name: AdapterName, manifest: Manifest) -> Path:
        folder = self._folder(name)
        check_listing(name, manifest.files, self._listing(name))
        digest, stamp = manifest.digest, self._stamp(folder, manifest)
        with self._lock:
            if self._verified.get(digest) == stamp:
                return folder
        for file, entry in manifest.files.items():
            check_entry(name, file, entry, hash_file(folder / file))
        with self._lock:
            self._verified[digest] = stamp
        return folder

    def release(self, name: AdapterName) -> None:
        """Nothing is kept besides the store itself."""

    def restore(self, name: AdapterName, folder: Path, manifest: Manifest) -> None:
        target = self._folder(name)
        staging = self._stage(name, folder, manifest.files)
        try:
            for file in manifest.files:
                (staging / file).replace(target / file)
            _sync_folder(target)
            (target / REMOVED_FILE).unlink(missing_ok=True)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def remove(self, name: AdapterName, manifest: Manifest, tombstone: bytes) -> None:
        folder = self._folder(name)
        staging_root = self.root / ".staging"
        staging_root.mkdir(parents=True, exist_ok=True)
        partial = staging_root / f"{REMOVED_FILE}.{uuid.uuid4().hex}"
        _write(partial, tombstone)
        partial.replace(folder / REMOVED_FILE)
        _sync_folder(folder)
        for file in manifest.files:
            (folder / file).unlink(missing_ok=True)

    def _folder(self, name: AdapterName) -> Path:
        return self.root / "adapters" / name.adapter / "versions" / str(name.version)

    def _listing(self, name: AdapterName) -> set[str]:
        found = set()
        for path in self._folder(name).iterdir():
            if path.is_symlink() or not path.is_file():
                raise DataLossError(f"{name}: {path.name} is a link or a folder", metadata={"name": str(name), "file": path.name})
            found.add(path.name)
        return found - set(RESERVED_FILES)

    def _stamp(self, folder: Path, manifest: Manifest) -> _Stamp:
        stats = ((file, (folder / file).stat()) for file in sorted(manifest.files))
        return tuple((file, stat.st_size, stat.st_mtime_ns, stat.st_ino) for file, stat in stats)

    def _stage(self, name: AdapterName, folder: Path, files: Mapping[str, FileEntry]) -> Path:
        staging_root = self.root / ".staging"
        staging_root.mkdir(parents=True, exist_ok=True)
        _sweep(staging_root)
        staging = staging_root / f"{name.adapter}-{uuid.uuid4().hex}"
        staging.mkdir()
        try:
            for file, expected in files.items():
                with (folder / file).open("rb") as source, (staging / file).open("xb") as sink:
                    found = hash_stream(source, sink)
                    sink.flush()
                    os.fsync(sink.fileno())
                check_entry(name, file, expected, found)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        return staging


def _rename_new(staging: Path, target: Path) -> bool:
    try:
        staging.rename(target)  # fails where another publisher's (never empty) folder already stands
    except OSError:
        if target.exists():
            return False
        raise
    _sync_folder(target.parent)
    return True


def _folders(parent: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(parent) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as sink:
        sink.write(content)
        sink.flush()
        os.fsync(sink.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(staging_root: Path) -> None:
    """Clears what publishers that were killed left behind a day ago or longer."""
    limit = time.time() - _STALE_STAGING_SECONDS
    for entry in os.scandir(staging_root):
        try:
            stale = entry.stat(follow_symlinks=False).st_mtime < limit
        except FileNotFoundError:
            continue
        if stale and entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        elif stale:
            Path(entry.path).unlink(missing_ok=True)
