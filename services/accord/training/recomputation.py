"""Activations computed again in the backward pass instead of being kept: a layer keeps its input alone.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost" (arXiv:1604.06174), one segment a layer. What does not belong here: whether
a run does so (`RunSpec.activation_checkpointing`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from accord.errors import FailedPreconditionError
from accord.models.lora import AdaptedModel


def recompute_activations(adapted: AdaptedModel) -> None:
    """From now on, layers of the decoder compute their activations again where gradients are needed. Losses and gradients are the same bits.

    Raises:
        FailedPreconditionError: the decoder has no list of layers.
    """
    decoder = getattr(adapted.module, adapted.module.base_model_prefix)
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise FailedPreconditionError(
            f"activation_checkpointing needs a decoder with a list of layers; {type(decoder).__name__} has none", field="activation_checkpointing"
        )
    for layer in layers:
        layer.forward = _recomputing(adapted, layer.forward)


def _recomputing(adapted: AdaptedModel, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **named)
        name, asked = adapted.active, adapted.asked

        def again(*args: Any, **named: Any) -> Any:
            with adapted.use(name), adapted.asked_at(asked):  # by the time of the backward pass another adapter is on
                return forward(*args, **named)

        return checkpoint(again, *args, use_reentrant=False, preserve_rng_state=False, **named)  # nothing in a layer draws numbers

    return run
