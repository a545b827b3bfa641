"""Rows that are uploaded for runs and files that are read from runs, through a trainer in a process of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests.contract.test_trainer import Trainer, end_runs, spec

from accord.api.trainer.v1 import trainer_pb2 as pb
from accord.api.trainer.v1 import trainer_pb2_grpc as rpc
from accord.errors import InvalidArgumentError, NotFoundError, OutOfRangeError
from accord.rpc.stubs import guard_stub
from accord.runspec import parse_spec
from accord.trainer.files import PART_BYTES

ROWS = b'{"arm": "a"}\n'


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    folder = tmp_path_factory.mktemp("trainer")
    with Trainer(folder) as made:
        yield made
    end_runs(folder)


def test_the_same_rows_are_kept_once_below_the_runs_and_a_run_may_name_them(trainer: Trainer) -> None:
    uri = trainer.client.upload_rows(ROWS)
    assert Path(uri).read_bytes() == ROWS
    assert Path(uri).is_relative_to(trainer.config["runs"])
    assert Path(uri).stem == hashlib.sha256(ROWS).hexdigest()
    before = Path(uri).stat().st_mtime_ns
    assert trainer.client.upload_rows(ROWS) == uri
    assert Path(uri).stat().st_mtime_ns == before
    assert trainer.client.upload_rows(ROWS * 2) != uri
    assert [path.suffix for path in Path(uri).parent.iterdir()] == [".jsonl"] * 2
    evaluation = parse_spec({"threads": 1, "evaluate": {"uri": uri}})
    assert trainer.client.create_run(evaluation, "evaluation", validate_only=True).spec.evaluate == evaluation.evaluate
    assert trainer.client.list_runs() == ()


def test_more_rows_than_fit_into_a_call_are_kept_as_one_file_in_their_order(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accord.client.trainer._PART_BYTES", 2**19)  # this server's messages have a MiB at most
    rows = b"".join(b'{"n": %d, "response": "%s"}\n' % (n, b"a" * 50_000) for n in range(50))
    uri = trainer.client.upload_rows(rows)
    assert Path(uri).read_bytes() == rows
    assert Path(uri).stem == hashlib.sha256(rows).hexdigest()
    assert trainer.client.upload_rows(rows) == uri


def test_rows_go_on_behind_rows_that_are_kept_and_behind_nothing_else(trainer: Trainer) -> None:
    with grpc.insecure_channel(trainer.server.address) as channel:
        stub = guard_stub(rpc.TrainerServiceStub(channel), 10.0)
        first = stub.UploadRows(pb.UploadRowsRequest(rows=ROWS))
        both = stub.UploadRows(pb.UploadRowsRequest(rows=b"{}\n", after=first.uri))
        assert (first.size_bytes, both.size_bytes) == (len(ROWS), len(ROWS) + 3)
        assert both.uri == stub.UploadRows(pb.UploadRowsRequest(rows=ROWS + b"{}\n")).uri
        assert Path(first.uri).read_bytes() == ROWS
        uploads = Path(first.uri).parent
        (uploads.parent / "other.jsonl").write_bytes(ROWS)
        for after in (f"{uploads}/{'0' * 64}.jsonl", f"{uploads}/../other.jsonl", str(uploads.parent / "other.jsonl"), "/etc/hostname"):
            with pytest.raises(NotFoundError) as error:
                stub.UploadRows(pb.UploadRowsRequest(rows=ROWS, after=after))
            assert error.value.field == "after"


def test_no_rows_are_refused(trainer: Trainer) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        trainer.client.upload_rows(b"")
    assert error.value.field == "rows"


def test_a_run_s_file_comes_whole_in_parts_and_other_files_not_at_all(trainer: Trainer) -> None:
    run = trainer.client.create_run(spec(), "read")
    trainer.until(run.name, "succeeded")
    with pytest.raises(NotFoundError, match=r"has no evaluation\.json"):
        trainer.client.read_run_file(run.name, "evaluation.json")
    folder = Path(run.directory)
    (folder / "evaluation.json").write_text(json.dumps({"n": list(range(400_000))}))
    (folder / "evaluation_rows.jsonl").touch()
    text = (folder / "evaluation.json").read_bytes()
    assert len(text) > 3 * PART_BYTES
    assert trainer.client.read_run_file(run.name, "evaluation.json") == text
    assert trainer.client.read_run_file(run.name, "evaluation_rows.jsonl") == b""
    assert trainer.client.read_run_file(run.name, "log.txt") == (folder / "log.txt").read_bytes()
    for file in ("run.yaml", "../registry.sqlite", "checkpoints/1/manifest.json", "/etc/passwd", ""):
        with pytest.raises(InvalidArgumentError) as error:
            trainer.client.read_run_file(run.name, file)  # type: ignore[arg-type]
        assert error.value.field == "file"
    with pytest.raises(NotFoundError) as missing:
        trainer.client.read_run_file("runs/nobody", "log.txt")
    assert missing.value.field == "run"


def test_an_offset_behind_the_end_is_refused(trainer: Trainer) -> None:
    (run, *_) = trainer.client.list_runs()
    with grpc.insecure_channel(trainer.server.address) as channel, pytest.raises(OutOfRangeError) as error:
        guard_stub(rpc.TrainerServiceStub(channel), 10).ReadRunFile(pb.ReadRunFileRequest(run=run.name, file="log.txt", offset=10**9))
    assert error.value.field == "offset"
