"""Soft labels in whole runs: the expectation over hard labels with every loss, and their rounding where they are not asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.training.surroundings import make_context, shake, write_rows
from tests.unit.training.test_algorithms import gradients, grouped_rows
from torch import Tensor

from accord.training.__main__ import build


def pair_gradient(
    root: Path, model: Path, loss: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], name: str, batch_size: int = 3
) -> list[Tensor]:
    """Of a step on all the rows, or as many as are left of them."""
    data = write_rows(root / f"{name}.jsonl", rows)
    algorithm = build(make_context(root, model, {"batch_size": min(batch_size, len(rows)), "dpo": {"data": data, "beta": 0.3, **loss}}, name=name))
    algorithm.setup()
    shake(algorithm._context, "policy")
    return gradients(algorithm)[0]


def labelled_hard(row: Mapping[str, Any], *, chosen: bool) -> dict[str, Any]:
    """The row as one who is sure would have written it."""
    better, worse = (row["chosen"], row["rejected"]) if chosen else (row["rejected"], row["chosen"])
    return {**row, "chosen": better, "rejected": worse, "preference": 1.0}


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    largest = max(float(each.abs().max()) for each in expected)
    assert largest > 1e-3, "a gradient of nothing proves nothing"
    for first, second in zip(found, expected, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5 * max(1.0, largest))


LOSSES: dict[str, dict[str, Any]] = {
    "sigmoid": {}, "cdpo": {"label_smoothing": 0.1}, "robust": {"label_smoothing": 0.1}, "ipo": {}, "hinge": {"nll_coefficient": 0.7},
}  # fmt: skip


@pytest.mark.parametrize("loss", list(LOSSES))
def test_soft_labels_are_the_expectation_over_hard_ones_with_every_loss(tmp_path: Path, tiny_folder: Path, loss: str) -> None:
    """Pairs with preference .3 teach .3 of what they teach as they are written and .7 of what the other way round, and ties one half of each."""
    spec, rows = {"loss": loss, **LOSSES[loss]}, grouped_rows()[1:4]
    there, back = (
        pair_gradient(tmp_path, tiny_folder, spec, [labelled_hard(row, chosen=name == "there") for row in rows], name) for name in ("there", "back")
    )
    for preference in (0.3, 0.5):
        soft = pair_gradient(tmp_path, tiny_folder, spec, [{**row, "preference": preference} for row in rows], f"soft-{10 * preference:.0f}")
        assert_close(soft, [preference * one + (1 - preference) * other for one, other in zip(there, back, strict=True)])
    assert max(float((one - other).abs().max()) for one, other in zip(there, back, strict=True)) > 1e-2


@pytest.mark.parametrize("loss", list(LOSSES))
def test_without_soft_labels_every_loss_has_them_rounded_and_no_tie(tmp_path: Path, tiny_folder: Path, loss: str) -> None:
    spec, rows = {"loss": loss, **LOSSES[loss]}, [{**row, "preference": p} for row, p in zip(grouped_rows(), (0.3, 0.5, 0.8), strict=False)]
    hard = pair_gradient(tmp_path, tiny_folder, {**spec, "soft_labels": False}, rows, "hard", batch_size=2)
    assert_close(
        hard, pair_gradient(tmp_path, tiny_folder, spec, [labelled_hard(rows[0], chosen=False), labelled_hard(rows[2], chosen=True)], "rounded")
    )


def test_without_soft_labels_the_better_response_is_learned_and_no_tie(tmp_path: Path, tiny_folder: Path) -> None:
    """The same pairs written the other way round, with the label turned, train the same."""
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"], "preference": 1 - row["preference"]} for row in grouped_rows()]
    found = []
    for name, rows in (("there", grouped_rows()), ("back", turned)):
        data = write_rows(tmp_path / f"{name}.jsonl", rows)
        context = make_context(tmp_path, tiny_folder, {"batch_size": 5, "dpo": {"data": data, "loss": "hinge", "soft_labels": False}}, name=name)
        algorithm = build(context)
        algorithm.setup()
        shake(context, "policy")
        assert len(algorithm._pairs) == 5, "the pair with preference 0.5 is a tie"
        assert any("1 with a tie" in event.text for event in context.directory.events())
        found.append(gradients(algorithm)[0])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-6)
