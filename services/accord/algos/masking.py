"""Means, variances and whitening over the tokens that count.

A mask is True where the token counts. What does not belong here: anything that knows what the values mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EPSILON = 1e-8


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the values that count, over all of them or along one dimension (0 where none counts).

    Raises:
        ValueError: the shapes differ, or with `dim` None nothing counts.
    """
    _same(values, mask)
    kept = torch.where(mask, values, torch.zeros_like(values))
    if dim is not None:
        return kept.sum(dim=dim) / mask.sum(dim=dim).clamp(min=1)
    return kept.sum() / _count(mask)


def masked_var(values: Tensor, mask: Tensor, *, unbiased: bool) -> Tensor:
    """Variance of all values that count; `unbiased` divides by n - 1 (Bessel), which needs two of them.

    Raises:
        ValueError: the shapes differ, or too few values count.
    """
    centred = torch.where(mask, values - masked_mean(values, mask), torch.zeros_like(values))
    count = _count(mask) - (1 if unbiased else 0)
    if count < 1:
        raise ValueError("an unbiased variance needs at least two values that count")
    return (centred**2).sum() / count


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Values shifted to mean 0 and scaled to variance 1 over the tokens that count; 0 elsewhere.

    Huang et al. 2024 (arXiv:2403.17031), detail on advantage whitening. Always centred. Constant values become 0.

    Raises:
        ValueError: the shapes differ or nothing counts.
    """
    mean, variance = masked_mean(values, mask), masked_var(values, mask, unbiased=False)
    return torch.where(mask, (values - mean) * torch.rsqrt(variance + _EPSILON), torch.zeros_like(values))


def scale(values: Tensor, mask: Tensor) -> Tensor:
    """Values divided by their standard deviation over the tokens that count, not shifted; 0 elsewhere. For rewards.

    Raises:
        ValueError: the shapes differ or nothing counts.
    """
    variance = masked_var(values, mask, unbiased=False)
    return torch.where(mask, values * torch.rsqrt(variance + _EPSILON), torch.zeros_like(values))


def last_true_index(mask: Tensor) -> Tensor:
    """Index of the last True of each row, shape (batch,).

    Raises:
        ValueError: a row has no True.
    """
    if not bool(mask.any(dim=-1).all()):
        raise ValueError("a row of the mask has no token that counts")
    positions = torch.arange(mask.shape[-1], device=mask.device)
    return (mask * positions).argmax(dim=-1)


def response_mask(lengths: Tensor, width: int) -> Tensor:
    """True at the first `lengths[i]` positions of row i, shape (batch, width).

    Raises:
        ValueError: a length is negative or larger than the width.
    """
    if bool((lengths < 0).any()) or bool((lengths > width).any()):
        raise ValueError(f"lengths must lie in [0, {width}], got {lengths.tolist()}")
    return torch.arange(width, device=lengths.device)[None, :] < lengths[:, None]


def _count(mask: Tensor) -> int:
    count = int(mask.sum())
    if count == 0:
        raise ValueError("no value counts: the mask is False everywhere")
    return count


def _same(values: Tensor, mask: Tensor) -> None:
    if values.shape != mask.shape:
        raise ValueError(f"values of shape {tuple(values.shape)} and mask of shape {tuple(mask.shape)} differ")
