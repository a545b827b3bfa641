"""Memory that a new process of this machine can have: what is free, within the limits of the control group (a container's limit is one).

What does not belong here: what a run needs (`accord.trainer.planner`).
"""

from __future__ import annotations

from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_SELF_CGROUP = Path("/proc/self/cgroup")


def free_memory_bytes() -> tuple[int, str]:
    """Memory that a new process can have, and what limits it below the machine's own (empty where nothing does)."""
    free = int(psutil.virtual_memory().available)
    grouped = cgroup_free_bytes()
    if grouped is not None and grouped < free:
        return grouped, "limited by the control group"
    return free, ""


def cgroup_free_bytes(root: Path = _CGROUP, membership: Path = _SELF_CGROUP) -> int | None:
    """Memory left under the limits of this process's control group and those above it, None where there is no limit.

    Reads both versions of the hierarchy. The page cache that the kernel would give back counts as free.
    """
    found = [left for folder in _memory_groups(root, membership) if (left := _group_left(folder)) is not None]
    return max(0, min(found)) if found else None


def _memory_groups(root: Path, membership: Path) -> list[Path]:
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    folders: list[Path] = [root, root / "memory"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        top = root / "memory" if "memory" in controllers.split(",") else root
        if controllers in ("", "memory") or "memory" in controllers.split(","):
            own = top / path.strip("/")
            folders += [folder for folder in (own, *own.parents) if folder == top or top in folder.parents]
    return folders


def _group_left(folder: Path) -> int | None:
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = (folder / limit).read_text(encoding="utf-8").strip()
            if most == "max" or int(most) > 2**60:
                return None
            return int(most) - int((folder / used).read_text(encoding="utf-8")) + _reclaimable(folder, cache)
        except (OSError, ValueError):
            continue
    return None


def _reclaimable(folder: Path, name: str) -> int:
    try:
        lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.split()[:1] == [name])
