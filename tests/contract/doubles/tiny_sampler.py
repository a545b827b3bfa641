"""What both doubles compute with: a small model in plain transformers and peft, one step of one request at a time.

Not our engine's code, on purpose: what the doubles answer is what other servers would. What does not belong here: HTTP (`http_double`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
Top = list[tuple[int, float]]


@dataclass(frozen=True)
class Choice:
    """How to choose; `processed` reports logprobs after all of it instead of before."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    top: int = 0
    processed: bool = False


@dataclass(frozen=True)
class Step:
    """A chosen token, its logprob, and the likeliest."""

    token: int
    logprob: float
    top: Top = field(default_factory=list)


class TinySampler:
    """A model folder with LoRA adapters, each on its own copy of the base: small enough."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.lock = threading.Lock()
        self.tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        self.models: dict[str, Any] = {"": self._base()}
        self.eos = self.models[""].generation_config.eos_token_id
        self.context = self.models[""].config.max_position_embeddings

    def _base(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.folder).eval()

    def load(self, name: str, folder: str) -> None:
        """Loads a LoRA folder in PEFT's format."""
        with self.lock:
            self.models[name] = PeftModel.from_pretrained(self._base(), folder).eval()

    @torch.no_grad()
    def steps(self, prompt: list[int], choice: Choice, adapter: str = "") -> Iterator[Step]:
        """Tokens one after the other, without end."""
        generator = torch.Generator().manual_seed(choice.seed)
        ids, cache = list(prompt), None
        while True:
            with self.lock:
                out = self.models[adapter](torch.tensor([ids if cache is None else ids[-1:]]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            token, reported = choose(out.logits[0, -1].float(), ids, choice, generator)
            top = reported.topk(choice.top) if choice.top else None
            pairs = [] if top is None else list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            yield Step(token, float(reported[token]), pairs)
            ids.append(token)

    @torch.no_grad()
    def prompt_logprobs(self, ids: list[int], adapter: str = "") -> list[float | None]:
        """Each token's logprob after those before it; None for the first."""
        with self.lock:
            logits = self.models[adapter](torch.tensor([ids])).logits[0].float()
        logprobs = logits[:-1].log_softmax(-1)
        return [None, *(float(logprobs[place, token]) for place, token in enumerate(ids[1:]))]


def choose(logits: torch.Tensor, ids: list[int], choice: Choice, generator: torch.Generator) -> tuple[int, torch.Tensor]:
    """The next token and the logprobs that are reported: penalty, temperature, min_p, top_k, top_p in this order."""
    raw = logits.log_softmax(-1)
    scores = logits.clone()
    if choice.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(ids)))
        scores[seen] = torch.where(scores[seen] > 0, scores[seen] / choice.repetition_penalty, scores[seen] * choice.repetition_penalty)
    if choice.temperature == 0:
        return int(scores.argmax()), scores.log_softmax(-1) if choice.processed else raw
    scores = scores / choice.temperature
    if choice.min_p:
        scores[scores < scores.max() + math.log(choice.min_p)] = -math.inf
    if choice.top_k:
        scores[scores < scores.topk(choice.top_k).values[-1]] = -math.inf
    if choice.top_p < 1:
        ordered, order = scores.softmax(-1).sort(descending=True)
        scores[order[(ordered.cumsum(-1) - ordered) >= choice.top_p]] = -math.inf
    processed = scores.log_softmax(-1)
    token = int(torch.multinomial(processed.exp(), 1, generator=generator))
    return token, processed if choice.processed else raw
