"""The chart on a real cluster: it installs, its services and runs work together, survive a rolling restart, and leave nothing but the claims behind."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.release import CHART_ARGUMENTS, TAG, Release, run
from tests.contract.certificates import Authority

from accord.cli.recipes import load_train_recipe
from accord.client.trainer import RunEvent, TrainerClient
from accord.rpc.channels import ChannelConfig
from accord.runspec import RunSpec

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module", autouse=True)
def installed(release: Release) -> None:
    release.install()


def test_every_pod_is_ready_and_runs_as_nobody(release: Release) -> None:
    pods = [
        pod for pod in release.get("pods") if pod["metadata"]["labels"]["app.kubernetes.io/component"] in ("policy", "reward", "feedback", "trainer")
    ]
    assert len(pods) == 4
    for pod in pods:
        assert {"type": "Ready", "status": "True"}.items() <= next(item for item in pod["status"]["conditions"] if item["type"] == "Ready").items()
        assert all(status["restartCount"] == 0 for status in pod["status"]["containerStatuses"])
    code = "import os; print(os.getuid(), bool(os.statvfs('/').f_flag & os.ST_RDONLY))"
    for component in ("policy", "reward", "feedback", "trainer"):
        identity = release.kubectl("exec", f"deployment/accord-{component}", "--", "python", "-c", code)
        assert identity.stdout.split()[-2:] == ["65532", "True"]


def test_helm_test_passes(release: Release) -> None:
    helm_test(release)


def helm_test(release: Release) -> None:
    """`helm test`, which must pass and say all that it tries."""
    done = release.helm("test", "accord", "--logs", "--timeout", "1200s", timeout=1300, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{release.story()}"
    for word in ("Generate", "Label", "Score", "all tests passed"):
        assert word in done.stdout


@pytest.mark.parametrize("component", ["policy", "reward", "feedback", "trainer"])
def test_the_command_of_the_notes_works(release: Release, component: str) -> None:
    """After `helm test`, which trains what the notes score with; of the trainer's run the plan is enough."""
    notes = release.helm("get", "notes", "accord").stdout
    (line,) = re.findall(rf"^  accord (\w.* --{component} 127.0.0.1:\d+)(?: +#.*)?$", notes, re.MULTILINE)
    with release.forwarded(component) as address:
        words = shlex.split(re.sub(r"127.0.0.1:\d+$", address, line)) + (["--plan"] if component == "trainer" else [])
        assert run(sys.executable, "-m", "accord.cli", *words).stdout.strip()


SETTINGS = {
    "dpo": ["dpo.data.limit=8", "dpo.eval_data=null", "batch_size=2", "max_response_tokens=64"],
    "ppo": ["ppo.data.uri=sample:conversation", "ppo.eval_data=null", "ppo.reward_model=adapters/helm-test", "ppo.ptx_coefficient=0", "ppo.ptx_data=null",
            "ppo.epochs=1", "ppo.minibatch_size=4", "batch_size=4", "max_response_tokens=16"],
}  # fmt: skip
SMALL = ["steps=3", "micro_batch_size=2", "lora.rank=2", "max_prompt_tokens=256", "checkpoint_every_steps=1"]


def small_spec(kind: str) -> RunSpec:
    return load_train_recipe(kind, [*SMALL, *SETTINGS[kind], 'parent_adapter=""', f"adapter={kind}-in-cluster"])


def test_runs_go_as_jobs_from_create_run_to_succeeded(release: Release) -> None:
    """DPO and PPO at once, after `helm test`, whose reward model scores PPO's rollouts; the services count the calls: one or more a step."""
    before = {name: calls(release, *name) for name in (("policy", "GenerateStream"), ("reward", "ScoreStream"))}
    with release.forwarded("trainer") as address, TrainerClient(ChannelConfig(address=address, attempts=5)) as client:
        names = {kind: client.create_run(small_spec(kind), f"{kind}-in-cluster").name for kind in SETTINGS}
        for kind, measured in (("dpo", "loss"), ("ppo", "score_mean")):
            seen: list[RunEvent] = list(client.watch_run(names[kind], timeout_seconds=600))
            done = client.get_run(names[kind])
            assert (done.state, done.exit_code) == ("succeeded", 0), f"{done.state} {done.message}\n{release.story()}"
            assert done.adapter_version == f"adapters/{kind}-in-cluster/versions/1"
            assert job_of(release, names[kind])["status"]["succeeded"] == 1
            assert sorted({event.step for event in seen if event.metrics is not None and measured in event.metrics}) == [1, 2, 3]
    grown = {name: calls(release, *name) - count for name, count in before.items()}
    assert all(count >= 3 for count in grown.values()), grown


