"""Log-probabilities and entropies of tokens from logits.

What does not belong here: models, batches, sampling.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, tokens: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Logprob in nats of each token under the logits at its position, float32, shape of `tokens`.

    log softmax(logits / temperature)[token] as a gather minus a log-sum-exp, so that no second tensor of the logits' size is made.

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
    return scaled.gather(-1, tokens[..., None])[..., 0] - torch.logsumexp(scaled, dim=-1)


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
    logprobs = torch.log_softmax((logits if logits.dtype == torch.float64 else logits.float()) / temperature, dim=-1)
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
