"""The whole study on a random tiny model: real services, runs and label jobs as processes; killed in the middle, it continues where it stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from tests.contract.harness import ServerProcess

from accord.client.endpoints import ServiceEndpoints
from accord.errors import FailedPreconditionError
from accord.models.testing import tiny_model_folder
from accord.study.recipe import StudyRecipe
from accord.study.runner import plan_study, run_study
from accord.study.steps import StepStore

WORDS = ["river", "stone", "cloud", "apple", "table", "window", "garden", "bridge", "candle", "forest", "mirror", "ladder"]
RUN = (
    "import sys\nfrom pathlib import Path\nfrom accord.study.recipe import load_recipe\nfrom accord.study.runner import run_study\n"
    "class Quiet:\n    def message(self, text): pass\n    def step(self, title, number, total, *, known): print(number, flush=True)\n"
    "    def progress(self, fraction, text): pass\n    def remaining(self, seconds): pass\n"
    "run_study(load_recipe(sys.argv[1]), Path(sys.argv[2]), Quiet())\n"
)

pytestmark = pytest.mark.timeout(400)


class Steps:
    """Notes which steps were done and which were known, and what was said."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.known: list[str] = []
        self.fractions: list[float] = []
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def step(self, title: str, number: int, total: int, *, known: bool) -> None:
        (self.known if known else self.done).append(title)

    def progress(self, fraction: float, text: str) -> None:
        self.fractions.append(fraction)

    def remaining(self, seconds: float) -> None:
        assert seconds > 0


def row(number: int) -> dict[str, Any]:
    good, bad = WORDS[number % 12], WORDS[(number * 5 + 3) % 12]
    return {
        "pair_id": f"pair-{number}", "task": "conversation", "prompt": [{"role": "user", "content": f"say {good} {number}"}],
        "chosen": [{"role": "assistant", "content": f"{good} {good}"}], "rejected": [{"role": "assistant", "content": f"{bad} no"}],
        "preference": 1.0, "human_preference": 1.0, "reference": f"{good} it is, {number}", "split": "test" if number % 3 == 0 else "train",
    }  # fmt: skip


def make_recipe(folder: Path, **values: Any) -> StudyRecipe:
    data = folder / "pairs.jsonl"
    data.write_text("\n".join(json.dumps(row(number)) for number in range(18)))
    size = {"steps": 2, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 3e-3}
    return StudyRecipe.model_validate(
        {
            "name": "tiny", "seed": 1, "base_model": str(tiny_model_folder(folder / "model")),
            "tasks": [{"task": "conversation", "uri": str(data)}], "human_pairs": 8, "ai_pairs": 4, "max_prompt_tokens": 100,
            "max_response_tokens": 60, "max_sampled_tokens": 12, "lora": {"rank": 2}, "sft": size, "preferred_ft": size, "reward_model": size, "dpo": size,
            "ppo": size, "evaluation": {"prompts": 3, "pairs": 4, "bootstrap_samples": 100, "judge_check_pairs": 2},
            **values,
        }
    )  # fmt: skip


