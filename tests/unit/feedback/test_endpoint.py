"""What an endpoint's refusals mean: an abstention is for good, an error may pass."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from accord.errors import (
    AccordError,
    FailedPreconditionError,
    InvalidArgumentError,
    OutOfRangeError,
    ResourceExhaustedError,
    UnavailableError,
)
from accord.feedback.endpoint import ChatEndpoint
from accord.feedback.judge_config import OpenAIJudge, Price

CONFIG = OpenAIJudge(kind="openai", base_url="http://127.0.0.1:9/v1", model="m", context_tokens=1000, attempts=1)


async def error_of(monkeypatch: pytest.MonkeyPatch, status: int, **content: Any) -> AccordError:
    """What asking raises where the endpoint answers so."""

    async def post(*_: object, **__: object) -> httpx.Response:
        return httpx.Response(status, **content)

    monkeypatch.setattr(httpx.AsyncClient, "post", post)
    endpoint = ChatEndpoint("big", CONFIG, Price(prompt_per_million=0, completion_per_million=0))
    with pytest.raises(AccordError) as caught:
        await endpoint.complete("q", max_tokens=1)
    await endpoint.close()
    return caught.value


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (500, "The model took too long to respond", UnavailableError),
        (500, "inference took too long", UnavailableError),
        (500, "Reading the prompt took too long", UnavailableError),
        (500, "the time that the input waited was too long", UnavailableError),
        (503, "the prompt is too long", UnavailableError),
        (400, "Invalid 'user': string too long", InvalidArgumentError),
        (400, "prompt is too long: 200001 tokens > 200000 maximum", OutOfRangeError),
        (400, "Input is too long for requested model.", OutOfRangeError),
        (400, "Invalid 'messages[0].content': string too long. Expected a string with maximum length 1048576", OutOfRangeError),
        (413, "The message you submitted was too long, please submit something shorter", OutOfRangeError),
        (422, "`inputs` tokens + `max_new_tokens` must be <= 4096", OutOfRangeError),
        (400, "request (4390 tokens) exceeds the available context size (4096 tokens), try increasing it", OutOfRangeError),
        (500, "Context size has been exceeded.", OutOfRangeError),
        (500, "Requested tokens (2285) exceed context window of 2048", OutOfRangeError),
    ],
)
async def test_only_a_prompt_that_is_too_long_is_an_overflow(
    monkeypatch: pytest.MonkeyPatch, status: int, message: str, kind: type[AccordError]
) -> None:
    """The overflows are as vLLM, TGI, llama.cpp and providers word them; each is an abstention, which is kept."""
    found = await error_of(monkeypatch, status, json={"error": {"message": message}})
    assert type(found) is kind
    assert message in found.message


async def test_an_overflow_may_be_said_by_the_code_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for code in ("context_length_exceeded", "prompt_too_long"):
        found = await error_of(monkeypatch, 400, json={"error": {"message": "no", "code": code}})
        assert type(found) is OutOfRangeError


@pytest.mark.parametrize(
    ("code", "kind"), [("429", ResourceExhaustedError), ("404", FailedPreconditionError), ("\u00b2", UnavailableError), ("600", UnavailableError)]
)
async def test_an_error_inside_a_good_answer_has_the_status_that_it_names(
    monkeypatch: pytest.MonkeyPatch, code: str, kind: type[AccordError]
) -> None:
    """Gateways do so; what is no status, as a superscript that Python calls a digit, is an error of the server."""
    assert type(await error_of(monkeypatch, 200, json={"error": {"message": "no", "code": code}})) is kind


async def test_a_page_in_a_charset_that_is_no_text_is_an_error_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await error_of(monkeypatch, 502, content=b"<html>bad gateway", headers={"content-type": "text/html; charset=hex"})
    assert type(found) is UnavailableError
    assert "bad gateway" in found.message
