"""Rows that the trainer's client uploads: in one call where they fit, else in several that end behind a row."""

from __future__ import annotations

from typing import Any, cast

import pytest

from accord.api.trainer.v1 import trainer_pb2 as pb
from accord.client.trainer import TrainerClient
from accord.errors import FailedPreconditionError
from accord.rpc.channels import ChannelConfig

MOST = 24 * 2**20


class Uploads:
    """Doubles as the stub of a trainer that keeps rows; one of before there was `after` keeps those of the call alone and does not say their size."""

    def __init__(self, *, earlier: bool = False) -> None:
        self._earlier = earlier
        self._kept = {"": b""}
        self.parts: list[bytes] = []

    def UploadRows(self, request: pb.UploadRowsRequest, timeout: float | None) -> pb.UploadRowsResponse:
        self.parts.append(request.rows)
        uri = f"rows/{len(self.parts)}"
        self._kept[uri] = request.rows if self._earlier else self._kept[request.after] + request.rows
        return pb.UploadRowsResponse(uri=uri, size_bytes=0 if self._earlier else len(self._kept[uri]))

    def upload(self, rows: bytes) -> bytes:
        """What is kept under the URI that the client gives for these rows."""
        with TrainerClient(ChannelConfig(address="127.0.0.1:1")) as client:
            client._stub = cast(Any, self)
            return self._kept[client.upload_rows(rows)]


@pytest.mark.parametrize("earlier", [False, True])
def test_rows_that_fit_go_in_one_call_which_earlier_trainers_take(*, earlier: bool) -> None:
    uploads = Uploads(earlier=earlier)
    rows = b"a" * (MOST - 1) + b"\n"
    assert uploads.upload(rows) == rows
    assert len(uploads.parts) == 1


def test_more_rows_go_in_calls_that_end_behind_a_row() -> None:
    uploads = Uploads()
    rows = (b"a" * (10 * 2**20) + b"\n") * 5 + b"b"
    assert uploads.upload(rows) == rows
    assert [len(part) for part in uploads.parts] == [20 * 2**20 + 2, 20 * 2**20 + 2, 10 * 2**20 + 2]


def test_a_trainer_that_would_keep_the_last_rows_alone_is_refused() -> None:
    with pytest.raises(FailedPreconditionError, match="is of an earlier version") as error:
        Uploads(earlier=True).upload(b"a\n" * MOST)
    assert error.value.field == "rows"
