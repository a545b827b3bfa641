"""A trainer in a namespace of its own, with the permissions that `accord.launch` promises to be enough, for tests on a real cluster.

KUBECONFIG says which cluster; ACCORD_TRAINING_IMAGE an image on its nodes that holds the trainer and the runs (by default accord/training with TAG)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from typing import Any

import yaml
from tests.cluster.forwarding import forwarded
from tests.cluster.release import make_namespace, not_at_hand

from accord.client.trainer import Run, RunEvent, TrainerClient
from accord.launch.manifest import PERMISSIONS
from accord.rpc.channels import ChannelConfig

IMAGE = os.environ.get("ACCORD_TRAINING_IMAGE", f"accord/training:{os.environ.get('TAG', 'test')}")
DATA = "/var/lib/accord"
TRAINER = {"app": "trainer"}
NO_NODES = {"sft": {"gpus": 1}, "reward_model": {"gpus": 1, "gpu_resource": "nvidia.com/of-next-year"}}
"""Kinds of run that the node has no device for, unless a test says that it has."""
_PAIRS = [{"prompt": f"say {word}", "chosen": word * 3, "rejected": word[::-1] * 2} for word in ("alpha", "beta", "gamma", "delta", "omega", "kappa")]
_MAKE_DATA = f"import json; open('{DATA}/pairs.jsonl', 'w').write('\\n'.join(json.dumps(row) for row in {_PAIRS}))"
_MAKE_MODEL = f"from pathlib import Path; from accord.models.testing import tiny_model_folder; tiny_model_folder(Path('{DATA}/model'))"


def run(*command: str, timeout: float = 120, check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """A program's output; an AssertionError with all that it said where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, input=stdin)
    assert done.returncode == 0 or not check, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


class Namespace:
    """A namespace with a volume, and a trainer that can be configured anew."""

    def __init__(self, name: str) -> None:
        self.name = name

    def kubectl(self, *arguments: str, check: bool = True, timeout: float = 120, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return run("kubectl", "--namespace", self.name, *arguments, check=check, timeout=timeout, stdin=stdin)

    def get(self, *what: str) -> Any:
        """`kubectl get WHAT -o json`; the items of a list."""
        found = json.loads(self.kubectl("get", *what, "-o", "json").stdout)
        return found.get("items", found)

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def in_trainer(self, *command: str, timeout: float = 300) -> str:
        """What a command in the trainer's pod prints."""
        return self.kubectl("exec", "deployment/trainer", "--", *command, timeout=timeout).stdout

    def configure(self, *, verbs: dict[str, tuple[str, ...]] | None = None, **kubernetes: Any) -> None:
        """Starts the trainer, or starts it anew where its configuration is another (its verbs count at once), and waits until it serves."""
        section = {
            "image": IMAGE, "image_pull_policy": "IfNotPresent", "instance": "jobs", "owner": {"kind": "Deployment", "name": "trainer"},
            "claims": [{"claim": "data", "mount_path": DATA}], "defaults": {"cpu": "100m", "memory": "2Gi", "retries": 3}, "start_grace_seconds": 10, "kinds": NO_NODES,
            "environment": {"HF_HUB_OFFLINE": "1"}, **kubernetes,
        }  # fmt: skip
        values = {
            "server": {"listen": "0.0.0.0:50051"}, "runs": f"{DATA}/runs", "database": f"sqlite:///{DATA}/registry.sqlite", "artefacts": f"{DATA}/artefacts",
            "base_model": f"{DATA}/model", "model_folder": f"{DATA}/model", "threads": 1, "max_running": 4, "stop_grace_seconds": 60,
            "launcher": "kubernetes", "kubernetes": section,
        }  # fmt: skip
        text = yaml.safe_dump(values)
        rules = [
            {"apiGroups": [group], "resources": [resource], "verbs": list((verbs or {}).get(resource, allowed))}
            for group, resource, allowed in PERMISSIONS
        ]
        rules.append({"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"]})
        self.apply(
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "trainer"}, "rules": rules},
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "trainer"}, "data": {"trainer.yaml": text}},
            _deployment(hashlib.sha256(text.encode()).hexdigest()[:16]),
        )
        self.kubectl("rollout", "status", "deployment/trainer", "--timeout=300s", timeout=330)

    def prepare(self) -> None:
        """What does not change: account, volume, and a tiny model on it."""
        subject = {"kind": "ServiceAccount", "name": "trainer", "namespace": self.name}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "trainer"}
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}
        self.apply(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "trainer"}},
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": "trainer"},
                "subjects": [subject],
                "roleRef": role,
            },
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": claim},
        )
        self.configure()
        self.in_trainer("python", "-c", f"{_MAKE_DATA}; {_MAKE_MODEL}")

    @contextlib.contextmanager
    def client(self) -> Iterator[TrainerClient]:
        """A client of the trainer, through a forwarded port."""
        with self.forwarded() as address, TrainerClient(ChannelConfig(address=address, attempts=5)) as client:
            yield client

    def forwarded(self) -> contextlib.AbstractContextManager[str]:
        """host:port of the trainer, forwarded to this machine."""
        return forwarded(self.name, "deployment/trainer")

    def story(self) -> str:
        """What a failure is understood by."""
        parts = [self.kubectl("get", "pods,jobs", "-o", "wide", check=False).stdout, self.kubectl("get", "events", check=False).stdout[-3000:]]
        return "\n".join([*parts, self.kubectl("logs", "deployment/trainer", "--tail=30", check=False).stdout])


