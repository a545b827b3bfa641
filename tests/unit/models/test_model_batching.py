"""Padding, masks, micro-batches: against what one would write by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accord.models.batching import collate, micro_batches

SEQUENCES = [([5, 6], [7]), ([8], [9, 10, 11])]


def test_right_padding() -> None:
    batch = collate(SEQUENCES, pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 0], [8, 9, 10, 11]]
    assert batch.attention_mask.tolist() == [[True, True, True, False], [True] * 4]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0], [0, 1, 2, 3]]
    assert batch.response_mask.tolist() == [[False, False, True, False], [False, True, True, True]]
    assert batch.predicting_mask.tolist() == [[False, True, False, False], [True, True, True, False]]
    assert batch.last_token_index.tolist() == [2, 3]


def test_left_padding() -> None:
    batch = collate(SEQUENCES, pad_id=3, side="left")
    assert batch.input_ids.tolist() == [[3, 5, 6, 7], [8, 9, 10, 11]]
    assert batch.position_ids.tolist() == [[0, 0, 1, 2], [0, 1, 2, 3]]
    assert batch.response_mask.tolist() == [[False, False, False, True], [False, True, True, True]]
    assert batch.predicting_mask.tolist() == [[False, False, True, False], [True, True, True, False]]
    assert batch.last_token_index.tolist() == [3, 3]


@pytest.mark.parametrize("side", ["left", "right"])
def test_predicted_tokens_stand_one_to_the_right_of_where_they_are_predicted(side: str) -> None:
    batch = collate(SEQUENCES, pad_id=0, side=side)  # type: ignore[arg-type]
    assert batch.input_ids[batch.response_mask].tolist() == [7, 9, 10, 11]
    assert batch.input_ids[batch.predicting_mask].tolist() == [6, 8, 9, 10]


def test_a_response_without_a_prompt_has_an_unpredicted_first_token() -> None:
    batch = collate([([], [5, 6])], pad_id=0)
    assert batch.response_mask.tolist() == [[True, True]]
    assert batch.predicting_mask.tolist() == [[True, False]]


@pytest.mark.parametrize("sequences", [[], [([], [])], [([1], [2]), ([], [])]])
def test_nothing_to_batch(sequences: list[tuple[list[int], list[int]]]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        collate(sequences, pad_id=0)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_micro_batches_hold_each_index_once_within_the_limit(lengths: list[int], limit: int) -> None:
    groups = micro_batches(lengths, limit)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[index] for index in group) <= limit
    sizes = [max(lengths[index] for index in group) for group in groups]
    assert sizes == sorted(sizes, reverse=True)


def test_micro_batches_by_hand() -> None:
    assert micro_batches([3, 9, 4, 4], 12) == [[1], [2, 3, 0]]
    assert micro_batches([20, 1], 12) == [[0], [1]]
    with pytest.raises(ValueError, match="positive"):
        micro_batches([1], 0)


def test_a_batch_moves_whole() -> None:
    moved = collate(SEQUENCES, pad_id=0).to(torch.device("meta"))
    assert {tensor.device.type for tensor in (moved.input_ids, moved.attention_mask, moved.position_ids, moved.response_mask)} == {"meta"}
