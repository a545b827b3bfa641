"""What a chat endpoint writes, with the logprobs of what it could have written instead. Pure.

The JSON is that of OpenAI's chat completions (`choices[0].message.content`, `choices[0].logprobs.content[].top_logprobs[]`, `usage`,
`system_fingerprint`), which vLLM, TGI, llama.cpp and others speak. What does not belong here: asking (`accord.feedback.endpoint`) and what an
answer means (`accord.feedback.judges.written`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accord.feedback.judge_config import Price

_MOST_TOKENS = 10**9
_LEAST_LOGPROB, _ROUNDING = 1e30, 1e-3


class NoUsageError(ValueError):
    """A completion does not say how many tokens it took, and they cost money."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """What could stand at a place: its bytes and its logprob in nats."""

    text: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was written, and the most probable ones at its place: the one that was written among them."""

    text: bytes
    alternatives: tuple[Alternative, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer; `tokens` are empty where the endpoint gives no logprobs, `unusable` says why the answer says nothing, if it does not."""

    text: str
    tokens: tuple[Token, ...] = ()
    finish_reason: str = ""
    unusable: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    fingerprint: str = ""

    def place_of(self, position: int) -> tuple[int, int] | None:
        """Which token holds a character of the text, and how many of the token's bytes stand before it; None where tokens do not spell the text."""
        offset = b"".join(token.text for token in self.tokens).find(self.text.encode("utf-8"))
        if offset < 0 or not self.text:
            return None
        offset += len(self.text[:position].encode("utf-8"))
        for index, token in enumerate(self.tokens):
            if offset < len(token.text):
                return index, offset
            offset -= len(token.text)
        return None

    def alternatives_from(self, position: int) -> list[tuple[str, float]]:
        """What could stand from a character of the text on: (beginning of the text from there, logprob in nats), as far as one token goes.

        Only alternatives that agree with the text up to the character; spaces before it may differ. Empty where there are no logprobs.
        """
        place = self.place_of(position)
        if place is None:
            return []
        token, lead = self.tokens[place[0]], self.tokens[place[0]].text[: place[1]]
        found = []
        for alternative in token.alternatives:
            if not lead.strip():
                rest = alternative.text.lstrip()
            elif alternative.text.startswith(lead):
                rest = alternative.text[len(lead) :]
            else:
                continue
            found.append((rest.decode("utf-8", "replace"), alternative.logprob))
        return found

    def is_last_byte(self, position: int) -> bool:
        """Whether a character of one byte ends its token, so that what follows it is a choice of its own."""
        place = self.place_of(position)
        return place is not None and place[1] == len(self.tokens[place[0]].text) - 1


def read_completion(body: Any, price: Price) -> Completion:
    """The completion of a body.

    Raises:
        NoUsageError: `usage` is missing where tokens cost money.
        ValueError: it is no chat completion; the message says what is missing.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise ValueError("choices[0].message is missing")
    content, refusal = message.get("content"), message.get("refusal")
    if content is not None and not isinstance(content, str):
        raise ValueError("choices[0].message.content is no text")
    finish = str(choice.get("finish_reason") or "")
    prompt_tokens, completion_tokens, cached = _usage(body.get("usage"), price)
    return Completion(
        content or "",
        _tokens(choice.get("logprobs")),
        finish,
        _unusable(finish, refusal),
        prompt_tokens,
        completion_tokens,
        price.cost(prompt_tokens, completion_tokens, cached),
        str(body.get("system_fingerprint") or ""),
    )


def log_sum(logprobs: list[float]) -> float:
    """log of the sum of probabilities, in nats; -inf for none."""
    if not logprobs:
        return -math.inf
    top = max(logprobs)
    return top + math.log(math.fsum(math.exp(value - top) for value in logprobs))


def _unusable(finish: str, refusal: Any) -> str:
    if isinstance(refusal, str) and refusal:
        return f"refused: {' '.join(refusal.split())[:200]}"
    return "refused: the endpoint's content filter" if finish == "content_filter" else ""


def _usage(usage: Any, price: Price) -> tuple[int, int, int]:
    """Tokens of prompt and completion, and those of the prompt that were cached; 0 for what is not said where nothing costs anything."""
    said = usage if isinstance(usage, Mapping) else {}
    if price.cost(10**6, 10**6) > 0 and (said.get("prompt_tokens") is None or said.get("completion_tokens") is None):
        raise NoUsageError
    prompt, completion = _count(said.get("prompt_tokens") or 0), _count(said.get("completion_tokens") or 0)
    details = said.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens") or 0) if isinstance(details, Mapping) else 0
    return prompt, completion, min(cached, prompt)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_TOKENS:
        raise ValueError("usage holds what is no number of tokens")
    return value


def _tokens(logprobs: Any) -> tuple[Token, ...]:
    """The tokens of a choice; none where one of them cannot be read, since what stands where is then not known."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    tokens = []
    for entry in content if isinstance(content, list) else []:
        written = _alternative(entry)
        if written is None:
            return ()
        listed = entry.get("top_logprobs")
        others = [_alternative(other) for other in listed] if isinstance(listed, list) else []
        kept = {found.text: found for found in (written, *others) if found is not None}
        tokens.append(Token(written.text, tuple(kept.values())))
    return tuple(tokens)


def _alternative(entry: Any) -> Alternative | None:
    if not isinstance(entry, dict):
        return None
    token, logprob, stored = entry.get("token"), entry.get("logprob"), entry.get("bytes")
    if not isinstance(token, str) or isinstance(logprob, bool) or not isinstance(logprob, int | float) or not -_LEAST_LOGPROB < logprob < _ROUNDING:
        return None
    try:
        text = bytes(stored) if isinstance(stored, list) and stored else token.encode("utf-8")
    except (ValueError, TypeError, UnicodeEncodeError):
        return None
    return Alternative(text, min(float(logprob), 0.0))