def test_ppo_whose_pod_is_deleted_ends_with_the_same_bits(release: Release) -> None:
    """After the run of the same spec above, which nobody disturbed."""
    with release.forwarded("trainer") as address, TrainerClient(ChannelConfig(address=address, attempts=5)) as client:
        name = client.create_run(small_spec("ppo"), "ppo-disturbed").name
        deadline = time.monotonic() + 300
        while (found := client.get_run(name)).step < 1:
            assert not found.ended, f"{found.state} {found.message}"
            assert time.monotonic() < deadline, release.story()
            time.sleep(0.2)
        release.kubectl("delete", "pod", "-l", f"accord.api/run={job_of(release, name)['metadata']['name']}", "--wait=false")
        texts = [event.message for event in client.watch_run(name, timeout_seconds=600) if event.message]
        done = client.get_run(name)
    assert done.state == "succeeded", f"{done.state} {done.message}\n{release.story()}"
    assert any(text.startswith("resumed after step ") for text in texts), texts
    assert weights_of(release, done.adapter_version) == weights_of(release, "adapters/ppo-in-cluster/versions/1")


def job_of(release: Release, name: str) -> Any:
    (job,) = [job for job in release.get("jobs") if job["metadata"].get("annotations", {}).get("accord.api/run-name") == name]
    return job


def weights_of(release: Release, version: str) -> str:
    """The digest of an adapter's weights."""
    file = f"/var/lib/accord/artefacts/{version}/adapter_model.safetensors"
    code = f"import hashlib; print(hashlib.sha256(open({file!r}, 'rb').read()).hexdigest())"
    return release.kubectl("exec", "deployment/accord-trainer", "--", "python", "-c", code).stdout.strip()


def calls(release: Release, component: str, method: str) -> int:
    """How many calls of a method a service has answered, by its own metrics."""
    code = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9090/metrics').read().decode())"
    text = release.kubectl("exec", f"deployment/accord-{component}", "--", "python", "-c", code).stdout
    found = re.findall(rf'^accord_rpc_calls_total{{(?=[^}}]*method="{method}")(?=[^}}]*code="OK")[^}}]*}} ([0-9.]+)', text, re.MULTILINE)
    return int(sum(float(count) for count in found))


@pytest.mark.parametrize("component", ["policy", "reward", "feedback", "trainer"])
def test_a_pod_has_neither_compiler_nor_package_manager(release: Release, component: str) -> None:
    code = "import shutil; print([p for p in ('gcc', 'cc', 'pip', 'pip3', 'apt', 'apt-get', 'perl') if shutil.which(p)])"
    assert release.kubectl("exec", f"deployment/accord-{component}", "--", "python", "-c", code).stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("component", ["policy", "reward", "feedback", "run"])
def test_no_account_but_the_trainer_s_may_start_a_job(release: Release, component: str) -> None:
    account = f"system:serviceaccount:{release.namespace}:accord-{component}"
    for verb, resource in (("create", "jobs"), ("delete", "jobs"), ("get", "secrets"), ("list", "pods")):
        assert release.kubectl("auth", "can-i", verb, resource, "--as", account, check=False).stdout.strip() == "no"
    denied = release.kubectl("create", "job", "denied", f"--image=accord/feedback:{TAG}", "--as", account, check=False)
    assert denied.returncode != 0
    assert f'User "{account}" cannot create resource "jobs"' in denied.stderr


def test_the_trainer_s_account_may_start_jobs_in_its_namespace_alone(release: Release) -> None:
    account = f"system:serviceaccount:{release.namespace}:accord-trainer"
    assert release.kubectl("auth", "can-i", "create", "jobs", "--as", account, check=False).stdout.strip() == "yes"
    for verb, resource, where in (("create", "jobs", "default"), ("get", "secrets", release.namespace), ("create", "pods", release.namespace)):
        assert release.kubectl("auth", "can-i", verb, resource, "--namespace", where, "--as", account, check=False).stdout.strip() == "no"


_LOAD = """
import pathlib, sys, time
from accord.client.policy import GenerateItem, PolicyClient, Sampling
from accord.rpc.channels import ChannelConfig
from accord.text.chat import Message
item = GenerateItem((Message("user", "Name a river."),), Sampling(max_tokens=4, temperature=0.0))
done, stop, end = 0, pathlib.Path(sys.argv[2]), time.monotonic() + 600
with PolicyClient(ChannelConfig(address=sys.argv[1], default_timeout_seconds=60.0)) as client:
    while not stop.exists() and time.monotonic() < end:
        assert client.generate([item]).results[0].samples
        done += 1
        time.sleep(0.2)
print("done", done)
"""


