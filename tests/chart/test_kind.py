"""`make kind-up` and its siblings before doubles of docker, kind, kubectl and helm, and the cluster's file before kind itself where that is at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from tests.chart.rendering import CHART, CI, ROOT

PROGRAMS = ("docker", "kind", "kubectl", "helm")
IMAGES = ("policy", "policy-proxy", "reward", "feedback", "trainer", "training")
FILE = ROOT / "deploy" / "kind" / "cluster.yaml"
_DOUBLE = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
case "$(basename "$0") $1 $2" in
"kind get clusters") echo "$CLUSTERS" ;;
"kind get kubeconfig") echo "apiVersion: v1" ;;
"$FAILING "*) echo "it does not work" >&2; exit 1 ;;
esac
"""


class Kind:
    """kind.sh where the four programs write down how they were called."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._calls = folder, folder / "calls"
        for name in PROGRAMS:
            (folder / name).write_text(_DOUBLE)
            (folder / name).chmod(0o755)

    def run(self, command: str, *, clusters: str = "", failing: str = "nothing") -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """What it said, and the calls of this command."""
        self._calls.write_text("")
        environment = {"PATH": f"{self._folder}:{os.environ['PATH']}", "CALLS": str(self._calls), "CLUSTERS": clusters, "FAILING": failing}
        done = subprocess.run(
            ["sh", "deploy/kind/kind.sh", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        return done, self._calls.read_text().splitlines()


@pytest.fixture
def kind(tmp_path: Path) -> Kind:
    return Kind(tmp_path)


def test_up_makes_the_cluster_builds_loads_installs_tests_and_says_what_is_next(kind: Kind) -> None:
    done, calls = kind.run("up", failing="helm status")
    assert done.returncode == 0, done.stderr
    assert f"kind create cluster --name accord --config {FILE.relative_to(ROOT)} --wait 180s" in calls
    order = [word for call in calls for word in ("kind create", "docker build", "kind load", "helm upgrade", "helm test") if call.startswith(word)]
    assert order == ["kind create", *["docker build"] * 6, *["kind load"] * 6, "helm upgrade", "helm test"]
    assert [call.split()[-1] for call in calls if call.startswith("kind load")] == [f"accord/{name}:dev" for name in IMAGES]
    (install,) = [call for call in calls if call.startswith("helm upgrade")]
    assert (
        f"accord {CHART.relative_to(ROOT)} --kube-context kind-accord --namespace accord --create-namespace --values {CI[0].relative_to(ROOT)}"
        in install
    )
    assert "--set images.tag=dev --wait" in install
    assert "make kind-test" in done.stdout
    assert "accord generate" in done.stdout


def test_up_again_keeps_the_cluster_and_starts_pods_of_the_new_images(kind: Kind) -> None:
    _, calls = kind.run("up", clusters="accord")
    assert not [call for call in calls if call.startswith("kind create")]
    upgrade = next(number for number, call in enumerate(calls) if call.startswith("helm upgrade"))
    assert [call.split(" --")[0] for call in calls[upgrade + 1 :]] == [
        "kubectl rollout restart deployment",
        "kubectl rollout status deployment",
        "helm test accord",
    ]
    _, first = kind.run("up", failing="helm status")
    assert not [call for call in first if call.startswith("kubectl rollout")]


def test_a_failed_step_of_up_is_a_failure(kind: Kind) -> None:
    done, calls = kind.run("up", clusters="accord", failing="kubectl rollout")
    assert done.returncode != 0
    assert not [call for call in calls if call.startswith("helm test")]
    done, _ = kind.run("up", clusters="accord", failing="helm test")
    assert done.returncode != 0
    assert "make kind-test" not in done.stdout


def test_down_removes_that_cluster_alone(kind: Kind) -> None:
    done, calls = kind.run("down")
    assert (done.returncode, calls) == (0, ["kind delete cluster --name accord"])


def test_a_program_that_is_not_there_is_named(kind: Kind, tmp_path: Path) -> None:
    for program in ("sh", "dirname", "mktemp"):
        (tmp_path / program).symlink_to(str(shutil.which(program)))
    (tmp_path / "kind").unlink()
    environment = {"PATH": str(tmp_path)}
    done = subprocess.run(["sh", "deploy/kind/kind.sh", "up"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: kind is not installed; kind-up needs docker, kind, kubectl and helm\n"


def test_the_cluster_is_of_the_kind_that_kind_knows() -> None:
    cluster = yaml.safe_load(FILE.read_text())
    assert (cluster["kind"], cluster["apiVersion"], cluster["name"]) == ("Cluster", "kind.x-k8s.io/v1alpha4", "accord")
    assert [node["role"] for node in cluster["nodes"]] == ["control-plane"]


@pytest.mark.skipif(shutil.which("kind") is None, reason="kind is not at hand: the cluster's file was read by no kind")
def test_kind_itself_takes_the_file_and_refuses_a_misspelt_one(tmp_path: Path) -> None:
    """Without an engine kind reads the file and stops there: a good one is followed by words about the engine."""
    misspelt = tmp_path / "cluster.yaml"
    misspelt.write_text(FILE.read_text().replace("role:", "rolle:"))
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "DOCKER_HOST": f"unix://{tmp_path}/no-engine.sock",
        "KIND_EXPERIMENTAL_PROVIDER": "docker",
    }
    said = [
        subprocess.run(["kind", "create", "cluster", "--config", str(file)], env=environment, capture_output=True, text=True, timeout=60, check=False)
        for file in (FILE, misspelt)
    ]
    assert [done.returncode == 0 for done in said] == [False, False]
    assert "rolle" in said[1].stderr
    assert "docker" in said[0].stderr
    assert "decode" not in said[0].stderr
