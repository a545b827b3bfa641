"""A chat endpoint that speaks OpenAI's API: one answer at a time, tried again with patience within a deadline, counted and paid for.

The API key is in the header and nowhere else. What does not belong here: what is asked and what an answer means (`accord.feedback.judges.written`).
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx
import structlog

from accord.client.messages import ModelDigests
from accord.errors import (
    AccordError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    OutOfRangeError,
    ResourceExhaustedError,
    UnavailableError,
)
from accord.feedback.completions import Completion, NoUsageError, read_completion
from accord.feedback.judge_config import OpenAIJudge, Price
from accord.feedback.metrics import CALLS, COST, RETRIES, count_tokens
from accord.feedback.records import OVERFLOW, JudgeIdentity, digest_of
from accord.rpc.http import IDLE_SECONDS, Reply, read_reply, retry_after_seconds
from accord.rpc.secrets import read_secret

_log = structlog.get_logger(__name__)
_CONNECT_SECONDS = 10.0
_FAILURE_SECONDS = 2.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0
_QUOTED_CHARACTERS = 300
_READING = 2
"""Counts the changes of what is read out of the same answer; part of an endpoint's digest. 1 took verdicts in another form than asked for hard."""
_VERDICT_TOKENS = OpenAIJudge.model_fields["max_verdict_tokens"].default
"""The room that digests do not name: those from before it was named in them stay."""
_MOST_BYTES_PER_TOKEN = 16
"""No tokenizer packs text of any language that densely on average: over it a prompt cannot fit, or has not been read whole."""
_OVERFLOW = re.compile(
    r"context[ _](?:length|window|size)|maximum (?:context|model|number of tokens|input)|max_new_tokens|too many tokens"
    r"|(?:context|token|prompt|input|message)(?:(?!\. |\bt(?:ook|ak(?:es?|en|ing))\b|\btime|\bwait).){0,80}too[ _]long",
    re.IGNORECASE,
)
"""Also of status 500, which llama.cpp gives. "Too long" of what is no part of the prompt, or of time, is another error, which may pass."""
_NO_MONEY = re.compile(r"insufficient_quota|billing_hard_limit|exceeded your current quota|credit balance", re.IGNORECASE)


