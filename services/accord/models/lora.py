"""Passes over one copy of a base model's weights under any of its LoRA adapters: hidden states and logits, and what of them is not computed.

Not computed are padding, layers that two adapters share below their own (`shared_trunk`), the last MLP and the head where nobody reads them.

Threads never share an AdaptedModel without a lock: which adapter is on is a property of the model. What does not belong here: the adapters
themselves (`accord.models.adapters`), and optimisation (`accord.training`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from accord.models.adapters import Adapters
from accord.models.base import BaseModel
from accord.models.llama_layer import is_llama_layer
from accord.models.trunk import LayerRange, Trunk
from accord.models.unpadded import Unpadded, hook_attention, unhook_attention


class AdaptedModel(Adapters):
    """A base model and its adapters. With no adapter in use it computes the bare base, bit for bit."""

    def __init__(self, base: BaseModel) -> None:
        super().__init__(base)
        self._asked: Tensor | None = None
        self._range: LayerRange | None = None
        self._trunk: Trunk | None = None
        layers = getattr(self._decoder, "layers", None)
        self._known = isinstance(layers, nn.ModuleList) and len(layers) > 0 and all(map(is_llama_layer, layers))
        if self._known:
            self._spare_last_mlp()
            hook_attention(self.module)

    def merge(self, name: str) -> nn.Module:
        """As `Adapters.merge`, after taking off what passes have hooked into the model."""
        self._config(name)
        if self._known:
            unhook_attention(self.module)
        return super().merge(name)

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        adapter: str | None,
        position_ids: Tensor | None = None,
        asked: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, shape (batch, T, H), without the language-model head. The caller's grad mode holds.

        Args:
            attention_mask: (batch, T), True at real tokens; or (batch, 1, T, T), True where a position may look at another. Within
                `shared_trunk`, rows of the first kind are computed from the trunk on.
            position_ids: (batch, T). Without them, real tokens count from 0, so that the padding side does not matter.
            asked: (batch, T), True where the result will be read; elsewhere it holds something else, for the last layer's MLP, which no other
                position looks at, is spared there. None: everywhere.
            real: (batch, T), True at real tokens, for a mask of the second kind; None: everywhere. On a CPU what is not real is not computed, and
                the result is 0 there.

        Raises:
            ValueError: a four-dimensional mask comes without position ids.
        """
        if position_ids is None and attention_mask.dim() != 2:
            raise ValueError("a mask of shape (batch, 1, T, T) needs position_ids")
        if position_ids is None:
            position_ids = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
        plain = attention_mask.dim() == 2
        given: dict[str, Any] = {"input_ids": input_ids, "position_ids": position_ids}
        rest: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self._trunk is not None and plain and self.first_layer(adapter) >= self._trunk.depth:
            given["inputs_embeds"] = self._trunk.states(given.pop("input_ids"), attention_mask)
            rest = self._layer_range().only(self._trunk.depth, len(self._decoder.layers))
        unpadded = self._unpadded(attention_mask.bool() if plain else real, None if plain else attention_mask)
        if unpadded is None:
            given["attention_mask"] = attention_mask.long() if plain else attention_mask
        else:
            given = {name: unpadded.taken(tensor) for name, tensor in given.items()} | unpadded.arguments()
            asked = None if asked is None else unpadded.taken(asked)
        with self.use(adapter), self.asked_at(asked), rest:
            result: Tensor = self._decoder(**given, use_cache=False).last_hidden_state
        return result if unpadded is None else unpadded.padded(result)

    @property
    def trunk(self) -> Trunk | None:
        """What is shared within `shared_trunk`; None where nothing is."""
        return self._trunk

    @contextlib.contextmanager
    def shared_trunk(self) -> Iterator[None]:
        """Within the block, the layers below all adapters are computed once for a row of tokens; what they give is forgotten behind it.

        Adapters on all layers do not count, and passes under them are computed whole, as all are where there is nothing to share or where the
        decoder is not of a shape that is known.
        """
        depth = min(filter(None, map(self.first_layer, self._configs)), default=0)
        before = self._trunk
        if self._known and 0 < depth < len(self._decoder.layers):
            self._trunk = Trunk(self._decoder, self._layer_range(), depth)
        try:
            yield
        finally:
            self._trunk = before

    @property
    def asked(self) -> Tensor | None:
        """The positions of a pass in the making whose results will be read, None for all."""
        return self._asked

    @contextlib.contextmanager
    def asked_at(self, positions: Tensor | None) -> Iterator[None]:
        """Within the block passes compute for these positions, as `asked` of `hidden`."""
        before, self._asked = self._asked, positions
        try:
            yield
        finally:
            self._asked = before

    def logits_at(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Logits (float32) at the positions that a boolean mask (batch, T) marks, in row order: shape (N, vocabulary).

        The head is a fifth of a small model's work; most positions (the prompt, the padding) need none of it.
        """
        return self.logits_of(hidden[mask])

    def logits_of(self, hidden: Tensor) -> Tensor:
        """Logits (float32) of hidden states: shape (..., H) to (..., vocabulary)."""
        logits: Tensor = self.module.get_output_embeddings()(hidden)
        return logits.float()

    @property
    def _decoder(self) -> Any:
        return getattr(self.module, self.module.base_model_prefix)

    def _unpadded(self, real: Tensor | None, looks_at: Tensor | None) -> Unpadded | None:
        """The real tokens of a pass; None where all are, or where padding is computed too."""
        worth = self._known and real is not None and real.device.type == "cpu" and not bool(real.all()) and bool(real.any(dim=1).all())
        return Unpadded(real, looks_at) if worth and real is not None else None

    def _layer_range(self) -> LayerRange:
        if self._range is None:
            self._range = LayerRange(self._decoder.layers)
        return self._range

    def _spare_last_mlp(self) -> None:
        """Lets the last layer's MLP compute at the asked positions alone."""
        mlp: Any = self._decoder.layers[-1].mlp
        whole = mlp.forward

        def forward(x: Tensor) -> Tensor:
            if self._asked is None:
                everywhere: Tensor = whole(x)
                return everywhere
            places = self._asked.flatten().nonzero().squeeze(1)
            rows = x.flatten(0, 1)
            return torch.zeros_like(rows).index_copy(0, places, whole(rows.index_select(0, places)[None])[0]).view_as(x)

        mlp.forward = forward
