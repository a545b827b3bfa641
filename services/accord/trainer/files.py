"""Files that pass through the trainer, for callers that share no folder with the runs: rows for a run to read, and what a run has written.

What does not belong here: data sets, which runs read by their own URI (`accord.data`), and checkpoints (`accord.trainer.checkpoints`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from accord.errors import NotFoundError, OutOfRangeError
from accord.trainer.registry import RunRecord

PART_BYTES = 512 * 1024
_UPLOADS = ".uploads"
_COPY_BYTES = 2**20


def keep_rows(runs: str, rows: bytes, after: str = "") -> tuple[Path, int]:
    """The absolute path of a file with these rows, below the folder of runs, which the runs see, and its bytes. Its name is the sha256 of its rows.

    Two calls at once for the same rows must not happen.

    Args:
        runs: the folder of runs.
        rows: JSON Lines.
        after: path of an earlier call, whose rows come before these in the new file; empty for none.

    Raises:
        NotFoundError: `after` is no such path.
    """
    folder = Path(runs).absolute() / _UPLOADS
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _kept(folder, after) if after else None
    path = folder / f"{_digest(earlier, rows)}.jsonl"
    if not path.is_file():
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            if earlier is not None:
                with earlier.open("rb") as source:
                    shutil.copyfileobj(source, file, _COPY_BYTES)
            file.write(rows)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    return path, path.stat().st_size


def _kept(folder: Path, uri: str) -> Path:
    path = Path(uri)
    if path.parent != folder or path.suffix != ".jsonl" or not path.is_file():
        raise NotFoundError(f"after is {uri!r}, and no rows are kept there; the uri of an earlier answer of UploadRows is allowed", field="after")
    return path


def _digest(earlier: Path | None, rows: bytes) -> str:
    digest = hashlib.sha256()
    if earlier is not None:
        with earlier.open("rb") as file:
            while part := file.read(_COPY_BYTES):
                digest.update(part)
    digest.update(rows)
    return digest.hexdigest()


def part_of_log(record: RunRecord, log: bytes, offset: int) -> tuple[bytes, int]:
    """At most `PART_BYTES` of what a run has printed from an offset on, and the size of all. Raises OutOfRangeError as `read_part`."""
    _check_offset(record, "log.txt", offset, len(log))
    return log[offset : offset + PART_BYTES], len(log)


def read_part(record: RunRecord, file: str, offset: int) -> tuple[bytes, int]:
    """At most `PART_BYTES` of a run's file from an offset on, and the size of the whole file.

    Raises:
        NotFoundError: the run has not written it.
        OutOfRangeError: the offset lies behind its end.
    """
    path = Path(record.directory) / file
    try:
        with path.open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            _check_offset(record, file, offset, size)
            source.seek(offset)
            return source.read(PART_BYTES), size
    except FileNotFoundError:
        raise NotFoundError(f"{record.name} has no {file}", field="file") from None


def _check_offset(record: RunRecord, file: str, offset: int, size: int) -> None:
    if offset > size:
        raise OutOfRangeError(f"offset is {offset}, {file} of {record.name} has {size} bytes", field="offset")
