"""Scalar heads: where they read, how they start, what they keep."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from accord.errors import DataLossError, FailedPreconditionError, NotFoundError
from accord.models.heads import HEAD_FILE, HeadFacts, ScalarHead


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def test_it_reads_the_last_real_token_on_either_side() -> None:
    head = ScalarHead(4, seed=1)
    hidden = numbers(2, 3, 4)
    right = torch.tensor([[1, 1, 0], [1, 1, 1]])
    left = torch.tensor([[0, 1, 1], [1, 1, 1]])
    everywhere = head(hidden)
    assert everywhere.shape == (2, 3)
    torch.testing.assert_close(head.at_last_token(hidden, right), torch.stack([everywhere[0, 1], everywhere[1, 2]]))
    torch.testing.assert_close(head.at_last_token(hidden, left.bool()), everywhere[:, 2])
    with pytest.raises(ValueError, match="last token"):
        head.at_last_token(hidden, torch.tensor([[0, 0, 0], [1, 1, 1]]))


def test_it_is_a_dot_product_and_a_constant() -> None:
    head = ScalarHead(3)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
        head.bias.fill_(0.25)
    assert head(torch.tensor([2.0, 1.0, 4.0])).item() == 2.25
    assert head(torch.ones(5, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_it_starts_at_zero_or_by_seed_alone() -> None:
    assert float(ScalarHead(64)(numbers(5, 64)).abs().max()) == 0
    state = torch.random.get_rng_state()
    first, again, other = ScalarHead(4096, seed=1), ScalarHead(4096, seed=1), ScalarHead(4096, seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    assert float(first.weight.std()) == pytest.approx(4097**-0.5, rel=0.05)
    assert float(first.bias) == 0


def test_it_comes_back_bit_for_bit(tmp_path: Path) -> None:
    head = ScalarHead(8, seed=1)
    with torch.no_grad():
        head.bias.fill_(0.5)
    head.save(tmp_path)
    again = ScalarHead.load(tmp_path, hidden_size=8)
    assert torch.equal(again(numbers(3, 8)), head(numbers(3, 8)))
    assert [name for name, _ in again.named_parameters()] == ["weight", "bias"]
    with pytest.raises(FailedPreconditionError, match=r"8.*16"):
        ScalarHead.load(tmp_path, hidden_size=16)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(NotFoundError, match=HEAD_FILE):
        ScalarHead.load(tmp_path)
    for content in ({"weight": torch.ones(3)}, {"weight": torch.ones(3, 2), "bias": torch.ones(1)}, {"weight": torch.ones(3), "bias": torch.ones(2)}):
        save_file(content, tmp_path / HEAD_FILE)
        with pytest.raises(DataLossError):
            ScalarHead.load(tmp_path)
    (tmp_path / HEAD_FILE).write_bytes(b"torn")
    with pytest.raises(DataLossError):
        ScalarHead.load(tmp_path)


def test_facts_round_trip_through_a_manifest() -> None:
    facts = HeadFacts(mean=0.5, std=2.0, training_data_digest="d" * 64, held_out_accuracy=None, max_tokens=700)
    assert HeadFacts.from_facts({**facts.to_facts(), "epochs": 3}) == facts
    with pytest.raises(FailedPreconditionError, match="std"):
        HeadFacts.from_facts({"mean": 0.0})
    for std in (0.0, -1.0, float("nan")):
        with pytest.raises(FailedPreconditionError):
            HeadFacts(std=std)
