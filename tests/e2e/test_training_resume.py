"""SFT, reward model and DPO as processes: killed between checkpoints, stopped, resumed, they publish the bits of a run that nobody disturbed.

PPO, which needs services, is in `test_ppo_end_to_end`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.runs import TrainingRun, kill_between_checkpoints, stop_and_resume

from accord.models.testing import tiny_model_folder

STEPS, EVERY = 12, 4
WORDS = ("alpha", "beta", "gamma", "delta", "omega", "kappa", "sigma", "theta", "lambda", "zeta", "iota", "tau")

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    tiny_model_folder(folder / "model")
    rows = [{"prompt": f"say {word} " * 6, "chosen": word * (5 + n % 3), "rejected": word[::-1] * (4 + n % 4)} for n, word in enumerate(WORDS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = [{**row, "prompt": f"tell {row['prompt']}"} for row in rows]
    (folder / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    return folder


@pytest.fixture
def runs() -> Iterator[list[TrainingRun]]:
    """Runs of the test; what is left of them is killed."""
    made: list[TrainingRun] = []
    yield made
    for run in made:
        run.close()


@pytest.mark.parametrize("kind", ["sft", "reward_model", "dpo"])
def test_killed_and_stopped_it_publishes_the_bits_of_an_undisturbed_run(
    root: Path, runs: list[TrainingRun], kind: str
) -> None:  # fmt: skip
    """SFT that nobody disturbs is `python -m accord.training`; all others are forked, which is quicker."""
    data = {"uri": str(root / "rows.jsonl")}
    spec: dict[str, Any] = {
        "steps": STEPS, "batch_size": 12, "micro_batch_size": 1, "checkpoint_every_steps": EVERY, "eval_every_steps": 5, "seed": 7,
        "max_prompt_tokens": 200, "max_response_tokens": 60, "lora": {"rank": 4}, "optimizer": {"schedule": "cosine", "warmup_steps": 2},
        kind: {"data": data, "eval_data": {"uri": str(root / "held.jsonl"), "limit": 3}},
    }  # fmt: skip
    name = kind.replace("_", "-")
    straight = TrainingRun(root, f"{name}-straight", root / "model", spec, forked=kind != "sft")
    runs.append(straight.start())
    for attempt in range(3):  # on a busy machine the kill can come a step too late to prove anything
        disturbed = TrainingRun(root, f"{name}-disturbed-{attempt}", root / "model", spec)
        runs.append(disturbed.start())
        if kill_between_checkpoints(disturbed, after_step=EVERY + 1, before_step=2 * EVERY):
            break
    else:
        raise AssertionError("three kills came too late")
    assert sorted(path.name for path in disturbed.directory.checkpoints.glob("0*")) == [f"{EVERY:08d}"]
    disturbed.start()
    stop_and_resume(disturbed, after_step=EVERY + 2, steps=STEPS)
    assert any(event.text == f"resumed after step {EVERY}" for event in disturbed.directory.events())
    result = disturbed.start().finish()
    expected = straight.finish()
    files = disturbed.published()
    assert files == straight.published()
    assert {"adapter_model.safetensors", "adapter_config.json"} <= files.keys()
    assert ("head.safetensors" in files) == (kind == "reward_model")
    assert result.step == expected.step == STEPS
    assert disturbed.curve() == straight.curve()
    mine, theirs = (run.store.manifest(outcome.adapter_version) for run, outcome in ((disturbed, result), (straight, expected)))
    assert {**mine.facts, "spec_digest": ""} == {**theirs.facts, "spec_digest": ""}
    assert (mine.parents, mine.data_digest, mine.step) == (theirs.parents, theirs.data_digest, theirs.step)
