"""The layers below all adapters, computed once for rows that several adapters look at: policy, reference, critic and local reward models.

With LoRA on the last layers alone (`lora.last_layers`) what lies below them is the same frozen function for every adapter, and no gradient goes
through it. trlX's frozen branches (`num_layers_unfrozen`) share a trunk so, Santacroce et al. 2023 (arXiv:2309.00754) a whole frozen model.
What does not belong here: which adapters there are (`accord.models.lora`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from accord.models.batching import collate

TokenRow = tuple[int, ...]


class LayerRange:
    """Lets a decoder run a part of its layers; outside of `only` it runs all.

    Args:
        layers: of a decoder that calls them one after the other and takes a tensor from each (`is_llama_layer`). Their `forward` is replaced.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        self._bounds = range(len(layers))
        for index, layer in enumerate(layers):
            layer.forward = self._bounded(index, layer.forward)
        self._left: Tensor | None = None

    @contextlib.contextmanager
    def only(self, first: int, end: int) -> Iterator[None]:
        """Within the block, layers outside of [first, end) return what they are given."""
        before, self._bounds = self._bounds, range(first, end)
        try:
            yield
        finally:
            self._bounds = before

    def taken(self) -> Tensor:
        """What the last layer of the range gave in the pass behind, before the decoder's final norm."""
        assert self._left is not None
        left, self._left = self._left, None
        return left

    def _bounded(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(hidden_states: Tensor, *args: Any, **named: Any) -> Any:
            if index in self._bounds:
                return forward(hidden_states, *args, **named)
            if index == self._bounds.stop:
                self._left = hidden_states
            return hidden_states

        return run


class Trunk:
    """States after the first `depth` layers, by row. The bits of a row depend on the rows that it was computed with, and on nothing else.

    Args:
        decoder: without its head.
        layers: of that decoder.
        depth: 1 at least, and less than there are layers.
    """

    def __init__(self, decoder: Any, layers: LayerRange, depth: int) -> None:
        self._decoder, self._layers, self.depth = decoder, layers, depth
        self._groups: dict[tuple[TokenRow, ...], list[Tensor]] = {}
        self._rows: dict[TokenRow, Tensor] = {}

    def prepare(self, rows: Sequence[TokenRow], *, size: int) -> None:
        """Computes rows in their order, `size` at once; whatever is then asked for together, `states` finds these.

        So it does what lacks the last token of one. Of equals the first counts.
        """
        for start in range(0, len(rows), size):
            group = tuple(rows[start : start + size])
            for row, states in zip(group, self._group(group), strict=True):
                self._rows.setdefault(row, states)
                self._rows.setdefault(row[:-1], states[:-1])

    def states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """States of rows whose real tokens count from position 0, (batch, T, H) of (batch, T) both; 0 at padding. Never with gradient."""
        real = attention_mask.bool()
        group = tuple(tuple(ids[counts].tolist()) for ids, counts in zip(input_ids, real, strict=True))
        kept = [self._rows.get(row) for row in group]
        rows = [states for states in kept if states is not None]
        if len(rows) < len(group):
            rows = self._group(group)
        with torch.inference_mode(False), torch.no_grad():
            found = rows[0].new_zeros(*input_ids.shape, rows[0].shape[1])
            found[real] = torch.cat(rows)
        return found

    def _group(self, group: tuple[TokenRow, ...]) -> list[Tensor]:
        if group not in self._groups:
            # Not in inference mode, whoever asks first: others learn from these states.
            with torch.inference_mode(False), torch.no_grad(), self._layers.only(0, self.depth):
                device = next(self._decoder.parameters()).device
                batch = collate([(row, ()) for row in group], pad_id=0, device=device)
                mask = batch.attention_mask.long()
                self._decoder(input_ids=batch.input_ids, attention_mask=mask, position_ids=batch.position_ids, use_cache=False)
                self._groups[group] = [states[: len(row)] for row, states in zip(group, self._layers.taken(), strict=True)]
        return self._groups[group]
