"""Where rows come from: the embedded sample, files here or behind a URL, hub data sets. Rows leave as mappings with a place for messages.

Rows come one at a time, out of batches where a file has them; only a .json file, which is one list, is read as a whole. What does not belong
here: what a row means (`accord.data.formats`) and opening files (`accord.data.files`).
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, BinaryIO

from accord.data.files import check_file, file_name, is_url, opened
from accord.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

SAMPLES = ("summarization", "conversation")
ALL_SPLITS = "all"


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row of a source: `value` where it could be read, else `problem`; `split` where the source itself says in which one it is."""

    place: str
    value: Mapping[str, Any] | None
    problem: str = ""
    split: str = ""


def check_source(uri: str) -> None:
    """Says at once whether a source can be there; reads nothing, and never the network.

    Raises:
        InvalidArgumentError: the URI is of no known form.
        NotFoundError: there is no such sample or local file.
        FailedPreconditionError: the package for the URL's protocol is not installed.
    """
    if uri.startswith("sample:"):
        if uri.removeprefix("sample:") not in SAMPLES:
            names = ", ".join(f"sample:{name}" for name in SAMPLES)
            raise NotFoundError(f"there is no {uri}; there are {names}", field="data.uri")
        return
    if uri.startswith("hub:"):
        HubName.parse(uri.removeprefix("hub:"))
    else:
        check_file(uri)


@dataclass(frozen=True, slots=True)
class HubName:
    """A hub data set as ``NAME[:CONFIG][@REVISION]``, for example ``openai/summarize_from_feedback:comparisons@refs/convert/parquet``."""

    name: str
    config: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName:
        """The name in its parts.

        Raises:
            InvalidArgumentError: a part is empty.
        """
        front, at, revision = text.partition("@")
        name, colon, config = front.partition(":")
        if not name.strip("/") or (colon and not config) or (at and not revision):
            raise InvalidArgumentError(
                f"hub:{text} needs a data set's name behind hub:, as in hub:Anthropic/hh-rlhf or hub:NAME:CONFIG@REVISION", field="data.uri"
            )
        return cls(name, config or None, revision or None)


def rows(uri: str, split: str) -> Iterator[RawRow]:
    """Yields the rows of a source. `split` is for hub data sets, whose splits are separate files; "all" is all of them, each row with its split.

    Raises:
        InvalidArgumentError, NotFoundError, FailedPreconditionError: as `check_source`.
        FailedPreconditionError: a hub data set that is not in the local cache, with downloads off.
        NotFoundError, PermissionDeniedError, UnavailableError: a file behind a URL is not there, may not be read, or breaks off: rows that come
            later would be missing without a trace.
    """
    check_source(uri)
    if uri.startswith("sample:"):
        return _sample_rows(uri.removeprefix("sample:"))
    if uri.startswith("hub:"):
        return _hub_rows(HubName.parse(uri.removeprefix("hub:")), split)
    return _file_rows(uri)


def _file_rows(uri: str) -> Iterator[RawRow]:
    name = file_name(uri)
    with opened(uri) as file:
        if name.endswith(".parquet"):
            yield from _parquet_rows(name, file, remote=is_url(uri))
        elif name.endswith(".json"):
            yield from _json_rows(name, file)
        else:
            yield from _jsonl_rows(name, file, remote=is_url(uri))


def _sample_rows(name: str) -> Iterator[RawRow]:
    folder = resources.files("accord.data").joinpath("sample")
    for file in sorted(entry.name for entry in folder.iterdir() if entry.name.startswith(name) and entry.name.endswith(".jsonl")):
        for number, line in enumerate(folder.joinpath(file).read_text(encoding="utf-8").rstrip("\n").split("\n"), start=1):
            yield RawRow(f"{file}:{number}", json.loads(line))


def _jsonl_rows(name: str, file: BinaryIO, *, remote: bool) -> Iterator[RawRow]:
    """Rows of JSON Lines. A damaged archive is a row with a problem; a connection that breaks is an error, since a second try may have all."""
    number = 0
    try:
        for number, line in enumerate(gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file, start=1):
            if line.strip():
                yield _line(f"{name}:{number}", line)
    except (OSError, EOFError, zlib.error) as error:
        if remote and not isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
            raise
        yield RawRow(f"{name}:{number + 1}", None, f"the file breaks off: {error}")


