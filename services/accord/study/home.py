"""Where a study's home is: results of steps, label jobs and the trainer's registry name files by absolute path, so a home stays where it is.

What does not belong here: whose results a home holds (`accord.study.services.check_known_runs`).
"""

from __future__ import annotations

from pathlib import Path

from accord.errors import FailedPreconditionError
from accord.rundir import write_atomically

_FILE = "home"


def check_home(home: Path) -> None:
    """Returns where the home is the folder that its results were made in, by whatever name or link; nothing is written.

    Raises:
        FailedPreconditionError: they were made elsewhere; the message says where.
    """
    made_in = _noted(home)
    if made_in is not None and _has_results(home) and not _is_same(made_in, home):
        raise FailedPreconditionError(
            f"{home} was moved or copied from {made_in}, and its results and runs name files there; move it back, or give another --home",
            field="home",
        )


def keep_home(home: Path) -> None:
    """Notes where a home is; one without results, or of before there were notes, may be anywhere. Raises as `check_home`."""
    check_home(home)
    made_in = _noted(home)
    if made_in is None or not _is_same(made_in, home):
        path = _note(home)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, f"{home.absolute()}\n")


def _note(home: Path) -> Path:
    return home / "study" / _FILE


def _noted(home: Path) -> Path | None:
    try:
        return Path(_note(home).read_text(encoding="utf-8").removesuffix("\n"))
    except FileNotFoundError:
        return None


def _has_results(home: Path) -> bool:
    return any((home / "study" / "steps").glob("*"))


def _is_same(made_in: Path, home: Path) -> bool:
    return made_in.exists() and made_in.samefile(home)
