"""Files behind URLs, and names of the hub: the same rows as from a local file, and one sentence for what can go wrong."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from accord.data.files import file_name, shown
from accord.data.readers import check_source, read_pairs
from accord.data.sources import HubName
from accord.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, PermissionDeniedError, UnavailableError

ROWS = [{"prompt": f"question {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(2000)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    found = fsspec.filesystem("memory")
    yield found
    found.rm("/accord-data", recursive=True)


def put(memory: MemoryFileSystem, name: str, content: bytes) -> str:
    memory.pipe_file(f"/accord-data/{name}", content)
    return f"memory://accord-data/{name}"


def test_every_kind_of_file_behind_a_url_gives_the_rows_of_a_local_one(memory: MemoryFileSystem, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    local = read_pairs(str(tmp_path / "rows.jsonl"), strict=True)
    uris = [
        put(memory, "rows.jsonl", LINES), put(memory, "rows.jsonl.gz", gzip.compress(LINES)), put(memory, "rows.json", json.dumps(ROWS).encode()),
        put(memory, "rows.parquet", (tmp_path / "rows.parquet").read_bytes()),
    ]  # fmt: skip
    for uri in uris:
        check_source(uri)
        assert read_pairs(uri, strict=True).rows == local.rows
        assert read_pairs(uri).report.digest == local.report.digest


def test_places_are_named_by_the_file_behind_the_url(memory: MemoryFileSystem) -> None:
    report = read_pairs(put(memory, "deep/er.jsonl", b'{"prompt": 3}\n' + LINES)).report
    assert report.examples == ("er.jsonl:1: prompt is not a list of messages",)
    assert report.rows == len(ROWS)


def test_a_damaged_archive_behind_a_url_gives_what_is_whole_and_says_so(memory: MemoryFileSystem) -> None:
    whole = gzip.compress(LINES)
    report = read_pairs(put(memory, "cut.jsonl.gz", whole[: len(whole) // 2])).report
    assert 0 < report.rows < len(ROWS)
    assert "breaks off" in next(iter(report.rejected))


def test_what_is_not_there_or_not_allowed(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    put(memory, "rows.jsonl", LINES)
    with pytest.raises(NotFoundError, match=r"there is no file memory://accord-data/other\.jsonl"):
        read_pairs("memory://accord-data/other.jsonl")
    with pytest.raises(InvalidArgumentError, match="ending in"):
        check_source("s3://bucket/rows.csv")
    with pytest.raises(InvalidArgumentError, match="teleport:// is no protocol that fsspec knows"):
        check_source("teleport://bucket/rows.jsonl")
    for error, kind in (
        (PermissionError("no"), PermissionDeniedError),
        (OSError("down"), UnavailableError),
        (RuntimeError("driver"), UnavailableError),
    ):

        def fail(*_: Any, failure: Exception = error, **__: Any) -> None:
            raise failure

        monkeypatch.setattr(MemoryFileSystem, "_open", fail)
        with pytest.raises(kind, match=r"memory://accord-data/rows\.jsonl"):
            read_pairs("memory://accord-data/rows.jsonl")


class Broken:
    """A file whose connection breaks after so many bytes."""

    def __init__(self, content: bytes, after: int) -> None:
        self._lines = iter(content[:after].splitlines(keepends=True)[:-1])

    def __iter__(self) -> Broken:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._lines)
        except StopIteration:
            raise ConnectionResetError("reset by peer") from None

    def close(self) -> None: ...


def test_a_connection_that_breaks_is_an_error_and_not_a_smaller_data_set(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = put(memory, "rows.jsonl", LINES)
    monkeypatch.setattr(MemoryFileSystem, "open", lambda *_, **__: Broken(LINES, len(LINES) // 2))
    with pytest.raises(UnavailableError, match="reset by peer") as error:
        read_pairs(uri)
    assert error.value.retryable


@pytest.mark.parametrize(("protocol", "package", "extra"), [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs")])
def test_a_missing_package_is_one_sentence_with_its_extra(protocol: str, package: str, extra: str) -> None:
    program = (
        f"import sys; sys.modules['{package}'] = None\nfrom accord.data.readers import check_source\n"
        f"try:\n    check_source('{protocol}://bucket/rows.jsonl')\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
    )
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root / "services")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60, check=True)
    wanted = (
        f"{FailedPreconditionError.__name__} data.uri: reading {protocol}:// needs a package that is not installed: pip install 'accord[{extra}]'"
    )
    assert done.stdout.strip() == wanted


@pytest.mark.parametrize(
    ("uri", "name", "text"),
    [
        ("https://user:secret@host/a/rows.jsonl?signature=abc", "rows.jsonl", "https://host/a/rows.jsonl"),
        ("s3://bucket/rows.parquet", "rows.parquet", "s3://bucket/rows.parquet"),
        ("memory://rows.jsonl", "rows.jsonl", "memory://rows.jsonl"),
        ("zip://inside.jsonl::s3://bucket/all.zip", "inside.jsonl", "zip://inside.jsonl::s3://bucket/all.zip"),
        ("zip://inside.jsonl::https://user:secret@host/all.zip?signature=abc", "inside.jsonl", "zip://inside.jsonl::https://host/all.zip"),
        ("simplecache::https://user:secret@host/rows.jsonl?signature=abc", "simplecache", "simplecache::https://host/rows.jsonl"),
        ("file:///data/rows.json", "rows.json", "file:///data/rows.json"),
    ],
)
def test_names_of_files_and_what_of_a_url_may_be_shown(uri: str, name: str, text: str) -> None:
    assert (file_name(uri), shown(uri)) == (name, text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Anthropic/hh-rlhf", HubName("Anthropic/hh-rlhf")),
        ("a/b:comparisons", HubName("a/b", "comparisons")),
        ("a/b:axis@refs/convert/parquet", HubName("a/b", "axis", "refs/convert/parquet")),
        ("a/b@main", HubName("a/b", None, "main")),
    ],
)
def test_names_of_the_hub(text: str, parts: HubName) -> None:
    assert HubName.parse(text) == parts


@pytest.mark.parametrize("text", ["", "/", "a/b:", "a/b@", ":axis"])
def test_names_of_the_hub_that_cannot_be(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="needs a data set's name"):
        check_source(f"hub:{text}")


def test_a_configuration_and_a_split_of_a_hub_data_set(tmp_path: Path) -> None:
    """A data set as the hub has them, in a folder: `datasets` reads it without a network. Of all splits each row keeps its own, and one that is
    in two of them is in both; a row that names its split itself is in that one.
    """
    folder = tmp_path / "set"
    (folder / "axis").mkdir(parents=True)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: comparisons\n  data_files:\n  - split: train\n    path: train.jsonl\n  - split: test\n    path: test.jsonl\n"
        "- config_name: axis\n  data_files: axis/*.jsonl\n---\n"
    )
    train = [{**row, "split": ""} for row in ROWS[:5]]
    test = [{**row, "split": ""} for row in [*ROWS[5:7], ROWS[0]]] + [{**ROWS[7], "split": "held_out"}]
    for name, rows in (("train.jsonl", train), ("test.jsonl", test), ("axis/a.jsonl", [{"text": "x"}])):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    program = (
        "import sys; from accord.data.readers import read_pairs; from collections import Counter\n"
        "for split in ('train', 'test', 'all'):\n"
        "    found = read_pairs(sys.argv[1], split=split, strict=True)\n"
        "    print(found.report.rows, *(f'{name}={count}' for name, count in Counter(pair.split for pair in found.rows).items()))\n"
    )
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root / "services"), "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", program, f"hub:{folder}:comparisons"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=False)
    assert done.stdout.splitlines() == ["5 train=5", "3 test=3", "9 train=5 test=3 held_out=1"], done.stderr
