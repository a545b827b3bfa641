"""A run that torchrun starts, as a JobSet's pods do: two nodes of one process each, and one node of two."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.runs import ROOT, TrainingRun
from tests.unit.training.ranked import on_ranks
from tests.unit.training.surroundings import make_context

from accord.models.testing import tiny_model_folder
from accord.training.distribution import World

pytestmark = [pytest.mark.training, pytest.mark.timeout(300)]
WORDS = ("alpha", "beta", "gamma", "delta", "omega", "kappa")


def spec_of(root: Path, strategy: str) -> dict[str, Any]:
    return {
        "steps": 4, "batch_size": 3, "micro_batch_size": 1, "seed": 7, "max_prompt_tokens": 64, "max_response_tokens": 32, "lora": {"rank": 4},
        "distribution": {"processes": 2 if strategy == "fsdp" else 1, "strategy": strategy}, "dpo": {"data": {"uri": str(root / "rows.jsonl")}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torchrun")
    tiny_model_folder(folder / "model")
    rows = [{"prompt": f"say {word}", "chosen": word * (1 + n % 3), "rejected": word[::-1]} for n, word in enumerate(WORDS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def agents() -> Iterator[list[subprocess.Popen[bytes]]]:
    made: list[subprocess.Popen[bytes]] = []
    yield made
    for process in made:
        process.kill()
        process.wait(30)


@pytest.mark.parametrize(("strategy", "nodes"), [("ddp", 2), ("fsdp", 1)])
def test_it_publishes_what_two_processes_of_the_launcher_do(root: Path, agents: list[subprocess.Popen[bytes]], strategy: str, nodes: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    run = TrainingRun(root, f"torchrun-{strategy}", root / "model", spec_of(root, strategy))
    for node in range(nodes):
        options = [f"--nnodes={nodes}", f"--nproc-per-node={2 // nodes}", f"--node-rank={node}", "--max-restarts=0"]
        options += ["--master-addr=127.0.0.1", f"--master-port={port}"]
        command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "accord.training", "--config", str(run.directory.path / "run.yaml")]
        with (root / f"{strategy}-{node}.log").open("wb") as log:
            environment = {**os.environ, "PYTHONPATH": str(ROOT / "services")}
            agents.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    codes = [agent.wait(200) for agent in agents]
    assert set(codes) == {0}, "".join((root / f"{strategy}-{node}.log").read_text() for node in range(nodes))
    (straight, _) = on_ranks(root, 2, _straight, root, strategy, strategy=strategy)
    assert run.published()["adapter_model.safetensors"] == straight


def _straight(world: World, root: Path, strategy: str) -> bytes:
    """The same run in two processes that find each other over a file."""
    from accord.training.__main__ import build
    from accord.training.loop import train

    name = f"straight-{strategy}"
    context = make_context(root, root / "model", {**spec_of(root, strategy), "adapter": name}, name=name, world=world)
    version = train(context, build(context)).adapter_version
    return (context.store.fetch(version) / "adapter_model.safetensors").read_bytes()
