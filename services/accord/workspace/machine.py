"""Figures of this machine: disks, installed packages.

What does not belong here: memory (`accord.launch.memory`), and what is enough (`accord.workspace.doctor`).
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)\s*(\[(?P<extras>[^\]]*)\])?\s*(?P<rule>[^;]*)(;\s*(?P<marker>.*))?")
_EXTRA = re.compile(r"extra\s*==\s*[\"']([\w.-]+)[\"']")


def gib(size: float) -> str:
    """A size for people."""
    return f"{size / 2**30:.1f} GiB"


def free_bytes(path: Path) -> int:
    """Free space of the disk that holds a path, or would."""
    return shutil.disk_usage(existing_parent(path)).free


def existing_parent(path: Path) -> Path:
    """The path itself where it exists, else the nearest folder above it that does."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def package_version(name: str) -> str | None:
    """The installed version of a distribution, None where it is not installed. Nothing is imported."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirement_problems(distribution: str, extras: Sequence[str]) -> tuple[list[str], list[str]]:
    """Requirements of a distribution with some extras that are not installed, and those pinned with == to another version than there is.

    Reads metadata only. Ranges (>=) are pip's business, not looked at here.
    """
    try:
        lines = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return [distribution], []
    missing: dict[str, None] = {}
    other: dict[str, None] = {}
    for match in _required(lines, distribution, _closure(lines, distribution, set(extras))):
        name, rule = match["name"], match["rule"].strip()
        version = package_version(name)
        if version is None:
            missing[name] = None
        elif rule.startswith("==") and version.partition("+")[0] != rule.removeprefix("==").strip():
            other[f"{name} {version} (not {rule.removeprefix('==').strip()})"] = None
    return list(missing), list(other)


def _required(lines: Sequence[str], distribution: str, extras: set[str]) -> list[re.Match[str]]:
    matches = [match for line in lines if (match := _REQUIREMENT.match(line))]
    return [match for match in matches if match["name"] != distribution and _applies(match["marker"], extras)]


def _closure(lines: Sequence[str], distribution: str, extras: set[str]) -> set[str]:
    """The extras with those that they name in turn (`training = ["accord[compute]"]`)."""
    while True:
        more = set(extras)
        for line in lines:
            match = _REQUIREMENT.match(line)
            if match and match["name"] == distribution and match["extras"] and _applies(match["marker"], extras):
                more |= {extra.strip() for extra in match["extras"].split(",")}
        if more == extras:
            return extras
        extras = more


def _applies(marker: str | None, extras: set[str]) -> bool:
    named = _EXTRA.search(marker or "")
    return named is None or named.group(1) in extras
