"""Rows of different lengths without their padding: the numbers and gradients of padded passes, and no padding computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from accord.models.base import BaseModel
from accord.models.batching import Batch, collate
from accord.models.lora import AdaptedModel
from accord.models.packing import PackedBatch, pack
from accord.runspec_parts import LoraSpec
from accord.training.recomputation import recompute_activations

SEQUENCES = [([1, 70, 80, 90], [100, 110, 2]), ([1, 75], [85, 2]), ([1, 71, 72], [99, 98, 97, 2])]
GROUPS = [([1, 70, 80], [[90, 2], [100, 110, 120, 2]]), ([1, 75], [[85], [2]])]
SIDES = {"right": collate(SEQUENCES, pad_id=0), "left": collate(SEQUENCES, pad_id=0, side="left")}


@pytest.fixture
def adapted(tiny: BaseModel) -> AdaptedModel:
    model = AdaptedModel(tiny)
    model.add("a", LoraSpec(rank=4, last_layers=1), seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters("a"):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@pytest.fixture
def columns(adapted: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes (rows, tokens) that the first layer's MLP was given."""
    mlp, seen = adapted.module.model.layers[0].mlp, []

    def watched(x: Tensor, forward: Any = mlp.forward) -> Tensor:
        seen.append(tuple(x.shape[:2]))
        result: Tensor = forward(x)
        return result

    monkeypatch.setattr(mlp, "forward", watched)
    return seen


def plain(model: AdaptedModel, batch: Batch, *, asked: bool) -> Tensor:
    where = batch.predicting_mask if asked else None
    result = model.hidden(batch.input_ids, batch.attention_mask, adapter="a", position_ids=batch.position_ids, asked=where)
    return result[batch.predicting_mask if asked else batch.attention_mask]


def packed(model: AdaptedModel, batch: PackedBatch, *, real: bool) -> Tensor:
    result = model.hidden(
        batch.input_ids, batch.attention_mask, adapter="a", position_ids=batch.position_ids, asked=batch.predicting_mask,
        real=batch.real_mask if real else None,
    )  # fmt: skip
    return result[batch.rows, batch.columns]


def gradients(model: AdaptedModel, result: Tensor) -> list[Tensor]:
    for parameter in model.parameters("a"):
        parameter.grad = None
    (result * torch.linspace(-1, 1, result.numel()).view_as(result)).sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters("a") if parameter.grad is not None]


def check_same(first: tuple[Tensor, Sequence[Tensor]], second: tuple[Tensor, Sequence[Tensor]]) -> None:
    assert len(first[1]) == len(second[1]) > 0
    for one, other in zip((first[0], *first[1]), (second[0], *second[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("side", SIDES)
def test_padded_rows_have_the_numbers_and_gradients_of_each_alone(
    adapted: AdaptedModel, columns: list[tuple[int, ...]], side: str, asked: bool, recompute: bool
) -> None:
    alone = torch.cat([plain(adapted, collate([sequence], pad_id=0), asked=asked) for sequence in SEQUENCES])
    expected = alone.detach(), gradients(adapted, alone)
    columns.clear()
    if recompute:
        recompute_activations(adapted)
    adapted.set_trainable("a")
    together = plain(adapted, SIDES[side], asked=asked)
    assert columns == [(1, sum(len(prompt) + len(response) for prompt, response in SEQUENCES))]
    check_same((together.detach(), gradients(adapted, together)), expected)


def test_packed_rows_look_at_what_their_mask_says(adapted: AdaptedModel, columns: list[tuple[int, ...]]) -> None:
    batch = pack(GROUPS, pad_id=0)
    padded = packed(adapted, batch, real=False)
    expected = padded.detach(), gradients(adapted, padded)
    together = packed(adapted, batch, real=True)
    assert columns == [(2, 9), (1, 13)]
    check_same((together.detach(), gradients(adapted, together)), expected)


def test_within_a_trunk_too(adapted: AdaptedModel) -> None:
    expected = plain(adapted, SIDES["right"], asked=True)
    with adapted.shared_trunk():
        assert adapted.trunk is not None
        found = plain(adapted, SIDES["right"], asked=True)
    check_same((found.detach(), gradients(adapted, found)), (expected.detach(), gradients(adapted, expected)))


def test_what_is_not_real_is_zero(adapted: AdaptedModel) -> None:
    batch = SIDES["left"]
    found = adapted.hidden(batch.input_ids, batch.attention_mask, adapter=None, position_ids=batch.position_ids)
    assert found[~batch.attention_mask].eq(0).all()
    assert found[batch.attention_mask].ne(0).any(dim=1).all()


def test_rows_without_padding_are_computed_as_a_batch(adapted: AdaptedModel, columns: list[tuple[int, ...]]) -> None:
    plain(adapted, collate(SEQUENCES[:1] * 2, pad_id=0), asked=True)
    assert columns == [(2, 7)]


def test_a_merged_model_is_one_of_transformers_own(adapted: AdaptedModel) -> None:
    merged: Any = adapted.merge("a")
    assert merged.config._attn_implementation == "sdpa"
    assert "accord" not in merged.config.to_json_string()
