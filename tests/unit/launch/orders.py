"""Runs to be made into objects, and a configuration that uses everything."""

from __future__ import annotations

from typing import Any

from accord.launch.manifest import Features, RunOrder
from accord.launch.settings import KubernetesConfig
from accord.rundir import Endpoints, RunFile
from accord.runspec import parse_spec

RUNS = "/var/lib/accord/runs"
NEW, OLD, WITH_JOBSET = Features(), Features.of(20, jobset=False), Features.of(34, jobset=True)
PLAIN: dict[str, Any] = {"image": "accord/training:1.0", "claims": [{"claim": "accord-data", "mount_path": "/var/lib/accord"}]}
FULL: dict[str, Any] = {
    **PLAIN,
    "instance": "prod",
    "image_pull_secrets": ["registry"],
    "service_account": "prod-run",
    "claims": [
        {"claim": "prod-runs", "mount_path": RUNS},
        {"claim": "prod-artefacts", "mount_path": "/var/lib/accord/artefacts"},
        {"claim": "models", "mount_path": "/var/cache/accord", "sub_path": "hub", "read_only": True},
    ],
    "secrets": [{"secret": "prod-tls", "mount_path": "/etc/accord/tls"}],
    "environment": {"HF_ENDPOINT": "https://hub.example.com"},
    "secret_environment": ["prod-s3"],
    "labels": {"team": "alignment"},
    "annotations": {"example.com/cost-centre": "7"},
    "kinds": {
        "ppo": {
            "cpu": "8", "memory": "48Gi", "gpus": 2, "node_selector": {"pool": "a100"}, "runtime_class": "nvidia", "priority_class": "training",
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
                            {"key": "spot", "value": "yes", "effect": "NoExecute", "toleration_seconds": 60}],
            "queue": "alignment", "shared_memory": "8Gi", "deadline_seconds": 86400, "retries": 5,
        },
        "sft": {"nodes": 3, "gpus": 8, "retries": 2},
    },
}  # fmt: skip


def config(values: dict[str, Any] = PLAIN, **more: Any) -> KubernetesConfig:
    return KubernetesConfig.model_validate(values | more)


def run_file(algorithm: str = "dpo", name: str = "runs/support-dpo-0a1b2c3d4e", **spec: Any) -> RunFile:
    part: dict[str, Any] = {"data": {"uri": "/var/lib/accord/pairs.jsonl"}}
    if algorithm == "ppo":
        part["reward_model"] = "adapters/rm/versions/1"
    endpoints = Endpoints(policy="dns:///accord-policy:50051", reward="dns:///accord-reward:50051")
    values = {"adapter": "support", "steps": 10, algorithm: part} | spec
    return RunFile(name=name, artefacts="/var/lib/accord/artefacts", base_model="embedded", threads=4, endpoints=endpoints, spec=parse_spec(values))


def order(algorithm: str = "dpo", *, memory_bytes: int = 2**30, **given: Any) -> RunOrder:
    run = run_file(algorithm, **given)
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "accord-trainer", "uid": "7f9c24e5-2d1b-4a7b-9a3e-000000000001"}
    return RunOrder(run, f"{RUNS}/{run.name.removeprefix('runs/')}", 1, memory_bytes, 120.0, "training", owner)
