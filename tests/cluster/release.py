"""A release of the chart in a namespace of its own, for tests on a real cluster: KUBECONFIG says which, TAG which images."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from tests.cluster.forwarding import forwarded

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "accord"
VALUES = Path(os.environ.get("CLUSTER_VALUES", CHART / "ci" / "cluster-values.yaml"))
TAG = os.environ.get("TAG", "test")
INSTALL_SECONDS = 900
CHART_ARGUMENTS = (str(CHART), "--values", str(VALUES), "--set", f"images.tag={TAG}")
WAIT = ("--wait", "--timeout", f"{INSTALL_SECONDS}s")


def run(
    *command: str, timeout: float = 120, check: bool = True, stdin: str | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A program's output; an AssertionError with all that it said where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, input=stdin, env=environment)
    assert done.returncode == 0 or not check, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


def not_at_hand(reason: str) -> NoReturn:
    """Skips what needs it, saying so; where ACCORD_CLUSTER_REQUIRED=1 says that a cluster is there, as in .ci/run, that is a failure."""
    if os.environ.get("ACCORD_CLUSTER_REQUIRED") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def make_namespace(name: str) -> None:
    """A namespace for pods of the restricted kind, with what each one has by itself: that comes a little later."""
    run("kubectl", "create", "namespace", name)
    run("kubectl", "label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    deadline = time.monotonic() + 60
    while run("kubectl", "--namespace", name, "get", "serviceaccount/default", "configmap/kube-root-ca.crt", check=False).returncode != 0:
        assert time.monotonic() < deadline, f"namespace {name} has no account or no certificates"
        time.sleep(0.5)
    time.sleep(1)  # before 1.24 the account's token is a secret, which follows it


class Release:
    """The release `accord` in a namespace; `bare` is what was in it before."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.bare = self.objects()

    def kubectl(self, *arguments: str, check: bool = True, timeout: float = 120, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """kubectl in the namespace."""
        return run("kubectl", "--namespace", self.namespace, *arguments, check=check, timeout=timeout, stdin=stdin)

    def get(self, *what: str) -> Any:
        """`kubectl get WHAT -o json`; the items of a list."""
        found = json.loads(self.kubectl("get", *what, "-o", "json").stdout)
        return found.get("items", found)

    def objects(self) -> set[str]:
        """kind.group/name of all that is in the namespace, but for events."""
        kinds = run("kubectl", "api-resources", "--namespaced", "--verbs=list", "--output=name").stdout.split()
        listed = ",".join(kind for kind in kinds if not kind.startswith("events"))
        return set(self.kubectl("get", listed, "--output=name", "--ignore-not-found").stdout.split())

    def until_only(self, expected: set[str]) -> None:
        """Waits until just these objects are in the namespace: what is owned goes a little after its owner."""
        deadline = time.monotonic() + 120
        while (found := self.objects()) != expected:
            assert time.monotonic() < deadline, f"left: {sorted(found - expected)}; gone: {sorted(expected - found)}"
            time.sleep(2)

    def install(self, *settings: str, values: Path | None = None) -> None:
        """Installs or upgrades, with settings and a file of values over those of the cluster, and waits until all is ready."""
        sets = [*([] if values is None else ["--values", str(values)]), *(word for setting in settings for word in ("--set", setting))]
        done = self.helm("upgrade", "--install", "accord", *CHART_ARGUMENTS, *sets, *WAIT, timeout=INSTALL_SECONDS + 60, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{self.story()}"

    def helm(self, *arguments: str, timeout: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
        """helm in the namespace."""
        return run("helm", *arguments, "--namespace", self.namespace, timeout=timeout, check=check)

    def story(self) -> str:
        """Pods, events and the logs of what is not ready: what a failure is understood by."""
        parts = [self.kubectl("get", "pods", "-o", "wide", check=False).stdout, self.kubectl("get", "events", check=False).stdout[-3000:]]
        for component in ("policy", "reward", "feedback", "trainer"):
            logs = self.kubectl("logs", f"deployment/accord-{component}", "--all-containers", "--tail=15", check=False)
            parts.append(f"{component}: {logs.stdout}{logs.stderr}")
        return "\n".join(parts)

    def forwarded(self, component: str) -> contextlib.AbstractContextManager[str]:
        """host:port of a service, forwarded to this machine."""
        return forwarded(self.namespace, f"service/accord-{component}")


def new_release() -> Iterator[Release]:
    """A namespace that is removed at the end, which the cluster does in its own time; skips the test, saying so, where no cluster is at hand."""
    for program in ("kubectl", "helm"):
        if shutil.which(program) is None:
            not_at_hand(f"{program} is not at hand (make chart-tools); cluster tests did not run")
    if run("kubectl", "version", "--request-timeout=10s", check=False, timeout=30).returncode != 0:
        not_at_hand("no cluster answers: set KUBECONFIG; cluster tests did not run")
    namespace = f"accord-test-{uuid.uuid4().hex[:8]}"
    make_namespace(namespace)
    try:
        yield Release(namespace)
    finally:
        run("kubectl", "delete", "namespace", namespace, "--wait=false", check=False)
