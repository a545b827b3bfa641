"""A run that torchrun starts, as a JobSet's pods do: two nodes of one process each, and one node of two; and the codes with which its agents end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.runs import TrainingRun
from tests.nursery import ROOT
from tests.unit.training.ranked import on_ranks
from tests.unit.training.surroundings import make_context

from accord.models.testing import tiny_model_folder
from accord.rundir import EXIT_CONFIGURATION, EXIT_STOPPED
from accord.training.agent import telling_code
from accord.training.distribution import World

pytestmark = [pytest.mark.training, pytest.mark.timeout(600)]
START_SECONDS = 300  # of four processes that import torch, on two slow cores
WORDS = ("alpha", "beta", "gamma", "delta", "omega", "kappa")


def spec_of(root: Path, strategy: str, nodes: int = 1) -> dict[str, Any]:
    return {
        "steps": 4, "batch_size": 3, "micro_batch_size": 1, "seed": 7, "max_prompt_tokens": 64, "max_response_tokens": 32, "lora": {"rank": 4},
        "distribution": {"processes": 2 // nodes if strategy == "fsdp" else 1, "strategy": strategy}, "dpo": {"data": {"uri": str(root / "rows.jsonl")}},
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


@pytest.mark.parametrize(("strategy", "nodes"), [("ddp", 2), ("fsdp", 1), ("fsdp", 2)])
def test_it_publishes_what_two_processes_of_the_launcher_do(root: Path, agents: list[subprocess.Popen[bytes]], strategy: str, nodes: int) -> None:
    run = TrainingRun(root, f"torchrun-{strategy}-{nodes}", root / "model", spec_of(root, strategy, nodes))
    start(run, agents, nodes)
    codes = [agent.wait(START_SECONDS) for agent in agents]
    assert set(codes) == {0}, logs(run, nodes)
    (straight, _) = on_ranks(root, 2, _straight, root, strategy, strategy=strategy)
    assert run.published()["adapter_model.safetensors"] == straight


def test_a_stop_of_one_node_stops_all_after_a_checkpoint(root: Path, agents: list[subprocess.Popen[bytes]]) -> None:
    run = TrainingRun(root, "torchrun-stopped", root / "model", {**spec_of(root, "ddp"), "steps": 2000, "checkpoint_every_steps": 2000})
    start(run, agents, 2)
    give_up = time.monotonic() + START_SECONDS
    while run.last_step() < 1:
        assert {agent.poll() for agent in agents} == {None}, logs(run, 2)
        assert time.monotonic() < give_up, logs(run, 2)
        time.sleep(0.05)
    agents[1].send_signal(signal.SIGTERM)  # the second node's pod is asked to go, and knows nobody else
    assert [agent.wait(START_SECONDS) for agent in agents] == [EXIT_STOPPED, EXIT_STOPPED], logs(run, 2)
    result = run.directory.result()
    assert result is not None
    assert result.exit_code == EXIT_STOPPED
    assert 1 <= result.step < 2000
    assert (run.directory.checkpoints / f"{result.step:08d}" / "manifest.json").exists()


def test_an_error_of_the_configuration_has_its_own_code(root: Path, agents: list[subprocess.Popen[bytes]]) -> None:
    wrong = {**spec_of(root, "fsdp"), "dpo": {"data": {"uri": str(root / "nothing.jsonl")}}}
    run = TrainingRun(root, "torchrun-wrong", root / "model", wrong)
    start(run, agents, 1)
    assert agents[0].wait(START_SECONDS) == EXIT_CONFIGURATION, logs(run, 1)


@pytest.mark.parametrize(
    ("codes", "code"), [([2, 1], 2), ([3, 3], 3), ([1, 5], 5), ([3, -9], 1), ([3, 4], 4), ([77], 1), ([], 1)]
)  # fmt: skip
def test_the_code_of_several_processes_is_the_most_telling(codes: list[int], code: int) -> None:
    assert telling_code(codes) == code


def start(run: TrainingRun, agents: list[subprocess.Popen[bytes]], nodes: int) -> None:
    """The agents of two processes on one node or two."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for node in range(nodes):
        options = [f"--nnodes={nodes}", f"--nproc-per-node={2 // nodes}", f"--node-rank={node}", "--max-restarts=0"]
        options += ["--master-addr=127.0.0.1", f"--master-port={port}"]
        command = [sys.executable, "-m", "accord.training.agent", *options, "-m", "accord.training", "--config", str(run.directory.path / "run.yaml")]
        with log_of(run, node).open("wb") as log:
            environment = {**os.environ, "PYTHONPATH": str(ROOT / "services")}
            agents.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))


def log_of(run: TrainingRun, node: int) -> Path:
    return run.directory.path / f"node-{node}.log"


def logs(run: TrainingRun, nodes: int) -> str:
    return "".join(log_of(run, node).read_text() for node in range(nodes))


def _straight(world: World, root: Path, strategy: str) -> bytes:
    """The same run in two processes that find each other over a file."""
    from accord.training.__main__ import build
    from accord.training.loop import train

    name = f"straight-{strategy}"
    context = make_context(root, root / "model", {**spec_of(root, strategy), "adapter": name}, name=name, world=world)
    version = train(context, build(context)).adapter_version
    return (context.store.fetch(version) / "adapter_model.safetensors").read_bytes()
