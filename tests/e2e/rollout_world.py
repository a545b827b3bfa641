"""Real policy and reward servers over one artefact store with an SFT adapter and reward models in it, for runs with rollouts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.contract.harness import ServerProcess
from tests.e2e.runs import TrainingRun
from tests.unit.training.surroundings import planted_pairs, run_here, write_rows

from accord.models.testing import tiny_model_folder
from accord.rundir import Endpoints


@dataclass
class World:
    """Two servers, where runs start and what scores."""

    root: Path
    model: Path
    policy: ServerProcess
    reward: ServerProcess
    data: dict[str, Any]
    start: str
    reward_models: list[str]

    def run(self, name: str, spec: dict[str, Any], *, reward: str = "", **more: Any) -> TrainingRun:
        """A run, not yet started, that scores through the reward server or at another address."""
        endpoints = Endpoints(policy=self.policy.address, reward=reward or self.reward.address)
        return TrainingRun(self.root, name, self.model, spec, endpoints=endpoints, **more)

    def server_config(self, listen: str = "127.0.0.1:0") -> dict[str, Any]:
        """Of either server."""
        return {"base_model": str(self.model), "artefacts": str(self.root / "artefacts"), "threads": 1, "server": {"listen": listen}}

    def start_reward(self, listen: str = "127.0.0.1:0") -> ServerProcess:
        """A reward server as it comes: on a CPU no bit of a score depends on what else was waiting."""
        return ServerProcess("accord.reward", self.server_config(listen), self.root).__enter__()


@contextlib.contextmanager
def rollout_world(root: Path, *, reward_models: int = 1) -> Iterator[World]:
    """A world in a folder; its reward models differ by seed."""
    threads = torch.get_num_threads()
    model = tiny_model_folder(root / "model")
    data = write_rows(root / "rows.jsonl", planted_pairs())
    common = {"steps": 4, "optimizer": {"learning_rate": 2e-3}}
    start = run_here(root, model, {**common, "adapter": "start", "sft": {"data": data}}, name="start")[0].adapter_version
    scoring = [
        run_here(root, model, {**common, "adapter": "rm", "seed": seed, "reward_model": {"data": data}}, name=f"rm-{seed}")[0].adapter_version
        for seed in range(reward_models)
    ]
    torch.set_num_threads(threads)
    made = World(root, model, None, None, data, start, scoring)  # type: ignore[arg-type]
    with ServerProcess("accord.policy", made.server_config(), root) as policy:
        made.policy = policy
        made.reward = made.start_reward()
        yield made
        made.reward.kill()


def assert_same_curve(run: TrainingRun, straight: TrainingRun) -> None:
    """Bit for bit, but for what is said of the sampler: its logprobs differ in the last bits by what else was in its passes; nothing is trained on them."""
    mine, other = run.curve(), straight.curve()
    for curve in (mine, other):
        for metrics in curve.values():
            assert metrics.pop("sampler_gap_max", 0.0) < 1e-3
            assert metrics.pop("sampler_approx_kl", 0.0) < 1e-6
    assert mine == other
