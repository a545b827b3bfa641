"""Files that pass through the trainer, for callers that share no folder with the runs: rows for a run to read, and what a run has written.

What does not belong here: data sets, which runs read by their own URI (`accord.data`), and checkpoints (`accord.trainer.checkpoints`).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from accord.errors import NotFoundError, OutOfRangeError
from accord.trainer.registry import RunRecord

PART_BYTES = 512 * 1024
_UPLOADS = ".uploads"


def keep_rows(runs: str, rows: bytes) -> Path:
    """The absolute path of a file with these rows, below the folder of runs, which the runs see. Its name is the sha256 of the rows.

    Two calls at once for the same rows must not happen.
    """
    folder = Path(runs).absolute() / _UPLOADS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(rows).hexdigest()}.jsonl"
    if not path.is_file():
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(rows)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    return path


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
