"""Renders the chart for tests: helm is a program that may be absent, and then the tests say so."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "accord"
EXAMPLES = sorted((ROOT / "deploy" / "examples").glob("*-values.yaml"))
CI = sorted((CHART / "ci").glob("*-values.yaml"))
CASES = [None, *CI, *EXAMPLES]
COMPONENTS = ("policy", "reward", "feedback", "trainer")
Object = dict[str, Any]


def case_id(case: Path | None) -> str:
    """A values file's name, for a test's."""
    return "default" if case is None else case.stem.removesuffix("-values")


def helm() -> str:
    """The helm program; skips the test, saying so, where there is none."""
    for found in (os.environ.get("HELM"), str(ROOT / "build" / "tools" / "bin" / "helm"), shutil.which("helm")):
        if found and Path(found).exists():
            return found
    pytest.skip("helm is not at hand: `make chart-tools` installs it; charts were not rendered")


def run_helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What helm says."""
    return subprocess.run([helm(), *arguments], capture_output=True, text=True, timeout=60, check=False)


def render(case: Path | None = None, *settings: str, version: str = "1.31", release: str = "accord") -> list[Object]:
    """The objects of the chart with a values file and `--set` settings, for a version of Kubernetes."""
    return list(_rendered(case, settings, version, release))


@functools.cache
def _rendered(case: Path | None, settings: tuple[str, ...], version: str, release: str) -> tuple[Object, ...]:
    files = [] if case is None else ["--values", str(case)]
    sets = [word for setting in settings for word in ("--set", setting)]
    done = run_helm("template", release, str(CHART), "--namespace", "accord", "--kube-version", version, *files, *sets)
    assert done.returncode == 0, done.stderr
    return tuple(item for item in yaml.safe_load_all(done.stdout) if item)


def refused(*settings: str, case: Path | None = None, release: str = "accord") -> str:
    """What helm says to values that it refuses."""
    files = [] if case is None else ["--values", str(case)]
    sets = [word for setting in settings for word in ("--set", setting)]
    done = run_helm("template", release, str(CHART), "--namespace", "accord", "--kube-version", "1.31", *files, *sets)
    assert done.returncode != 0, f"{settings} was taken"
    return done.stderr


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    """The objects of some kinds."""
    return [item for item in objects if item["kind"] in kinds]


def named(objects: list[Object], kind: str, name: str) -> Object:
    """The one object of that kind and name."""
    (found,) = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    return found


def is_native(item: Object) -> bool:
    """Whether Kubernetes itself serves an object; a custom resource is served by what is installed beside it."""
    group = item["apiVersion"].rpartition("/")[0]
    return "." not in group or (group.endswith(".k8s.io") and group.split(".")[0] in ("networking", "rbac"))


def pods(objects: list[Object]) -> list[tuple[str, Object]]:
    """Name and pod specification of everything that makes pods."""
    found = []
    for item in objects:
        if item["kind"] == "Pod":
            found.append((item["metadata"]["name"], item["spec"]))
        elif item["kind"] in ("Deployment", "StatefulSet", "Job"):
            found.append((item["metadata"]["name"], item["spec"]["template"]["spec"]))
    return found


def containers(pod: Object) -> list[Object]:
    """All containers of a pod."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def tools_package(name: str) -> Any:
    """A Python package of requirements-tools.lock; skips the test, saying so, where it is not installed."""
    sys.path.append(str(ROOT / "build" / "tools"))
    try:
        return pytest.importorskip(name, reason=f"{name} is not at hand: `make chart-tools` installs it")
    finally:
        sys.path.pop()
