"""Learning with the embedded model on the sample: minutes, so `make test-slow` runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.unit.training.surroundings import metrics_of, run_here

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("task", ["conversation", "summarization"])
def test_a_reward_model_is_right_on_held_out_pairs(tmp_path: Path, task: str) -> None:
    """Above 60 % on the pairs of the sample's test split that fit the limits (36 and 38 of 40), which the run does not train on."""
    data = {"uri": f"sample:{task}"}
    spec = {
        "steps": 14, "batch_size": 8, "micro_batch_size": 2, "max_prompt_tokens": 360, "max_response_tokens": 128, "lora": {"rank": 8}, "seed": 1,
        "reward_model": {"data": data, "eval_data": {**data, "split": "test"}},
    }  # fmt: skip
    threads = torch.get_num_threads()
    try:
        result, events = run_here(tmp_path, Path("embedded"), spec)
    finally:
        torch.set_num_threads(threads)
    assert result.metrics["eval_pairs"] >= 36
    assert result.metrics["eval_accuracy"] > 0.6
    assert result.metrics["eval_accuracy"] > metrics_of(events, "eval_length_baseline")[0], "no better than taking the longer response"
    print(f"{task}: {metrics_of(events, 'eval_accuracy')}, interval from {result.metrics['eval_accuracy_low']:.3f}")
