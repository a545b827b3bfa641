"""Writing preference pairs: TRL's conversational preference format, whole or with what only Accord knows (soft label, ids, origin).

Files are written row by row under a hidden name and renamed when they are complete: a reader sees all of a file or nothing. The form `accord` is
read back without loss; the form `trl` has TRL's columns alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, TypeVar

from accord.data.records import PreferencePair
from accord.errors import InvalidArgumentError


class RowFile(Protocol):
    """A file of pairs in the making."""

    rows: int

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> bool | None: ...


FileT = TypeVar("FileT", bound=RowFile)
PairForm = Literal["accord", "trl"]
FORMS: tuple[PairForm, ...] = ("accord", "trl")


def write_pairs(path: Path | str, rows: Iterable[PreferencePair], form: PairForm = "accord") -> str:
    """Writes JSON Lines at once (a reader sees all of it or nothing) and returns the file's sha256."""
    with PairFile(path, form) as file:
        for row in rows:
            file.add(row)
    return file.digest


class PairFile(contextlib.AbstractContextManager["PairFile"]):
    """A file of pairs in the making, JSON Lines, packed where its name ends in .gz; it is there when the block ends well, and not at all else.

    Afterwards `rows`, `left_out` (ties, for which TRL's columns have no place) and `digest` (sha256 of the file, the same for the same pairs).

    Raises:
        InvalidArgumentError: the name ends in neither .jsonl nor .jsonl.gz.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path | str, form: PairForm = "accord") -> None:
        self.path = Path(path)
        if not self.path.name.endswith((".jsonl", ".jsonl.gz")):
            raise InvalidArgumentError(f"{self.path} ends in neither .jsonl nor .jsonl.gz", field="output")
        self.rows = self.left_out = 0
        self.digest = ""
        self._row: Callable[[PreferencePair], dict[str, object] | None] = _trl_row if form == "trl" else accord_row
        self._sha = hashlib.sha256()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> PairFile:
        self._write = self._stack.enter_context(_atomic(self.path, self._sha.update))
        return self

    def add(self, pair: PreferencePair) -> None:
        """Writes the next pair."""
        row = self._row(pair)
        if row is None:
            self.left_out += 1
            return
        self._write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8"))
        self.rows += 1

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]
        self.digest = self._sha.hexdigest()


class NoRowsError(Exception):
    """Ends a block that wrote no row, see `unless_empty`."""


@contextlib.contextmanager
def unless_empty(file: FileT) -> Iterator[FileT]:
    """The file in the making, `PairFile` or `ParquetFile`; where no row comes nothing is written, and what was there stays as it was."""
    with contextlib.suppress(NoRowsError), file:
        yield file
        if not file.rows:
            raise NoRowsError


def write_text(path: Path, text: str) -> None:
    """Writes a text at once, in a folder that is made where there is none."""
    with _atomic(path, lambda _: None) as write:
        write(text.encode("utf-8", "replace"))


@contextlib.contextmanager
def _atomic(path: Path, took: Callable[[bytes], object]) -> Iterator[Callable[[bytes], None]]:
    """How to write to a file that appears when the block ends well; `took` is given the bytes that reach the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            pack = zlib.compressobj(wbits=31) if path.name.endswith(".gz") else None  # a gzip header without time and name: equal pairs, equal file

            def put(data: bytes) -> None:
                took(data)
                file.write(data)

            yield (lambda data: put(pack.compress(data))) if pack else put
            if pack:
                put(pack.flush())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def accord_row(pair: PreferencePair) -> dict[str, object]:
    """The pair as a row that is read back without loss."""
    rated = {} if pair.rating_gap is None else {"rating_gap": pair.rating_gap}
    return {
        "pair_id": pair.pair_id,
        "task": pair.task.value,
        **_turns(pair, turned=False),
        "preference": pair.preference,
        "human_preference": pair.human_preference,
        "reference": pair.reference,
        "group": pair.group,
        "split": pair.split,
        "metadata": dict(pair.metadata),
        **rated,
    }


def _trl_row(pair: PreferencePair) -> dict[str, object] | None:
    """prompt, chosen and rejected, with TRL's margin where there are ratings; None for a tie."""
    if pair.preference == 0.5:
        return None
    turned = pair.preference < 0.5
    margin = {} if pair.rating_gap is None else {"margin": -pair.rating_gap if turned else pair.rating_gap}
    return {**_turns(pair, turned=turned), **margin}


def _turns(pair: PreferencePair, *, turned: bool) -> dict[str, object]:
    chosen, rejected = (pair.rejected, pair.chosen) if turned else (pair.chosen, pair.rejected)
    return {
        "prompt": [asdict(message) for message in pair.messages],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
