"""The installed `accord` command from `up` to `down`, each call a process of its own, on real services with a tiny model.

The tests share one workspace and run in their order: each continues where the one before stopped, as a person would.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from accord.cli.app import COMMANDS
from accord.client.reward import RewardClient
from accord.models.testing import tiny_model_folder

ACCORD = Path(sys.executable).with_name("accord")
WORDS = ("alpha", "beta", "gamma", "delta", "omega", "kappa", "sigma", "theta")
SMALL = ("--set", "batch_size=2", "--set", "micro_batch_size=2", "--set", "max_prompt_tokens=300", "--set", "lora.rank=2")
CALL_SECONDS = 240

pytestmark = pytest.mark.timeout(400)


@dataclass(frozen=True)
class Done:
    """One call that has ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Person:
    """Somebody at a shell in a folder, whose workspace has the default name."""

    folder: Path
    model: Path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return subprocess.Popen(
            [str(ACCORD), *arguments], cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def accord(self, *arguments: str, code: int = 0) -> Done:
        """Calls and expects an exit code."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=CALL_SECONDS)
        finally:
            process.kill()
        assert process.returncode == code, (arguments, process.returncode, out, err)
        return Done(process.returncode, out, err)

    def fails(self, *arguments: str) -> str:
        """The one line of a call that is wrong (exit code 2)."""
        done = self.accord(*arguments, code=2)
        assert done.out == ""
        assert done.err.startswith("error: "), done.err
        assert done.err.count("\n") == 1, done.err
        return done.err.rstrip("\n")

    def address(self, name: str) -> str:
        return next(service["address"] for service in self.accord("status", "--json").json()["services"] if service["name"] == name)

    def pids(self, code: int = 0) -> dict[str, int | None]:
        return {service["name"]: service["pid"] for service in self.accord("status", "--json", code=code).json()["services"]}


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    folder = tmp_path_factory.mktemp("laptop")
    found = Person(folder, tiny_model_folder(folder / "model"))
    rows = [{"prompt": f"say {word}", "chosen": f"{word} {word}", "rejected": word[::-1]} for word in WORDS]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield found
    found.start("down", "--stop-runs", "--timeout", "20").communicate(timeout=60)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(person: Person, name: str) -> None:
    if importlib.util.find_spec(f"accord.cli.{name}") is None:
        pytest.skip(f"accord {name} is not there yet")
    shown = person.accord(name, "--help").out
    assert f"accord {name}" in shown.partition("Example")[2]


def test_without_services(person: Person) -> None:
    line = person.fails("generate", "hi")
    assert line == f"error: no services run in {person.folder}/.accord; start what is missing: `accord up --home {person.folder}/.accord`"
    assert [service["health"] for service in person.accord("status", "--json", code=1).json()["services"]] == ["stopped"] * 4


def test_up_and_again(person: Person) -> None:
    started = person.accord("up", "--base-model", str(person.model), "--threads", "1", "--json")
    services = started.json()["services"]
    assert set(services) == {"policy", "reward", "feedback", "trainer"}
    assert all(f"{name} serves at {address}" in started.err for name, address in services.items())
    before = person.pids()
    again = person.accord("up", "--json")
    assert again.json()["services"] == services
    assert again.err == ""
    assert person.pids() == before
    found = person.accord("status", "--json").json()
    assert [service["health"] for service in found["services"]] == ["serving"] * 4
    assert found["base_model"] == str(person.model)
    assert person.fails("up", "--base-model", "embedded").startswith(
        f"error: base_model: policy, reward, feedback, trainer run in {person.folder}/.accord with base model {person.model}, not embedded"
    )


def test_generate(person: Person) -> None:
    greedy = ("generate", "say alpha", "--temperature", "0", "--max-tokens", "8")
    text = person.accord(*greedy).out
    reply = person.accord(*greedy, "--json").json()
    (sample,) = reply["results"][0]["samples"]
    assert sample["text"] + "\n" == text == person.accord(*greedy, "--stream").out
    assert len(sample["token_ids"]) == len(sample["logprobs"]) <= 8
    two = person.accord("generate", "say alpha", "-n", "2", "--seed", "5", "--max-tokens", "6")
    assert two.out == person.accord("generate", "say alpha", "-n", "2", "--seed", "5", "--max-tokens", "6").out
    assert two.out.startswith("[0] ")


def test_train_sft_and_use_it(person: Person) -> None:
    data = ("--set", "sft.data.uri=pairs.jsonl", "--set", "sft.eval_data=null")
    plan = person.accord("train", "sft", "--plan", "--json", *SMALL, *data).json()
    assert (plan["fits"], plan["rows"]) == (True, 8)
    run = person.accord("train", "sft", "--set", "steps=2", *SMALL, *data, "--json").json()
    assert (run["state"], run["step"], run["adapter_version"]) == ("succeeded", 2, "adapters/sft/versions/1")
    assert math.isfinite(run["metrics"]["loss"])
    watched = person.accord("watch", run["name"], "--json")
    events = [json.loads(line) for line in watched.out.splitlines()]
    assert [event["step"] for event in events if event["event"] == "metrics"] == [1, 2]
    assert any("8 demonstrations" in event.get("message", "") for event in events)
    assert events[-1]["run"]["adapter_version"] == "adapters/sft/versions/1"
    assert "published adapters/sft/versions/1" in person.accord("watch", run["name"].removeprefix("runs/")).out
    (listed,) = person.accord("runs", "--json").json()
    assert (listed["name"], listed["state"]) == (run["name"], "succeeded")
    assert run["name"] in person.accord("runs").out
    (manifest,) = person.accord("lineage", "adapters/sft", "--json").json()
    assert (manifest["run"], manifest["parents"], manifest["step"]) == (run["name"], [], 2)
    assert manifest["data_digest"][:12] in person.accord("lineage", "adapters/sft").out
    adapted = person.accord("generate", "say alpha", "--adapter", "adapters/sft", "--max-tokens", "4", "--json").json()
    assert adapted["adapter_version"] == "adapters/sft/versions/1"


def test_train_a_reward_model_then_score_and_compare(person: Person) -> None:
    data = ("--set", "reward_model.data.uri=pairs.jsonl", "--set", "reward_model.eval_data=null")
    done = person.accord("train", "reward-model", "--set", "steps=2", "--set", "parent_adapter=adapters/sft", *SMALL, *data)
    assert "published adapters/reward-model/versions/1" in done.out
    assert "next: accord score" in done.err
    model = ("--reward-model", "adapters/reward-model/versions/1")
    manifest, *_ = person.accord("lineage", "adapters/reward-model", "--json").json()
    assert (
        manifest["data_digest"]
        == manifest["facts"]["training_data_digest"]
        == person.accord("data", "inspect", "pairs.jsonl", "--json").json()["digests"]["train"]
    )
    assert f"data {manifest['data_digest'][:12]}" in person.accord("lineage", "adapters/reward-model").out
    scores = [row["score"] for row in person.accord("score", "say beta", "beta beta", "ateb", *model, "--json").json()["results"]]
    assert scores[0] != scores[1]
    (pair,) = person.accord("compare", "say beta", "beta beta", "ateb", *model, "--json").json()["results"]
    assert [pair["score_a"], pair["score_b"]] == pytest.approx(scores, abs=1e-5)
    with RewardClient(person.address("reward")) as client:
        scale = client.reward_model_info("adapters/reward-model/versions/1").score_std
    assert pair["probability_a"] == pytest.approx(1 / (1 + math.exp(scale * (scores[1] - scores[0]))), abs=1e-5)
    assert f"P(A is better) = {pair['probability_a']:.3f}" in person.accord("compare", "say beta", "beta beta", "ateb", *model).out
    parents = [manifest["name"] for manifest in person.accord("lineage", "adapters/reward-model/versions/1", "--json").json()]
    assert parents == ["adapters/reward-model/versions/1", "adapters/sft/versions/1"]


def test_train_grpo_on_both(person: Person) -> None:
    """The shipped recipe over the adapter and the reward model that the tests before published."""
    sets = ("--set", "steps=1", *SMALL, "--set", "max_response_tokens=6", "--set", "grpo.data.uri=pairs.jsonl", "--set", "grpo.eval_data=null")
    groups = ("--set", "grpo.group_size=2", "--set", "grpo.minibatch_size=2")
    assert "of data" in person.accord("train", "grpo", *sets, *groups, "--plan").out
    assert "batch_size 2 must be a multiple of group_size 8" in person.fails("train", "grpo", *sets)
    done = person.accord("train", "grpo", *sets, *groups)
    assert "published adapters/grpo/versions/1" in done.out
    (manifest, *parents) = person.accord("lineage", "adapters/grpo/versions/1", "--json").json()
    assert manifest["facts"]["group_size"] == 2
    assert [each["name"] for each in parents] == ["adapters/sft/versions/1", "adapters/reward-model/versions/1"]


def test_label(person: Person) -> None:
    job = ("label", "pairs.jsonl", "--task", "conversation", "--kind", "likelihood", "--limit", "6", "--output", "labels")
    first = person.accord(*job, "--json").json()
    assert (first["job"]["state"], first["job"]["done_pairs"]) == ("succeeded", 6)
    assert first["cards"][0]["kind"] == "likelihood"
    assert len((person.folder / "labels" / "labels.jsonl").read_text().splitlines()) == 6
    again = person.accord(*job)
    assert "6 of 6 pairs labelled" in again.out
    assert f"{person.folder}/labels/labels.jsonl" in again.out
    assert person.accord(*job, "--json").json()["job"]["tokens"] == first["job"]["tokens"]
    one = person.accord("label", "--task", "conversation", "--prompt", "say beta", "--a", "beta beta", "--b", "ateb", "--json").json()
    swapped = person.accord("label", "--task", "conversation", "--prompt", "say beta", "--a", "ateb", "--b", "beta beta", "--json").json()
    assert one["preference"] + swapped["preference"] == pytest.approx(1, abs=1e-6)


def test_error_lines(person: Person) -> None:
    unknown = person.fails("generate", "hi", "--adapter", "adapters/nothing/versions/1")
    assert "adapters/nothing/versions/1 is not in the artefact store" in unknown
    assert unknown.endswith("; `accord lineage` lists the adapters")
    assert person.fails("watch", "nothing").endswith("; `accord runs` lists the runs")
    assert "runs/nothing" in person.fails("cancel", "nothing")
    (person.folder / "typo.yaml").write_text("adapter: a\nsteps: 1\nsft: {data: {uri: pairs.jsonl}}\nlearning_rate: 1\n")
    assert person.fails("train", "typo.yaml").startswith("error: typo.yaml: learning_rate: unknown key")
    assert "there is no recipe 'missing.yaml'" in person.fails("train", "missing.yaml")
    assert f"there is no file {person.folder}/missing.jsonl" in person.fails("train", "sft", "--set", "sft.data.uri=missing.jsonl")
    assert "there is no file missing.jsonl" in person.fails("label", "missing.jsonl", "--task", "conversation", "--output", "x")
    assert "port 99999 of '127.0.0.1:99999' is not in 1..65535" in person.fails("generate", "hi", "--policy", "127.0.0.1:99999")
    assert "temperature" in person.fails("generate", "hi", "--temperature", "-1")
    assert "top_p" in person.fails("generate", "hi", "--top-p", "1.5")


def test_interrupt_cancel_resume(person: Person) -> None:
    data = ("--set", "sft.data.uri=pairs.jsonl", "--set", "sft.eval_data=null")
    process = person.start("train", "sft", "--set", "steps=100000", "--set", "adapter=long", *SMALL, *data)
    assert process.stderr is not None
    name = process.stderr.readline().split()[0]
    wait_for_state(person, name, "running")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"{name} goes on; `accord watch {name}` shows it again, `accord cancel {name}` stops it" in err
    assert person.accord("cancel", name).out == f"{name} is cancelling\n"
    wait_for_state(person, name, "cancelled")
    person.accord("watch", name, code=1)
    assert person.accord("resume", name, "--detach", "--json").json()["state"] == "queued"
    wait_for_state(person, name, "running")
    timed_out = person.accord("watch", name, "--timeout", "2", code=1)
    assert timed_out.err.splitlines()[-1] == f"error: {name} has not ended within 2 s; it goes on; give it more time with --timeout"


def wait_for_state(person: Person, name: str, state: str) -> None:
    give_up = time.monotonic() + 90
    while (now := next(run for run in person.accord("runs", "--json").json() if run["name"] == name))["state"] != state:
        assert time.monotonic() < give_up, now
        time.sleep(0.3)


def rest_of(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a process that ends by itself still writes. `communicate` would lose what `readline` has read ahead."""
    assert process.stdout is not None
    assert process.stderr is not None
    limit = threading.Timer(CALL_SECONDS, process.kill)
    limit.start()
    try:
        return process.stdout.read(), process.stderr.read()
    finally:
        process.wait()
        limit.cancel()


def test_a_killed_trainer_is_seen_and_alone_started_again_while_a_run_is_watched(person: Person) -> None:
    (name,) = person.accord("status", "--json").json()["running_runs"]
    watching = person.start("watch", name, "--json")
    assert watching.stdout is not None
    seen = [watching.stdout.readline() for _ in range(10)]
    before, address = person.pids(), person.address("trainer")
    killed = before["trainer"]
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    give_up = time.monotonic() + 20
    while (status := person.start("status")).wait(30) == 0:
        assert time.monotonic() < give_up
    out, err = status.communicate()
    assert [line.split()[:2] for line in out.splitlines() if line.strip().startswith("trainer")] == [["trainer", "stopped"]]
    assert f"trainer: its process {killed} ended by itself" in err
    assert name in err
    assert "error: the trainer service is not up" in person.fails("runs")
    assert "trainer had ended by itself" in person.accord("up").err
    after = person.pids()
    assert {service for service in before if before[service] != after[service]} == {"trainer"}
    assert person.address("trainer") == address
    person.accord("cancel", name)
    out, err = rest_of(watching)
    assert watching.returncode == 1, err
    events = [json.loads(line) for line in (*seen, *out.splitlines())]
    steps = [event["step"] for event in events if event["event"] == "metrics"]
    assert steps == list(range(1, len(steps) + 1))
    assert events[-1]["run"]["state"] == "cancelled"
    person.accord("resume", name, "--detach")
    wait_for_state(person, name, "running")


def test_down_leaves_runs_alone_unless_asked(person: Person) -> None:
    done = person.accord("down", "--json").json()
    assert sorted(done["stopped"]) == ["feedback", "policy", "reward", "trainer"]
    (name,) = done["running_runs"]
    assert name.startswith("runs/long-sft-")
    assert name in person.accord("status", code=1).err
    done = person.accord("down", "--stop-runs", "--json").json()
    assert done["running_runs"] == []
    assert set(person.pids(code=1).values()) == {None}
