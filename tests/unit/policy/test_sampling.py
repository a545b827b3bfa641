"""Choosing tokens: that draws follow the distribution, what truncation leaves, and what a seed fixes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from accord.policy.backend import SamplingSettings
from accord.policy.sampling import RowSampling, draw, penalized, row_uniforms, sample, truncated

PLAIN = SamplingSettings(
    max_tokens=8, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, stop=(), stop_token_ids=frozenset(), seed=0, ignore_eos=False
)  # fmt: skip
VOCABULARY = 1000


def logits(seed: int = 0, rows: int = 1, vocabulary: int = VOCABULARY) -> Tensor:
    return torch.randn((rows, vocabulary), generator=torch.Generator().manual_seed(seed)) * 3


def at(values: Tensor, uniforms: list[float], settings: SamplingSettings = PLAIN) -> list[int]:
    """Tokens that these random numbers choose from one row of logits."""
    count = len(uniforms)
    tokens, _ = sample(values.expand(count, -1), RowSampling.build([settings] * count), torch.tensor(uniforms, dtype=torch.float64), None)
    return tokens.tolist()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    values = logits(vocabulary=12)
    count = 40_000
    grid = ((torch.arange(count) + 0.5) / count).tolist()
    found = torch.tensor(at(values, grid, replace(PLAIN, temperature=temperature))).bincount(minlength=12) / count
    assert found.tolist() == pytest.approx(torch.softmax(values[0] / temperature, dim=0).tolist(), abs=1e-4)


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 50))
def test_a_draw_is_the_inverse_of_the_cumulative_distribution(uniform: float, seed: int) -> None:
    values = logits(seed)
    (token,) = at(values, [uniform])
    cumulative = torch.softmax(values[0].double(), dim=0).cumsum(dim=0)
    below = float(cumulative[token - 1]) if token else 0.0
    assert below - 1e-6 <= uniform <= float(cumulative[token]) + 1e-6


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_what_is_excluded_is_never_chosen_at_either_end(uniform: float) -> None:
    weights = torch.zeros((1, 700))
    weights[0, [300, 301]] = torch.tensor([0.25, 0.75])
    token = draw(weights, RowSampling.build([PLAIN]), torch.tensor([uniform], dtype=torch.float64))
    assert int(token) in (300, 301)
    assert int(token) == (300 if uniform < 0.25 else 301)


def test_truncation_keeps_what_transformers_keeps() -> None:
    from transformers import LogitsProcessorList, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    values = logits(4, rows=3)
    settings = replace(PLAIN, top_k=50, top_p=0.8, min_p=0.05)
    kept = truncated(torch.softmax(values, dim=-1).double(), RowSampling.build([settings] * 3)) > 0
    warpers = LogitsProcessorList([TopKLogitsWarper(50), TopPLogitsWarper(0.8), MinPLogitsWarper(0.05)])
    wanted = warpers(torch.zeros((3, 1), dtype=torch.long), values) > float("-inf")
    assert 3 < int(wanted.sum()) < 150
    assert torch.equal(kept, wanted)


def test_every_row_is_truncated_by_its_own_settings_as_transformers_does() -> None:
    from transformers import LogitsProcessorList, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    chosen = random.Random(1)
    settings = [
        replace(PLAIN, top_k=chosen.choice([0, 1, 2, 40, 100_000]), top_p=chosen.choice([1.0, 0.95, 0.5, 1e-6]), min_p=chosen.choice([0.0, 0.02, 0.5, 1.0]))
        for _ in range(60)
    ]  # fmt: skip
    values = logits(8, rows=60)
    kept = truncated(torch.softmax(values, dim=-1).double(), RowSampling.build(settings)) > 0
    for row, each in enumerate(settings):
        warpers = LogitsProcessorList([TopKLogitsWarper(each.top_k)] if each.top_k else [])
        warpers += [TopPLogitsWarper(each.top_p)] if each.top_p < 1 else []
        warpers += [MinPLogitsWarper(each.min_p)] if each.min_p else []
        wanted = warpers(torch.zeros((1, 1), dtype=torch.long), values[row : row + 1])[0] > float("-inf")
        assert torch.equal(kept[row], wanted), each


def test_the_penalty_is_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    values, tokens = logits(9), torch.tensor([[3, 3, 500, 7]])
    seen = torch.zeros((1, VOCABULARY), dtype=torch.bool)
    seen[0, tokens[0]] = True
    for penalty in (1.3, 0.7):
        assert torch.equal(penalized(values, seen, torch.tensor([penalty])), RepetitionPenaltyLogitsProcessor(penalty)(tokens, values.clone()))


def test_the_logprob_is_that_of_the_temperature_before_truncation_and_penalties() -> None:
    values = logits(5)
    settings = replace(PLAIN, temperature=0.5, top_k=3, repetition_penalty=5.0)
    seen = torch.zeros((1, VOCABULARY), dtype=torch.bool)
    seen[0, int(values.argmax())] = True
    tokens, logprobs = sample(values, RowSampling.build([settings]), torch.tensor([0.2], dtype=torch.float64), seen)
    assert int(tokens) != int(values.argmax()), "the penalty must change the choice, or this proves nothing"
    assert float(logprobs) == pytest.approx(float(torch.log_softmax(values / 0.5, dim=-1)[0, int(tokens)]), abs=1e-5)


def test_greedy_and_drawn_rows_share_a_batch() -> None:
    values = logits(6, rows=4)
    settings = [replace(PLAIN, temperature=0.0), PLAIN, replace(PLAIN, temperature=0.0), replace(PLAIN, temperature=0.4)]
    uniforms = torch.tensor([0.9, 0.9, 0.1, 0.3], dtype=torch.float64)
    tokens, _ = sample(values, RowSampling.build(settings), uniforms, None)
    assert tokens[[0, 2]].tolist() == values[[0, 2]].argmax(dim=-1).tolist()
    for row in (1, 3):
        alone, _ = sample(values[row : row + 1], RowSampling.build([settings[row]]), uniforms[row : row + 1], None)
        assert int(alone) == int(tokens[row])


def test_random_numbers_depend_on_seed_and_sample_alone() -> None:
    assert row_uniforms(3, 1, 40)[:10] == row_uniforms(3, 1, 10)
    assert len({tuple(row_uniforms(seed, index, 3)) for seed in (0, 1, 2**63) for index in (0, 1)}) == 6
    assert all(0 <= number < 1 for number in row_uniforms(9, 0, 1000))
