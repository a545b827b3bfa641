"""A double of Text Generation Inference's REST API: the shapes of its replies (3.x), computed with a tiny model.

Adapters are given at the start (`--adapter id=folder`); `--no-prefill` answers as a server without `--enable-prefill-logprobs`. What does not
belong here: our client's expectations.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[3])]

from tests.contract.doubles.http_double import Handler, Refused, serve
from tests.contract.doubles.tiny_sampler import Choice, TinySampler

STOP_SEQUENCES, TOP_N_TOKENS = 4, 5


def _invalid(message: str) -> Refused:
    return Refused(422, {"error": f"Input validation error: {message}", "error_type": "validation"})


class TgiDouble(Handler):
    """The routes that a replica uses."""

    sampler: TinySampler
    prefill = True
    routes: ClassVar[dict[tuple[str, str], str]] = {
        ("GET", "/health"): "health",
        ("GET", "/info"): "info",
        ("POST", "/tokenize"): "tokenize",
        ("POST", "/generate"): "generate",
        ("POST", "/generate_stream"): "generate_stream",
    }

    def health(self, _: Any) -> str:
        return ""

    def info(self, _: Any) -> Any:
        return {
            "model_id": self.sampler.folder, "model_sha": None, "model_pipeline_tag": None, "max_concurrent_requests": 128, "max_best_of": 2,
            "max_stop_sequences": STOP_SEQUENCES, "max_input_tokens": self.sampler.context - 1, "max_total_tokens": self.sampler.context,
            "validation_workers": 2, "max_client_batch_size": 4, "router": "text-generation-router", "version": "3.3.6", "sha": None, "docker_label": None,
        }  # fmt: skip

    def tokenize(self, body: Any) -> Any:
        encoding = self.sampler.tokenizer.encode(body["inputs"], add_special_tokens=True)
        return [
            {"id": token, "text": body["inputs"][start:stop], "start": start, "stop": stop}
            for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]

    def generate(self, body: Any) -> Any:
        prompt, parameters = self._valid(body)
        steps = list(self._steps(prompt, parameters))
        prefill = []
        if parameters.get("decoder_input_details") and self.prefill:
            values = self.sampler.prompt_logprobs(prompt, parameters.get("adapter_id") or "")
            prefill = [{"id": token, "text": self._text(token), "logprob": value} for token, value in zip(prompt, values, strict=True)]
        text = str(self.sampler.tokenizer.decode([step["token"]["id"] for step, _ in steps], skip_special_tokens=True))
        details = {
            "finish_reason": steps[-1][1], "generated_tokens": len(steps), "seed": parameters.get("seed"), "prefill": prefill,
            "tokens": [step["token"] for step, _ in steps],
        }  # fmt: skip
        return {"generated_text": text, "details": details}

    def generate_stream(self, body: Any) -> Iterator[str]:
        try:
            prompt, parameters = self._valid(body)
            if parameters.get("decoder_input_details"):
                raise _invalid("`decoder_input_details` == true is not supported when streaming tokens")
        except Refused as refusal:  # a stream has begun already when TGI validates
            yield "data:" + json.dumps(refusal.body)
            return
        ids: list[int] = []
        for index, (step, finish) in enumerate(self._steps(prompt, parameters), start=1):
            ids.append(step["token"]["id"])
            event: dict[str, Any] = {"index": index, **step, "generated_text": None, "details": None}
            if finish:
                event["generated_text"] = str(self.sampler.tokenizer.decode(ids, skip_special_tokens=True))
                event["details"] = {
                    "finish_reason": finish, "generated_tokens": index, "seed": parameters.get("seed"), "input_length": len(prompt),
                }  # fmt: skip
            yield "data:" + json.dumps(event, ensure_ascii=False)

    def _valid(self, body: Any) -> tuple[list[int], dict[str, Any]]:
        parameters = {name: value for name, value in body.get("parameters", {}).items() if value is not None}
        if not body.get("inputs"):
            raise _invalid("`inputs` cannot be empty")
        for name, low, high in (("temperature", 0, None), ("top_k", 0, None), ("top_p", 0, 1), ("repetition_penalty", 0, None)):
            value = parameters.get(name)
            if value is not None and (value <= low or (high is not None and value >= high)):
                raise _invalid(f"`{name}` is out of range")
        if len(parameters.get("stop", [])) > STOP_SEQUENCES:
            raise _invalid(f"`stop` supports up to {STOP_SEQUENCES} stop sequences")
        if parameters.get("top_n_tokens", 0) > TOP_N_TOKENS:
            raise _invalid(f"`top_n_tokens` must be >= 0 and <= {TOP_N_TOKENS}")
        if parameters.get("adapter_id") and parameters["adapter_id"] not in self.sampler.models:
            raise _invalid(f"adapter_id {parameters['adapter_id']} is not loaded")
        prompt = list(self.sampler.tokenizer.encode(body["inputs"], add_special_tokens=True).ids)
        if len(prompt) + parameters.get("max_new_tokens", 20) > self.sampler.context:
            raise _invalid(f"`inputs` tokens + `max_new_tokens` must be <= {self.sampler.context}")
        return prompt, parameters

    def _steps(self, prompt: list[int], parameters: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str | None]]:
        samples = parameters.get("do_sample", False) or any(name in parameters for name in ("temperature", "top_k", "top_p"))
        choice = Choice(
            temperature=parameters.get("temperature", 1.0) if samples else 0, top_p=parameters.get("top_p", 1.0), top_k=parameters.get("top_k", 0),
            repetition_penalty=parameters.get("repetition_penalty", 1.0), seed=parameters.get("seed", 0) % 2**63,
            top=parameters.get("top_n_tokens", 0), processed=True,
        )  # fmt: skip
        for count, step in enumerate(self.sampler.steps(prompt, choice, parameters.get("adapter_id") or ""), start=1):
            self.step()
            finish = "length" if count >= parameters.get("max_new_tokens", 20) else "eos_token" if step.token == self.sampler.eos else None
            found = {"token": self._token(step.token, step.logprob)}
            if step.top:
                found["top_tokens"] = [self._token(token, value) for token, value in step.top]
            yield found, finish
            if finish:
                return

    def _token(self, token: int, logprob: float) -> Any:
        return {"id": token, "text": self._text(token), "logprob": logprob, "special": token < 3}

    def _text(self, token: int) -> str:
        return str(self.sampler.tokenizer.decode([token], skip_special_tokens=False))


def _handler(options: argparse.Namespace) -> type[Handler]:
    TgiDouble.sampler = TinySampler(options.model)
    TgiDouble.prefill = not options.no_prefill
    for adapter in options.adapter:
        name, _, folder = adapter.partition("=")
        TgiDouble.sampler.load(name, folder)
    return TgiDouble


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--model", required=True)
    options.add_argument("--adapter", action="append", default=[])
    options.add_argument("--no-prefill", action="store_true")
    serve(_handler, options)
