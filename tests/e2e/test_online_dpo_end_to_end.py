"""Online DPO through a real policy server and a real feedback server that judges with it: killed and stopped, it ends in the same bits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.harness import ServerProcess
from tests.e2e.runs import TrainingRun, kill_between_checkpoints
from tests.unit.training.surroundings import planted_pairs, write_rows

from accord.models.testing import tiny_model_folder
from accord.rundir import Endpoints
from accord.training.rollout_files import read_rows
from accord.training.sampled_pairs import SampledPair, pair_of

STEPS, EVERY = 7, 3
pytestmark = [pytest.mark.training, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, Endpoints]]:
    """Root, model, and where the two servers are."""
    root = tmp_path_factory.mktemp("online")
    model = tiny_model_folder(root / "model")
    server = {"server": {"listen": "127.0.0.1:0"}}
    config = {"base_model": str(model), "artefacts": str(root / "artefacts"), "threads": 1, **server}
    with ServerProcess("accord.policy", config, root) as policy:
        ledger = {"ledger": str(root / "ledger.sqlite"), "jobs": str(root / "jobs"), "policy": policy.address, **server}
        with ServerProcess("accord.feedback", ledger, root) as feedback:
            yield root, model, Endpoints(policy=policy.address, feedback=feedback.address)


def sampled(run: TrainingRun, step: int) -> list[SampledPair]:
    found = read_rows(run.directory.rollouts / f"{step:08d}.jsonl", pair_of)
    assert found is not None
    return found


def test_killed_between_checkpoints_it_publishes_the_bits_of_an_undisturbed_run(
    world: tuple[Path, Path, Endpoints]
) -> None:  # fmt: skip
    root, model, endpoints = world
    data = write_rows(root / "rows.jsonl", planted_pairs())
    spec = {
        "steps": STEPS, "batch_size": 4, "micro_batch_size": 2, "checkpoint_every_steps": EVERY, "max_prompt_tokens": 120, "max_response_tokens": 10,
        "lora": {"rank": 4}, "seed": 5, "optimizer": {"learning_rate": 2e-3},
        "online_dpo": {"data": data, "eval_data": {**data, "limit": 3}, "judge": "likelihood"},
    }  # fmt: skip

    def made(name: str) -> TrainingRun:
        return TrainingRun(root, name, model, spec, endpoints=endpoints)

    straight = made("straight").start()
    straight.finish()
    for attempt in range(3):  # on a busy machine the kill can come a step too late to prove anything
        disturbed = made(f"disturbed-{attempt}").start()
        if kill_between_checkpoints(disturbed, after_step=EVERY + 1, before_step=2 * EVERY):
            break
    else:
        raise AssertionError("three kills came too late")
    kept = {path.name: path.read_bytes() for path in disturbed.directory.rollouts.iterdir()}
    disturbed.start().finish()
    assert disturbed.published() == straight.published()
    assert all((disturbed.directory.rollouts / name).read_bytes() == content for name, content in kept.items())
    mine, other = disturbed.curve(), straight.curve()
    for curve in (mine, other):  # the sampler's last bits depend on what else was in its passes; nothing is trained on them
        for metrics in curve.values():
            assert metrics.pop("sampler_gap_max", 0.0) < 1e-3
    assert mine == other
    assert other[1]["margin"] == 0
    for step in range(STEPS):
        for pair, twin in zip(sampled(disturbed, step), sampled(straight, step), strict=True):
            assert (pair.first.token_ids, pair.second.token_ids, pair.preference) == (twin.first.token_ids, twin.second.token_ids, twin.preference)
            assert pair.judge_kind in ("likelihood", "")
    labelled = [pair for step in range(STEPS) for pair in sampled(straight, step) if pair.preference is not None]
    assert len(labelled) > STEPS
    assert any(abs((pair.preference or 0.5) - 0.5) > 0.01 for pair in labelled)
    version = straight.store.latest("straight")
    assert version is not None
    assert json.loads(json.dumps(straight.store.manifest(version).facts))["judge_kind"] == "likelihood"
