"""Logprobs, entropies and sums of them, against log_softmax and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accord.algos.logprobs import sequence_logprobs, token_entropy, token_logprobs
from accord.algos.normalisation import RunningMoments


@given(st.integers(0, 2**20), st.floats(0.1, 5))
def test_logprobs_are_those_of_the_softmax_at_the_temperature(seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(2, 3, 11, generator=generator, dtype=torch.float64)
    tokens = torch.randint(0, 11, (2, 3), generator=generator)
    expected = torch.log_softmax(logits / temperature, -1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(token_logprobs(logits, tokens, temperature=temperature), expected)
    assert token_logprobs(logits.bfloat16(), tokens).dtype == torch.float32


@pytest.mark.parametrize("count", [0, 1, 33, 70])  # no row, and parts of 32 with a rest
def test_gradients_are_those_of_log_softmax(count: int) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(count, 11, generator=generator, dtype=torch.float64)
    tokens = torch.randint(0, 11, (count,), generator=generator)
    weights = torch.linspace(-1, 2, count, dtype=torch.float64)
    found, expected = (logits.clone().requires_grad_() for _ in range(2))
    (token_logprobs(found, tokens, temperature=0.7) * weights).sum().backward()
    (torch.log_softmax(expected / 0.7, dim=-1).gather(1, tokens[:, None])[:, 0] * weights).sum().backward()
    torch.testing.assert_close(found.grad, expected.grad)


def test_uniform_and_certain() -> None:
    uniform, certain = torch.zeros(7), torch.tensor([0.0, 1000.0, 0.0])
    assert token_logprobs(uniform, torch.tensor(3)).item() == pytest.approx(-math.log(7))
    assert token_entropy(uniform).item() == pytest.approx(math.log(7))
    assert token_logprobs(certain, torch.tensor(1)).item() == 0
    assert token_entropy(certain).item() == 0


def test_a_higher_temperature_is_flatter() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0])
    entropies = [token_entropy(logits, temperature=t).item() for t in (0.5, 1.0, 2.0)]
    assert entropies == sorted(entropies)
    likeliest = [token_logprobs(logits, torch.tensor(0), temperature=t).item() for t in (0.5, 1.0, 2.0)]
    assert likeliest == sorted(likeliest, reverse=True)


def test_gradients_by_finite_differences() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([0, 4, 2, 2])
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, tokens, temperature=0.7), (logits,))
    assert torch.autograd.gradcheck(lambda x: token_entropy(x, temperature=0.7), (logits,))


def test_sums_leave_out_what_does_not_count() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, float("-inf")], [-4.0, float("nan"), float("nan")]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert sequence_logprobs(logprobs, mask).tolist() == [-3, -4]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: token_logprobs(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), temperature=0.0), "temperature"),
        (lambda: token_entropy(torch.zeros(2, 3), temperature=-1.0), "temperature"),
        (lambda: token_logprobs(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long)), "do not predict"),
        (lambda: sequence_logprobs(torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.bool)), "differ"),
    ],
)
def test_what_does_not_fit_is_refused(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=5), max_size=6))
def test_running_moments_are_those_of_all_numbers_at_once(parts: list[list[float]]) -> None:
    moments = RunningMoments()
    for part in parts:
        moments.update(part)
    every = [value for part in parts for value in part]
    assert moments.count == len(every)
    if every:
        mean = math.fsum(every) / len(every)
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in every) / len(every))
        assert moments.mean == pytest.approx(mean, abs=1e-9)
        assert moments.std == pytest.approx(spread if spread > 1e-6 else moments.std, rel=1e-6)


def test_running_moments_go_on_exactly_and_refuse_what_is_not_finite() -> None:
    first, again = RunningMoments(), RunningMoments()
    assert (first.mean, first.std) == (0, 1)
    first.update([1.0, 2.5, -3.0])
    again.load_state_dict(first.state_dict())
    first.update([0.1, 7.0])
    again.update([0.1, 7.0])
    assert again.state_dict() == first.state_dict()
    with pytest.raises(ValueError, match="finite"):
        first.update([float("nan")])
    assert again.state_dict() == first.state_dict()
