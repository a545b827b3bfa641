"""The chart on a real cluster: it installs, its services work together, survive a rolling restart, and leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.release import Release, new_release, run
from tests.contract.certificates import Authority

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def release() -> Iterator[Release]:
    for made in new_release():
        made.install()
        yield made


def test_every_pod_is_ready_and_runs_as_nobody(release: Release) -> None:
    pods = [
        pod for pod in release.get("pods") if pod["metadata"]["labels"]["app.kubernetes.io/component"] in ("policy", "reward", "feedback", "trainer")
    ]
    assert len(pods) == 4
    for pod in pods:
        assert {"type": "Ready", "status": "True"}.items() <= next(item for item in pod["status"]["conditions"] if item["type"] == "Ready").items()
        assert all(status["restartCount"] == 0 for status in pod["status"]["containerStatuses"])
    identity = release.kubectl("exec", "deployment/accord-policy", "--", "python", "-c", "import os; print(os.getuid(), os.access('/opt', os.W_OK))")
    assert identity.stdout.split()[-2:] == ["65532", "False"]


def test_helm_test_passes(release: Release) -> None:
    done = release.helm("test", "accord", "--logs", "--timeout", "1200s", timeout=1300, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{release.story()}"
    for word in ("Generate", "Label", "Score", "all tests passed"):
        assert word in done.stdout


SIZE = {"steps": 1, "batch_size": 2, "micro_batch_size": 1, "learning_rate": 1e-4}
SMALL = {
    "name": "small", "seed": 1, "tasks": [{"task": "conversation", "uri": "sample:conversation"}], "feedback": ["ai"], "algorithms": ["dpo"],
    "human_pairs": 2, "ai_pairs": 4, "max_prompt_tokens": 160, "max_response_tokens": 96, "max_sampled_tokens": 12, "lora": {"rank": 2},
    "sft": SIZE, "reward_model": SIZE, "dpo": SIZE, "ppo": SIZE,
    "evaluation": {"prompts": 2, "pairs": 2, "bootstrap_samples": 100, "judge_check_pairs": 0},
}  # fmt: skip


def test_the_study_runs_as_a_job_and_from_outside_goes_on_with_its_runs(release: Release, tmp_path: Path) -> None:
    """Three runs as Jobs; from outside the same study finds them by their request ids, and measures the same."""
    values, recipe = tmp_path / "values.yaml", tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(SMALL))
    values.write_text(yaml.safe_dump({"study": {"enabled": True, "name": "small", "ownRecipe": SMALL}}))
    release.install(values=values)
    (job,) = release.get("jobs", "-l", "app.kubernetes.io/component=study")
    done = release.kubectl("wait", "--for=condition=complete", f"job/{job['metadata']['name']}", "--timeout=1200s", timeout=1260, check=False)
    assert done.returncode == 0, release.kubectl("logs", f"job/{job['metadata']['name']}", "--tail=40", check=False).stdout + release.story()
    file = "/var/lib/accord/shared/studies/small/results.json"
    inside = json.loads(release.kubectl("exec", "deployment/accord-trainer", "--", "cat", file).stdout)
    assert [arm["arm"] for arm in inside["tasks"][0]["arms"]] == ["base", "sft", "dpo-ai"]
    with contextlib.ExitStack() as stack:
        addresses = [
            word for name in ("policy", "reward", "feedback", "trainer") for word in (f"--{name}", stack.enter_context(release.forwarded(name)))
        ]
        command = [
            sys.executable,
            "-m",
            "accord.cli",
            "study",
            "--target",
            "cluster",
            "--recipe",
            str(recipe),
            "--home",
            str(tmp_path / "home"),
            "--json",
        ]
        said = run(*command, *addresses, "--shared-folder", "/var/lib/accord/shared/labels", timeout=900).stdout
    outside = json.loads(said)["results"]
    assert [step["key"] for step in outside["steps"]] == [step["key"] for step in inside["steps"]]
    assert [curve["run"] for curve in outside["curves"]] == [curve["run"] for curve in inside["curves"]]
    assert _values(outside) == pytest.approx(_values(inside), abs=1e-3, nan_ok=True)
    release.install()


def _values(results: Any) -> list[float]:
    metrics = [found for arm in results["tasks"][0]["arms"] for _, found in sorted(arm["metrics"].items())]
    return [float("nan") if found["value"] is None else found["value"] for found in metrics]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command to make certificates")
def test_helm_test_passes_over_mutual_tls(release: Release, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    hosts = ("policy", "policy-replicas", "reward", "reward-replicas", "feedback", "trainer")
    cert, key = authority.issue("accord", names=",".join(f"DNS:accord-{host}.{release.namespace}.svc" for host in hosts))
    files = (f"--from-file=tls.crt={cert}", f"--from-file=tls.key={key}", f"--from-file=ca.crt={authority.roots}")
    release.kubectl("create", "secret", "generic", "accord-tls", *files)
    release.install("tls.enabled=true", "tls.mutual=true", "tls.secret=accord-tls")
    done = release.helm("test", "accord", "--logs", "--timeout", "1200s", timeout=1300, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{release.story()}"
    for word in ("Generate", "Label", "Score", "all tests passed"):
        assert word in done.stdout
    release.install()


def test_a_pod_without_a_compiler_and_a_package_manager(release: Release) -> None:
    code = "import shutil; print([p for p in ('gcc', 'cc', 'pip', 'pip3', 'apt', 'apt-get', 'perl') if shutil.which(p)])"
    assert release.kubectl("exec", "deployment/accord-policy", "--", "python", "-c", code).stdout.strip().splitlines()[-1] == "[]"


def test_the_feedback_service_s_account_may_not_start_a_job(release: Release) -> None:
    account = f"system:serviceaccount:{release.namespace}:accord-feedback"
    for verb, resource in (("create", "jobs"), ("get", "secrets"), ("list", "pods")):
        assert release.kubectl("auth", "can-i", verb, resource, "--as", account, check=False).stdout.strip() == "no"


_LOAD = """
import sys, time
from accord.client.policy import GenerateItem, PolicyClient, Sampling
from accord.rpc.channels import ChannelConfig
from accord.text.chat import Message
item = GenerateItem((Message("user", "Name a river."),), Sampling(max_tokens=4, temperature=0.0))
done, end = 0, time.monotonic() + float(sys.argv[2])
with PolicyClient(ChannelConfig(address=sys.argv[1], default_timeout_seconds=60.0, attempts=5)) as client:
    while time.monotonic() < end:
        assert client.generate([item]).results[0].samples
        done += 1