def _line(place: str, line: bytes) -> RawRow:
    try:
        value = json.loads(line.decode("utf-8-sig"))  # editors on Windows begin a file with a byte order mark
    except UnicodeDecodeError:
        return RawRow(place, None, "not UTF-8")
    except (ValueError, RecursionError):
        return RawRow(place, None, "not JSON")
    return RawRow(place, value) if isinstance(value, dict) else RawRow(place, None, "not a JSON object")


def _json_rows(name: str, file: BinaryIO) -> Iterator[RawRow]:
    content = file.read()
    try:
        values = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{name} is not JSON: {error}", field="data.uri") from error
    if not isinstance(values, list):
        raise InvalidArgumentError(f"{name} holds no list of rows", field="data.uri")
    for number, value in enumerate(values, start=1):
        place = f"{name}[{number}]"
        yield RawRow(place, value) if isinstance(value, dict) else RawRow(place, None, "not a JSON object")


def _parquet_rows(name: str, file: BinaryIO, *, remote: bool) -> Iterator[RawRow]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        what = "pip install 'accord[data]'"
        raise FailedPreconditionError(f"reading .parquet needs a package that is not installed: {what}", field="data.uri") from error
    try:
        table = pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidArgumentError(f"{name} is not Parquet: {error}", field="data.uri") from error
    number = 0
    try:
        for batch in table.iter_batches():
            for row in _rows_of(batch):
                number += 1
                yield replace(row, place=f"{name}[{number}]")
    except (pyarrow.ArrowException, OSError) as error:
        if remote:
            raise
        yield RawRow(f"{name}[{number + 1}]", None, f"the file breaks off: {error}")


def _rows_of(batch: Any) -> Iterator[RawRow]:
    """The rows of an Arrow batch. One that Python cannot hold (text that is not UTF-8, a time beyond its years) takes none of the others along."""
    try:
        values = batch.to_pylist()
    except (ValueError, OverflowError):
        for place in range(batch.num_rows):
            yield _row_of(batch.slice(place, 1))
    else:
        yield from (RawRow("", value) for value in values)


def _row_of(batch: Any) -> RawRow:
    try:
        return RawRow("", batch.to_pylist()[0])
    except UnicodeDecodeError:
        return RawRow("", None, "not UTF-8")
    except (ValueError, OverflowError) as error:
        return RawRow("", None, f"cannot be read: {error}")


def _hub_rows(hub: HubName, split: str) -> Iterator[RawRow]:
    """Reads from the local hub cache; downloads only where ACCORD_ALLOW_DOWNLOAD=1 says so, so that a missing network is no wait."""
    online = os.environ.get("ACCORD_ALLOW_DOWNLOAD") == "1"
    os.environ["USE_TORCH"] = "0"  # datasets would import torch into a process that must stay small
    if not online:
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    try:
        import datasets
    except ImportError as error:
        raise FailedPreconditionError("hub: needs a package that is not installed: pip install 'accord[data]'", field="data.uri") from error

    if not online:  # where somebody imported it before, it has read its environment already
        import huggingface_hub.constants

        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        found = datasets.load_dataset(hub.name, hub.config, split=None if split == ALL_SPLITS else split, revision=hub.revision)
    except Exception as error:
        reason = "the hub could not give it" if online else "it is not in the local hub cache, and downloads are off"
        raise FailedPreconditionError(
            f"data set {hub.name!r} (split {split!r}): {reason}: set ACCORD_ALLOW_DOWNLOAD=1 where there is a network, or give a file "
            f"({type(error).__name__})",
            field="data.uri",
        ) from error
    for name, table in found.items() if split == ALL_SPLITS else (("", found),):
        for number, value in enumerate(table, start=1):
            yield RawRow(f"{hub.name}{name and f' {name}'}[{number}]", value, split=str(name))
