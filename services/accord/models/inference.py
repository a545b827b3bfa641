"""A base model made ready to serve: packed layers, attention over slots, and any number of LoRA adapters in one pass.

What does not belong here: which sequences are computed when (`accord.policy`), training (`accord.models.lora`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor, nn

from accord.errors import DataLossError, FailedPreconditionError
from accord.models.adapter_files import read_lora_config, read_weights, targets_layer
from accord.models.base import BaseModel
from accord.models.fused import FusedPlan, fused_supported
from accord.models.huge_pages import collapse_memory
from accord.models.kernels import Linears, LoraFactors, Routing
from accord.models.kvpool import KvPool, KvShape
from accord.models.llama_layer import LlamaLayer, is_llama_layer
from accord.models.mapped_files import MappedWeights
from accord.models.ragged import Piece, hook_attention, kv_shape, make_plan

_KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<factor>[AB])\.weight")
_FEWEST_ROWS = 6  # a block of oneDNN's packed products: six rows take less than one or two, by a quarter
_LARGE_BYTES = 64 * 2**20  # weights that no cache holds
_TOLERANCE = 2e-3  # of logits that differ in the order of their sums only
_log = structlog.get_logger(__name__)


class InferenceModel:
    """Takes a base model over: its modules are replaced in place.

    Args:
        base: a loaded base model, without adapters.
        kernels: whether packed and compiled kernels may be used where they are supported; off for comparisons.
    """

    def __init__(self, base: BaseModel, *, kernels: bool = True) -> None:
        self.base = base
        self._routing = Routing()
        self._decoder = getattr(base.model, base.model.base_model_prefix)
        self.vocabulary_size = base.vocabulary_size
        reference = _reference_logits(base)
        hook_attention(base.model)
        self._linears = dict(_replace(base.model, self._routing, kernels))
        self._head = self._linears.pop("lm_head")
        _own_weights(base.model)
        self.fused = kernels and _can_fuse(self._decoder, base)
        self.shape: KvShape = kv_shape(base.model)
        self._check(reference)
        if kernels and base.device == "cpu" and 4 * base.parameters >= _LARGE_BYTES:
            collapse_memory()

    def forward(self, pieces: Sequence[Piece]) -> Tensor:
        """Reads the pieces into their slots; hidden states after the last norm, (tokens of all pieces, hidden). Pieces of one adapter adjoin."""
        self._routing.groups = _groups(pieces)
        if self.fused:
            return self._fused_forward(pieces)
        device = self.base.device
        tokens = torch.tensor([token for piece in pieces for token in piece.tokens], device=device)
        positions = torch.tensor([piece.position + offset for piece in pieces for offset in range(len(piece.tokens))], device=device)
        output = self._decoder(input_ids=tokens[None], position_ids=positions[None], attention_mask=None, use_cache=False, ragged=make_plan(pieces))
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _fused_forward(self, pieces: Sequence[Piece]) -> Tensor:
        tokens = [token for piece in pieces for token in piece.tokens]
        positions = [piece.position + offset for piece in pieces for offset in range(len(piece.tokens))]
        count = len(tokens)
        more = [0] * (_FEWEST_ROWS - count)
        rows = self._decoder.embed_tokens(torch.tensor(tokens + more))
        cos, sin = self._decoder.rotary_emb(rows[None], torch.tensor([positions + more]))
        half = cos.shape[2] // 2  # both halves are equal
        layers = self._decoder.layers
        plan = FusedPlan(pieces, torch.cat((cos[0, :, :half], sin[0, :, :half]), dim=1), **layers[0].geometry)
        for layer in layers:
            rows = layer.fused(rows, plan)
        hidden: Tensor = self._decoder.norm(rows[:count])
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits in float32 of hidden states (rows, hidden): (rows, vocabulary)."""
        self._routing.groups = ()
        logits: Tensor = self._head(hidden)
        return logits.float()

    def adapter_bytes(self, folder: Path) -> int:
        """Bytes in memory of the adapter saved in a folder, more than in its file: its numbers have the base's type, and B is spread out.

        Raises:
            NotFoundError, DataLossError, FailedPreconditionError: as `load_adapter` of its configuration.
        """
        config = read_lora_config(folder)
        layers = {layer for layer in self._widths() if targets_layer(config, layer)}
        return sum(linears.adapter_bytes(int(config.r), layers) for linears in self._linears.values())

    def load_adapter(self, name: str, folder: Path) -> None:
        """Adds the adapter saved in a folder in PEFT's format.

        Raises:
            NotFoundError: the folder lacks a file.
            DataLossError: a file is damaged, or tensors are missing, extra or of another shape than the configuration says.
            FailedPreconditionError: it is not plain LoRA, targets layers that this model does not have (they are named), or holds NaN or infinity.
        """
        config = read_lora_config(folder)
        self._check_targets(name, set(config.target_modules))
        parts = _factors(name, read_weights(folder))
        self._check_factors(name, {layer for layer in self._widths() if targets_layer(config, layer)}, parts, int(config.r))
        rank_root = config.r**0.5 if config.use_rslora else config.r
        for linears in self._linears.values():
            found = {layer: parts[layer] for layer in linears.names if layer in parts}
            linears.set_adapter(name, {layer: (_like(a, self), _like(b, self)) for layer, (a, b) in found.items()}, config.lora_alpha / rank_root)

    def remove_adapter(self, name: str) -> None:
        """Forgets an adapter."""
        for linears in self._linears.values():
            linears.remove_adapter(name)

    def _widths(self) -> dict[str, tuple[int, int]]:
        """Width of input and output of each layer that can have an adapter."""
        return {
            layer: (linears.in_features, width)
            for linears in self._linears.values()
            for layer, width in zip(linears.names, linears.widths, strict=True)
        }

    def _check_targets(self, name: str, targets: set[str]) -> None:
        known = {layer.rsplit(".", 1)[-1] for layer in self._widths()}
        if unknown := sorted(targets - known):
            raise FailedPreconditionError(
                f"{name} targets {', '.join(unknown)}, which this engine cannot serve for {self.base.name}; it serves {', '.join(sorted(known))}",
                field="adapter",
            )

    def _check_factors(self, name: str, wanted: set[str], parts: dict[str, LoraFactors], rank: int) -> None:
        widths = self._widths()
        if missing := sorted(wanted - set(parts)):
            raise DataLossError(f"adapter {name}: no tensors for {missing[0]} and {len(missing) - 1} more", field="adapter")
        if extra := sorted(set(parts) - wanted):
            raise DataLossError(f"adapter {name}: tensors of {extra[0]}, which it does not target or the model does not have", field="adapter")
        for layer, (a, b) in parts.items():
            shapes = (tuple(a.shape), tuple(b.shape))
            expected = ((rank, widths[layer][0]), (widths[layer][1], rank))
            if shapes != expected:
                raise DataLossError(f"adapter {name}: {layer} has factors of shape {shapes}, not {expected}", field="adapter")
            if not all(bool(factor.isfinite().all()) for factor in (a, b)):
                raise FailedPreconditionError(f"adapter {name}: {layer} has weights that are no finite numbers", field="adapter")

    def _check(self, reference: Tensor) -> None:
        """The replaced model must compute what transformers' did: a wrong kernel is found at start, not in a user's text."""
        pool = KvPool(self.shape, max_tokens=64)
        slot = pool.take(len(_PROBE))
        assert slot is not None
        with torch.inference_mode():
            tokens = [token % self.vocabulary_size for token in _PROBE]
            found = [self.logits(self.forward([Piece(slot, tokens[:-1], 0, 0)])), self.logits(self.forward([Piece(slot, tokens[-1:], 7, 7)]))]
        gap = float((torch.cat(found) - reference).abs().max())
        if self.base.model.dtype == torch.float32 and not gap < _TOLERANCE:
            raise FailedPreconditionError(
                f"the engine computes other logits than transformers for {self.base.name} (they differ by {gap:.3g}): not a model that it can serve",
                field="base_model",
            )


