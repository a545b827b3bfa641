"""Writing preference pairs as Parquet: the columns of the form `accord`, read back without loss.

What does not belong here: JSON Lines (`accord.data.writers`) and reading (`accord.data.sources`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from accord.data.records import PreferencePair
from accord.data.writers import accord_row
from accord.errors import FailedPreconditionError, InvalidArgumentError

if TYPE_CHECKING:
    import pyarrow

_ROWS_AT_ONCE = 1000


class ParquetFile(contextlib.AbstractContextManager["ParquetFile"]):
    """A Parquet file of pairs in the making, a thousand rows in memory; it is there when the block ends well, and not at all else.

    Afterwards `rows` and `digest`, the sha256 of the file.

    Args:
        path: ends in .parquet.
        metadata: the keys that a row's metadata may have; each is a text, null where a row has none.

    Raises:
        InvalidArgumentError: the name does not end in .parquet.
        FailedPreconditionError: pyarrow is not installed.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path | str, metadata: Sequence[str]) -> None:
        self.path = Path(path)
        if not self.path.name.endswith(".parquet"):
            raise InvalidArgumentError(f"{self.path} does not end in .parquet", field="output")
        self.rows, self.digest = 0, ""
        self._schema = _schema(metadata)
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._waiting: list[dict[str, object]] = []
        self._writer: Any = None

    def __enter__(self) -> Self:
        import pyarrow.parquet

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pyarrow.parquet.ParquetWriter(self._temporary, self._schema)
        return self

    def add(self, pair: PreferencePair) -> None:
        """Writes the next pair."""
        self._waiting.append({"rating_gap": None, **accord_row(pair)})
        self.rows += 1
        if len(self._waiting) >= _ROWS_AT_ONCE:
            self._flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
            self._writer.close()
            if kind is None:
                self._finish()
        finally:
            self._temporary.unlink(missing_ok=True)

    def _flush(self) -> None:
        import pyarrow

        self._writer.write_table(pyarrow.Table.from_pylist(self._waiting, schema=self._schema))
        self._waiting = []

    def _finish(self) -> None:
        with self._temporary.open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        self._temporary.replace(self.path)


def _schema(metadata: Sequence[str]) -> pyarrow.Schema:
    try:
        import pyarrow
    except ImportError as error:
        raise FailedPreconditionError("writing .parquet needs a package that is not installed: pip install 'accord[data]'", field="output") from error
    text, number = pyarrow.string(), pyarrow.float64()
    turns = pyarrow.list_(pyarrow.struct([("role", text), ("content", text)]))
    columns = {
        "pair_id": text, "task": text, "prompt": turns, "chosen": turns, "rejected": turns, "preference": number, "human_preference": number,
        "reference": text, "group": text, "split": text, "metadata": pyarrow.struct([(key, text) for key in metadata]), "rating_gap": number,
    }  # fmt: skip
    return pyarrow.schema(list(columns.items()))
