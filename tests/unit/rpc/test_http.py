"""Answers of other programs' HTTP servers, as whole as they can be had."""

from __future__ import annotations

import httpx
import pytest

from accord.rpc.http import read_reply, retry_after_seconds


def reply(content: bytes, **headers: str) -> httpx.Response:
    return httpx.Response(200, content=content, headers=headers)


def test_a_character_that_was_cut_in_two_can_be_stored_and_sent() -> None:
    found = read_reply(reply(rb'{"a": ["x\ud83d", {"\uDE00": 1}], "b": "\ud83d\ude00", "error": {"message": "no \ud83d"}}'))
    assert found.body == {"a": ["x\ufffd", {"\ufffd": 1}], "b": "\U0001f600", "error": {"message": "no \ufffd"}}
    found.refusal.encode("utf-8")


@pytest.mark.parametrize("content", [b"", b"nothing", b"[" * 100_000, b"\xff\xfe"])
def test_what_is_no_json_has_no_body(content: bytes) -> None:
    assert read_reply(reply(content)).body is None


@pytest.mark.parametrize(
    ("given", "expected"), [("7", 7.0), ("0.5", 0.5), ("", None), ("soon", None), ("-3", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)]
)
def test_retry_after(given: str, expected: float | None) -> None:
    assert retry_after_seconds(httpx.Headers({"retry-after": given})) == expected
