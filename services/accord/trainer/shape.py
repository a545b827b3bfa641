"""Sizes of a base model out of its folder, and what one token through it costs: floating-point operations and kept activations. No torch.

What does not belong here: which passes an algorithm makes (`accord.trainer.workload`).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.errors import FailedPreconditionError
from accord.runspec_parts import LoraSpec

_VOCABULARY_TENSORS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "lm_head.weight", "embed_out.weight")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder: L `layers` of width H `hidden`, attention of width A `attention` with keys of width `key_value`, an MLP of width I `inner`.

    A row has at most `context` tokens. `weights_bytes` is the size of the safetensors and `parameters` the count of numbers in them,
    `vocabulary_parameters` of those in the tables that are as long as the vocabulary.
    """

    layers: int
    hidden: int
    attention: int
    key_value: int
    heads: int
    inner: int
    vocabulary: int
    context: int
    weights_bytes: int
    parameters: int
    vocabulary_parameters: int

    @classmethod
    def read(cls, folder: Path) -> ModelShape:
        """The shape of the model in a folder.

        Raises:
            FailedPreconditionError: config.json lacks a size.
        """
        config: Mapping[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config", config)
        try:
            hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            head = int(config.get("head_dim") or hidden // heads)
            groups = int(config.get("num_key_value_heads") or heads)
            names = ("num_hidden_layers", "intermediate_size", "vocab_size", "max_position_embeddings")
            layers, inner, vocabulary, context = (int(config[name]) for name in names)
        except (KeyError, TypeError, ValueError) as error:
            raise FailedPreconditionError(f"{folder}/config.json does not tell the model's sizes: {error!r}", field="base_model") from error
        weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return cls(layers, hidden, heads * head, groups * head, heads, inner, vocabulary, context, weights, *_parameters(folder))

    def held_bytes(self, size: int | None, *, head: bool = True) -> int:
        """Bytes of the weights in memory, with `size` bytes a number (None: as in the files), with or without the vocabulary's tables."""
        size = size or round(self.weights_bytes / max(self.parameters, 1))
        return size * (self.parameters if head else self.parameters - self.vocabulary_parameters)

    @property
    def linear(self) -> int:
        """Parameters of the layers' products: attention and a gated MLP."""
        return self.layers * (2 * self.hidden * self.attention + 2 * self.hidden * self.key_value + 3 * self.hidden * self.inner)

    def adapted_layers(self, lora: LoraSpec) -> int:
        """How many layers a LoRA adapter changes: the last ones, or all."""
        return min(lora.last_layers, self.layers) or self.layers

    def adapter_parameters(self, lora: LoraSpec) -> int:
        """Parameters of a LoRA adapter."""
        hidden, inner = self.hidden, self.inner
        sizes = {
            "q_proj": (hidden, self.attention), "k_proj": (hidden, self.key_value), "v_proj": (hidden, self.key_value),
            "o_proj": (self.attention, hidden), "gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden),
        }  # fmt: skip
        return self.adapted_layers(lora) * lora.rank * sum(sum(sizes.get(module, (hidden, hidden))) for module in lora.target_modules)

    def kept_floats(self, lora: LoraSpec, width: int) -> int:
        """Numbers that a layer keeps of each token for the backward pass, in rows of `width` tokens.

        Counted with saved-tensor hooks on transformers' Llama under PEFT: inputs and results of both norms (4 H), queries, keys and values
        repeated for every head, and attention's result (4 A), gate, its SiLU, up and their product (4 I), what LoRA's first factors give (a
        rank for each), the padding mask as numbers (`width`), log-sum-exps and norms' scales.
        """
        return 4 * self.hidden + 4 * self.attention + 4 * self.inner + lora.rank * len(lora.target_modules) + width + self.heads + 2

    def forward_operations(self, tokens: float, width: float, head_tokens: float, adapter: int, layers: int | None = None) -> float:
        """Of a pass without gradients over so many tokens in rows of `width` through `layers` (None: all), the vocabulary's head on `head_tokens`.

        The last layer's MLP counts everywhere, though runs spare it where nothing is read (`AdaptedModel.hidden`): less than a layer too much.
        """
        count = self.layers if layers is None else layers
        linear = self.linear * count / self.layers
        return tokens * (2.0 * (linear + adapter) + 4.0 * count * self.attention * width) + self._head(head_tokens)

    def learning_operations(self, tokens: float, width: float, head_tokens: float, adapter: int, layers: int, adapted: int) -> float:
        """Of a pass forth through `layers` and back through the `adapted` ones. Frozen weights have no gradient of their own: 4 a parameter and
        token, 6 for the adapter's; nothing below the lowest adapter has one, its attention's input among it."""
        linear = self.linear * adapted / self.layers - self.hidden * (self.attention + 2 * self.key_value)
        back = tokens * (2.0 * linear + 4.0 * adapter + 10.0 * adapted * self.attention * width) + self._head(head_tokens)
        return self.forward_operations(tokens, width, head_tokens, adapter, layers) + back

    def _head(self, tokens: float) -> float:
        return 2.0 * tokens * self.vocabulary * self.hidden


def _parameters(folder: Path) -> tuple[int, int]:
    """Numbers in the folder's safetensors, out of their headers: all, and those of embeddings and head."""
    total = vocabulary = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            count = math.prod(entry["shape"])
            total += count
            vocabulary += count if name.endswith(_VOCABULARY_TENSORS) else 0
    return total, vocabulary
