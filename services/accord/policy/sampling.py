"""Choosing the next token of each row of a batch: pure tensors, one call a step, nothing per token in Python.

Random numbers are a pure function of (seed, sample index, position): a row draws the same ones alone and in any batch. What does not
belong here: when a row ends (`accord.policy.decoding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from accord.policy.backend import SamplingSettings

_BLOCK = 256


@dataclass(frozen=True)
class RowSampling:
    """The sampling of each row as tensors of shape (rows,)."""

    temperature: Tensor
    top_p: Tensor
    top_k: Tensor
    min_p: Tensor
    repetition_penalty: Tensor

    @classmethod
    def build(cls, rows: Sequence[SamplingSettings], device: torch.device | str = "cpu") -> RowSampling:
        """Returns the tensors of rows."""
        return cls(
            torch.tensor([settings.temperature for settings in rows], device=device),
            torch.tensor([settings.top_p for settings in rows], device=device),
            torch.tensor([settings.top_k for settings in rows], device=device),
            torch.tensor([settings.min_p for settings in rows], device=device),
            torch.tensor([settings.repetition_penalty for settings in rows], device=device),
        )

    def select(self, rows: Tensor) -> RowSampling:
        """Returns the sampling of some rows, by index."""
        return RowSampling(self.temperature[rows], self.top_p[rows], self.top_k[rows], self.min_p[rows], self.repetition_penalty[rows])

    @property
    def truncates(self) -> bool:
        """Whether any row excludes tokens."""
        return bool(((self.top_k > 0) | (self.top_p < 1) | (self.min_p > 0)).any())


def row_uniforms(seed: int, sample_index: int, count: int) -> list[float]:
    """`count` numbers in [0, 1): Philox keyed by the seed and the sample index, so that any prefix is the same."""
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, sample_index], dtype=np.uint64)
    numbers: list[float] = np.random.Generator(np.random.Philox(key=key)).random(count).tolist()
    return numbers


def sample(logits: Tensor, sampling: RowSampling, uniforms: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the next token of each row and its logprob, both of shape (rows,).

    The logprob is that of the model at the sampling temperature (1 where it is greedy), before penalties and truncation. It is no finite number where
    a row's logits are not, and the token means nothing then.

    Args:
        logits: shape (rows, vocabulary), float32.
        sampling: of these rows.
        uniforms: each row's random number in [0, 1), float64, shape (rows,).
        seen: True where a token occurred in the row's prompt or response, shape (rows, vocabulary); None where no row penalizes repetition.
    """
    greedy = sampling.temperature == 0
    temperature = torch.where(greedy, torch.ones_like(sampling.temperature), sampling.temperature)[:, None]
    scaled = logits / temperature
    top = scaled.max(dim=-1, keepdim=True)
    weights = torch.exp(scaled - top.values)
    normalizer = weights.sum(dim=-1).log() + top.values[:, 0]
    tokens = top.indices[:, 0]
    chosen_from = scaled
    if seen is not None:
        chosen_from = penalized(logits, seen, sampling.repetition_penalty) / temperature
        tokens = chosen_from.argmax(dim=-1)
        weights = torch.exp(chosen_from - chosen_from.max(dim=-1, keepdim=True).values)
    if not bool(greedy.any()):
        tokens = draw(weights, sampling, uniforms)
    elif not bool(greedy.all()):
        rows = (~greedy).nonzero(as_tuple=True)[0]
        tokens[rows] = draw(weights[rows], sampling.select(rows), uniforms[rows])
    logprobs = scaled.gather(1, tokens[:, None])[:, 0] - normalizer
    return tokens, logprobs


def penalized(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Logits of tokens that occurred before, divided by the penalty where positive and multiplied where negative.

    Keskar et al. 2019 (arXiv:1909.05858), section 4.1; the form of transformers, which also acts on negative logits.
    """
    factor = penalty[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)


def draw(weights: Tensor, sampling: RowSampling, uniforms: Tensor) -> Tensor:
    """Tokens of shape (rows,) by the inverse of the cumulative distribution, in the order of the vocabulary.

    Truncation in the order of transformers: top-k, top-p, then min-p, each on what the one before left, renormalized. The sum is built in two
    levels, over blocks of the vocabulary and then within one: a cumulative sum over all of it costs more than the rest of sampling together.

    Args:
        weights: probabilities up to a factor, float32, shape (rows, vocabulary).
    """
    if sampling.truncates:
        weights = truncated(weights.double(), sampling)
    rows, vocabulary = weights.shape
    blocks = F.pad(weights, (0, -vocabulary % _BLOCK)).view(rows, -1, _BLOCK)
    bounds = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    total = bounds[:, -1:]
    target = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    # Weights that are no numbers are past every bound; whoever called sees it by the logprob.
    block = torch.searchsorted(bounds, target, right=True).clamp_(max=bounds.shape[1] - 1)
    below = torch.where(block > 0, bounds.gather(1, (block - 1).clamp(min=0)), torch.zeros_like(target))
    inside = blocks[torch.arange(rows, device=weights.device), block[:, 0]].double()
    cumulative = inside.cumsum(dim=-1)
    place = torch.searchsorted(cumulative, target - below, right=True)
    # Rounding at the very end must not pick an excluded token: the last one with any weight is the last that counts.
    last = (inside > 0).long().cumsum(dim=-1).argmax(dim=-1, keepdim=True)
    return (block * _BLOCK + torch.minimum(place, last))[:, 0]


def truncated(probabilities: Tensor, sampling: RowSampling) -> Tensor:
    """Probabilities, or numbers in proportion to them, with the excluded tokens at 0; the likeliest token always stays."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(ordered.shape[-1], device=ordered.device)[None]
    top_k = torch.where(sampling.top_k > 0, sampling.top_k, ordered.shape[-1])[:, None]
    kept = ranks < top_k
    mass = (ordered * kept).sum(dim=-1, keepdim=True)
    before = (ordered * kept).cumsum(dim=-1) - ordered
    kept &= (before < sampling.top_p[:, None].double() * mass) | (ranks == 0)
    kept &= ordered >= sampling.min_p[:, None].double() * ordered[:, :1]
    return torch.zeros_like(probabilities).scatter(1, order, ordered * kept)
