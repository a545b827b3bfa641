"""The manifest of one adapter version: what it is, where it came from, and the sha256 of each of its files.

The stored bytes are the canonical JSON of the manifest and nothing else, so that the digest of a version is the sha256 of the stored file.
What does not belong here: reading and writing it (`accord.artefacts.store`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from accord.artefacts.names import AdapterName, check_file_name
from accord.errors import DataLossError, InvalidArgumentError

SCHEMA = 1
JSON = Any  # str, int, float, bool, None, and lists and string-keyed dicts of these
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Digest (sha256, hex) and size of one file of a version."""

    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.sha256):
            raise InvalidArgumentError(f"{self.sha256[:100]!r} is not a sha256 in lower-case hex", field="files")
        if self.size_bytes < 0:
            raise InvalidArgumentError(f"size_bytes {self.size_bytes} is negative", field="files")


@dataclass(frozen=True)
class Manifest:
    """One version of an adapter.

    `digest` is the sha256 of the canonical JSON; `removed` says that the files are gone and is not part of it.
    """

    name: str
    kind: str
    files: Mapping[str, FileEntry]
    base_model_digest: str = ""
    tokenizer_digest: str = ""
    parents: tuple[str, ...] = ()
    run: str = ""
    data_digest: str = ""
    step: int = 0
    created_at: str = ""
    facts: Mapping[str, JSON] = field(default_factory=dict)
    removed: bool = False

    def __post_init__(self) -> None:
        AdapterName.parse_version(self.name)
        for parent in self.parents:
            AdapterName.parse_version(parent)
        if not self.kind:
            raise InvalidArgumentError(f"{self.name} has no kind", field="kind")
        if not self.files:
            raise InvalidArgumentError(f"{self.name} has no files", field="files")
        for file in self.files:
            check_file_name(file)

    @property
    def digest(self) -> str:
        """The digest of the version: sha256 of its canonical JSON."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size_bytes for entry in self.files.values())

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, UTF-8, one final newline.

        Raises:
            InvalidArgumentError: the facts hold NaN, infinity or something that JSON has no word for.
        """
        content: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "removed"}
        content["files"] = {name: {"sha256": entry.sha256, "size_bytes": entry.size_bytes} for name, entry in self.files.items()}
        content["facts"] = dict(self.facts)
        content["schema"] = SCHEMA
        try:
            text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
            return (text + "\n").encode("utf-8")
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"the manifest of {self.name} cannot be written as JSON: {error}", field="facts") from error

    @classmethod
    def from_bytes(cls, stored: bytes, *, name: str, removed: bool = False) -> Manifest:
        """The manifest that was stored under `name`.

        Raises:
            DataLossError: it is not a manifest, not canonical, or names another version.
        """
        try:
            content = json.loads(stored)
            if content.pop("schema") != SCHEMA:
                raise ValueError("unknown schema")
            files = {file: FileEntry(**entry) for file, entry in content.pop("files").items()}
            parents = tuple(content.pop("parents"))
            manifest = cls(files=files, parents=parents, **content)
        except (ValueError, TypeError, KeyError, AttributeError, InvalidArgumentError) as error:
            raise DataLossError(f"the manifest of {name} cannot be read: {error}", metadata={"name": name}) from error
        if manifest.to_bytes() != stored:
            raise DataLossError(f"the manifest of {name} is not as the store wrote it", metadata={"name": name})
        if manifest.name != name:
            raise DataLossError(f"the manifest at {name} belongs to {manifest.name}", metadata={"name": name, "found": manifest.name})
        return replace(manifest, removed=removed)

    def same_publication(self, other: Manifest) -> bool:
        """Whether both are one publication done twice: all equal but for name, time and whether the files are still there."""
        return replace(self, name=other.name, created_at=other.created_at, removed=other.removed) == other