def metrics(results: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(arm["arm"], arm["metrics"]) for task in results["tasks"] for arm in task["arms"]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


def test_killed_in_the_middle_it_continues_and_ends_with_a_table_and_a_report(home: Path) -> None:
    recipe = make_recipe(home)
    path = home / "recipe.yaml"
    path.write_text(recipe.model_dump_json())
    first = subprocess.Popen(
        [sys.executable, "-c", RUN, str(path), str(home)], stdout=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert first.stdout is not None
    for line in first.stdout:
        if int(line) >= 5:
            break
    time.sleep(0.5)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait(30)
    done = len(list((home / "study" / "steps").glob("*.json")))
    assert done >= 4

    planned = plan_study(recipe, home)
    assert sum(step.done for step in planned.steps) == done
    assert planned.seconds > 0

    steps = Steps()
    result = run_study(recipe, home, steps)
    assert len(steps.known) == done == result.reused
    assert len(steps.done) + done == len(planned.steps)
    assert max(steps.fractions) == 1.0
    assert [arm for arm, _ in metrics(result.results)] == ["base", "sft", "preferred-ft", "ppo-human", "dpo-human", "ppo-ai", "dpo-ai"]
    for arm, found in metrics(result.results):
        for name in ("rouge_l", "meteor", "bleu_1", "response_tokens", "kl", "score_human", "score_ai", "win_vs_reference"):
            assert found[name]["low"] <= found[name]["value"] <= found[name]["high"], (arm, name)
        if arm != "sft":  # each prompt has one response of each arm: won, lost or even
            assert 2 * found["win_by_score_human"]["value"] * found["win_by_score_human"]["n"] % 1 == pytest.approx(0, abs=1e-9)
            assert 0 <= found["win_by_score_ai"]["value"] <= 1
        assert 0 < found["response_tokens"]["value"] <= 12
    assert dict(metrics(result.results))["sft"]["kl"]["value"] == pytest.approx(0, abs=1e-3)
    page = result.report_path.read_text()
    assert page.count("<svg") == 7
    assert "ppo-human" in page
    assert "the control preferred-ft (2 more steps of SFT on chosen responses) wins" in page
    assert "wins beyond it, on the same prompts: ppo-human" in page
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(home) in " ".join(process.info["cmdline"] or [])]


def test_a_second_call_does_nothing_again(home: Path) -> None:
    before = json.loads((home / "results.json").read_text())
    steps = Steps()
    again = run_study(make_recipe(home), home, steps)
    assert not steps.done
    assert metrics(again.results) == metrics(before)


def test_a_step_whose_result_is_damaged_is_named(home: Path) -> None:
    from accord.errors import DataLossError

    store = StepStore(home)
    key = next((home / "study" / "steps").glob("*.json")).stem
    whole = (home / "study" / "steps" / f"{key}.json").read_text()
    (home / "study" / "steps" / f"{key}.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(DataLossError, match=key):
        store.read("x", key)
    (home / "study" / "steps" / f"{key}.json").write_text(whole)


@contextlib.contextmanager
def services(folder: Path, like: Path) -> Iterator[dict[str, str]]:
    """Addresses of four services that nobody's workspace knows, with folders of their own, configured as those of the workspace `like`."""
    with contextlib.ExitStack() as stack:
        addresses: dict[str, str] = {}
        own = {
            "artefacts": str(folder / "artefacts"), "runs": str(folder / "runs"), "database": f"sqlite:///{folder}/registry.sqlite",
            "ledger": str(folder / "ledger.sqlite"), "jobs": str(folder / "jobs"),
        }  # fmt: skip
        for name in ("policy", "reward", "feedback", "trainer"):
            config = yaml.safe_load((like / "config" / f"{name}.yaml").read_text())
            del config["server"]
            config |= {key: value for key, value in own.items() if key in config}
            config |= {"policy": addresses["policy"]} if name == "feedback" else {}
            config |= {"endpoints": dict(addresses)} if name == "trainer" else {}
            environment = {"OMP_NUM_THREADS": str(config.get("threads", 1))}
            addresses[name] = stack.enter_context(ServerProcess(f"accord.{name}", config, folder, environment=environment)).address
        yield addresses


def assert_same_table(found: Any, wanted: Any) -> None:
    """Bit for bit, but for KL and scores: a logprob and a score depend in their last bits on what else was in the pass (ARCHITECTURE.md), here as there."""
    for (arm, here), (other, there) in zip(metrics(found), metrics(wanted), strict=True):
        assert arm == other
        assert {name for name in here if wavers(name)} >= {"kl", "score_ai"}
        assert {name: value for name, value in here.items() if not wavers(name)} == {
            name: value for name, value in there.items() if not wavers(name)
        }, arm
        assert_near({name: value for name, value in here.items() if wavers(name)}, {name: value for name, value in there.items() if wavers(name)})
    for contrast, other in zip(found["contrasts"], wanted["contrasts"], strict=True):
        if wavers(contrast["metric"]):
            assert_near(contrast, other)
        else:
            assert contrast == other
    assert {contrast["metric"] for contrast in found["contrasts"]} >= {"rouge_l", "win_vs_reference", "score_ai"}
    for key in ("digests", "examples"):
        assert found[key] == wanted[key], key
    assert judgements_of(found) == judgements_of(wanted)


def wavers(metric: str) -> bool:
    """Whether a metric depends in its last bits on what else was in a pass."""
    return metric == "kl" or metric.startswith("score_")


def assert_near(found: Any, wanted: Any) -> None:
    """Numbers to 1e-4, the rest exactly."""
    if isinstance(wanted, dict):
        assert set(found) == set(wanted)
        for name, value in wanted.items():
            assert_near(found[name], value)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=1e-4)
    else:
        assert found == wanted


def judgements_of(results: Any) -> list[Any]:
    """The judges' cards but for what they cost, which depends on what the ledger had already."""
    costs = ("cached_judgements", "tokens", "cost", "cost_per_thousand_pairs")
    return [{**row, "card": {name: value for name, value in row["card"].items() if name not in costs}} for row in results["judges"]]


@pytest.mark.training
def test_services_that_are_only_addressed_give_the_same_table(home: Path, tmp_path: Path) -> None:
    """No workspace, no folder in common but the data's: labels go where `shared_folder` says, rows and results over the trainer's API."""
    recipe, here = make_recipe(home, feedback=["ai"]), tmp_path / "caller"
    local = run_study(recipe, home, Steps())
    with services(tmp_path / "there", home) as addresses:
        there = ServiceEndpoints(**addresses, shared_folder=str(home))
        with pytest.raises(FailedPreconditionError, match="results of a study with other services"):
            run_study(recipe, home, Steps(), endpoints=there)
        steps = Steps()
        found = run_study(recipe, here, steps, endpoints=there)
        assert not steps.known
        again = Steps()
        assert metrics(run_study(recipe, here, again, endpoints=there).results) == metrics(found.results)
        assert not again.done
    assert_same_table(found.results, local.results)
    assert sorted(path.name for path in here.iterdir()) == ["recipe.json", "report.html", "results.json", "study"]
    assert not list((here / "study").rglob("labels.jsonl"))
    assert len(list(home.glob("study-*/labels.jsonl"))) == 3


@pytest.mark.training
def test_another_seed_changes_the_numbers(home: Path) -> None:
    small = {"algorithms": ["dpo"], "feedback": ["ai"]}
    one, other = (run_study(make_recipe(home, seed=seed, **small), home, Steps()).results for seed in (1, 2))
    assert dict(metrics(one))["dpo-ai"] != dict(metrics(other))["dpo-ai"]
