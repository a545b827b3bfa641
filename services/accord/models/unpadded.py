"""Passes over rows of different lengths without computing their padding: linear layers see the real tokens of all rows one after the other.

Attention alone knows rows: it is computed for each by itself. As packing with block masks (Krell et al. 2021, arXiv:2107.02027), but no row looks
at, or pays for, another. It hooks into transformers' attention interface. On CPUs only: elsewhere a kernel a row costs more than padding does.
What does not belong here: several responses in a row (`accord.models.packing`), serving (`accord.models.ragged`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ATTENTION = "accord_unpadded"
_NO_MASK = torch.zeros(1, 1, 1, 1)  # of four dimensions: transformers takes it as it is, and makes none of its own


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows stand among the real tokens: lengths in order, and for each what its tokens may look at, (length, length), None if causal."""

    lengths: tuple[int, ...]
    masks: tuple[Tensor | None, ...]

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """Of (1, heads, N, D) each to (1, N, heads, D)."""
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        parts = zip(*(states.split(self.lengths, dim=2) for states in (query, key, value)), self.masks, strict=True)
        found = (sdpa_attention_forward(module, *part, mask, **options)[0] for *part, mask in parts)
        return torch.cat(list(found), dim=1)


class Unpadded:
    """The real tokens of a padded pass.

    Args:
        real: (batch, T), True at real tokens; at least one a row.
        looks_at: (batch, 1, T, T), True where a position may look at another; None if causal.
    """

    def __init__(self, real: Tensor, looks_at: Tensor | None) -> None:
        self._real = real
        masks: list[Tensor | None] = [None] * len(real)
        if looks_at is not None:
            masks = [mask[keep][:, keep][None, None] for mask, keep in zip(looks_at[:, 0], real, strict=True)]
        self._rows = Rows(tuple(real.sum(dim=1).tolist()), tuple(masks))

    def taken(self, padded: Tensor) -> Tensor:
        """What stands at the real tokens, (1, N, ...) of (batch, T, ...)."""
        return padded[self._real][None]

    def padded(self, states: Tensor) -> Tensor:
        """States in their places, (batch, T, H) of (1, N, H); 0 at padding."""
        places = self._real.flatten().nonzero().squeeze(1)
        flat = states.new_zeros(self._real.numel(), states.shape[-1]).index_copy(0, places, states[0])
        return flat.view(*self._real.shape, -1)

    def arguments(self) -> dict[str, Any]:
        """What a decoder with `hook_attention` is called with for these tokens."""
        return {"attention_mask": _NO_MASK, "rows": self._rows}


def hook_attention(model: Any) -> None:
    """Makes a transformers model on SDPA take `Unpadded.arguments`; without them it computes as before."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)


def unhook_attention(model: Any) -> None:
    """Undoes `hook_attention`."""
    model.set_attn_implementation("sdpa")


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rows: Rows | None = None, **options: Any
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if rows is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, mask, **options)
        return found
    return rows.attend(module, query, key, value, **options), None
