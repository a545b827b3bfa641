"""Runs as Jobs of a real cluster: through to the end, over the loss of a pod and of the trainer, and every way in which they cannot run."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.trainer_in_cluster import DATA, Namespace, events, new_namespace, run, until

from accord.client.trainer import Run, TrainerClient
from accord.errors import FailedPreconditionError
from accord.runspec import RunSpec, parse_spec

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
DEVICE = "nvidia.com/gpu"


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    yield from new_namespace()


def spec(kind: str = "dpo", **fields: Any) -> RunSpec:
    values = {
        "adapter": "jobs", "steps": 40, "seed": 3, "batch_size": 4, "checkpoint_every_steps": 5, "lora": {"rank": 4}, "max_prompt_tokens": 128,
        "max_response_tokens": 64, "optimizer": {"learning_rate": 1e-3}, kind: {"data": {"uri": f"{DATA}/pairs.jsonl"}},
    }  # fmt: skip
    return parse_spec(values | fields)


def jobs_of(namespace: Namespace, found: Run) -> list[dict[str, Any]]:
    return [job for job in namespace.get("jobs") if job["metadata"]["annotations"]["accord.api/run-name"] == found.name]


def job_of(namespace: Namespace, found: Run) -> dict[str, Any]:
    (job,) = jobs_of(namespace, found)
    return job


def pod_of(namespace: Namespace, found: Run) -> str:
    name = job_of(namespace, found)["metadata"]["name"]
    pods = namespace.get("pods", "--selector", f"accord.api/run={name}")
    return str(max(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])["metadata"]["name"])


def weights_of(namespace: Namespace, found: Run) -> str:
    """The digest of the published adapter's weights."""
    folder = f"{DATA}/artefacts/{found.adapter_version}"
    listing = namespace.in_trainer(
        "python",
        "-c",
        f"import hashlib, pathlib; print(hashlib.sha256(next(pathlib.Path({folder!r}).rglob('adapter_model.safetensors')).read_bytes()).hexdigest())",
    )
    return listing.strip()


def until_step(namespace: Namespace, client: TrainerClient, name: str, step: int) -> Run:
    until(namespace, client, name, "running", "checkpointing")
    deadline = time.monotonic() + 300
    while (found := client.get_run(name)).step < step:
        assert not found.ended, f"{found.state} {found.message}\n{namespace.story()}"
        assert time.monotonic() < deadline, f"{name} is at step {found.step}\n{namespace.story()}"
        time.sleep(0.2)
    return found


