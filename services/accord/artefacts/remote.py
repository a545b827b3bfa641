"""Versions behind an fsspec URL (s3://, gs://, memory:// in tests), where there is no rename.

A publisher first claims its number by creating `claim.json` exclusively, then writes the files, and the manifest last: a version without a
manifest does not exist, and the number of a publisher that died is simply skipped. Exclusive creation is a conditional put on S3 and GCS;
a file system that only checks and then writes leaves a window of one round trip in which two publishers may claim one number, so each
publisher reads its claim back before it goes on.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accord.artefacts.cache import FolderCache
from accord.artefacts.manifest import FileEntry, Manifest
from accord.artefacts.names import CLAIM_FILE, MANIFEST_FILE, REMOVED_FILE, RESERVED_FILES, AdapterName
from accord.artefacts.shelf import check_entry, check_listing, hash_file, hash_stream
from accord.errors import FailedPreconditionError, UnavailableError


class RemoteShelf:
    """Keeps versions under an fsspec URL; fetched versions are kept in a local cache by manifest digest."""

    def __init__(self, url: str, cache: FolderCache) -> None:
        import fsspec  # 60 ms, and only for URLs

        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise FailedPreconditionError(f"artefact store {url!r} cannot be opened: {error}", field="artefacts") from error
        # Another process publishes while this one reads: a listing remembered by fsspec would hide its versions.
        self._fs.use_listings_cache = False
        self._url = url
        self._cache = cache
        self._verified: set[str] = set()
        self._digests: dict[AdapterName, str] = {}  # of what was fetched

    def adapters(self) -> list[str]:
        return self._children("adapters")

    def versions(self, adapter: str) -> list[int]:
        return sorted(int(number) for number in self._children(f"adapters/{adapter}/versions") if number.isdecimal())

    def read(self, name: AdapterName, file: str) -> bytes | None:
        with self._reported():
            try:
                return bytes(self._fs.cat_file(self._path(name, file)))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def put(self, name: AdapterName, folder: Path, files: Mapping[str, FileEntry], manifest: bytes) -> bool:
        claim = json.dumps({"publisher": uuid.uuid4().hex}).encode()
        with self._reported():
            if not self._create(self._path(name, CLAIM_FILE), claim) or self.read(name, CLAIM_FILE) != claim:
                return False
            self._upload(name, folder, files)
            return self._create(self._path(name, MANIFEST_FILE), manifest)

    def fetch(self, name: AdapterName, manifest: Manifest) -> Path:
        digest = manifest.digest
        downloaded = False
        while not self._held(digest, manifest):
            self._download(name, manifest)
            self._verified.add(digest)
            downloaded = True
        self._digests[name] = digest
        if downloaded:
            self._cache.trim()
        return self._cache.folder(digest)

    def release(self, name: AdapterName) -> None:
        if (digest := self._digests.get(name)) is not None:
            self._cache.release(digest)

    def restore(self, name: AdapterName, folder: Path, manifest: Manifest) -> None:
        with self._reported():
            self._upload(name, folder, manifest.files)
            self._fs.rm_file(self._path(name, REMOVED_FILE))

    def remove(self, name: AdapterName, manifest: Manifest, tombstone: bytes) -> None:
        with self._reported():
            self._fs.pipe_file(self._path(name, REMOVED_FILE), tombstone)
            for file in manifest.files:
                try:
                    self._fs.rm_file(self._path(name, file))
                except FileNotFoundError:
                    continue
        self._cache.discard(manifest.digest)

    def _path(self, name: AdapterName, file: str = "") -> str:
        path = f"{self._root.rstrip('/')}/adapters/{name.adapter}/versions/{name.version}"
        return f"{path}/{file}" if file else path

    def _children(self, relative: str) -> list[str]:
        with self._reported():
            self._fs.invalidate_cache()
            try:
                entries: list[dict[str, Any]] = self._fs.ls(f"{self._root.rstrip('/')}/{relative}", detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory")

    def _create(self, path: str, content: bytes) -> bool:
        try:
            self._fs.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        return True

    def _upload(self, name: AdapterName, folder: Path, files: Mapping[str, FileEntry]) -> None:
        for file, expected in files.items():
            with (folder / file).open("rb") as source, self._fs.open(self._path(name, file), "wb") as sink:
                check_entry(name, file, expected, hash_stream(source, sink))

    def _held(self, digest: str, manifest: Manifest) -> bool:
        """Whether the cache has it, and keeps it now."""
        if not self._cache.hold(digest):
            return False
        if digest in self._verified or _intact(self._cache.folder(digest), manifest):
            self._verified.add(digest)
            return True
        self._cache.release(digest)
        return False

    def _download(self, name: AdapterName, manifest: Manifest) -> None:
        with self._cache.staging() as staging:
            with self._reported():
                check_listing(name, manifest.files, self._listing(name))
                for file, entry in manifest.files.items():
                    with self._fs.open(self._path(name, file), "rb") as source, (staging / file).open("xb") as sink:
                        check_entry(name, file, entry, hash_stream(source, sink))
            self._cache.put(manifest.digest, staging, intact=lambda folder: _intact(folder, manifest))

    def _listing(self, name: AdapterName) -> set[str]:
        self._fs.invalidate_cache()
        entries = self._fs.ls(self._path(name), detail=False)
        return {entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries} - set(RESERVED_FILES)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Turns what a file system raises for an unreachable or failing store into UnavailableError."""
        try:
            yield
        except OSError as error:
            raise UnavailableError(f"artefact store {self._url} failed: {error}", retry_after_seconds=5.0) from error


def _intact(folder: Path, manifest: Manifest) -> bool:
    try:
        return {entry.name for entry in os.scandir(folder)} == set(manifest.files) and all(
            hash_file(folder / file) == entry for file, entry in manifest.files.items()
        )
    except (FileNotFoundError, NotADirectoryError):  # another process puts a damaged one aside at this moment
        return False