def test_a_rolling_restart_under_load_fails_no_call(release: Release) -> None:
    """The clients run inside the cluster, where the headless service gives them each replica's address, and try again as clients do by default; they go
    on until the old pod has gone."""
    address = f"dns:///accord-policy-replicas.{release.namespace}.svc:50051"
    results: list[str] = []

    def load() -> None:
        done = release.kubectl("exec", "deployment/accord-feedback", "--", "python", "-c", _LOAD, address, "/tmp/stop", check=False, timeout=660)
        results.append(done.stdout + done.stderr)

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(5)
    before = {pod["metadata"]["name"] for pod in release.get("pods", "-l", "app.kubernetes.io/component=policy")}
    release.kubectl("rollout", "restart", "deployment/accord-policy")
    release.kubectl("rollout", "status", "deployment/accord-policy", "--timeout=500s", timeout=520)
    for name in before:
        release.kubectl("wait", "--for=delete", f"pod/{name}", "--timeout=120s", timeout=130)
    time.sleep(3)
    release.kubectl("exec", "deployment/accord-feedback", "--", "touch", "/tmp/stop")
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
    before = runs(release)
    release.install("feedback.config.concurrency=2")
    assert "concurrency: 2" in release.kubectl("get", "configmap", "accord-feedback", "-o", "yaml").stdout
    release.helm("rollback", "accord", "1", "--wait", "--timeout", "900s", timeout=960)
    assert "concurrency: 2" not in release.kubectl("get", "configmap", "accord-feedback", "-o", "yaml").stdout
    assert "adapters/helm-test/versions/1" in json.dumps(before)
    assert runs(release) == before


def runs(release: Release, *options: str) -> Any:
    """What the trainer knows of its runs."""
    command = ("accord", "runs", "--json", "--trainer", "127.0.0.1:50051", *options)
    return json.loads(release.kubectl("exec", "deployment/accord-trainer", "--", *command).stdout)


SECRETS = [
    ("tls.secret", "tls.secret={}"),
    ("database.secret", "database.secret={}"),
    ("artefacts.secret", "artefacts.secret={}"),
    ("model.tokenSecret", "model.tokenSecret={}"),
    ("images.pullSecrets", "images.pullSecrets[0]={}"),
    ("policy.env", "policy.env[0].name=KEY,policy.env[0].valueFrom.secretKeyRef.key=key,policy.env[0].valueFrom.secretKeyRef.name={}"),
    ("feedback.envFrom", "feedback.envFrom[0].secretRef.name={}"),
    ("trainer.config.kubernetes.secret_environment", "trainer.config.kubernetes.secret_environment[0]={}"),
]


@pytest.mark.parametrize(("value", "setting"), SECRETS, ids=[value for value, _ in SECRETS])
def test_a_secret_that_is_not_there_stops_an_upgrade_in_one_sentence(release: Release, value: str, setting: str) -> None:
    before = release.helm("history", "accord", "--output", "json").stdout
    refused = release.helm("upgrade", "accord", *CHART_ARGUMENTS, "--set", setting.format("no-such-secret"), check=False)
    assert f'the secret "no-such-secret", which {value} names, is not in namespace {release.namespace}: create it first' in refused.stderr
    assert release.helm("history", "accord", "--output", "json").stdout == before


def test_uninstall_leaves_the_claims_and_nothing_else(release: Release) -> None:
    """The release goes, with the Jobs of its runs."""
    assert [job for job in release.get("jobs") if "accord.api/run-name" in job["metadata"].get("annotations", {})]
    release.helm("uninstall", "accord", "--wait", "--timeout", "300s", timeout=360)
    release.until_only(release.bare | {f"persistentvolumeclaim/accord-{name}" for name in ("models", "artefacts", "work", "trainer", "feedback")})


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command to make certificates")
def test_a_release_on_what_an_uninstall_left_knows_its_runs_and_speaks_mutual_tls(release: Release, tmp_path: Path) -> None:
    """After the uninstall: the claims are taken over, and `helm test` passes with certificates on every side."""
    authority = Authority(tmp_path, "ours")
    hosts = ("policy", "policy-replicas", "reward", "reward-replicas", "feedback", "trainer")
    cert, key = authority.issue("accord", names=",".join(f"DNS:accord-{host}.{release.namespace}.svc" for host in hosts))
    files = (f"--from-file=tls.crt={cert}", f"--from-file=tls.key={key}", f"--from-file=ca.crt={authority.roots}")
    release.kubectl("create", "secret", "generic", "accord-tls", *files)
    release.install("tls.enabled=true", "tls.mutual=true", "tls.secret=accord-tls")
    helm_test(release)
    folder = "/etc/accord/tls"
    known = runs(release, "--tls-ca", f"{folder}/ca.crt", "--tls-cert", f"{folder}/tls.crt", "--tls-key", f"{folder}/tls.key", "--tls-server-name",
                 f"accord-trainer.{release.namespace}.svc")  # fmt: skip
    assert {"adapters/ppo-in-cluster/versions/1", "adapters/dpo-in-cluster/versions/1"} <= {run["adapter_version"] for run in known}
    assert release.kubectl("exec", "deployment/accord-trainer", "--", "accord", "runs", "--trainer", "127.0.0.1:50051", check=False).returncode != 0
