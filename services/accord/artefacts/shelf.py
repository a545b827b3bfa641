"""What the store needs from a place that keeps versions, and the hashing that both places share.

A shelf knows files and bytes, not manifests: `LocalShelf` for folders, `RemoteShelf` for fsspec URLs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from accord.artefacts.manifest import FileEntry, Manifest
from accord.artefacts.names import AdapterName, check_file_name
from accord.errors import DataLossError, InvalidArgumentError

_CHUNK_BYTES = 1 << 20
Render = Callable[[int], bytes]


class Shelf(Protocol):
    """A place that keeps versions. `versions` lists every number ever taken, readable or not."""

    def adapters(self) -> list[str]: ...
    def versions(self, adapter: str) -> list[int]: ...
    def read(self, name: AdapterName, file: str) -> bytes | None: ...
    def put(self, name: AdapterName, folder: Path, files: Mapping[str, FileEntry], manifest: bytes) -> bool:
        """Makes the version visible in one step; False where the number is taken, and then nothing has changed."""
        ...

    def fetch(self, name: AdapterName, manifest: Manifest) -> Path: ...
    def release(self, name: AdapterName) -> None: ...
    def restore(self, name: AdapterName, folder: Path, manifest: Manifest) -> None: ...
    def remove(self, name: AdapterName, manifest: Manifest, tombstone: bytes) -> None: ...


def hash_stream(stream: BinaryIO, sink: BinaryIO | None = None) -> FileEntry:
    """Digest and size of what a stream still holds, copied to `sink` on the way."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
        if sink is not None:
            sink.write(chunk)
    return FileEntry(digest.hexdigest(), size)


def hash_file(path: Path) -> FileEntry:
    """Digest and size of a file."""
    with path.open("rb") as stream:
        return hash_stream(stream)


def inventory(folder: Path) -> dict[str, FileEntry]:
    """The files of a folder that is to be published, with digests.

    Raises:
        InvalidArgumentError: it is no folder, is empty, or holds a link, a folder, or a file that a version may not have.
    """
    if not folder.is_dir():
        raise InvalidArgumentError(f"{folder} is not a folder", field="folder")
    entries: dict[str, FileEntry] = {}
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not path.is_file():
            raise InvalidArgumentError(f"{path.name!r} in {folder} is a link or a folder; a version holds plain files only", field="folder")
        entries[check_file_name(path.name)] = hash_file(path)
    if not entries:
        raise InvalidArgumentError(f"{folder} is empty", field="folder")
    return entries


def check_entry(name: AdapterName, file: str, expected: FileEntry, found: FileEntry) -> None:
    """Raises DataLossError, with both digests, where a file is not what its manifest says."""
    if found != expected:
        raise DataLossError(
            f"{name}: {file} has sha256 {found.sha256} ({found.size_bytes} bytes), its manifest says {expected.sha256} ({expected.size_bytes} bytes)",
            metadata={"name": str(name), "file": file, "expected_sha256": expected.sha256, "found_sha256": found.sha256},
        )


def check_listing(name: AdapterName, expected: Mapping[str, FileEntry], found: set[str]) -> None:
    """Raises DataLossError where a version has files that its manifest does not name, or lacks some."""
    extra, missing = sorted(found - set(expected)), sorted(set(expected) - found)
    if extra:
        raise DataLossError(f"{name} holds files that its manifest does not name: {', '.join(extra)}", metadata={"name": str(name), "file": extra[0]})
    if missing:
        raise DataLossError(f"{name} lacks files that its manifest names: {', '.join(missing)}", metadata={"name": str(name), "file": missing[0]})