def test_a_deleted_pod_and_a_killed_trainer_change_nothing(namespace: Namespace) -> None:
    long = spec(steps=200, checkpoint_every_steps=20)  # many steps of little work: it must still run once all has been deleted
    with namespace.client() as client:
        undisturbed = until(namespace, client, client.create_run(long, "undisturbed").name, "succeeded")
        assert undisturbed.attempts == 1
        job = job_of(namespace, undisturbed)
        assert {"type": "Complete", "status": "True"}.items() <= job["status"]["conditions"][-1].items()
        assert job["metadata"]["ownerReferences"][0]["kind"] == "Deployment"
        config_map = namespace.get("configmap", job["metadata"]["name"])
        assert config_map["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
        disturbed = until_step(namespace, client, client.create_run(long, "disturbed").name, 21)
    pod, trainer = pod_of(namespace, disturbed), namespace.get("pods", "--selector", "app=trainer")[0]["metadata"]["name"]
    namespace.kubectl("delete", "pod", trainer, "--grace-period=0", "--force", "--wait=false")
    namespace.kubectl("delete", "pod", pod, "--wait=false")
    namespace.kubectl("rollout", "status", "deployment/trainer", "--timeout=300s", timeout=330)
    with namespace.client() as client:
        done = until(namespace, client, disturbed.name, "succeeded")
        assert done.attempts == 1, "the Job was found again, not made anew"
        assert pod_of(namespace, done) != pod
        texts = [event.message for event in events(client, done.name) if event.message]
        assert any(text.startswith("resumed after step ") for text in texts), texts
        steps = [event.step for event in events(client, done.name) if event.metrics is not None and "loss" in event.metrics]
        assert sorted(set(steps)) == list(range(1, 201))
    assert done.adapter_version != undisturbed.adapter_version
    assert weights_of(namespace, done) == weights_of(namespace, undisturbed)


def test_a_cancelled_run_checkpoints_its_job_goes_and_it_can_be_resumed(namespace: Namespace) -> None:
    with namespace.client() as client:
        started = until_step(namespace, client, client.create_run(spec(steps=4000, checkpoint_every_steps=1000), "cancelled").name, 3)
        name = job_of(namespace, started)["metadata"]["name"]
        with namespace.forwarded() as address:
            printed = run(sys.executable, "-m", "accord.cli", "watch", started.name, "--log", "--trainer", address).stdout
        assert printed.startswith(f"==> pod {pod_of(namespace, started)} <==\n"), printed
        client.cancel_run(started.name)
        cancelled = until(namespace, client, started.name, "cancelled")
        assert cancelled.exit_code == 3
        assert cancelled.message.startswith("stopped on request after step "), cancelled.message
        assert name not in [job["metadata"]["name"] for job in namespace.get("jobs")]
        kept = client.list_checkpoints(started.name)[0]
        assert kept.whole
        assert kept.step >= 3
        client.resume_run(started.name)
        again = until_step(namespace, client, started.name, kept.step + 1)
        assert again.attempts == 2
        assert job_of(namespace, again)["metadata"]["name"] == name
        client.cancel_run(started.name)
        until(namespace, client, started.name, "cancelled")


def node_name(namespace: Namespace) -> str:
    """A node that takes pods: one that is tainted, as a control plane's is, would not."""
    return next(str(node["metadata"]["name"]) for node in namespace.get("nodes") if not node["spec"].get("taints"))


def advertise(node: str, count: str) -> None:
    """Makes a node say that it has so many devices."""
    change = f'{{"status": {{"capacity": {{"{DEVICE}": "{count}"}}}}}}'
    run("kubectl", "patch", "node", node, "--subresource=status", "--type=merge", "-p", change)


def test_a_run_without_a_gpu_says_so_where_it_is_watched_and_runs_when_there_is_one(namespace: Namespace, tmp_path: Path) -> None:
    if any(int(node["status"]["capacity"].get(DEVICE, 0)) for node in namespace.get("nodes")):
        pytest.skip(f"the nodes of this cluster have {DEVICE}")
    node, said = node_name(namespace), tmp_path / "watch.txt"
    try:
        with namespace.forwarded() as address, namespace.client() as client, said.open("w") as output:
            name = client.create_run(spec("sft", steps=2), "without-a-gpu").name
            watching = subprocess.Popen([sys.executable, "-m", "accord.cli", "watch", name, "--trainer", address], stdout=output, stderr=output)
            deadline = time.monotonic() + 60
            while f"Insufficient {DEVICE}" not in said.read_text():
                assert time.monotonic() < deadline, f"{said.read_text()}\n{namespace.story()}"
                time.sleep(0.5)
            found = client.get_run(name)
            assert (found.state, found.phase) == ("starting", "pending")
            assert f"waits for {found.waiting_on}" in said.read_text()
            advertise(node, "1")
            assert until(namespace, client, name, "succeeded").exit_code == 0
            assert watching.wait(60) == 0, said.read_text()
            assert f"{name} succeeded after 2 of 2 steps" in said.read_text()
    finally:
        advertise(node, "0")


def waits_for(namespace: Namespace, kind: str, says: str) -> None:
    """A run of this kind, which has no node, says so with these words, and is cancelled."""
    with namespace.client() as client:
        name = client.create_run(spec(kind, steps=2), f"without-a-node-{kind}").name
        deadline = time.monotonic() + 60
        while says not in (found := client.get_run(name)).waiting_on:
            assert time.monotonic() < deadline, f"{found.state} {found.waiting_on} {found.message}\n{namespace.story()}"
            time.sleep(0.5)
        assert found.waiting_on.startswith("a node with room for pod ")
        client.cancel_run(name)
        until(namespace, client, name, "cancelled")


def test_a_type_of_gpu_that_no_node_has_is_named_while_the_run_waits(namespace: Namespace) -> None:
    """Nobody can know whether such a node will come, so the run waits and says for what; by a label of nodes, see below."""
    waits_for(namespace, "reward_model", "Insufficient nvidia.com/of-next-year")


def until_deleted(namespace: Namespace, found: Run) -> None:
    """Waits until a run's Job has gone or is being deleted in the foreground: a kubelet may take a minute to let go of a pod that never ran."""
    deadline = time.monotonic() + 60
    while [job for job in jobs_of(namespace, found) if "deletionTimestamp" not in job["metadata"]]:
        assert time.monotonic() < deadline, namespace.story()
        time.sleep(0.5)


def test_an_error_of_the_configuration_fails_at_once(namespace: Namespace) -> None:
    with namespace.client() as client:
        found = until(namespace, client, client.create_run(spec(base_model=f"{DATA}/no-such-model"), "bad-model").name, "failed", seconds=300)
        assert found.exit_code == 2
        assert f"{DATA}/no-such-model" in found.message
    with namespace.forwarded() as address:
        watched = run(sys.executable, "-m", "accord.cli", "watch", found.name, "--trainer", address, check=False)
    assert watched.returncode == 1
    assert [line for line in watched.stderr.splitlines() if line.startswith("| ") and "no-such-model" in line], "the end of what its pod printed"
    until_deleted(namespace, found)


def test_no_permission_to_create_jobs_is_one_sentence(namespace: Namespace) -> None:
    namespace.configure(verbs={"jobs": ("get", "list", "watch", "delete")})
    with namespace.client() as client:
        found = until(namespace, client, client.create_run(spec(), "no-permission").name, "failed", seconds=120)
        account = f"system:serviceaccount:{namespace.name}:trainer"
        assert (
            found.message == f"it could not be started: {account} may not create jobs in namespace {namespace.name}; its Role lacks the verb create"
        )


def test_a_kind_with_other_nodes_waits_for_them_and_one_with_little_memory_is_refused_by_its_plan(namespace: Namespace) -> None:
    label = {"nvidia.com/gpu.product": "NVIDIA-of-next-year"}
    namespace.configure(kinds={"sft": {"node_selector": label}, "reward_model": {"memory": "256Mi"}})
    waits_for(namespace, "sft", "node(s) didn't match")
    with (
        namespace.client() as client,
        pytest.raises(FailedPreconditionError, match=r"a pod of this kind gets 256 MiB \(kubernetes.kinds.reward_model.memory"),
    ):
        client.create_run(spec("reward_model"), "little-memory")


def test_an_image_that_cannot_be_pulled_fails_with_its_name(namespace: Namespace) -> None:
    image = "127.0.0.1:9/accord/no-such-image:1"  # a registry that is not there says so at once
    namespace.configure(image=image)
    with namespace.client() as client:
        found = until(namespace, client, client.create_run(spec(), "no-image").name, "failed", seconds=300)
        assert "its image cannot be pulled" in found.message
        assert image in found.message
    until_deleted(namespace, found)


def test_a_run_out_of_memory_fails_with_the_limit_and_what_it_last_said(namespace: Namespace) -> None:
    greedy = ["python", "-c", "print('reading everything', flush=True); x = b'x' * 2**33"]
    namespace.configure(command=greedy, defaults={"cpu": "100m", "memory": "700Mi", "retries": 0})
    with namespace.client() as client:
        found = until(namespace, client, client.create_run(spec(), "out-of-memory").name, "failed", seconds=300)
        assert "used more memory than its limit of 700Mi (OOMKilled)" in found.message
        assert found.message.endswith("its last words: reading everything")
        assert found.exit_code == 137


def test_a_secret_that_is_not_there_fails_with_its_name(namespace: Namespace) -> None:
    namespace.configure(secret_environment=["no-such-secret"])
    with namespace.client() as client:
        found = until(namespace, client, client.create_run(spec(), "no-secret").name, "failed", seconds=300)
        assert "CreateContainerConfigError" in found.message
        assert "no-such-secret" in found.message


def test_what_the_trainer_started_goes_with_it(namespace: Namespace) -> None:
    namespace.configure()
    with namespace.client() as client:
        started = until_step(namespace, client, client.create_run(spec(steps=4000), "left-behind").name, 1)
    assert job_of(namespace, started)
    namespace.kubectl("delete", "deployment", "trainer", "--wait=true")
    deadline = time.monotonic() + 120
    while left := [item["metadata"]["name"] for item in (*namespace.get("jobs"), *namespace.get("pods"))]:
        assert time.monotonic() < deadline, left
        time.sleep(1)
    names = [item["metadata"]["name"] for item in namespace.get("configmaps")]
    assert [name for name in names if name not in ("kube-root-ca.crt", "trainer")] == []
