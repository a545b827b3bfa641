"""A double of vLLM's OpenAI-compatible server: the shapes of its replies (0.32), computed with a tiny model.

`--logprobs-mode` as vLLM's (the setting `processed` is for one that was started anew with another); `--no-lora` answers as a server without runtime loading. What does not belong here: our client's expectations.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[3])]

from tests.contract.doubles.http_double import Handler, Refused, serve
from tests.contract.doubles.tiny_sampler import Choice, TinySampler

MODEL = "tiny"


def _error(status: int, message: str, kind: str = "BadRequestError") -> Refused:
    return Refused(status, {"error": {"message": message, "type": kind, "param": None, "code": status}})


class VllmDouble(Handler):
    """The routes that a replica uses."""

    sampler: TinySampler
    processed = False
    roots: ClassVar[dict[str, str]] = {}
    routes: ClassVar[dict[tuple[str, str], str]] = {
        ("GET", "/health"): "health",
        ("GET", "/v1/models"): "models",
        ("POST", "/v1/completions"): "completions",
        ("POST", "/v1/load_lora_adapter"): "load_lora",
        ("POST", "/v1/unload_lora_adapter"): "unload_lora",
    }

    def reset(self) -> None:
        self.roots.clear()

    def health(self, _: Any) -> str:
        return ""

    def models(self, _: Any) -> Any:
        card = {"object": "model", "created": int(time.time()), "owned_by": "vllm", "permission": []}
        base = {**card, "id": MODEL, "root": self.sampler.folder, "parent": None, "max_model_len": self.sampler.context}
        loras = [{**card, "id": name, "root": root, "parent": MODEL, "max_model_len": None} for name, root in self.roots.items()]
        return {"object": "list", "data": [base, *loras]}

    def load_lora(self, body: Any) -> str:
        name, path = body["lora_name"], body["lora_path"]
        if name in self.roots:
            raise _error(400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
        if not os.path.isfile(os.path.join(path, "adapter_config.json")):
            raise _error(404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError")
        self.sampler.load(name, path)
        self.roots[name] = path
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload_lora(self, body: Any) -> str:
        if self.roots.pop(body["lora_name"], None) is None:
            raise _error(404, f"The lora adapter '{body['lora_name']}' cannot be found.", "NotFoundError")
        return f"Success: LoRA adapter '{body['lora_name']}' removed successfully."

    def completions(self, body: Any) -> Any:
        model = body.get("model") or MODEL
        if model != MODEL and model not in self.roots:
            raise _error(404, f"The model `{model}` does not exist.", "NotFoundError")
        prompt = body["prompt"]
        if isinstance(prompt, str):
            prompt = self.sampler.tokenizer.encode(prompt, add_special_tokens=body.get("add_special_tokens", True)).ids
        most = body.get("max_tokens", 16)
        if len(prompt) + most > self.sampler.context:
            raise _error(400, f"This model's maximum context length is {self.sampler.context} tokens. However, your request has more.")
        if (body.get("logprobs") or 0) > 20:
            raise _error(400, f"Requested sample logprobs of {body['logprobs']}, which is greater than max allowed: 20")
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": model}
        pieces = self._pieces(body, prompt, most, "" if model == MODEL else model)
        return self._stream(head, pieces, prompt) if body.get("stream") else self._whole(head, pieces, prompt, body, model)

    def _stream(self, head: Any, pieces: Iterator[Any], prompt: list[int]) -> Iterator[str]:
        for index, piece in enumerate(pieces):
            choice = {**piece, "prompt_token_ids": None if index else prompt}
            yield "data: " + json.dumps({**head, "choices": [choice]}, ensure_ascii=False)
        yield "data: [DONE]"

    def _whole(self, head: Any, pieces: Iterator[Any], prompt: list[int], body: Any, model: str) -> Any:
        whole: dict[str, Any] = {
            "index": 0,
            "text": "",
            "token_ids": [],
            "logprobs": {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []},
        }
        for piece in pieces:
            whole["text"] += piece["text"]
            whole["token_ids"] += piece["token_ids"]
            for name, values in (piece["logprobs"] or {}).items():
                whole["logprobs"][name] += values
            whole |= {"finish_reason": piece["finish_reason"], "stop_reason": piece["stop_reason"]}
        whole["prompt_token_ids"] = prompt
        if body.get("logprobs") is None:
            whole["logprobs"] = None
        if not body.get("return_token_ids"):
            whole |= {"token_ids": None, "prompt_token_ids": None}
        whole["prompt_logprobs"] = None
        if body.get("prompt_logprobs") is not None:
            values = self.sampler.prompt_logprobs(prompt, "" if model == MODEL else model)
            whole["prompt_logprobs"] = [
                None if value is None else {str(token): {"logprob": value, "rank": 1, "decoded_token": self._text([token])}}
                for token, value in zip(prompt, values, strict=True)
            ]
        done = len(whole["token_ids"] or [])
        return {**head, "choices": [whole], "usage": {"prompt_tokens": len(prompt), "completion_tokens": done, "total_tokens": len(prompt) + done}}

    def _pieces(self, body: Any, prompt: list[int], most: int, adapter: str) -> Iterator[Any]:
        wanted = body.get("logprobs")
        temperature = body.get("temperature", 1.0)
        choice = Choice(
            temperature=temperature if temperature == 0 else max(temperature, 0.01), top_p=body.get("top_p", 1.0), top_k=body.get("top_k", 0),
            min_p=body.get("min_p", 0.0), repetition_penalty=body.get("repetition_penalty", 1.0), seed=body.get("seed", 0), top=wanted or 0,
            processed=self.processed if (set_now := self.watch.settings.get("processed")) is None else set_now,
        )  # fmt: skip
        ids: list[int] = []
        for step in self.sampler.steps(prompt, choice, adapter):
            self.step()
            ids.append(step.token)
            text = self._text(ids)
            stopped = next((stop for stop in body.get("stop") or [] if stop in text), None)
            finish: tuple[str | None, Any] = (None, None)
            if step.token == self.sampler.eos and not body.get("ignore_eos"):
                finish = ("stop", None)
            elif step.token in (body.get("stop_token_ids") or []):
                finish = ("stop", step.token)
            elif stopped is not None:
                finish = ("stop", stopped)
            elif len(ids) >= most:
                finish = ("length", None)
            yield {
                "index": 0, "text": self._text([step.token]), "token_ids": [step.token], "finish_reason": finish[0], "stop_reason": finish[1],
                "logprobs": None if wanted is None else self._logprobs(step),
            }  # fmt: skip
            if finish[0]:
                return

    def _logprobs(self, step: Any) -> Any:
        name = f"token_id:{step.token}"
        top = {name: max(step.logprob, -9999.0)} | {f"token_id:{token}": max(value, -9999.0) for token, value in step.top}
        return {"tokens": [name], "token_logprobs": [max(step.logprob, -9999.0)], "top_logprobs": [top], "text_offset": [0]}

    def _text(self, ids: list[int]) -> str:
        return str(self.sampler.tokenizer.decode(ids, skip_special_tokens=True))


def _handler(options: argparse.Namespace) -> type[Handler]:
    VllmDouble.sampler = TinySampler(options.model)
    VllmDouble.processed = options.logprobs_mode == "processed_logprobs"
    if options.no_lora:
        VllmDouble.routes = {key: name for key, name in VllmDouble.routes.items() if "lora" not in key[1]}
    return VllmDouble


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--model", required=True)
    options.add_argument("--logprobs-mode", default="raw_logprobs")
    options.add_argument("--no-lora", action="store_true")
    serve(_handler, options)
