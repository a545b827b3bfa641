"""Names of adapters and their versions, and of the files inside a version.

`adapters/{adapter}` is an adapter, `adapters/{adapter}/versions/{n}` one version of it. These strings become paths, so they are checked
here and nowhere is a path built from a string that was not. What does not belong here: anything that touches a disk.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from accord.errors import InvalidArgumentError

MAX_ADAPTER_LENGTH = 100
_ADAPTER = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_FILE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,126}[A-Za-z0-9_-])?")
_RULE = "adapters/{adapter} or adapters/{adapter}/versions/{n}, {adapter} of 1 to 100 a-z, 0-9 and inner '-', {n} from 1"

# Text and safetensors only: a format that can run code when it is read (pickle in all its names) is never stored or fetched.
ALLOWED_SUFFIXES = (".json", ".jsonl", ".safetensors", ".txt", ".md", ".jinja", ".yaml")
MANIFEST_FILE = "manifest.json"
REMOVED_FILE = "removed.json"
CLAIM_FILE = "claim.json"
RESERVED_FILES = (MANIFEST_FILE, REMOVED_FILE, CLAIM_FILE)


@dataclass(frozen=True, slots=True)
class AdapterName:
    """An adapter, or one version of it where `version` is set. `str()` gives the resource name back."""

    adapter: str
    version: int | None = None

    def __post_init__(self) -> None:
        if len(self.adapter) > MAX_ADAPTER_LENGTH or not _ADAPTER.fullmatch(self.adapter):
            raise InvalidArgumentError(f"adapter {self.adapter[:200]!r} is not 1 to 100 of a-z, 0-9 and inner '-'", field="adapter")
        if self.version is not None and not 1 <= self.version <= 999_999_999:
            raise InvalidArgumentError(f"version {self.version} of adapter {self.adapter!r} is not in 1..999999999", field="version")

    @classmethod
    def parse(cls, name: str) -> AdapterName:
        """The name as parts.

        Raises:
            InvalidArgumentError: it is not exactly `adapters/{adapter}` or `adapters/{adapter}/versions/{n}`.
        """
        parts = name.split("/")
        well_formed = parts[0] == "adapters" and (len(parts) == 2 or (len(parts) == 4 and parts[2] == "versions"))
        if not well_formed or not _ADAPTER.fullmatch(parts[1]) or len(parts[1]) > MAX_ADAPTER_LENGTH:
            raise InvalidArgumentError(f"{name[:300]!r} is not an adapter name; it must be {_RULE}", field="adapter")
        if len(parts) == 2:
            return cls(parts[1])
        if not _VERSION.fullmatch(parts[3]):
            raise InvalidArgumentError(f"{name[:300]!r} is not an adapter version; it must be {_RULE}", field="adapter")
        return cls(parts[1], int(parts[3]))

    @classmethod
    def parse_version(cls, name: str) -> AdapterName:
        """As `parse`, for names that must say which version.

        Raises:
            InvalidArgumentError: the name is malformed or has no version.
        """
        parsed = cls.parse(name)
        if parsed.version is None:
            raise InvalidArgumentError(f"{name!r} names no version; it must be adapters/{{adapter}}/versions/{{n}}", field="adapter")
        return parsed

    def at(self, version: int) -> AdapterName:
        """One version of the same adapter."""
        return AdapterName(self.adapter, version)

    def __str__(self) -> str:
        if self.version is None:
            return f"adapters/{self.adapter}"
        return f"adapters/{self.adapter}/versions/{self.version}"


def check_file_name(name: str) -> str:
    """The name itself, if a version may hold a file of that name: flat, no path parts, a format that cannot run code.

    Raises:
        InvalidArgumentError: it has path parts or odd characters, is reserved, or its suffix is not in `ALLOWED_SUFFIXES`.
    """
    if not _FILE.fullmatch(name):
        raise InvalidArgumentError(f"{name[:200]!r} is not a file name: letters, digits, '_', '.', '-', no folders", field="files")
    if name in RESERVED_FILES:
        raise InvalidArgumentError(f"{name!r} is written by the store; a version may not bring its own", field="files")
    if not name.endswith(ALLOWED_SUFFIXES):
        allowed = ", ".join(ALLOWED_SUFFIXES)
        raise InvalidArgumentError(f"{name!r} does not end in one of {allowed}; pickled files are never kept", field="files")
    return name
