"""Log-probabilities and entropies of tokens from logits.

What does not belong here: models, batches, sampling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ROWS = 32


def token_logprobs(logits: Tensor, tokens: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Logprob in nats of each token under the logits at its position, float32, shape of `tokens`.

    log softmax(logits / temperature)[token] as a gather minus a log-sum-exp.

    Args:
        logits: shape (..., vocabulary); `logits[..., t, :]` already predict `tokens[..., t]`.
        tokens: ids, shape (...).
        temperature: divides the logits; positive.

    Raises:
        ValueError: the temperature is not positive or the shapes do not fit.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(f"logits of shape {tuple(logits.shape)} do not predict tokens of shape {tuple(tokens.shape)}")
    scaled = logits if logits.dtype == torch.float64 else logits.float()
    if temperature != 1.0:
        scaled = scaled / temperature
    found: Tensor = _TokenLogprobs.apply(scaled.reshape(-1, scaled.shape[-1]), tokens.reshape(-1))  # type: ignore[no-untyped-call]
    return found.view(tokens.shape)


class _TokenLogprobs(torch.autograd.Function):
    """For logits (N, vocabulary) and tokens (N,). The gradient is one tensor of the logits' size; autograd's own way makes four, tens of megabytes
    each that no cache holds. A few rows at a time, so that what is between stays in one."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor) -> Tensor:
        normalizers = torch.cat([torch.logsumexp(part, dim=-1) for part in logits.split(_ROWS)])
        ctx.save_for_backward(logits, tokens, normalizers)
        return logits.gather(-1, tokens[:, None])[:, 0] - normalizers

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        logits, tokens, normalizers = ctx.saved_tensors
        found = torch.empty_like(logits)
        for part, *given in zip(*(each.split(_ROWS) for each in (found, logits, normalizers, gradient)), strict=True):
            rows, subtracted, factor = given
            torch.sub(rows, subtracted[:, None], out=part).exp_().mul_(-factor[:, None])
        found.scatter_add_(1, tokens[:, None], gradient[:, None])
        return found, None


def token_entropy(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of the distribution at each position, shape (...): log(vocabulary) where it is uniform, 0 where it is certain.

    Args:
        logits: shape (..., vocabulary).
        temperature: divides the logits; positive.

    Raises:
        ValueError: the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    rows = logits.reshape(-1, logits.shape[-1])
    parts = [_entropy((part if part.dtype == torch.float64 else part.float()) / temperature) for part in rows.split(_ROWS)]
    return torch.cat(parts).view(logits.shape[:-1])


def _entropy(logits: Tensor) -> Tensor:
    logprobs = torch.log_softmax(logits, dim=-1)
    return -(logprobs.exp() * logprobs).sum(dim=-1)


def sequence_logprobs(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Sum of the token logprobs that count, shape (batch,).

    Args:
        logprobs: shape (batch, T), nats.
        mask: True where the token counts, shape (batch, T).

    Raises:
        ValueError: the shapes differ.
    """
    if logprobs.shape != mask.shape:
        raise ValueError(f"logprobs of shape {tuple(logprobs.shape)} and mask of shape {tuple(mask.shape)} differ")
    return torch.where(mask, logprobs, torch.zeros_like(logprobs)).sum(dim=-1)
