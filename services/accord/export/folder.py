"""The folder that an export makes: all of it or nothing.

It is filled under a hidden name beside its place and renamed when it is whole, so that an interrupted export leaves nothing under the name that
was asked for. What does not belong here: what is in it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
from safetensors import SafetensorError

from accord.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError

FACTS_FILE = "accord-export.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja",
)  # fmt: skip
_ROOM_BYTES = 64 * 2**20  # tokenizer, card, and what a file system needs for itself


def check_place(target: Path, *, force: bool) -> None:
    """Whether an export may be written there.

    Raises:
        NotFoundError: the folder around it does not exist.
        AlreadyExistsError: something is there, and `force` is not given; or with it, something that no export wrote.
    """
    if not target.parent.is_dir():
        raise NotFoundError(f"there is no folder {target.parent} to put {target.name} into", field="folder")
    if not target.exists() and not target.is_symlink():
        return
    if not force:
        raise AlreadyExistsError(f"{target} exists; name another folder, or replace it with --force", field="folder")
    if not target.is_dir() or target.is_symlink() or (any(target.iterdir()) and not (target / FACTS_FILE).is_file()):
        raise AlreadyExistsError(f"{target} was not written by an export (it has no {FACTS_FILE}), so --force does not replace it", field="folder")


def check_room(folder: Path, size_bytes: int) -> None:
    """Whether so many bytes fit.

    Raises:
        FailedPreconditionError: they do not; the message has the numbers.
    """
    free = shutil.disk_usage(folder).free
    needed = size_bytes + _ROOM_BYTES
    if needed > free:
        raise FailedPreconditionError(f"the export needs {_mib(needed)}, {_mib(free)} are free in {folder}", field="folder")


@contextlib.contextmanager
def written_at_once(target: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `target` where the block ends well, replacing what is there, and is removed where it does not.

    Raises:
        FailedPreconditionError: the disk is full.
    """
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        with _full_disk_in_words(target):
            yield partial
            for path in partial.iterdir():
                path.chmod(0o644)  # weights come out readable by their owner alone
                _flush(path)
        _swap(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(partial: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.replaced-{os.getpid()}")
    if target.exists():
        target.rename(old)
    partial.rename(target)
    _flush(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(target: Path) -> None:
    """What killed exports left here; those of living processes stay. One killed while it replaced another has the other put back first."""
    for kind in ("replaced", "partial"):
        for path in target.parent.glob(f".{target.name}.{kind}-*"):
            number = path.name.rpartition("-")[2]
            if not number.isdigit() or psutil.pid_exists(int(number)):
                continue
            if kind == "replaced" and not target.exists():
                path.rename(target)
            else:
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _full_disk_in_words(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or (isinstance(error, SafetensorError) and "os error 28" in str(error)):
            raise FailedPreconditionError(f"the disk of {target.parent} is full; nothing was left there", field="folder") from error
        raise


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