def _can_fuse(decoder: Any, base: BaseModel) -> bool:
    layers = list(getattr(decoder, "layers", ()))
    lean = bool(layers) and all(isinstance(layer, LlamaLayer) for layer in layers)
    return lean and torch.device(base.device).type == "cpu" and base.model.dtype == torch.float32 and fused_supported()


_PROBE = (11, 3, 250, 77, 5, 19, 200, 42)


def _reference_logits(base: BaseModel) -> Tensor:
    tokens = torch.tensor([[token % base.vocabulary_size for token in _PROBE]], device=base.device)
    with torch.inference_mode():
        logits: Tensor = base.model(input_ids=tokens, use_cache=False).logits[0].float()
    return logits


def _replace(model: Any, routing: Routing, pack: bool) -> Iterator[tuple[str, Linears]]:
    """Puts lean layers in place of transformers' where it can and packed linear layers everywhere else; yields them by name."""
    files = MappedWeights()
    for name, module in list(model.named_modules()):
        if is_llama_layer(module):
            lean = LlamaLayer(module, name, routing, pack=pack)
            _put(model, name, lean)
            files.let_go(module.parameters())
            yield from ((f"{name}.{child}", part) for child, part in lean.named_children() if isinstance(part, Linears))
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            packed = Linears({name: module}, routing, pack=pack)
            _put(model, name, packed)
            files.let_go(module.parameters())
            yield ("lm_head" if module is model.get_output_embeddings() else name), packed


def _own_weights(model: Any) -> None:
    """Copies what is left of the plain weights: as views of the mapped file they would keep all of it in memory."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _groups(pieces: Sequence[Piece]) -> list[tuple[int, int, str]]:
    """Runs of rows of one adapter; the bare base has none."""
    groups: list[tuple[int, int, str]] = []
    row = 0
    for piece in pieces:
        end = row + len(piece.tokens)
        if piece.adapter:
            if groups and groups[-1][1] == row and groups[-1][2] == piece.adapter:
                groups[-1] = (groups[-1][0], end, piece.adapter)
            else:
                groups.append((row, end, piece.adapter))
        row = end
    return groups


def _factors(name: str, state: dict[str, Tensor]) -> dict[str, LoraFactors]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise DataLossError(f"adapter {name}: {key} is no tensor of a plain LoRA adapter", field="adapter")
        found.setdefault(match["layer"], {})[match["factor"]] = tensor
    if halves := sorted(layer for layer, factors in found.items() if len(factors) != 2):
        raise DataLossError(f"adapter {name}: {halves[0]} has one factor of two", field="adapter")
    return {layer: (factors["A"], factors["B"]) for layer, factors in found.items()}


def _like(tensor: Tensor, model: InferenceModel) -> Tensor:
    return tensor.to(device=model.base.device, dtype=model.shape.dtype)
