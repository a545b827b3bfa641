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

from accord.policy.backend import SamplingSettings


@dataclass(frozen=True)
class RowSampling:
    """The sampling of each row as tensors of shape (rows,); `uniforms` has shape (rows, most tokens)."""

    temperature: Tensor
    top_p: Tensor
    top_k: Tensor
    min_p: Tensor
    repetition_penalty: Tensor
    uniforms: Tensor

    @classmethod
    def build(cls, rows: Sequence[tuple[SamplingSettings, int]]) -> RowSampling:
        """Returns the tensors of rows given as (settings, sample index)."""
        longest = max(settings.max_tokens for settings, _ in rows)
        uniforms = torch.zeros((len(rows), longest), dtype=torch.float64)
        for index, (settings, sample_index) in enumerate(rows):
            uniforms[index, : settings.max_tokens] = row_uniforms(settings.seed, sample_index, settings.max_tokens)
        return cls(
            torch.tensor([settings.temperature for settings, _ in rows]),
            torch.tensor([settings.top_p for settings, _ in rows]),
            torch.tensor([settings.top_k for settings, _ in rows]),
            torch.tensor([settings.min_p for settings, _ in rows]),
            torch.tensor([settings.repetition_penalty for settings, _ in rows]),
            uniforms,
        )

    def select(self, rows: Tensor) -> RowSampling:
        """Returns the sampling of some rows, by index."""
        return RowSampling(
            self.temperature[rows], self.top_p[rows], self.top_k[rows], self.min_p[rows], self.repetition_penalty[rows],
            self.uniforms[rows],
        )  # fmt: skip


def row_uniforms(seed: int, sample_index: int, count: int) -> Tensor:
    """`count` numbers in [0, 1), float64: Philox keyed by the seed and the sample index, so that any prefix is the same."""
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, sample_index], dtype=np.uint64)
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=key)).random(count))


def sample(logits: Tensor, sampling: RowSampling, positions: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the next token of each row and its logprob, both of shape (rows,).

    The logprob is that of the model at the sampling temperature (1 where it is greedy), before penalties and truncation.

    Args:
        logits: shape (rows, vocabulary), float32.
        sampling: of these rows.
        positions: how many tokens each row has generated, shape (rows,); picks the row's random number.
        seen: True where a token occurred in the row's prompt or response, shape (rows, vocabulary); None where no row penalizes repetition.
    """
    greedy = sampling.temperature == 0
    temperature = torch.where(greedy, torch.ones_like(sampling.temperature), sampling.temperature)[:, None]
    scaled = logits / temperature
    normalizer = torch.logsumexp(scaled, dim=-1)
    chosen_from = penalized(logits, seen, sampling.repetition_penalty) / temperature if seen is not None else scaled
    tokens = chosen_from.argmax(dim=-1)
    drawn = ~greedy
    if bool(drawn.any()):
        rows = drawn.nonzero(as_tuple=True)[0]
        picks = sampling.select(rows)
        uniforms = picks.uniforms.gather(1, positions[rows][:, None])[:, 0]
        tokens[rows] = draw(chosen_from[rows], picks, uniforms)
    logprobs = scaled.gather(1, tokens[:, None])[:, 0] - normalizer
    return tokens, logprobs


def penalized(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Logits of tokens that occurred before, divided by the penalty where positive and multiplied where negative.

    Keskar et al. 2019 (arXiv:1909.05858), section 4.1; the form of transformers, which also acts on negative logits.
    """
    factor = penalty[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)


def draw(scaled: Tensor, sampling: RowSampling, uniforms: Tensor) -> Tensor:
    """Tokens of shape (rows,) by the inverse of the cumulative distribution, in the order of the vocabulary.

    Truncation in the order of transformers: top-k, top-p, then min-p, each on what the one before left, renormalized.
    """
    probabilities = torch.softmax(scaled.double(), dim=-1)
    if bool(((sampling.top_k > 0) | (sampling.top_p < 1) | (sampling.min_p > 0)).any()):
        probabilities = truncated(probabilities, sampling)
    cumulative = probabilities.cumsum(dim=-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, target, right=True)[:, 0]
    last = (probabilities > 0).long().cumsum(dim=-1).argmax(dim=-1)  # rounding at the very end must not pick an excluded token
    return torch.minimum(tokens, last)


def truncated(probabilities: Tensor, sampling: RowSampling) -> Tensor:
    """Probabilities with the excluded tokens at 0, not renormalized; the likeliest token always stays."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(ordered.shape[-1])[None]
    top_k = torch.where(sampling.top_k > 0, sampling.top_k, ordered.shape[-1])[:, None]
    kept = ranks < top_k
    mass = (ordered * kept).sum(dim=-1, keepdim=True)
    before = (ordered * kept).cumsum(dim=-1) - ordered
    kept &= (before < sampling.top_p[:, None].double() * mass) | (ranks == 0)
    kept &= ordered >= sampling.min_p[:, None].double() * ordered[:, :1]
    return torch.zeros_like(probabilities).scatter(1, order, ordered * kept)
