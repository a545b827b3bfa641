"""Learning with the embedded model on the sample: minutes, so `make test-slow` runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.unit.training.surroundings import metrics_of, run_here

from accord.cli.recipes import load_train_recipe

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("task", ["conversation", "summarization"])
def test_the_shipped_reward_model_is_right_on_held_out_pairs(tmp_path: Path, task: str) -> None:
    """As the README says: on the 40 pairs of the sample's test split the whole interval is above taking the longer response."""
    settings = [f"reward_model.{part}.uri=sample:{task}" for part in ("data", "eval_data")]
    threads = torch.get_num_threads()
    try:
        result, events = run_here(tmp_path, Path("embedded"), load_train_recipe("reward-model", settings).model_dump())
    finally:
        torch.set_num_threads(threads)
    assert result.metrics["eval_pairs"] == 40
    assert result.metrics["eval_accuracy_low"] > metrics_of(events, "eval_length_baseline")[0], "no better than taking the longer response"
    print(f"{task}: {metrics_of(events, 'eval_accuracy')}, interval from {result.metrics['eval_accuracy_low']:.3f}")