class ChatEndpoint:
    """Asks one model of one endpoint. Implements `accord.feedback.judges.written.Endpoint` and `accord.feedback.roster.JudgeSource`.

    Args:
        name: of the judge in the configuration.
        config: where it is and how it is asked.
        price: of its tokens.

    Raises:
        FailedPreconditionError: the API key is not where the configuration says, or the CA file cannot be read.
    """

    def __init__(self, name: str, config: OpenAIJudge, price: Price) -> None:
        self._name = name
        self._config = config
        self._price = price
        self._key = read_secret(config.api_key_env, config.api_key_file, f"judges.{name}")
        self._known: JudgeIdentity | None = None
        self._failure: tuple[float, AccordError] | None = None
        self._looking = asyncio.Lock()
        self.place = f"the judge {name} ({config.model} at {config.base_url})"
        self._client = httpx.AsyncClient(
            headers=self._key.bearer(),
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),  # the deadline of an answer holds over all of it
            limits=httpx.Limits(
                max_connections=config.max_concurrency + 1, max_keepalive_connections=config.max_concurrency, keepalive_expiry=IDLE_SECONDS
            ),
            verify=self._trust(),
            proxy=config.proxy,
            trust_env=False,
        )

    @property
    def max_verdict_tokens(self) -> int:
        """Room for a verdict or rating."""
        return self._config.max_verdict_tokens

    async def identify(self, adapter: str) -> JudgeIdentity:
        """Who answers there now. The first time it is asked for one token, to learn `system_fingerprint`: settings that the endpoint does not take
        show before any pair is judged. Later it is whoever answered last.

        Raises:
            InvalidArgumentError: an adapter is named.
            FailedPreconditionError: the endpoint refuses the key, the model or the way in which it is asked.
            UnavailableError, ResourceExhaustedError, DeadlineExceededError: it cannot be asked now.
        """
        if adapter:
            raise InvalidArgumentError(f"{self.place} is an endpoint, which has no adapters; leave it empty", field="judge.adapter")
        async with self._looking:
            if self._known is None:
                if self._failure is not None and time.monotonic() - self._failure[0] < _FAILURE_SECONDS:
                    raise self._failure[1]  # who waited for the same answer need not wait for another
                try:
                    self._known = self.identity_of(await self.complete("Answer with yes.", max_tokens=1))
                except AccordError as error:
                    refused = isinstance(error, InvalidArgumentError | OutOfRangeError)
                    self._failure = time.monotonic(), FailedPreconditionError(error.message, field="judge") if refused else error
                    raise self._failure[1] from None
            return self._known

    def identity_of(self, completion: Completion) -> JudgeIdentity:
        """Who gave an answer: address, model, how it is asked and, unless that is turned off, `system_fingerprint`."""
        config = self._config
        fingerprint = completion.fingerprint if config.fingerprint_in_digest else ""
        asked = {"top_logprobs": config.top_logprobs, "body": config.body}
        if config.max_verdict_tokens != _VERDICT_TOKENS:  # what was cut off for want of room is asked again once there is more
            asked |= {"max_verdict_tokens": config.max_verdict_tokens}
        digest = digest_of(f"endpoint/{_READING}", config.base_url, config.model, fingerprint, asked)
        found = JudgeIdentity(
            f"{config.model} at {urlsplit(config.base_url).netloc}", ModelDigests(), configured=self._name, endpoint_digest=digest,
            context_tokens=config.context_tokens,
        )  # fmt: skip
        if self._known is not None and self._known != found:
            _log.warning("judge_changed", judge=self._name, fingerprint=fingerprint)
            self._known = found
        return found

    async def complete(self, prompt: str, *, max_tokens: int, temperature: float = 0.0, seed: int | None = None) -> Completion:
        """The answer to one question, greedily unless a temperature is given, with logprobs where they are asked for and given.

        An answer to a prompt that does not fit into the context with its answer, or that was read in part only, is `unusable`.

        Raises:
            OutOfRangeError: the endpoint says that the prompt does not fit, or it cannot.
            InvalidArgumentError: the endpoint refuses this prompt.
            FailedPreconditionError: it refuses key, model or parameters, is no such endpoint, or has no money left.
            UnavailableError, ResourceExhaustedError: it failed `attempts` times, or asks to come back after the deadline.
            DeadlineExceededError: `timeout_seconds` have passed.
        """
        size = len(prompt.encode("utf-8"))
        least = size // _MOST_BYTES_PER_TOKEN
        if least + max_tokens > self._config.context_tokens:
            raise OutOfRangeError(f"{size} bytes are at least {least} tokens; with {max_tokens} for the answer over {self._config.context_tokens}")
        deadline = time.monotonic() + self._config.timeout_seconds
        try:
            async with asyncio.timeout(self._config.timeout_seconds):
                found = await self._patiently(self._request(prompt, max_tokens, temperature, seed), deadline)
        except TimeoutError:
            raise DeadlineExceededError(f"{self.place} did not answer within {self._config.timeout_seconds:g} s") from None
        count_tokens(self._name, found.prompt_tokens, found.completion_tokens)
        COST.labels(self._name).inc(found.cost)
        return replace(found, unusable=found.unusable or self._unread(found, size, max_tokens))

    async def close(self) -> None:
        """Closes all connections; what is being asked is broken off."""
        await self._client.aclose()

    def _request(self, prompt: str, max_tokens: int, temperature: float, seed: int | None) -> dict[str, Any]:
        config = self._config
        body: dict[str, Any] = {
            "model": config.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": temperature,
            "seed": seed,
            config.max_tokens_field: max_tokens,
        }
        if config.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": config.top_logprobs}
        return {key: value for key, value in (body | config.body).items() if value is not None}

    async def _patiently(self, body: Mapping[str, Any], deadline: float) -> Completion:
        """Tries with pauses that double and vary, or that the endpoint asks for, while there is time for them."""
        pause = _FIRST_PAUSE_SECONDS
        for attempt in range(1, self._config.attempts + 1):
            try:
                return await self._once(body)
            except (UnavailableError, ResourceExhaustedError) as error:
                wait = max(error.retry_after_seconds or 0.0, pause * random.uniform(0.5, 1.0))
                if attempt == self._config.attempts or time.monotonic() + wait >= deadline:
                    error.retry_after_seconds = wait
                    raise
                reason = error.metadata.get("reason", "")
                RETRIES.labels(self._name, reason).inc()
                _log.info("judge_retry", judge=self._name, reason=reason, attempt=attempt, wait_seconds=round(wait, 2))
            await asyncio.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        raise AssertionError("the last attempt has returned or raised")

    async def _once(self, body: Mapping[str, Any]) -> Completion:
        CALLS.labels(self._name, "chat").inc()
        try:
            reply = read_reply(await self._client.post(f"{self._config.base_url}/chat/completions", json=body))
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise self._away(f"cannot be reached ({type(error).__name__})", "connection") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise self._away(f"broke off ({type(error).__name__})", "connection") from None
        except (httpx.InvalidURL, httpx.HTTPError) as error:
            raise FailedPreconditionError(f"{self.place} cannot be asked ({type(error).__name__})", field="judge") from None
        if reply.status != httpx.codes.OK or (isinstance(reply.body, dict) and "error" in reply.body and "choices" not in reply.body):
            raise self._error(reply)
        try:
            return read_completion(reply.body, self._price)
        except NoUsageError:
            said = f"{self.place} gives no usage, so that what it costs cannot be counted: only a price of 0 is possible"
            raise FailedPreconditionError(said, field="judge") from None
        except ValueError as error:
            raise self._away(f"answered what is no chat completion: {error}", "garbage") from None

    def _error(self, reply: Reply) -> AccordError:
        """The error that a refusal means."""
        body = reply.body if isinstance(reply.body, dict) else {}
        error = body.get("error", body)
        code = str(error.get("code") or error.get("type") or "") if isinstance(error, dict) else ""
        status = _status_of(reply.status, code)
        words = " ".join(self._key.blotted(reply.refusal or reply.text).split())[:_QUOTED_CHARACTERS]
        said = f"{self.place} answered {status}: {words or 'nothing'}"
        if status in (401, 403):
            return FailedPreconditionError(f"{said}; see judges.{self._name}.api_key_env and api_key_file", field="judge")
        if status == 402 or (status == 429 and _NO_MONEY.search(f"{code} {words}")):
            return FailedPreconditionError(f"{said}; the account has no money left", field="judge")
        if status == 429:
            return ResourceExhaustedError(said, retry_after_seconds=retry_after_seconds(reply.headers), metadata={"reason": "429"})
        if _OVERFLOW.search(f"{code} {words}") and status in (400, 413, 422, 500):
            return OutOfRangeError(words)
        if status in (400, 413, 422):
            advice = f"; set judges.{self._name}.top_logprobs to what it takes, 0 for verdicts as text" if "logprob" in words else ""
            return InvalidArgumentError(f"{said}{advice}")
        if status in (408, 409, 425) or status >= 500:
            return self._away(f"answered {status}: {words}", str(status), retry_after_seconds(reply.headers))
        return FailedPreconditionError(f"{said}; correct judges.{self._name}.base_url or model", field="judge")

    def _away(self, what: str, reason: str, pause: float | None = None) -> UnavailableError:
        return UnavailableError(f"{self.place} {what}", retry_after_seconds=pause, metadata={"reason": reason})

    def _unread(self, found: Completion, size: int, max_tokens: int) -> str:
        """Why an answer is not about the whole prompt, empty where it is. A server that cuts prompts in silence reads up to its context."""
        context, read = self._config.context_tokens, found.prompt_tokens
        if read + max_tokens > context:
            return f"{OVERFLOW}: {read} prompt tokens and {max_tokens} for the answer; at most {context} are allowed"
        if 0 < read < size // _MOST_BYTES_PER_TOKEN:
            return f"{OVERFLOW}: the endpoint has read {read} tokens of a prompt of {size} bytes"
        return ""

    def _trust(self) -> ssl.SSLContext | bool:
        if self._config.ca_file is None:
            return True
        try:
            return ssl.create_default_context(cafile=str(self._config.ca_file))
        except (OSError, ssl.SSLError) as error:
            field = f"judges.{self._name}.ca_file"
            raise FailedPreconditionError(f"{self._config.ca_file} cannot be read: {type(error).__name__}", field=field) from None


def _status_of(status: int, code: str) -> int:
    """The status that is meant: some gateways answer 200 with an error and its status inside."""
    if status != httpx.codes.OK:
        return status
    return int(code) if re.fullmatch("[45][0-9]{2}", code) else 500
