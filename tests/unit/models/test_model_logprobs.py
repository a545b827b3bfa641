"""Logprobs of responses: against one full forward pass a sequence, and against themselves in other batches."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from accord.errors import InvalidArgumentError, OutOfRangeError
from accord.models.base import BaseModel
from accord.models.batching import collate
from accord.models.logprobs import batch_logprobs, pad_rows, response_logprobs
from accord.models.lora import AdaptedModel
from accord.models.packing import group_logprobs, pack
from accord.runspec_parts import LoraSpec

Sequences = list[tuple[list[int], list[int]]]


@pytest.fixture
def adapted(tiny: BaseModel) -> AdaptedModel:
    adapted = AdaptedModel(tiny)
    adapted.add("a", LoraSpec(rank=4), seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters("a"):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return adapted


@pytest.fixture
def sequences() -> Sequences:
    draw = random.Random(4)
    return [
        ([1] + [draw.randrange(3, 259) for _ in range(draw.randrange(30))], [draw.randrange(259) for _ in range(draw.randrange(1, 40))])
        for _ in range(12)
    ]


def slow(adapted: AdaptedModel, prompt: list[int], response: list[int], adapter: str | None, temperature: float) -> Tensor:
    """One sequence, no padding, all logits, one token at a time."""
    with adapted.use(adapter), torch.no_grad():
        logits = adapted.module(input_ids=torch.tensor([prompt + response])).logits[0] / temperature
    return torch.stack([torch.log_softmax(logits[len(prompt) + index - 1], -1)[token] for index, token in enumerate(response)])


@pytest.mark.parametrize("adapter", [None, "a"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_they_are_those_of_one_pass_a_sequence(adapted: AdaptedModel, sequences: Sequences, adapter: str | None, temperature: float) -> None:
    with torch.no_grad():
        found = response_logprobs(adapted, sequences, adapter=adapter, temperature=temperature, micro_batch_tokens=200)
    assert len(found) == len(sequences)
    for (prompt, response), logprobs in zip(sequences, found, strict=True):
        torch.testing.assert_close(logprobs, slow(adapted, prompt, response, adapter, temperature), atol=1e-5, rtol=1e-5)


def test_they_do_not_depend_on_the_batch(adapted: AdaptedModel, sequences: Sequences) -> None:
    with torch.no_grad():
        reference = torch.cat(response_logprobs(adapted, sequences, adapter="a", micro_batch_tokens=1))
        for limit in (64, 333, 100_000):
            torch.testing.assert_close(
                torch.cat(response_logprobs(adapted, sequences, adapter="a", micro_batch_tokens=limit)), reference, atol=1e-5, rtol=0
            )
        left = collate(sequences, pad_id=7, side="left")
        torch.testing.assert_close(batch_logprobs(adapted, left, adapter="a"), reference, atol=1e-5, rtol=0)


def test_positions_count_real_tokens_where_none_are_given(adapted: AdaptedModel, sequences: Sequences) -> None:
    with torch.no_grad():
        found = [
            adapted.hidden(batch.input_ids, batch.attention_mask, adapter="a")[batch.attention_mask]
            for batch in (collate(sequences, pad_id=0), collate(sequences, pad_id=9, side="left"))
        ]
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)
    seen: list[Tensor] = []
    handle = adapted.module.model.register_forward_pre_hook(lambda module, args, inputs: seen.append(inputs["position_ids"]), with_kwargs=True)
    adapted.hidden(torch.tensor([[9, 9, 5, 6], [5, 6, 7, 9]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]).bool(), adapter=None)
    handle.remove()
    assert seen[0].tolist() == [[0, 1, 0, 1, 2]]


def test_the_next_token_distribution_sums_to_one(adapted: AdaptedModel) -> None:
    with torch.no_grad():
        found = response_logprobs(adapted, [([1, 50], [token]) for token in range(259)], adapter="a", temperature=0.5)
    assert float(torch.cat(found).exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_the_callers_grad_mode_holds(adapted: AdaptedModel, sequences: Sequences) -> None:
    with torch.no_grad():
        assert not response_logprobs(adapted, sequences[:2], adapter="a")[0].requires_grad
    sum(row.sum() for row in response_logprobs(adapted, sequences, adapter="a", micro_batch_tokens=100)).backward()
    split = [parameter.grad.clone() for parameter in adapted.parameters("a") if parameter.grad is not None]
    for parameter in adapted.parameters("a"):
        parameter.grad = None
    torch.cat(response_logprobs(adapted, sequences, adapter="a", micro_batch_tokens=100_000)).sum().backward()
    whole = [parameter.grad for parameter in adapted.parameters("a")]
    assert len(split) == len(whole) == 28
    for one, other in zip(split, whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    assert all(parameter.grad is None for name, parameter in adapted.module.named_parameters() if "lora" not in name)


def test_the_head_runs_on_response_positions_only(adapted: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    handle = adapted.module.get_output_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(output.shape[0]))
    response_logprobs(adapted, [([1] * 50, [5, 6, 7]), ([1] * 80, [5])], adapter=None, micro_batch_tokens=1000)
    handle.remove()
    assert seen == [4]


@pytest.mark.parametrize("sequence", [([], [5]), ([5], [])])
def test_empty_sides_are_refused_by_item(adapted: AdaptedModel, sequence: tuple[list[int], list[int]]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        response_logprobs(adapted, [([1], [2]), sequence], adapter=None)
    assert caught.value.field == "sequences[1]"


def test_the_context_is_the_limit(adapted: AdaptedModel) -> None:
    assert len(response_logprobs(adapted, [([1] * 500, [5] * 12)], adapter=None)[0]) == 12
    with pytest.raises(OutOfRangeError, match="512"):
        response_logprobs(adapted, [([1] * 500, [5] * 13)], adapter=None)
    assert response_logprobs(adapted, [], adapter=None) == []


def test_pad_rows() -> None:
    padded, mask = pad_rows([torch.tensor([-1.0]), torch.tensor([-2.0, -3.0])])
    assert padded.tolist() == [[-1.0, 0.0], [-2.0, -3.0]]
    assert mask.tolist() == [[True, False], [True, True]]


GROUPS: list[tuple[list[int], list[list[int]]]] = [
    ([1, 40, 50], [[60, 61], [70], [60, 61]]),
    ([1], [[80, 81, 82]]),
    ([1] + [90] * 30, [[5] * 10, [100, 2]]),
]


class TestSharedPrompts:
    @pytest.mark.parametrize("limit", [1, 40, 100_000])
    @pytest.mark.parametrize("adapter", [None, "a"])
    def test_they_are_those_of_separate_rows(self, adapted: AdaptedModel, limit: int, adapter: str | None) -> None:
        with torch.no_grad():
            found = group_logprobs(adapted, GROUPS, adapter=adapter, temperature=0.7, micro_batch_tokens=limit)
            for (prompt, responses), rows in zip(GROUPS, found, strict=True):
                expected = response_logprobs(adapted, [(prompt, response) for response in responses], adapter=adapter, temperature=0.7)
                assert len(rows) == len(expected)
                for row, other in zip(rows, expected, strict=True):
                    torch.testing.assert_close(row, other, atol=1e-5, rtol=1e-5)

    def test_gradients_are_those_of_separate_rows(self, adapted: AdaptedModel) -> None:
        torch.cat([row for rows in group_logprobs(adapted, GROUPS, adapter="a") for row in rows]).square().sum().backward()
        packed = [parameter.grad.clone() for parameter in adapted.parameters("a") if parameter.grad is not None]
        for parameter in adapted.parameters("a"):
            parameter.grad = None
        pairs = [(prompt, response) for prompt, responses in GROUPS for response in responses]
        torch.cat(response_logprobs(adapted, pairs, adapter="a")).square().sum().backward()
        assert len(packed) == 28
        for one, parameter in zip(packed, adapted.parameters("a"), strict=True):
            torch.testing.assert_close(one, parameter.grad, atol=2e-3, rtol=1e-3)

    def test_the_layout_by_hand(self) -> None:
        batch = pack([([5, 6], [[7], [8, 9]])], pad_id=0)
        assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9]]
        assert batch.position_ids.tolist() == [[0, 1, 2, 2, 3]]
        assert batch.attention_mask[0, 0].int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
        assert (batch.columns.tolist(), batch.token_columns.tolist()) == ([1, 1, 3], [2, 3, 4])
        assert batch.tokens.tolist() == [7, 8, 9]
        assert batch.lengths == (1, 2)

    def test_empty_parts_are_refused(self, adapted: AdaptedModel) -> None:
        for group in (([], [[5]]), ([5], []), ([5], [[]])):
            with pytest.raises(ValueError, match="each group"):
                pack([group], pad_id=0)
        with pytest.raises(InvalidArgumentError):
            group_logprobs(adapted, [([5], [[]])], adapter=None)
        with pytest.raises(OutOfRangeError):
            group_logprobs(adapted, [([5] * 512, [[6]])], adapter=None)

    def test_a_four_dimensional_mask_needs_positions(self, adapted: AdaptedModel) -> None:
        batch = pack(GROUPS, pad_id=0)
        with pytest.raises(ValueError, match="position_ids"):
            adapted.hidden(batch.input_ids, batch.attention_mask, adapter=None)
