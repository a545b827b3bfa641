"""A double of an OpenAI-compatible chat endpoint: a judge with the opinions of `tests.unit.feedback.fakes`, and faults on demand.

Settings of `POST /double` besides those of `http_double`: `faults`, a list of which each chat request takes one (see `_fault`); `fingerprint`;
`logprobs`; `context` in tokens; `cached_tokens`. A token is four characters of a prompt. What does not belong here: our client's expectations.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
import uuid
from pathlib import Path
from typing import Any, ClassVar

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[3])]

from tests.contract.doubles.http_double import CallerLeft, Handler, Refused, serve
from tests.unit.feedback.fakes import quality, rating_shares

MODEL = "judge-large"
BIAS = 0.5
ELSEWHERE = 0.1  # what goes to tokens that are no verdict
_VERDICT = re.compile(r"### (?:Summary|Response) 1\n(.*?)\n\n### (?:Summary|Response) 2\n(.*?)\n\n### Your task", re.DOTALL)
_RATING = re.compile(r"### (?:Summary|Response)\n(.*?)\n\n### Your task", re.DOTALL)


def verdict_share(first: str, second: str) -> float:
    """P(first) of the double, renormalized over both verdicts."""
    return 1 / (1 + math.exp(-(quality(first) - quality(second) + BIAS)))


def _error(status: int, message: str, code: str | None = None) -> Refused:
    return Refused(status, {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}})


class OpenAIDouble(Handler):
    """The one route that a judge uses."""

    routes: ClassVar[dict[tuple[str, str], str]] = {("POST", "/v1/chat/completions"): "chat"}

    def unauthorized(self) -> Any:
        given = self.headers.get("authorization", "")
        return {"error": {"message": f"Incorrect API key provided: {given}.", "type": "invalid_request_error", "code": "invalid_api_key"}}

    def chat(self, body: Any) -> Any:
        settings = self.watch.settings
        fault = self._fault()
        if body["model"] != MODEL:
            raise _error(404, f"The model `{body['model']}` does not exist or you do not have access to it.", "model_not_found")
        prompt = body["messages"][-1]["content"]
        read = len(prompt) // 4
        if settings.get("context") and read > settings["context"]:
            text = f"This model's maximum context length is {settings['context']} tokens. However, your messages resulted in {read} tokens."
            raise _error(400, text, "context_length_exceeded")
        tokens = [(fault["text"], [])] if "text" in fault else _write(prompt)
        logprobs = body.get("logprobs") and settings.get("logprobs", True) and "text" not in fault
        entries = [_entry(token, others, body.get("top_logprobs", 0)) for token, others in tokens]
        message = {"role": "assistant", "content": "".join(token for token, _ in tokens), "refusal": fault.get("refusal")}
        choice = {"index": 0, "message": message, "logprobs": {"content": entries} if logprobs else None, "finish_reason": "stop"}
        usage = {"prompt_tokens": read, "completion_tokens": len(tokens), "total_tokens": read + len(tokens)}
        usage["prompt_tokens_details"] = {"cached_tokens": settings.get("cached_tokens", 0)}
        found = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time()), "model": MODEL, "choices": [choice]}
        return {**found, "system_fingerprint": settings.get("fingerprint", "fp_1"), **({} if settings.get("no_usage") else {"usage": usage})}

    def _fault(self) -> dict[str, Any]:
        """Takes the next fault: a refusal {status, body, headers}, {garbage}, {drop}, {seconds} of silence; {text} or {refusal} go into the answer."""
        with self.watch.lock:
            queue = self.watch.settings.get("faults") or []
            fault: dict[str, Any] = (queue.pop(0) or {}) if queue else {}
        if "seconds" in fault:
            give_up = time.monotonic() + fault["seconds"]
            while time.monotonic() < give_up:
                self.step()
                time.sleep(0.02)
        if "drop" in fault:
            self.connection.shutdown(2)
            raise CallerLeft
        if "garbage" in fault:
            raise Refused(200, fault["garbage"])
        if "status" in fault:
            self.extra_headers = fault.get("headers", {})
            words = f"fault {fault['status']} for {self.headers.get('authorization')}"
            raise Refused(fault["status"], fault.get("body", {"error": {"message": words, "type": "server_error", "code": None}}))
        return fault

    extra_headers: ClassVar[dict[str, str]] = {}

    def send_bytes(self, status: int, content: bytes, kind: str, headers: dict[str, str]) -> None:
        extra, self.extra_headers = self.extra_headers, {}  # type: ignore[misc]
        super().send_bytes(status, content, kind, {**headers, **extra})


def _write(prompt: str) -> list[tuple[str, list[tuple[str, float]]]]:
    """The answer's tokens, each with its alternatives and their probabilities."""
    if verdict := _VERDICT.search(prompt):
        share = verdict_share(verdict.group(1), verdict.group(2))
        shares = [("1", share * (1 - ELSEWHERE)), ("2", (1 - share) * (1 - ELSEWHERE)), ("both", ELSEWHERE)]
        reasons = [("Both", []), (" were", []), (" weighed.", []), ("\n", [])] if "End with the verdict line" in prompt else []
        return [*reasons, ('"rank"', []), (": [", []), (max(shares[:2], key=lambda item: item[1])[0], shares), ("]", [])]
    if rating := _RATING.search(prompt):
        shares = [(str(number), share) for number, share in enumerate(rating_shares(rating.group(1)), start=1)]
        return [('"rating"', []), (": [", []), (max(shares, key=lambda item: item[1])[0], shares), ("]", [])]
    return [("yes", [])]


def _entry(token: str, others: list[tuple[str, float]], most: int) -> dict[str, Any]:
    shares = sorted(others or [(token, 1.0)], key=lambda item: -item[1])[:most]
    listed = [{"token": text, "logprob": math.log(share), "bytes": list(text.encode())} for text, share in shares]
    own = next((entry for entry in listed if entry["token"] == token), {"token": token, "logprob": -0.1, "bytes": list(token.encode())})
    return {**own, "top_logprobs": listed}


def _handler(_: argparse.Namespace) -> type[Handler]:
    return OpenAIDouble


if __name__ == "__main__":
    serve(_handler, argparse.ArgumentParser(description=__doc__))
