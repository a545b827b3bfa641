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


@pytest.mark.parametrize("charset", ["hex", "zlib", "base64", "rot13", "idna", "undefined", "utf-7", "latin-1", "nonsense"])
def test_the_charset_that_a_server_names_is_not_believed(charset: str) -> None:
    """Some of Python's are no text, and end in an error of any kind; JSON is UTF-8 (RFC 8259, 8.1)."""
    for content, body in (('{"a": "é"}'.encode(), {"a": "é"}), (b"no \xff json", None)):
        found = read_reply(reply(content, **{"content-type": f"application/json; charset={charset}"}))
        assert (found.body, found.text) == (body, content.decode("utf-8", "replace"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("7", 7.0), ("0.5", 0.5), ("", None), ("soon", None), ("-3", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("\u00b2", None),
        ("9" * 400, 86400.0), ("Fri, 31 Dec 9999 23:59:59 GMT", 86400.0), ("Mon, 01 Jan 99999999999 00:00:00 GMT", None),
    ],
)  # fmt: skip
def test_retry_after(given: str, expected: float | None) -> None:
    assert retry_after_seconds(httpx.Headers({"retry-after": given.encode()})) == expected
