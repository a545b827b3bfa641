"""AccordError to google.rpc.Status and back, without a wire; the wire is in tests/contract/test_runtime.py."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from accord.errors import (
    AccordError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    error_classes,
)
from accord.rpc.status import DETAILS_KEY, PUSHBACK_KEY, from_item_status, from_rpc_error, item_status, to_status


@pytest.mark.parametrize("error_class", error_classes(), ids=lambda cls: cls.__name__)
def test_an_item_status_gives_the_same_error_back(error_class: type[AccordError]) -> None:
    sent = error_class("7 given, at most 5 allowed", field="items[3].n", retry_after_seconds=0.5, metadata={"limit": "5"})
    got = from_item_status(status_pb2.Status.FromString(item_status(sent).SerializeToString()))
    assert type(got) is error_class
    assert (got.message, got.field, got.retry_after_seconds, got.metadata) == (sent.message, "items[3].n", 0.5, {"limit": "5"})


def test_what_an_error_lacks_it_does_not_gain() -> None:
    got = from_item_status(item_status(NotFoundError("no such adapter")))
    assert (got.field, got.retry_after_seconds, got.metadata) == (None, None, {})


def test_the_codes_are_google_rpcs() -> None:
    for error_class in error_classes():
        assert item_status(error_class("x")).code == code_pb2.Code.Value(error_class.code)


def test_the_details_are_those_that_other_languages_read() -> None:
    status = item_status(ResourceExhaustedError("full", field="items", retry_after_seconds=1.5, metadata={"queue": "reward"}))
    info, request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    assert [detail.Unpack(target) for detail, target in zip(status.details, (info, request, retry), strict=True)] == [True] * 3
    assert (info.reason, info.domain, dict(info.metadata)) == ("ResourceExhaustedError", "accord", {"queue": "reward"})
    assert request.field_violations[0].field == "items"
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_a_status_of_another_system_maps_by_its_code() -> None:
    assert type(from_item_status(status_pb2.Status(code=5, message="gone"))) is NotFoundError
    foreign = any_pb2.Any()
    foreign.Pack(error_details_pb2.ErrorInfo(reason="InvalidArgumentError", domain="example.com"))
    assert type(from_item_status(status_pb2.Status(code=5, message="gone", details=[foreign]))) is NotFoundError
    unknown = from_item_status(status_pb2.Status(code=2, message="who knows"))
    assert type(unknown) is InternalError
    assert unknown.message == "UNKNOWN: who knows"


def test_a_damaged_detail_does_not_hide_the_code_and_message() -> None:
    damaged = any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff")
    got = from_item_status(status_pb2.Status(code=3, message="bad n", details=[damaged]))
    assert (type(got), got.message) == (InvalidArgumentError, "bad n")


@pytest.mark.parametrize("text", ["x" * 50_000, "囲" * 20_000, "\N{PILE OF POO}" * 20_000])
def test_the_trailing_metadata_stays_below_what_clients_accept(text: str) -> None:
    error = InvalidArgumentError(text, field=text, metadata={f"key {number} {text}": text for number in range(100)})
    status = to_status(error)
    percent_encoded = 3 * len(status.details.encode())
    assert percent_encoded + sum(len(value) for _, value in status.trailing_metadata) < 8 * 1024
    assert status.details[:100] == text[:100]
    assert type(from_item_status(status_pb2.Status.FromString(dict(status.trailing_metadata)[DETAILS_KEY]))) is InvalidArgumentError  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "seconds_left", "pushback"),
    [
        (ResourceExhaustedError("full", retry_after_seconds=1.5), None, "1500"),
        (UnavailableError("draining", retry_after_seconds=0.0), 10.0, "0"),
        (ResourceExhaustedError("full", retry_after_seconds=5.0), 2.0, "-1"),
        (ResourceExhaustedError("full"), None, None),
        (InvalidArgumentError("wrong", retry_after_seconds=1.0), None, None),
    ],
)
def test_only_retryable_errors_push_back_and_never_past_the_deadline(error: AccordError, seconds_left: float | None, pushback: str | None) -> None:
    assert dict(to_status(error, seconds_left=seconds_left).trailing_metadata).get(PUSHBACK_KEY) == pushback


class FromAPlainServer(grpc.RpcError):
    """What gRPC raises when no Accord server answered."""

    def __init__(self, code: grpc.StatusCode, details: str | None, trailing: Any = None) -> None:
        self._answers = (code, details, trailing)

    def code(self) -> grpc.StatusCode:
        return self._answers[0]

    def details(self) -> str | None:
        return self._answers[1]

    def trailing_metadata(self) -> Any:
        return self._answers[2]


def test_an_error_of_grpc_itself_maps_by_its_code_and_always_says_something() -> None:
    refused = from_rpc_error(FromAPlainServer(grpc.StatusCode.UNAVAILABLE, "connection refused"))
    assert (type(refused), refused.message, refused.retry_after_seconds) == (UnavailableError, "connection refused", None)
    assert from_rpc_error(FromAPlainServer(grpc.StatusCode.DEADLINE_EXCEEDED, "")).message == "the deadline passed before the reply came"


def test_details_that_contradict_the_code_or_are_damaged_are_not_believed() -> None:
    lie = ((DETAILS_KEY, item_status(NotFoundError("gone")).SerializeToString()),)
    assert type(from_rpc_error(FromAPlainServer(grpc.StatusCode.UNAVAILABLE, "x", lie))) is UnavailableError
    damaged = ((DETAILS_KEY, b"\xff\xff"),)
    assert type(from_rpc_error(FromAPlainServer(grpc.StatusCode.UNAVAILABLE, "x", damaged))) is UnavailableError