print("done", done)
"""


def test_a_rolling_restart_under_load_fails_no_call(release: Release) -> None:
    """The clients run inside the cluster, where the headless service gives them each replica's address."""
    address = f"dns:///accord-policy-replicas.{release.namespace}.svc:50051"
    results: list[str] = []

    def load() -> None:
        done = release.kubectl("exec", "deployment/accord-feedback", "--", "python", "-c", _LOAD, address, "150", check=False, timeout=400)
        results.append(done.stdout + done.stderr)

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(5)
    before = {pod["metadata"]["name"] for pod in release.get("pods", "-l", "app.kubernetes.io/component=policy")}
    release.kubectl("rollout", "restart", "deployment/accord-policy")
    release.kubectl("rollout", "status", "deployment/accord-policy", "--timeout=600s", timeout=620)
    for thread in threads:
        thread.join()
    after = {
        pod["metadata"]["name"]
        for pod in release.get("pods", "-l", "app.kubernetes.io/component=policy")
        if "deletionTimestamp" not in pod["metadata"]
    }
    assert not before & after
    assert [int(text.split()[-1]) > 3 for text in results if text.startswith("done")] == [True, True], results


def test_upgrade_and_rollback_keep_what_was_made(release: Release) -> None:
    before = release.kubectl("exec", "deployment/accord-trainer", "--", "accord", "runs", "--json", "--trainer", "127.0.0.1:50051").stdout
    release.install("feedback.config.concurrency=2")
    assert "concurrency: 2" in release.kubectl("get", "configmap", "accord-feedback", "-o", "yaml").stdout
    release.helm("rollback", "accord", "1", "--wait", "--timeout", "900s", timeout=960)
    assert "concurrency: 2" not in release.kubectl("get", "configmap", "accord-feedback", "-o", "yaml").stdout
    after = release.kubectl("exec", "deployment/accord-trainer", "--", "accord", "runs", "--json", "--trainer", "127.0.0.1:50051").stdout
    assert "adapters/helm-test/versions/1" in before
    assert after == before


def test_uninstall_leaves_the_claims_alone(release: Release) -> None:
    """The last test of this file: it takes the release away."""
    release.helm("uninstall", "accord", "--wait", "--timeout", "300s", timeout=360)
    running = "app.kubernetes.io/component in (policy,reward,feedback,trainer)"
    release.kubectl("wait", "--for=delete", "pod", "-l", running, "--timeout=120s", timeout=140, check=False)
    kinds = "deployments,pods,services,configmaps,serviceaccounts,roles,rolebindings,networkpolicies,jobs,poddisruptionbudgets,persistentvolumeclaims"
    left = {(item["kind"], item["metadata"]["name"]) for item in release.get(kinds, "-l", "app.kubernetes.io/instance=accord")}
    kept = {("PersistentVolumeClaim", f"accord-{name}") for name in ("models", "artefacts", "work", "trainer", "feedback")}
    assert left - {("Pod", "accord-test")} == kept
