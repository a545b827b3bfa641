"""Client of vLLM's OpenAI-compatible server, as of vLLM 0.32 (its own names: `return_token_ids`, `prompt_logprobs`, `ignore_eos`, ...).

What was found in its source and documentation, and what follows from it:

- Prompts go as token ids and answers come as token ids (`return_token_ids`), so nothing is tokenized twice. Every sampling parameter is sent,
  since the server fills what is missing from the model's generation_config.json.
- `--logprobs-mode raw_logprobs` (its default) reports log-softmax of the logits before temperature, penalties and truncation: the contract's
  logprobs at temperature 1 and 0 alone. `processed_logprobs` reports them after all of these: the contract's at every temperature as long as
  nothing is truncated or penalized. `describe` finds out which by asking for one token at two temperatures. In processed mode with truncation
  at temperature 1 or 0 the response is scored again by `prompt_logprobs`, which no mode changes; what neither way gives is refused by `check`.
- `n` is not used: vLLM gives sample i the seed s + i, which makes neighbouring seeds share samples. Each sample is a request of its own with
  the seed of `remote_server.sample_seed`; the server's prefix cache reads their prompt once.
- Positive temperatures below 0.01 are raised to 0.01 by the server, so they are refused here.
- `prompt_logprobs` are computed without the prefix cache and at temperature 1 alone, and need room for one token to generate.
- LoRA at runtime: `/v1/load_lora_adapter` with `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True` and `--enable-lora`. The server reads the folder itself,
  so both must see it. An adapter goes by our version name and the beginning of its digest, so that two stores cannot be mixed up.
- A LoRA wrapper around lm_head makes `prompt_logprobs` wrong (vLLM issue 51594), and in a batch of two it killed vLLM 0.32 on a CPU: start the
  server with `--lora-target-modules` without lm_head. It then passes over lm_head in an adapter silently, so such adapters are refused here.
- Closing the connection aborts the request, streamed or not.

What does not belong here: HTTP itself (`accord.policy.http_peer`), the queue and the adapters that are held (`remote`, `remote_adapters`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

from accord.errors import (
    AccordError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    UnavailableError,
    UnimplementedError,
)
from accord.models.encoding import PromptEncoder
from accord.policy.backend import GenerationRequest, LogprobsRequest, SamplingSettings
from accord.policy.http_peer import HttpPeer
from accord.policy.remote_config import RemoteConfig
from accord.policy.remote_server import AdapterFiles, Ask, Piece, altered, differences
from accord.policy.vllm_reply import PROBE_TOP, logprobs_mode_of, piece_of

_LEAST_TEMPERATURE = 0.01
_PROBE_TEXT = "Accord asks 12 naïve questions;\n\n  who answers 🌊?"
_DIGEST_CHARACTERS = 12
_SCORING_HINT = "If it died of scoring under --enable-lora: start it with --lora-target-modules, without lm_head"
_NOT_SERVED = ("lm_head", "embed_tokens")
_COMPLETIONS = "/v1/completions"


class VllmServer:
    """Implements `accord.policy.remote_server.RemoteServer`.

    Args:
        config: where the server is.
        encoder: of the base model that it should serve.
        eos_token_ids: what ends a response.
    """

    name = "vllm"

    def __init__(self, config: RemoteConfig, encoder: PromptEncoder, eos_token_ids: Sequence[int]) -> None:
        self._config = config
        self._encoder = encoder
        self._eos = frozenset(eos_token_ids)
        self._peer = HttpPeer("vLLM", config)
        self._model = config.model
        self._facts: dict[str, Any] = {}
        self._context = 0
        self._mode: Literal["raw", "processed"] = "raw"

    async def describe(self) -> int:
        """Finds the base model, compares tokenizers and learns the logprobs mode; see `RemoteServer.describe`."""
        self._facts = await self._look()
        self._model, self._context, self._mode = self._facts["model"], self._facts["max_model_len"], self._facts["logprobs mode"]
        return self._context - 1

    async def changed(self) -> str | None:
        """Looks again; see `RemoteServer.changed`."""
        return differences(self._facts, await self._look())

    async def _look(self) -> dict[str, Any]:
        found = await self._base_model()
        model = str(found["id"])
        once, twice = await self._probe(model, 1.0), await self._probe(model, 2.0)
        if once.get("prompt_token_ids") != self._encoder.encode_text(_PROBE_TEXT):
            raise FailedPreconditionError(
                f"{self._peer.place} tokenizes differently from base_model: it serves another model, or is too old for return_token_ids",
                field="base_model",
            )
        try:
            mode = logprobs_mode_of(once, twice)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise FailedPreconditionError(
                f"{self._peer.place} reports no logprobs that can be used: start it with --logprobs-mode processed_logprobs, or raw_logprobs",
                field="remote",
            ) from error
        return {"model": model, "root": found.get("root"), "max_model_len": int(found["max_model_len"]), "logprobs mode": mode}

    def check(self, request: GenerationRequest | LogprobsRequest, field: str) -> None:
        """See the module's docstring for what cannot be exact."""
        if isinstance(request, LogprobsRequest):
            if request.temperature not in (0, 1):
                raise UnimplementedError(f"temperature is {request.temperature:g}; vLLM computes given logprobs at 1 alone", field="temperature")
            longest = len(request.prompt_ids) + max(map(len, request.responses), default=0)
            if longest >= self._context:
                raise OutOfRangeError(f"prompt and response have {longest} tokens; vLLM scores at most {self._context - 1}", field=field)
            return
        sampling, where = request.sampling, f"{field}.sampling"
        if 0 < sampling.temperature < 0.999 * _LEAST_TEMPERATURE:  # the wire's float32 of 0.01 is a little less
            raise InvalidArgumentError(
                f"temperature is {sampling.temperature:g}; vLLM raises it to {_LEAST_TEMPERATURE:g}, which is the least allowed besides 0",
                field=f"{where}.temperature",
            )
        plain = sampling.temperature in (0, 1)
        if self._mode == "raw" and not plain:
            raise FailedPreconditionError(
                f"temperature is {sampling.temperature:g}, and {self._peer.place} reports logprobs at temperature 1: "
                "start it with --logprobs-mode processed_logprobs",
                field=f"{where}.temperature",
            )
        if self.rescored(sampling) and (not plain or sampling.top_logprobs):
            raise UnimplementedError(
                f"temperature {sampling.temperature:g} and top_logprobs {sampling.top_logprobs} with top_p, top_k, min_p or repetition_penalty: "
                "vLLM reports logprobs after these; leave them out, or ask for temperature 1 or 0 without top_logprobs",
                field=where,
            )

    def rescored(self, sampling: SamplingSettings) -> bool:
        """In processed mode, where sampling is truncated or penalized."""
        return self._mode == "processed" and altered(sampling)

    async def generate(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        """One sample; see `RemoteServer.generate`."""
        body = self._body(ask)
        if not ask.stream:
            reply = await self._completion(body, ask.adapter)
            yield self._piece(self._choice(reply), ask.sampling)
            return
        async with aclosing(self._peer.events(_COMPLETIONS, {**body, "stream": True})) as events:
            try:
                async for event in events:
                    if event.get("choices"):
                        yield self._piece(self._choice(event), ask.sampling)
            except NotFoundError as error:
                raise self._unknown(ask.adapter, error) from error

    async def logprobs(self, prompt_ids: tuple[int, ...], response: tuple[int, ...], adapter: str) -> list[float]:
        """By `prompt_logprobs`; see `RemoteServer.logprobs`."""
        body = {"model": adapter or self._model, "prompt": [*prompt_ids, *response], "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        try:
            places = self._choice(await self._completion(body, adapter)).get("prompt_logprobs")
        except UnavailableError as error:
            raise UnavailableError(f"{error.message}. {_SCORING_HINT}", retry_after_seconds=error.retry_after_seconds) from error
        if not isinstance(places, list) or len(places) != len(prompt_ids) + len(response):
            raise self._peer.garbled("prompt_logprobs do not match the prompt")
        try:
            return [float(place[str(token)]["logprob"]) for token, place in zip(response, places[len(prompt_ids) :], strict=True)]
        except (KeyError, TypeError, ValueError) as error:
            raise self._peer.garbled("prompt_logprobs lack a token of the prompt") from error

    async def load_adapter(self, files: AdapterFiles) -> str:
        """By `/v1/load_lora_adapter`; see `RemoteServer.load_adapter`."""
        name = f"{files.version}@{files.digest[:_DIGEST_CHARACTERS]}"
        if name in [card.get("id") for card in await self._cards()]:
            return name
        folder = self._folder_there(files.folder)
        await asyncio.to_thread(_check_targets, files)
        reply = await self._peer.request("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})
        if reply.status == 200:
            return name
        if reply.status == 404 and not reply.refusal:
            raise FailedPreconditionError(
                f"{self._peer.place} loads no adapters: start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True", field="adapter"
            )
        error = self._peer.error_of(reply)
        if isinstance(error, UnavailableError) and not reply.refusal:
            raise error
        raise FailedPreconditionError(
            f"{files.version} as {folder}: {error.message}; the server must see that folder (remote.adapters_here, remote.adapters_there) "
            "and allow its rank (--max-lora-rank)",
            field="adapter",
        )

    async def unload_adapter(self, adapter: str) -> None:
        """By `/v1/unload_lora_adapter`; see `RemoteServer.unload_adapter`."""
        reply = await self._peer.request("POST", "/v1/unload_lora_adapter", {"lora_name": adapter})
        if reply.status not in (200, 404):
            raise self._peer.error_of(reply)

    async def health(self) -> None:
        """By `/health`."""
        reply = await self._peer.request("GET", "/health")
        if reply.status != 200:
            raise self._peer.error_of(reply)

    async def close(self) -> None:
        """Closes all connections."""
        await self._peer.close()

    async def _cards(self) -> list[dict[str, Any]]:
        listed = await self._peer.json("GET", "/v1/models")
        cards = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(cards, list) or not all(isinstance(card, dict) and isinstance(card.get("id"), str) for card in cards):
            raise self._peer.garbled("/v1/models lists no models")
        return cards

    async def _base_model(self) -> dict[str, Any]:
        bases = [card for card in await self._cards() if not card.get("parent")]
        wanted = [card for card in bases if self._config.model in ("", card["id"])]
        names = ", ".join(card["id"] for card in bases) or "none"
        if len(wanted) != 1:
            raise FailedPreconditionError(f"{self._peer.place} serves {names}; {self._config.model or 'exactly one'} is wanted", field="remote.model")
        if not isinstance(wanted[0].get("max_model_len"), int):
            raise self._peer.garbled("/v1/models has no max_model_len")
        return wanted[0]

    async def _probe(self, model: str, temperature: float) -> dict[str, Any]:
        body = {
            "model": model, "prompt": _PROBE_TEXT, "max_tokens": 1, "temperature": temperature, "top_p": 1.0, "top_k": 0, "min_p": 0.0,
            "repetition_penalty": 1.0, "seed": 0, "logprobs": PROBE_TOP, "return_token_ids": True, "return_tokens_as_token_ids": True,
        }  # fmt: skip
        return self._choice(await self._completion(body, ""))

    def _body(self, ask: Ask) -> dict[str, Any]:
        sampling = ask.sampling
        ends = set(sampling.stop_token_ids) if sampling.ignore_eos else sampling.stop_token_ids | self._eos
        return {
            "model": ask.adapter or self._model,
            "prompt": list(ask.prompt_ids),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": ask.seed,
            "stop": list(sampling.stop),
            "stop_token_ids": sorted(ends),
            "ignore_eos": sampling.ignore_eos,
            "logprobs": sampling.top_logprobs,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }

    async def _completion(self, body: dict[str, Any], adapter: str) -> dict[str, Any]:
        try:
            reply = await self._peer.json("POST", _COMPLETIONS, body)
        except NotFoundError as error:
            raise self._unknown(adapter, error) from error
        if not isinstance(reply, dict):
            raise self._peer.garbled("a completion is no JSON object")
        return reply

    def _unknown(self, adapter: str, error: NotFoundError) -> AccordError:
        return error if adapter else FailedPreconditionError(error.message, field="remote.model")

    def _choice(self, reply: dict[str, Any]) -> dict[str, Any]:
        choices = reply.get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise self._peer.garbled("a completion has no single choice")
        return choices[0]

    def _piece(self, choice: dict[str, Any], sampling: SamplingSettings) -> Piece:
        if choice.get("finish_reason") not in (None, "length", "stop"):
            raise self._peer.broken(f"the request ended by {str(choice['finish_reason'])[:50]!r}")
        try:
            return piece_of(choice, sampling.top_logprobs)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._peer.garbled("a choice lacks token_ids or their logprobs (vLLM from 0.10.2 has them)") from error

    def _folder_there(self, folder: Path) -> str:
        here, there = self._config.adapters_here, self._config.adapters_there
        if here is None or there is None:
            return str(folder)
        try:
            inside = folder.resolve().relative_to(here.resolve())
        except ValueError:
            raise FailedPreconditionError(f"adapters lie in {folder}, which is not below {here}", field="remote.adapters_here") from None
        return str(Path(there) / inside)


def _check_targets(files: AdapterFiles) -> None:
    """Raises FailedPreconditionError where an adapter changes what the server would pass over or score wrongly."""
    try:
        targets = json.loads((files.folder / "adapter_config.json").read_text(encoding="utf-8"))["target_modules"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FailedPreconditionError(f"{files.version} has no adapter_config.json with target_modules", field="adapter") from error
    found = [target for target in targets if str(target).rsplit(".", 1)[-1] in _NOT_SERVED]
    if found:
        raise FailedPreconditionError(f"{files.version} trains {', '.join(found)}, which vLLM does not serve faithfully", field="adapter")
