"""Client of Text Generation Inference over its documented REST API: `/info`, `/tokenize`, `/generate`, `/generate_stream`, `/health`.

The package `text-generation` is not used. Its last version pins huggingface-hub below 1.0 where transformers 5 needs more, so it could only be
installed past the resolver (`--no-deps`); it is archived with its server; its pydantic models refuse what newer servers add; and it maps errors
by name only. The few requests below need none of it.

What was found in TGI's source (3.x), and what follows from it:

- TGI takes text. A prompt's ids are written as the text that the same tokenizer reads back as exactly these ids, special tokens included; where
  there is none (half a character, a control token spelt in a message), `check` refuses the prompt. The server's count is compared afterwards.
- Logprobs are log-softmax after penalties, temperature, top-k and top-p: the contract's at every temperature as long as nothing is truncated or
  penalized, which `check` holds to. A second pass would have to write sampled tokens as text, and sampled tokens often have none that reads back.
- There is no min_p and no ignore_eos; top_p must be below 1 and top_k above 0 where they are given, so they are never sent.
- Stop strings and stop token ids are watched by `accord.policy.remote`, which closes the stream: the server takes four strings and no ids.
- Given responses are scored by `decoder_input_details`, at temperature 1 alone, by servers started with `--enable-prefill-logprobs`.
- Adapters are those that the server was started with (`LORA_ADAPTERS`); configuration maps our version names to its adapter ids.
- The stream ends a request when its connection closes. `n` is one request a sample, seeded by `remote_server.sample_seed`.

What does not belong here: HTTP itself (`accord.policy.http_peer`), the queue (`accord.policy.remote`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import lru_cache
from typing import Any

from accord.errors import FailedPreconditionError, InvalidArgumentError, OutOfRangeError, UnimplementedError
from accord.models.encoding import PromptEncoder
from accord.policy.backend import FinishReason, GenerationRequest, LogprobsRequest, SamplingSettings, TopLogprobs
from accord.policy.http_peer import HttpPeer
from accord.policy.remote_config import RemoteConfig
from accord.policy.remote_server import AdapterFiles, Ask, Piece, altered, differences
from accord.policy.text_form import TextForm

_PROBE_TEXT = "Accord asks 12 naïve questions;\n\n  who answers 🌊?"
_FINISH: dict[str, FinishReason] = {"length": "length", "eos_token": "eos", "stop_sequence": "stop"}
_TEXTS_KEPT = 1024


class TgiServer:
    """Implements `accord.policy.remote_server.RemoteServer`.

    Args:
        config: where the server is, and its adapters.
        encoder: of the base model that it should serve.
        text_form: of the same tokenizer.
    """

    name = "tgi"

    def __init__(self, config: RemoteConfig, encoder: PromptEncoder, text_form: TextForm) -> None:
        self._adapters = config.adapters
        self._encoder = encoder
        self._text = lru_cache(maxsize=_TEXTS_KEPT)(text_form.text)  # `check` writes it, `generate` needs it again
        self._peer = HttpPeer("TGI", config)
        self._facts: dict[str, Any] = {}
        self._most_input = self._most_total = 0

    async def describe(self) -> int:
        """Reads the limits and compares tokenizers; see `RemoteServer.describe`."""
        self._facts = await self._look()
        self._most_input, self._most_total = self._facts["max_input_tokens"], self._facts["max_total_tokens"]
        return self._most_total

    async def changed(self) -> str | None:
        """Looks again; see `RemoteServer.changed`."""
        return differences(self._facts, await self._look())

    async def _look(self) -> dict[str, Any]:
        info = await self._peer.json("GET", "/info")
        try:
            most_total = int(info["max_total_tokens"])
            most_input = int(info.get("max_input_tokens") or info["max_input_length"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._peer.garbled("/info has no max_total_tokens and max_input_tokens") from error
        tokens = await self._peer.json("POST", "/tokenize", {"inputs": _PROBE_TEXT})
        ids = [token.get("id") for token in tokens if isinstance(token, dict)] if isinstance(tokens, list) else []
        if ids != self._encoder.encode_text(_PROBE_TEXT):
            raise FailedPreconditionError(f"{self._peer.place} tokenizes differently from base_model: it serves another model", field="base_model")
        models = {f"model_{what}": info.get(f"model_{what}") for what in ("id", "sha")}
        return {**models, "max_input_tokens": most_input, "max_total_tokens": most_total}

    def check(self, request: GenerationRequest | LogprobsRequest, field: str) -> None:
        """See the module's docstring for what cannot be exact."""
        if isinstance(request, LogprobsRequest):
            self._check_logprobs(request, field)
            return
        sampling, where = request.sampling, f"{field}.sampling"
        if altered(sampling):
            raise UnimplementedError("TGI reports logprobs after top_p, top_k, min_p and repetition_penalty: leave them out", field=where)
        if sampling.ignore_eos:
            raise UnimplementedError("TGI always ends a response at the end-of-text token", field=f"{where}.ignore_eos")
        if len(request.prompt_ids) > self._most_input:
            raise OutOfRangeError(f"the prompt has {len(request.prompt_ids)} tokens; TGI takes at most {self._most_input}", field=f"{field}.prompt")
        self._check_text(request.prompt_ids, f"{field}.prompt")

    def rescored(self, sampling: SamplingSettings) -> bool:
        """Never: what would need it is refused."""
        return False

    async def generate(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        """One sample, always as a stream; see `RemoteServer.generate`."""
        sampling = ask.sampling
        parameters: dict[str, Any] = {"max_new_tokens": sampling.max_tokens, "details": True, "do_sample": sampling.temperature > 0}
        if sampling.temperature > 0:
            parameters |= {"temperature": sampling.temperature, "seed": ask.seed}
        if sampling.top_logprobs:
            parameters["top_n_tokens"] = sampling.top_logprobs
        body = {"inputs": self._text(ask.prompt_ids), "parameters": self._addressed(parameters, ask.adapter)}
        async with aclosing(self._peer.events("/generate_stream", body)) as events:
            async for event in events:
                yield self._piece(event, len(ask.prompt_ids), sampling.top_logprobs)

    async def logprobs(self, prompt_ids: tuple[int, ...], response: tuple[int, ...], adapter: str) -> list[float]:
        """By the prefill's details; see `RemoteServer.logprobs`."""
        ids = (*prompt_ids, *response)
        parameters = {"max_new_tokens": 1, "do_sample": False, "details": True, "decoder_input_details": True}
        reply = await self._peer.json("POST", "/generate", {"inputs": self._text(ids), "parameters": self._addressed(parameters, adapter)})
        try:
            prefill = reply["details"]["prefill"]
            if not prefill:
                raise FailedPreconditionError(
                    f"{self._peer.place} scores no given responses: start it with --enable-prefill-logprobs", field="remote.url"
                )
            if [place["id"] for place in prefill] != list(ids):
                raise self._peer.garbled("it read the text as other tokens")
            return [float(place["logprob"]) for place in prefill[len(prompt_ids) :]]
        except (KeyError, TypeError, ValueError) as error:
            raise self._peer.garbled("the details of /generate have no prefill") from error

    async def load_adapter(self, files: AdapterFiles) -> str:
        """The adapter id that configuration gives; see `RemoteServer.load_adapter`."""
        if files.version not in self._adapters:
            known = ", ".join(sorted(self._adapters)) or "none"
            raise FailedPreconditionError(
                f"{files.version} is none of the adapters that TGI was started with: {known}. TGI loads none at runtime: start it with "
                "LORA_ADAPTERS, and name the version under remote.adapters",
                field="adapter",
            )
        return self._adapters[files.version]

    async def unload_adapter(self, adapter: str) -> None:
        """Nothing: the server keeps what it was started with."""

    async def health(self) -> None:
        """By `/health`."""
        reply = await self._peer.request("GET", "/health")
        if reply.status != 200:
            raise self._peer.error_of(reply)

    async def close(self) -> None:
        """Closes all connections."""
        await self._peer.close()

    def _check_logprobs(self, request: LogprobsRequest, field: str) -> None:
        if request.temperature != 1:
            raise UnimplementedError(f"temperature is {request.temperature:g}; TGI computes given logprobs at 1 alone", field="temperature")
        most = min(self._most_input, self._most_total - 1)
        for index, response in enumerate(request.responses):
            where, ids = f"{field}.responses[{index}]", (*request.prompt_ids, *response)
            if len(ids) > most:
                raise OutOfRangeError(f"prompt and response have {len(ids)} tokens; TGI scores at most {most}", field=where)
            self._check_text(ids, where)

    def _check_text(self, ids: Sequence[int], field: str) -> None:
        try:
            self._text(tuple(ids))
        except InvalidArgumentError as error:
            raise InvalidArgumentError(error.message, field=field) from error

    @staticmethod
    def _addressed(parameters: dict[str, Any], adapter: str) -> dict[str, Any]:
        return {**parameters, "adapter_id": adapter} if adapter else parameters

    def _piece(self, event: dict[str, Any], prompt_tokens: int, top: int) -> Piece:
        try:
            token, details = event["token"], event.get("details") or {}
            likeliest = (self._top(event["top_tokens"], top),) if top else ()
            piece = Piece((int(token["id"]),), (float(token["logprob"]),), likeliest, _FINISH[details["finish_reason"]] if details else None)
            read = int(details.get("input_length", prompt_tokens))  # since 2.4
        except (KeyError, TypeError, ValueError) as error:
            raise self._peer.garbled("an event has no token, logprob or known reason to end") from error
        if read != prompt_tokens:
            raise self._peer.garbled(f"it read {read} tokens of a prompt that has {prompt_tokens}")
        return piece

    @staticmethod
    def _top(tokens: list[dict[str, Any]], count: int) -> TopLogprobs:
        """The likeliest tokens; the server gives more of them where some are equally likely."""
        pairs = ((int(token["id"]), float(token["logprob"])) for token in tokens)
        return tuple(sorted(pairs, key=lambda pair: -pair[1])[:count])
