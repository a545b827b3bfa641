"""What callers of other programs' HTTP servers share: a whole answer, the server's own words about an error, and how long it asks us to wait.

What does not belong here: whose server it is, paths, bodies, and which error of ours a status means.
"""

from __future__ import annotations

import email.utils
import time
from dataclasses import dataclass
from typing import Any

import httpx

IDLE_SECONDS = 2.0
"""How long an idle connection is used again. Servers (uvicorn, and so vLLM) close theirs after 5 s, as httpx does: a request sent then is lost."""
_LONGEST_WAIT_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer; `body` is None where it is not JSON."""

    status: int
    body: Any
    headers: httpx.Headers
    text: str

    @property
    def refusal(self) -> str:
        """The server's own words about an error, empty where it has none of the shapes that OpenAI, vLLM and TGI use."""
        error = self.body.get("error", self.body) if isinstance(self.body, dict) else None
        words = error.get("message") if isinstance(error, dict) else error
        return words if isinstance(words, str) else ""


def read_reply(response: httpx.Response) -> Reply:
    """The answer of a response that has been read. It is read as UTF-8, whatever charset it names: Python knows some that are no text."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        body = None
    text = response.content.decode("utf-8", "replace")
    if "\\ud" in text.lower():
        body = _encodable(body)
    return Reply(response.status_code, body, response.headers, text)


def _encodable(value: Any) -> Any:
    """JSON without lone surrogates, which no database and no message takes: a server that cuts an answer within a character writes them."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, list) else value


def retry_after_seconds(headers: httpx.Headers) -> float | None:
    """Seconds that `Retry-After` asks for (RFC 9110, 10.2.3: a number or a date), not negative and at most a day; None where it is absent or
    unreadable."""
    given = headers.get("retry-after", "").strip()
    if given.isascii() and given.replace(".", "", 1).isdigit():
        return min(float(given), _LONGEST_WAIT_SECONDS)
    try:
        seconds = email.utils.parsedate_to_datetime(given).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, seconds), _LONGEST_WAIT_SECONDS)
