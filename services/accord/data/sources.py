"""Where rows come from: the embedded sample, local files, hub data sets. Rows leave as mappings with a place for messages.

What does not belong here: what a row means (`accord.data.formats`).
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from accord.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
SAMPLES = ("summarization", "conversation")


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row of a source: `value` where it could be read, else `problem`."""

    place: str
    value: Mapping[str, Any] | None
    problem: str = ""


def check_source(uri: str) -> None:
    """Says at once whether a source can be there; reads nothing, and never the network.

    Raises:
        InvalidArgumentError: the URI is of no known form.
        NotFoundError: there is no such sample or file.
    """
    if uri.startswith("sample:"):
        if uri.removeprefix("sample:") not in SAMPLES:
            names = ", ".join(f"sample:{name}" for name in SAMPLES)
            raise NotFoundError(f"there is no {uri}; there are {names}", field="data.uri")
        return
    if uri.startswith("hub:"):
        if not uri.removeprefix("hub:").strip("/"):
            raise InvalidArgumentError("hub: needs a data set's name behind it, as in hub:Anthropic/hh-rlhf", field="data.uri")
        return
    path = Path(uri.removeprefix("file://"))
    if not path.name.endswith(_SUFFIXES):
        raise InvalidArgumentError(f"{uri!r} is neither sample:NAME, nor hub:NAME, nor a file ending in {', '.join(_SUFFIXES)}", field="data.uri")
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}", field="data.uri")


def rows(uri: str, split: str) -> Iterator[RawRow]:
    """Yields the rows of a source. `split` is for hub data sets, whose splits are separate files.

    Raises:
        InvalidArgumentError, NotFoundError: as `check_source`.
        FailedPreconditionError: a hub data set that is not in the local cache, with downloads off.
    """
    check_source(uri)
    if uri.startswith("sample:"):
        return _sample_rows(uri.removeprefix("sample:"))
    if uri.startswith("hub:"):
        return _hub_rows(uri.removeprefix("hub:"), split)
    path = Path(uri.removeprefix("file://"))
    if path.name.endswith(".parquet"):
        return _parquet_rows(path)
    if path.name.endswith(".json"):
        return _json_rows(path)
    return _jsonl_rows(path)


def _sample_rows(name: str) -> Iterator[RawRow]:
    folder = resources.files("accord.data").joinpath("sample")
    for file in sorted(entry.name for entry in folder.iterdir() if entry.name.startswith(name) and entry.name.endswith(".jsonl")):
        for number, line in enumerate(folder.joinpath(file).read_text(encoding="utf-8").rstrip("\n").split("\n"), start=1):
            yield RawRow(f"{file}:{number}", json.loads(line))


def _jsonl_rows(path: Path) -> Iterator[RawRow]:
    with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as file:
        number = 0
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _line(f"{path.name}:{number}", line)
        except (OSError, EOFError, zlib.error) as error:
            yield RawRow(f"{path.name}:{number + 1}", None, f"the file breaks off: {error}")


def _line(place: str, line: bytes) -> RawRow:
    try:
        value = json.loads(line.decode("utf-8-sig"))  # editors on Windows begin a file with a byte order mark
    except UnicodeDecodeError:
        return RawRow(place, None, "not UTF-8")
    except (ValueError, RecursionError):
        return RawRow(place, None, "not JSON")
    return RawRow(place, value) if isinstance(value, dict) else RawRow(place, None, "not a JSON object")


def _json_rows(path: Path) -> Iterator[RawRow]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{path.name} is not JSON: {error}", field="data.uri") from error
    if not isinstance(values, list):
        raise InvalidArgumentError(f"{path.name} holds no list of rows", field="data.uri")
    for number, value in enumerate(values, start=1):
        place = f"{path.name}[{number}]"
        yield RawRow(place, value) if isinstance(value, dict) else RawRow(place, None, "not a JSON object")


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidArgumentError(f"{path.name} is not Parquet: {error}", field="data.uri") from error
    number = 0
    try:
        for batch in table.iter_batches():
            for value in batch.to_pylist():
                number += 1
                yield RawRow(f"{path.name}[{number}]", value)
    except (pyarrow.ArrowException, OSError) as error:
        yield RawRow(f"{path.name}[{number + 1}]", None, f"the file breaks off: {error}")


def _hub_rows(name: str, split: str) -> Iterator[RawRow]:
    """Reads from the local hub cache; downloads only where ACCORD_ALLOW_DOWNLOAD=1 says so, so that a missing network is no wait."""
    online = os.environ.get("ACCORD_ALLOW_DOWNLOAD") == "1"
    os.environ["USE_TORCH"] = "0"  # datasets would import torch into a process that must stay small
    if not online:
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    import datasets

    if not online:  # where somebody imported it before, it has read its environment already
        import huggingface_hub.constants

        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        table = datasets.load_dataset(name, split=split)
    except Exception as error:
        reason = "the hub could not give it" if online else "it is not in the local hub cache, and downloads are off"
        raise FailedPreconditionError(
            f"data set {name!r} (split {split!r}): {reason}: set ACCORD_ALLOW_DOWNLOAD=1 where there is a network, or give a file "
            f"({type(error).__name__})",
            field="data.uri",
        ) from error
    for number, value in enumerate(table, start=1):
        yield RawRow(f"{name}[{number}]", value)
