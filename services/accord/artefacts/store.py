"""The artefact store: versions of adapters, published atomically, verified on every fetch, never overwritten.

What does not belong here: what the files mean (`accord.models`), and where bytes lie (`local`, `remote`).
"""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlparse

from accord.artefacts.cache import FolderCache
from accord.artefacts.local import LocalShelf
from accord.artefacts.manifest import JSON, Manifest
from accord.artefacts.names import MANIFEST_FILE, REMOVED_FILE, AdapterName
from accord.artefacts.remote import RemoteShelf
from accord.artefacts.shelf import Shelf, hash_stream, inventory
from accord.errors import AbortedError, AlreadyExistsError, DataLossError, InvalidArgumentError, NotFoundError

_CACHE_BYTES = 4 * 2**30
_PUBLISH_ATTEMPTS = 64
_TWIN_WINDOW = 64  # a resumed run publishes again what it published last; older versions are not worth a request each


class ArtefactStore:
    """Versions of adapters in a folder or behind an fsspec URL.

    Args:
        uri: a folder (created at the first publish), `file://` URL, or any other fsspec URL such as `s3://bucket/path`.
        cache: where versions fetched from a URL are kept; default `$XDG_CACHE_HOME/accord/artefacts`.
        cache_bytes: what these may take before the least recently used go; those that are in use stay.
    """

    def __init__(self, uri: str, *, cache: Path | None = None, cache_bytes: int = _CACHE_BYTES) -> None:
        if not uri:
            raise InvalidArgumentError("the artefact store's uri is empty; give a folder or a URL", field="artefacts")
        self.uri = uri
        scheme = urlparse(uri).scheme if "://" in uri else ""
        self._shelf: Shelf
        if scheme in ("", "file"):
            self._shelf = LocalShelf(Path(uri.removeprefix("file://")).expanduser().absolute())
        else:
            self._shelf = RemoteShelf(uri, FolderCache(cache or cache_folder() / "artefacts", cache_bytes))

    def adapters(self) -> builtins.list[str]:
        """Names (`adapters/{adapter}`) of all adapters that have a version, removed ones included."""
        return [f"adapters/{adapter}" for adapter in self._shelf.adapters() if self._manifests(adapter)]

    def latest(self, adapter: str) -> str | None:
        """The newest version of an adapter (`x` or `adapters/x`) whose files are there, or None."""
        name = _adapter(adapter)
        for version in reversed(self._shelf.versions(name.adapter)):
            manifest = self._read(name.at(version))
            if manifest is not None and not manifest.removed:
                return manifest.name
        return None

    def resolve(self, name: str) -> str:
        """The full version name: itself where it names a version that exists, else the newest version of the adapter.

        Raises:
            InvalidArgumentError: the name is malformed.
            NotFoundError: there is no such version or adapter; the message names those that exist.
        """
        parsed = AdapterName.parse(name)
        if parsed.version is not None:
            return self.manifest(name).name
        newest = self.latest(parsed.adapter)
        if newest is None:
            raise self._not_found(parsed)
        return newest

    def manifest(self, name: str) -> Manifest:
        """The manifest of a version, also of one whose files were removed.

        Raises:
            InvalidArgumentError: the name is malformed or has no version.
            NotFoundError: there is no such version.
            DataLossError: the manifest is damaged.
        """
        parsed = AdapterName.parse_version(name)
        manifest = self._read(parsed)
        if manifest is None:
            raise self._not_found(parsed)
        return manifest

    def fetch(self, name: str) -> Path:
        """A local folder with the version's files, each checked against its sha256 (read-only: it may be the store itself).

        Files verified once are not hashed again in this process while their size, time and inode stay the same. The folder stays until this
        process has called `release` as often, or ends.

        Raises:
            NotFoundError: there is no such version, or its files were removed.
            DataLossError: a file differs from its digest, is missing, is a link, or is not in the manifest.
            UnavailableError: the store cannot be reached.
        """
        manifest = self._there(name)
        try:
            return self._shelf.fetch(AdapterName.parse_version(name), manifest)
        except (DataLossError, FileNotFoundError):
            if self.manifest(name).removed:  # while we were reading
                return self.fetch(name)
            raise

    def release(self, name: str) -> None:
        """The folder of a fetched version is read no longer: a cache may let it go. Without effect where it was not fetched."""
        self._shelf.release(AdapterName.parse_version(name))

    def read_file(self, name: str, file: str) -> bytes:
        """One file of a version, checked against its sha256, without the others: for small ones.

        Raises:
            NotFoundError: there is no such version or file, or the version's files were removed.
            DataLossError: the file differs from its digest, or is missing.
            UnavailableError: the store cannot be reached.
        """
        manifest = self._there(name)
        if file not in manifest.files:
            raise NotFoundError(f"{name} has no file {file}; it has {', '.join(sorted(manifest.files))}", field="adapter", metadata={"name": name})
        content = self._shelf.read(AdapterName.parse_version(name), file)
        if content is None or hash_stream(io.BytesIO(content)) != manifest.files[file]:
            if self.manifest(name).removed:  # while we were reading
                return self.read_file(name, file)
            raise DataLossError(f"{name}: {file} does not match its digest", metadata={"name": name, "file": file})
        return content

    def publish(  # noqa: PLR0913 - the fields of a manifest
        self,
        adapter: str,
        folder: Path,
        *,
        kind: str,
        base_model_digest: str = "",
        tokenizer_digest: str = "",
        parents: Sequence[str] = (),
        run: str = "",
        data_digest: str = "",
        step: int = 0,
        facts: Mapping[str, JSON] | None = None,
        version: int | None = None,
    ) -> str:
        """Publishes a folder as the next version, or as `version`, and returns the full version name.

        Atomic: a reader or a crash sees the whole version or none. Idempotent: the same files under the same run, step and other fields
        give the version that is there already, among the newest 64, restored if it was removed (so put no clock readings into `facts`).

        Raises:
            InvalidArgumentError: a name is malformed, or the folder holds a link, a folder, or a file that is not safetensors or text.
            NotFoundError: a parent does not exist in this store.
            AlreadyExistsError: `version` is taken by something else.
            AbortedError: other publishers took the number again and again.
        """
        name = _adapter(adapter)
        draft = Manifest(
            name=str(name.at(version or 1)),
            kind=kind,
            files=inventory(folder),
            base_model_digest=base_model_digest,
            tokenizer_digest=tokenizer_digest,
            parents=tuple(parents),
            run=run,
            data_digest=data_digest,
            step=step,
            created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            facts=json_facts(facts or {}),
        )
        for parent in draft.parents:
            self.manifest(parent)
        for _ in range(_PUBLISH_ATTEMPTS):
            taken = self._shelf.versions(name.adapter)
            if (twin := self._twin(draft, name, taken, version)) is not None:
                if twin.removed:
                    self._shelf.restore(AdapterName.parse_version(twin.name), folder, twin)
                return twin.name
            number = version if version is not None else max(taken, default=0) + 1
            target = name.at(number)
            if self._shelf.put(target, folder, draft.files, replace(draft, name=str(target)).to_bytes()):
                return str(target)
        raise AbortedError(f"no version of {name} was free in {_PUBLISH_ATTEMPTS} attempts; others publish too", retry_after_seconds=1.0)

    def remove(self, name: str) -> None:
        """Deletes the files of a version (a transient rollout version, say); its manifest stays, marked removed. Twice is once.

        Raises:
            NotFoundError: there is no such version.
        """
        manifest = self.manifest(name)
        tombstone = json.dumps({"removed_at": datetime.now(UTC).isoformat(timespec="milliseconds")}).encode()
        self._shelf.remove(AdapterName.parse_version(name), manifest, tombstone)

    def list(self, adapter: str | None = None) -> builtins.list[Manifest]:
        """Manifests of all versions (of one adapter, if given), by adapter and number, removed ones included."""
        adapters = self._shelf.adapters() if adapter is None else [_adapter(adapter).adapter]
        return [manifest for each in adapters for manifest in self._manifests(each)]

    def newest_first(self, adapter: str) -> Iterator[Manifest]:
        """Manifests of an adapter's versions from the newest on, removed ones included, each read when it is asked for."""
        name = _adapter(adapter)
        for version in reversed(self._shelf.versions(name.adapter)):
            manifest = self._read(name.at(version))
            if manifest is not None:
                yield manifest

    def lineage(self, name: str) -> builtins.list[Manifest]:
        """The version and all its ancestors, nearest first, each once.

        Raises:
            NotFoundError: the version, or an ancestor that a manifest names, does not exist.
        """
        queue, seen = [self.resolve(name)], []
        manifests: builtins.list[Manifest] = []
        while queue:
            current = queue.pop(0)
            if current in seen:
                continue
            seen.append(current)
            manifests.append(self.manifest(current))
            queue.extend(manifests[-1].parents)
        return manifests

    def _there(self, name: str) -> Manifest:
        """The manifest of a version whose files have not been removed."""
        manifest = self.manifest(name)
        if manifest.removed:
            raise NotFoundError(f"{name} was removed: its manifest is kept, its files are gone", field="adapter", metadata={"name": name})
        return manifest

    def _manifests(self, adapter: str) -> builtins.list[Manifest]:
        name = AdapterName(adapter)
        found = (self._read(name.at(version)) for version in self._shelf.versions(adapter))
        return [manifest for manifest in found if manifest is not None]

    def _read(self, name: AdapterName) -> Manifest | None:
        stored = self._shelf.read(name, MANIFEST_FILE)
        if stored is None:
            return None
        return Manifest.from_bytes(stored, name=str(name), removed=self._shelf.read(name, REMOVED_FILE) is not None)

    def _twin(self, draft: Manifest, name: AdapterName, taken: Sequence[int], version: int | None) -> Manifest | None:
        """The version that is this publication already; AlreadyExistsError where the asked number is something else's."""
        candidates = [version] if version is not None else list(reversed(taken))[:_TWIN_WINDOW]
        for number in candidates:
            manifest = self._read(name.at(number))
            if manifest is not None and draft.same_publication(manifest):
                return manifest
        if version is not None and version in taken:
            raise AlreadyExistsError(f"{name.at(version)} exists and holds something else; versions are never overwritten", field="version")
        return None

    def _intact(self, adapter: str) -> builtins.list[str]:
        """Versions that can be had; damaged ones are passed over, since they are not what was asked for."""
        found = []
        for version in self._shelf.versions(adapter):
            with contextlib.suppress(DataLossError):
                manifest = self._read(AdapterName(adapter, version))
                if manifest is not None and not manifest.removed:
                    found.append(manifest.name)
        return found

    def _not_found(self, name: AdapterName) -> NotFoundError:
        there = self._intact(name.adapter)
        if there:
            known = f"versions of that adapter: {', '.join(there[-5:])}"
        else:
            others = [f"adapters/{adapter}" for adapter in self._shelf.adapters() if self._intact(adapter)]
            known = f"adapters in {self.uri}: {', '.join(others[:20]) or 'none'}"
        return NotFoundError(f"{name} is not in the artefact store; {known}", field="adapter", metadata={"name": str(name)})


def cache_folder() -> Path:
    """Accord's cache: `$XDG_CACHE_HOME/accord`, else `~/.cache/accord`."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "accord"


def json_facts(facts: Mapping[str, JSON]) -> dict[str, JSON]:
    """The facts as JSON gives them back (tuples become lists), so that a manifest equals itself after a round trip.

    Raises:
        InvalidArgumentError: they hold NaN, infinity, or something that JSON has no word for.
    """
    try:
        result: dict[str, JSON] = json.loads(json.dumps(dict(facts), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"facts cannot be written as JSON: {error}", field="facts") from error
    return result


def _adapter(name: str) -> AdapterName:
    """An adapter given as `x` or `adapters/x`."""
    parsed = AdapterName.parse(name) if "/" in name else AdapterName(name)
    if parsed.version is not None:
        raise InvalidArgumentError(f"{name!r} names one version; an adapter is meant: adapters/{parsed.adapter}", field="adapter")
    return parsed