def until(namespace: Namespace, client: TrainerClient, name: str, *states: str, seconds: float = 300) -> Run:
    """The run once it is in one of the states."""
    deadline, run = time.monotonic() + seconds, client.get_run(name)
    while run.state not in states:
        assert time.monotonic() < deadline, f"{name} is {run.state} ({run.message}), not {states}\n{namespace.story()}"
        assert not run.ended, f"{name} ended {run.state}: {run.message}\n{namespace.story()}"
        time.sleep(0.5)
        run = client.get_run(name)
    return run


def events(client: TrainerClient, name: str) -> list[RunEvent]:
    """All that a person who watches an ended run from its beginning sees."""
    return list(client.watch_run(name, timeout_seconds=60))


def new_namespace() -> Iterator[Namespace]:
    """A namespace with a trainer, which the cluster removes afterwards in its own time; skips, saying so, where no cluster is at hand."""
    if shutil.which("kubectl") is None or run("kubectl", "version", "--request-timeout=10s", check=False, timeout=30).returncode != 0:
        not_at_hand("no cluster answers kubectl: set KUBECONFIG; cluster tests did not run")
    namespace = Namespace(f"accord-jobs-{uuid.uuid4().hex[:8]}")
    make_namespace(namespace.name)
    try:
        namespace.prepare()
        yield namespace
    finally:
        run("kubectl", "delete", "namespace", namespace.name, "--wait=false", check=False)


def _deployment(checksum: str) -> dict[str, Any]:
    secure = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    mounts = [{"name": "data", "mountPath": DATA}, {"name": "config", "mountPath": "/etc/accord"}, {"name": "tmp", "mountPath": "/tmp"}]
    container = {
        "name": "trainer", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["python", "-m", "accord.trainer", "/etc/accord/trainer.yaml"],
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "XDG_CACHE_HOME", "value": "/tmp"}], "securityContext": secure, "volumeMounts": mounts,
        "readinessProbe": {"tcpSocket": {"port": 50051}, "periodSeconds": 1, "failureThreshold": 120},
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}},
    }  # fmt: skip
    pod = {
        "serviceAccountName": "trainer", "terminationGracePeriodSeconds": 10, "containers": [container],
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}, {"name": "config", "configMap": {"name": "trainer"}}, {"name": "tmp", "emptyDir": {}},
        ],
    }  # fmt: skip
    template = {"metadata": {"labels": TRAINER, "annotations": {"checksum": checksum}}, "spec": pod}
    spec = {"replicas": 1, "strategy": {"type": "Recreate"}, "selector": {"matchLabels": TRAINER}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "trainer"}, "spec": spec}
