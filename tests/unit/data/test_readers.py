"""Files of every kind, whole and broken: nothing is dropped without being counted, and --strict stops at the row."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.data.readers import check_source, read_demonstrations, read_pairs, read_prompts, read_texts
from accord.data.records import Dataset
from accord.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError


def pairs(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"question {n}", "chosen": f"good {n}", "rejected": f"bad {n}", **more} for n in range(count)]


def lines(rows: list[dict[str, Any]], end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


def put(folder: Path, content: bytes, name: str = "rows.jsonl") -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def balanced(data: Dataset[Any]) -> bool:
    """Whether every row that was seen is accounted for."""
    report = data.report
    assert report.rows == len(data.rows)
    return report.seen == report.rows + report.other_splits + report.over_limit + report.repeated + sum(report.rejected.values())


def test_the_same_rows_in_every_kind_of_file(tmp_path: Path) -> None:
    """Ids and digests are of the content, not of the file."""
    rows = pairs(3)
    uris = [
        put(tmp_path, lines(rows)),
        put(tmp_path, lines(rows, "\r\n"), "crlf.jsonl"),
        put(tmp_path, b"\xef\xbb\xbf" + lines(rows), "bom.jsonl"),
        put(tmp_path, b"\n" + lines(rows, "\n\n") + b"  \n", "blank.jsonl"),
        put(tmp_path, lines(rows)[:-1], "no-newline.jsonl"),
        put(tmp_path, gzip.compress(lines(rows)), "rows.jsonl.gz"),
        put(tmp_path, json.dumps(rows).encode(), "rows.json"),
        put(tmp_path, b"\xef\xbb\xbf" + json.dumps(rows).encode(), "bom.json"),
        put(tmp_path, b"", "rows.parquet"),
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**row, "empty": None} for row in rows]), uris[-1])
    found = [read_pairs(uri, strict=True) for uri in (*uris, f"file://{uris[0]}")]
    assert [data.report.seen for data in found] == [3] * len(found)
    assert all(data.rows == found[0].rows for data in found)
    assert {data.report.digest for data in found} == {found[0].report.digest}


def test_messages_in_parquet(tmp_path: Path) -> None:
    turn = {"role": "user", "content": "How tall?"}
    rows = [{"prompt": [turn], "chosen": [{"role": "assistant", "content": "30 m"}], "rejected": [{"role": "assistant", "content": "blue"}]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    from_parquet = read_pairs(str(tmp_path / "a.parquet"), strict=True)
    assert from_parquet.rows == read_pairs(put(tmp_path, lines(rows)), strict=True).rows


BROKEN = [
    (b"{", "not JSON"),
    (b"[1, 2]", "not a JSON object"),
    (b'"text"', "not a JSON object"),
    (b"\x00", "not JSON"),
    (b'{"prompt": "a\xff"}', "not UTF-8"),
    (b"[" * 100_000, "not JSON"),
    (b'{"prompt": "a\\u0000b", "chosen": "x", "rejected": "y"}', "prompt holds a NUL character"),
    (b'{"prompt": "\\ud800", "chosen": "x", "rejected": "y"}', "prompt holds a lone surrogate"),
    (b'{"prompt": ["a"], "chosen": "x", "rejected": "y"}', "prompt has a turn without a role system, user or assistant"),
    (b'{"prompt": "a", "chosen": null, "rejected": "y"}', "chosen is missing"),
    (b"{}", "prompt is missing"),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN, ids=[reason for _, reason in BROKEN])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_broken_line_costs_itself_alone(tmp_path: Path, line: bytes, reason: str, place: int) -> None:
    good = lines(pairs(2)).splitlines()
    uri = put(tmp_path, b"\n".join([*good[:place], line, *good[place:]]) + b"\n")
    data = read_pairs(uri, format="trl")
    assert balanced(data)
    assert (data.report.rows, data.report.rejected) == (2, {reason: 1})
    assert data.report.examples == (f"rows.jsonl:{place + 1}: {reason}",)
    assert data.report.account() == f"read 2 of 3 rows (1 {reason})"
    with pytest.raises(InvalidArgumentError, match=rf"rows\.jsonl:{place + 1}: {reason}") as error:
        read_pairs(uri, format="trl", strict=True)
    assert error.value.field == "data.uri"


def test_a_cut_gzip_file_gives_what_is_whole_and_says_so(tmp_path: Path) -> None:
    whole = gzip.compress(lines(pairs(2000)))
    uri = put(tmp_path, whole[: len(whole) // 2], "cut.jsonl.gz")
    data = read_pairs(uri)
    assert balanced(data)
    assert 0 < data.report.rows < 2000
    assert data.rows == read_pairs(put(tmp_path, whole, "whole.jsonl.gz")).rows[: data.report.rows]
    assert sum(data.report.rejected.values()) == 1
    assert "breaks off" in next(iter(data.report.rejected))
    with pytest.raises(InvalidArgumentError, match=rf"cut\.jsonl\.gz:{data.report.seen}: the file breaks off"):
        read_pairs(uri, strict=True)


def test_a_damaged_or_false_gzip_file(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(lines(pairs(50))))
    whole[len(whole) // 2] ^= 0xFF
    for content in (bytes(whole), lines(pairs(3))):
        data = read_pairs(put(tmp_path, content, "damaged.jsonl.gz"))
        assert balanced(data)
        assert any("breaks off" in reason for reason in data.report.rejected)


def test_rows_of_parquet_that_python_cannot_hold_take_no_others_along(tmp_path: Path) -> None:
    """Parquet's writers do not check that text is UTF-8, and Arrow has moments that no calendar here has."""
    raw = pyarrow.array([b"one", b"t\xff\xfeo", b"three", b"four"], pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 4, raw.buffers())
    moments = pyarrow.array([0, 0, 2**60, 1], pyarrow.timestamp("ms"))
    table = pyarrow.table({"prompt": text, "chosen": ["a"] * 4, "rejected": ["b"] * 4, "timestamp": moments})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    data = read_pairs(str(tmp_path / "a.parquet"))
    assert [pair.messages[0].content for pair in data.rows] == ["one", "four"]
    assert data.report.rejected.pop("not UTF-8") == 1
    assert [(reason.startswith("cannot be read: "), count) for reason, count in data.report.rejected.items()] == [(True, 1)]
    assert [example.split(":")[0] for example in data.report.examples] == ["a.parquet[2]", "a.parquet[3]"]


