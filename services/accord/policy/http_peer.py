"""HTTP to another generation server: JSON and server-sent events, with every failure as an error of ours that says what to do.

The API key is in the header and nowhere else: where a server quotes it, it is blotted out. What does not belong here: paths and bodies.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from accord.errors import (
    AccordError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from accord.policy.remote_config import RemoteConfig
from accord.rpc.http import IDLE_SECONDS, Reply, read_reply, retry_after_seconds

_WRITE_SECONDS, _RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 30.0, 2.0, 60.0
_MAX_EVENT_BYTES, _QUOTED_CHARACTERS = 16 * 2**20, 300
_SPARE_CONNECTIONS = 8  # health, adapters


class HttpPeer:
    """Connections to one server.

    Args:
        kind: what the server is called in messages.
        config: where it is.
    """

    def __init__(self, kind: str, config: RemoteConfig) -> None:
        self._kind = kind
        self._url = config.url
        self._key = config.api_key()
        limit = config.max_concurrency + _SPARE_CONNECTIONS
        self._client = httpx.AsyncClient(
            base_url=config.url,
            headers=self._key.bearer(),
            timeout=httpx.Timeout(connect=config.connect_seconds, read=config.read_seconds, write=_WRITE_SECONDS, pool=config.read_seconds),
            limits=httpx.Limits(max_connections=limit, max_keepalive_connections=limit, keepalive_expiry=IDLE_SECONDS),
            trust_env=False,
        )

    @property
    def place(self) -> str:
        """What messages call it."""
        return f"the {self._kind} server at {self._url}"

    async def request(self, method: str, path: str, body: object = None) -> Reply:
        """Returns the answer, whatever its status.

        Raises:
            UnavailableError: there is none.
        """
        with self._reaching():
            reply = await self._client.request(method, path, json=body)
        return read_reply(reply)

    async def json(self, method: str, path: str, body: object = None) -> Any:
        """Returns the body of a good answer; raises as `error_of`, and FailedPreconditionError where it is not a JSON object or list."""
        return self.good(await self.request(method, path, body))

    def good(self, reply: Reply) -> Any:
        """Returns the body of a good answer; raises as `json`."""
        if reply.status != httpx.codes.OK:
            raise self.error_of(reply)
        if not isinstance(reply.body, dict | list):
            raise self.garbled(f"JSON was expected, it answered {self._quote(reply.text) or 'nothing'}")
        return reply.body

    async def events(self, path: str, body: object) -> AsyncGenerator[dict[str, Any], None]:
        """Yields the JSON of each server-sent event up to `[DONE]`, and reads on to the end; closing the generator closes the connection.

        Raises:
            AccordError: as `json`, and where an event holds an error.
        """
        with self._reaching():
            async with self._client.stream("POST", path, json=body) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    raise self.error_of(read_reply(response))
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    await response.aread()
                    raise self.garbled(f"a stream of events was expected, it answered {self._quote(read_reply(response).text) or 'nothing'}")
                done = False
                async for data in self._data_lines(response):
                    done = done or data == b"[DONE]"
                    if not done:
                        yield self._event(data)

    def error_of(self, reply: Reply) -> AccordError:
        """The error that a status means."""
        words = self._quote(reply.refusal or reply.text)
        said = f"{self.place} answered {reply.status}: {words}"
        if reply.status in (401, 403):
            return FailedPreconditionError(f"{self.place} refuses this replica's API key ({reply.status}); see remote.api_key_env", field="remote")
        if reply.status == 429:
            return ResourceExhaustedError(said, retry_after_seconds=_retry_after(reply.headers))
        if reply.status in (400, 413, 422):
            return InvalidArgumentError(f"{self.place} refuses the request: {words}")
        if reply.status == 404 and reply.refusal:
            return NotFoundError(said)
        if reply.status in (404, 405) or 300 <= reply.status < 400:
            return FailedPreconditionError(f"{said}; it does not answer as a {self._kind} server does: correct remote.url", field="remote.url")
        return UnavailableError(f"{said}; see its log", retry_after_seconds=_retry_after(reply.headers))

    def garbled(self, what: str) -> FailedPreconditionError:
        """The error of an answer that the server should never give."""
        return FailedPreconditionError(f"{self.place} does not answer as such a server does: {what}; correct remote.url", field="remote.url")

    def broken(self, what: str) -> UnavailableError:
        """The error of an answer that broke off."""
        return UnavailableError(f"{self.place} broke off: {what}; see its log", retry_after_seconds=_RETRY_SECONDS)

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.aclose()

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise UnavailableError(
                f"{self.place} cannot be reached ({type(error).__name__}): start it, or correct remote.url", retry_after_seconds=_RETRY_SECONDS
            ) from None
        except httpx.TimeoutException as error:
            raise UnavailableError(
                f"{self.place} was silent for too long ({type(error).__name__}); see its log, or raise remote.read_seconds",
                retry_after_seconds=_RETRY_SECONDS,
            ) from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise self.broken(type(error).__name__) from None

    async def _data_lines(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """Cut at newlines alone: httpx's own lines also end at U+2028 and the like, which JSON strings may hold."""
        rest = b""
        async for more in response.aiter_bytes():
            *lines, rest = (rest + more).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield line[5:].strip()
            if len(rest) > _MAX_EVENT_BYTES:
                raise self.garbled(f"one event has more than {_MAX_EVENT_BYTES} bytes")

    def _event(self, data: bytes) -> dict[str, Any]:
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise self.garbled(f"an event holds {self._quote(data.decode(errors='replace'))}")
        if "error" in event:
            raise self.error_of(Reply(_status_of(event), event, httpx.Headers(), ""))
        return event

    def _quote(self, words: str) -> str:
        return " ".join(self._key.blotted(words).split())[:_QUOTED_CHARACTERS]


def _status_of(event: dict[str, Any]) -> int:
    """The status that an error inside a stream would have had; vLLM says it, TGI names the kind."""
    error = event["error"]
    code = error.get("code") if isinstance(error, dict) else None
    kinds = {"overloaded": 429, "validation": 422, "generation": 424, "incomplete_generation": 500}
    return code if isinstance(code, int) else kinds.get(str(event.get("error_type")), 500)


def _retry_after(headers: httpx.Headers) -> float:
    wanted = retry_after_seconds(headers)
    return _RETRY_SECONDS if wanted is None else min(max(wanted, 0.1), _LONGEST_RETRY_SECONDS)
