"""Checkpoints that are published by hand: what a version says of itself must be of that checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.training.surroundings import make_context, planted_pairs, write_rows

from accord.errors import FailedPreconditionError
from accord.trainer.checkpoints import find_checkpoint, promote
from accord.trainer.registry import RunRecord
from accord.training.__main__ import build
from accord.training.loop import train


def test_a_reward_model_whose_scores_have_no_scale_yet_is_not_published(tmp_path: Path, tiny_folder: Path) -> None:
    """Its facts said mean 0 and standard deviation 1: raw scores beside normalised ones of other versions, for PPO, sampling and the reward service."""
    pairs = write_rows(tmp_path / "pairs.jsonl", planted_pairs())
    values = {"steps": 2, "checkpoint_every_steps": 1, "checkpoints_kept": 9, "reward_model": {"data": pairs}}
    context = make_context(tmp_path, tiny_folder, values)
    result = train(context, build(context))
    record = RunRecord(1, "runs/run", "", "", context.spec, "SUCCEEDED", "", 1, str(context.directory.path), 0.0, 0.0, 0.0, None, 0)
    early, last = (find_checkpoint(record, f"runs/run/checkpoints/{step}") for step in (1, 2))
    with pytest.raises(FailedPreconditionError, match=r"measured after the last step, 2, .* train with steps: 1") as error:
        promote(context.store, record, early, "")
    assert error.value.field == "checkpoint"
    assert context.store.latest("a") == result.adapter_version, "nothing is published"
    assert promote(context.store, record, last, "") == result.adapter_version
    facts = context.store.manifest(promote(context.store, record, last, "other")).facts
    assert facts["statistics_pairs"] > 0
    assert (facts["mean"], facts["std"]) != (0.0, 1.0)