def test_damaged_parquet(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"a\.parquet is not Parquet"):
        read_pairs(put(tmp_path, b"PAR1 no", "a.parquet"))
    table = pyarrow.Table.from_pylist(pairs(1000))
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet", compression="NONE", use_dictionary=False, write_page_checksum=True)
    content = bytearray((tmp_path / "b.parquet").read_bytes())
    content[60:64] = b"\xff\xff\xff\xff"
    data = read_pairs(put(tmp_path, bytes(content), "b.parquet"))
    assert balanced(data)
    assert data.report.rejected or data.report.rows == 1000


@pytest.mark.parametrize(
    ("content", "words"), [(b"{", "is not JSON"), (b'{"a": 1}', "holds no list"), (b"\xff\xfe", "is not JSON"), (b"[" * 100_000, "is not JSON")]
)
def test_json_that_is_no_list(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        read_pairs(put(tmp_path, content, "a.json"))


def test_duplicates_are_counted_once_each(tmp_path: Path) -> None:
    data = read_pairs(put(tmp_path, lines([*pairs(3), *pairs(2)])))
    assert balanced(data)
    assert (data.report.rows, data.report.rejected) == (3, {"occurs twice": 2})


def test_a_prompt_of_many_pairs_is_one_prompt(tmp_path: Path) -> None:
    rows = [{**row, "rejected": f"worse still {n}"} for n in range(3) for row in pairs(2)]
    uri = put(tmp_path, lines(rows))
    prompts, found = read_prompts(uri, strict=True), read_pairs(uri, strict=True)
    assert balanced(prompts)
    assert (prompts.report.rows, prompts.report.repeated) == (2, 4)
    assert len({prompt.prompt_id for prompt in prompts.rows}) == 2
    assert (found.report.rows, found.report.repeated) == (6, 0)
    assert {pair.group for pair in found.rows} == {prompt.prompt_id for prompt in prompts.rows}


def test_splits_and_limits_are_counted(tmp_path: Path) -> None:
    rows = [
        {**row, "info": {"post": row["prompt"], "id": f"t{n}"}, "summary": row["chosen"], "split": "test" if n % 4 == 0 else "train"}
        for n, row in enumerate(pairs(20))
    ]
    uri = put(tmp_path, lines([*rows, {"info": 3}]))
    for read in (read_prompts, read_demonstrations, read_texts):
        data = read(uri, format="tldr", limit=6, seed=1)
        assert balanced(data)
        assert (data.report.rows, data.report.other_splits, data.report.over_limit, sum(data.report.rejected.values())) == (6, 5, 9, 1)
        assert data.report.account() == "read 6 of 21 rows (5 of other splits, 9 over the limit, 1 info is missing)"
        assert sum(data.report.splits.values()) == data.report.other_splits == 5
        assert read(uri, format="tldr", limit=6, seed=2).rows != data.rows
        assert read(uri, format="tldr", limit=6, seed=1).rows == data.rows
    assert read_prompts(uri, format="tldr", split="test").report.rows == 5


def test_a_limit_keeps_the_order_of_the_file_and_does_not_depend_on_it(tmp_path: Path) -> None:
    rows = pairs(30)
    kept = read_pairs(put(tmp_path, lines(rows)), limit=7).rows
    turned = read_pairs(put(tmp_path, lines(rows[::-1])), limit=7).rows
    assert turned == kept[::-1]
    assert [pair.messages[0].content for pair in kept] == sorted((pair.messages[0].content for pair in kept), key=lambda text: int(text.split()[1]))


@given(st.lists(st.sampled_from(["good", "again", "other", "bad", "broken", "long"]), max_size=30), st.integers(0, 5), st.booleans())
def test_every_row_is_accounted_for(tmp_path_factory: pytest.TempPathFactory, kinds: list[str], limit: int, prompts: bool) -> None:
    made = []
    for n, kind in enumerate(kinds):
        number = 0 if kind == "again" else n
        row = {"info": {"id": f"t{number}", "post": f"p{number}"}, "summary": "s", "split": "test" if kind == "other" else "train"}
        made.append(b"{" if kind == "broken" else json.dumps({**row, "summary": 3} if kind == "bad" else row).encode())
    uri = put(tmp_path_factory.mktemp("rows"), b"\n".join(made))
    data: Dataset[Any] = (read_prompts if prompts else read_demonstrations)(uri, format="tldr", limit=limit)
    assert balanced(data)
    assert data.report.seen == len(kinds)
    assert data.report.other_splits == kinds.count("other")


def test_the_format_is_that_of_the_first_row_that_can_be_used(tmp_path: Path) -> None:
    good = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    data = read_pairs(put(tmp_path, lines([{"x": 1}, {**good, "chosen": None}, good])))
    assert balanced(data)
    assert (data.report.rows, data.rows[0].chosen) == (1, "b")
    assert data.report.rejected["no format recognises the row"] == 1


def test_rows_that_no_format_knows(tmp_path: Path) -> None:
    uri = put(tmp_path, lines([{"colour": "blue", "size": 3}] * 3))
    with pytest.raises(
        InvalidArgumentError, match=r"colour, size; name one of sample, accord, hh, tldr, autoj, alpaca_eval, argilla, trl, text"
    ) as error:
        read_pairs(uri)
    assert error.value.field == "data.format"
    with pytest.raises(InvalidArgumentError, match="format 'hhh' is not one of"):
        read_pairs(uri, format="hhh")
    assert read_pairs(uri, format="hh").report.rejected == {"chosen is missing": 3}


def test_an_empty_file_is_an_empty_data_set(tmp_path: Path) -> None:
    data = read_pairs(put(tmp_path, b""))
    assert (data.rows, data.report.seen) == ((), 0)
    assert data.report.account() == "read 0 of 0 rows"


@pytest.mark.parametrize(
    ("uri", "error", "words"),
    [
        ("rows.csv", InvalidArgumentError, "neither sample:NAME, nor hub:NAME, nor a file ending in"),
        ("", InvalidArgumentError, "neither"),
        ("missing.jsonl", NotFoundError, r"no file missing\.jsonl"),
        ("sample:poems", NotFoundError, "sample:summarization, sample:conversation"),
        ("hub:", InvalidArgumentError, "needs a data set's name"),
    ],
)
def test_sources_that_cannot_be(uri: str, error: type[Exception], words: str) -> None:
    for call in (check_source, read_pairs):
        with pytest.raises(error, match=words):
            call(uri)


@pytest.mark.parametrize("imported_before", [False, True])
def test_a_hub_name_without_a_network_fails_at_once(tmp_path: Path, imported_before: bool) -> None:
    """In a process of its own, with an empty cache; also where `datasets` was imported before anybody asked for offline."""
    program = (
        ("import datasets\n" if imported_before else "") + "import time; from accord.data.readers import read_pairs; start = time.monotonic()\n"
        "try:\n    read_pairs('hub:nobody/nothing-of-that-name')\n"
        "except Exception as error:\n    print(type(error).__name__, round(time.monotonic() - start, 1), error)\n"
    )
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root / "services"), "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    for name in ("ACCORD_ALLOW_DOWNLOAD", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        environment.pop(name, None)
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60, check=True)
    name, seconds, message = done.stdout.split(" ", 2)
    assert name == FailedPreconditionError.__name__, done.stdout + done.stderr
    assert "ACCORD_ALLOW_DOWNLOAD=1" in message
    assert "nobody/nothing-of-that-name" in message
    assert float(seconds) < 15
    assert time.monotonic() - started < 45
