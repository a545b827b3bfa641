"""The study on a real cluster: as a Job of the chart, by the example's Job, and from outside, with the table of a laptop."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.release import ROOT, TAG, Release, run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
SHARED = "/var/lib/accord/shared"
SIZE = {"steps": 1, "batch_size": 2, "micro_batch_size": 1, "learning_rate": 1e-4}
SMALL = {
    "name": "small", "seed": 1, "tasks": [{"task": "conversation", "uri": "sample:conversation"}], "feedback": ["ai"], "algorithms": ["dpo"],
    "human_pairs": 2, "ai_pairs": 4, "max_prompt_tokens": 160, "max_response_tokens": 96, "max_sampled_tokens": 12, "lora": {"rank": 2},
    "sft": SIZE, "reward_model": SIZE, "dpo": SIZE, "ppo": SIZE,
    "evaluation": {"prompts": 2, "pairs": 2, "bootstrap_samples": 100, "judge_check_pairs": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("study") / "recipe.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    return file


@pytest.fixture(scope="module")
def inside(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The results of the study as a Job of the release."""
    values = tmp_path_factory.mktemp("values") / "values.yaml"
    values.write_text(yaml.safe_dump({"study": {"enabled": True, "name": "by-hand", "ownRecipe": SMALL}}))
    release.install(values=values)
    (job,) = release.get("jobs", "-l", "app.kubernetes.io/component=study")
    wait_for_job(release, job["metadata"]["name"])
    return results(release)


def wait_for_job(release: Release, name: str) -> str:
    """What a Job said, once it is complete."""
    done = release.kubectl("wait", "--for=condition=complete", f"job/{name}", "--timeout=1200s", timeout=1260, check=False)
    said = release.kubectl("logs", f"job/{name}", "--tail=60", check=False).stdout
    assert done.returncode == 0, f"{said}\n{release.story()}"
    return said


def results(release: Release) -> Any:
    return json.loads(release.kubectl("exec", "deployment/accord-trainer", "--", "cat", f"{SHARED}/studies/by-hand/results.json").stdout)


def table(found: Any) -> list[float]:
    """Every value of the table, arm by arm; NaN where there is none."""
    metrics = [(arm["arm"], name, value["value"]) for arm in found["tasks"][0]["arms"] for name, value in sorted(arm["metrics"].items())]
    return [float("nan") if value is None else value for _, _, value in metrics]


def study(*arguments: str) -> Any:
    """The results of `accord study` on this machine."""
    environment = {key: value for key, value in os.environ.items() if key != "ACCORD_ENDPOINTS"}
    done = run(sys.executable, "-m", "accord.cli", "study", "--json", *arguments, timeout=1200, environment=environment)
    return json.loads(done.stdout)["results"]


def test_the_study_runs_as_a_job_of_the_chart(inside: Any) -> None:
    assert [arm["arm"] for arm in inside["tasks"][0]["arms"]] == ["base", "sft", "dpo-ai"]


def test_the_job_of_the_example_goes_on_with_what_is_on_the_claim(release: Release, inside: Any, recipe: Path) -> None:
    """deploy/examples/study-job.yaml with this test's image and recipe; podFailurePolicy is left out where the API server is older than it."""
    job = yaml.safe_load((ROOT / "deploy" / "examples" / "study-job.yaml").read_text())
    version = json.loads(run("kubectl", "version", "-o", "json").stdout)["serverVersion"]
    if int(version["minor"].rstrip("+")) < 31:
        del job["spec"]["podFailurePolicy"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    container["image"] = f"accord/training:{TAG}"
    file = f"{SHARED}/recipe.yaml"
    release.kubectl("exec", "-i", "deployment/accord-trainer", "--", "python", "-c", f"import sys; open({file!r}, 'w').write(sys.stdin.read())",
                    stdin=recipe.read_text())  # fmt: skip
    container["args"] = [f"--recipe={file}" if word == "--recipe=quick" else word for word in container["args"]]
    release.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(job))
    said = wait_for_job(release, job["metadata"]["name"])
    steps = len(inside["steps"])
    assert f"{steps} of {steps} steps were there already" in said
    assert {**results(release), "created": 0} == {**inside, "created": 0}


def test_from_outside_it_finds_the_runs_and_measures_the_same(release: Release, inside: Any, recipe: Path, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        addresses = [
            word for name in ("policy", "reward", "feedback", "trainer") for word in (f"--{name}", stack.enter_context(release.forwarded(name)))
        ]
        home = ("--recipe", str(recipe), "--home", str(tmp_path / "home"))
        outside = study("--target", "cluster", *home, *addresses, "--shared-folder", f"{SHARED}/labels")
    assert [step["key"] for step in outside["steps"]] == [step["key"] for step in inside["steps"]]
    assert [curve["run"] for curve in outside["curves"]] == [curve["run"] for curve in inside["curves"]]
    assert table(outside) == pytest.approx(table(inside), abs=1e-3, nan_ok=True)


def test_a_laptop_gives_the_same_table(inside: Any, recipe: Path, tmp_path: Path) -> None:
    """Services and runs as processes of this machine, with other numbers of threads."""
    laptop = study("--recipe", str(recipe), "--home", str(tmp_path / "home"))
    assert [step["key"] for step in laptop["steps"]] == [step["key"] for step in inside["steps"]]
    assert table(laptop) == pytest.approx(table(inside), abs=1e-3, nan_ok=True)
