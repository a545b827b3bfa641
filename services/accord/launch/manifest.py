"""The objects of a run in a cluster, as plain JSON: a ConfigMap with its run file, and a Job. Nothing here does I/O.

The pod keeps Pod Security's "restricted" profile. What does not belong here: several nodes (`accord.launch.jobset`), and sending the objects
(`accord.launch.kubernetes`).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accord.launch.settings import KubernetesConfig, PodSettings, Toleration, quantity_bytes
from accord.rundir import EXIT_CONFIGURATION, EXIT_GUARDED, EXIT_STOPPED, RunFile

Manifest = dict[str, Any]
CONTAINER = "run"
LABEL_RUN, LABEL_KIND = "accord.api/run", "accord.api/kind"
ANNOTATION_NAME, ANNOTATION_ATTEMPT = "accord.api/run-name", "accord.api/attempt"
COMPONENT = "run"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_USER = 65532
_RUN_FILE_FOLDER = "/etc/accord/run"
_MEMORY_STEP = 64 * 2**20
_NAME_PARTS = 18
PERMISSIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("batch", "jobs", ("create", "get", "list", "watch", "delete")),
    ("", "pods", ("list", "watch", "delete")),
    ("", "pods/log", ("get",)),
    ("", "events", ("list",)),
    ("", "configmaps", ("create", "get", "patch", "delete")),
)
"""API group, resource and verbs that the trainer's Role must grant in the runs' namespace; `accord.launch.jobset` names those of several nodes.
`get` of the kind of `owner` comes to them."""


@dataclass(frozen=True, slots=True)
class Features:
    """What an API server knows. Fields that it does not know would be dropped, or the object refused.

    Args:
        pod_failure_policy: Jobs tell failures apart (on by default since 1.26).
        pod_replacement_policy: a new pod waits until the old one has ended (on by default since 1.29).
        suspend: Jobs can be suspended, and be indexed (on by default since 1.22).
        jobset: JobSet is installed.
    """

    pod_failure_policy: bool = True
    pod_replacement_policy: bool = True
    suspend: bool = True
    jobset: bool = False

    @classmethod
    def of(cls, minor: int, *, jobset: bool) -> Features:
        """The features of Kubernetes 1.`minor`."""
        return cls(minor >= 26, minor >= 29, minor >= 22, jobset)


@dataclass(frozen=True, slots=True)
class RunOrder:
    """One attempt of a run, to be made into objects.

    Args:
        run: the run file.
        directory: the run's folder, inside its pods.
        attempt: counted from 1.
        memory_bytes: peak of its plan; 0 where nobody knows.
        stop_grace_seconds: time to checkpoint between SIGTERM and SIGKILL.
        namespace: of its objects.
        owner: owner reference of its objects; None for none.
    """

    run: RunFile
    directory: str
    attempt: int
    memory_bytes: int
    stop_grace_seconds: float
    namespace: str
    owner: Mapping[str, Any] | None = None


def object_name(instance: str, run: str) -> str:
    """The name of a run's objects: the same for the same run, readable, at most 48 characters, so that what Kubernetes appends fits into 63."""
    digest = hashlib.sha256(f"{instance}/{run}".encode()).hexdigest()[:10]
    slug = re.sub(r"[^a-z0-9]+", "-", run.removeprefix("runs/").lower())[:_NAME_PARTS].strip("-")
    return f"{instance[:_NAME_PARTS].strip('-')}-{slug}-{digest}"


def selector(instance: str, run: str = "") -> str:
    """The label selector of the runs of a release, or of one run by its object name."""
    labels = {"app.kubernetes.io/name": "accord", "app.kubernetes.io/instance": instance, "app.kubernetes.io/component": COMPONENT}
    if run:
        labels[LABEL_RUN] = run
    return ",".join(f"{name}={value}" for name, value in labels.items())


def build_config_map(order: RunOrder, config: KubernetesConfig) -> Manifest:
    """The ConfigMap with the run file: what was asked for stays readable beside the Job."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(order, config), "data": {"run.yaml": order.run.to_yaml()}}


def build_job(order: RunOrder, config: KubernetesConfig, features: Features) -> Manifest:
    """The Job of a run on one node."""
    command = [*config.command, *run_arguments(order)]
    spec = job_spec(order, config, features, pod_template(order, config, command))
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata(order, config, queued=True), "spec": spec}


def run_arguments(order: RunOrder) -> list[str]:
    """What the training program is told: its run file comes from the ConfigMap, its folder is on the shared volume."""
    return ["--config", f"{_RUN_FILE_FOLDER}/run.yaml", "--directory", order.directory]


def job_spec(order: RunOrder, config: KubernetesConfig, features: Features, template: Manifest) -> Manifest:
    """A Job's spec around a pod template: how often it is tried again, what does not count, when it is removed.

    A disruption of the node and a stop after a checkpoint do not count; an error of the configuration, or a guard, ends the Job at once. Where
    the API server knows no podFailurePolicy, all count, and the launcher ends the Job in these two cases.
    """
    settings = config.for_kind(order.run.spec.algorithm)
    spec: Manifest = {
        "parallelism": 1, "completions": 1, "backoffLimit": settings.retries, "ttlSecondsAfterFinished": config.ttl_seconds, "template": template
    }  # fmt: skip
    if settings.deadline_seconds:
        spec["activeDeadlineSeconds"] = settings.deadline_seconds
    if is_suspended(settings, features):
        spec["suspend"] = True
    if features.pod_failure_policy:
        spec["podFailurePolicy"] = {"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [EXIT_CONFIGURATION, EXIT_GUARDED]}},
            {"action": "Ignore", "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [EXIT_STOPPED]}},
        ]}  # fmt: skip
    if features.pod_replacement_policy:
        spec["podReplacementPolicy"] = "Failed"  # never two pods that write into one run's folder
    return spec


def is_suspended(settings: PodSettings, features: Features) -> bool:
    """Whether a Job is created suspended, for a queue or a person to let it begin."""
    return features.suspend and (settings.suspend or bool(settings.queue))


def metadata(order: RunOrder, config: KubernetesConfig, *, queued: bool = False) -> Manifest:
    """Name, labels, annotations and owner of a run's objects; with `queued` also its queue."""
    found: Manifest = {
        "name": object_name(config.instance, order.run.name), "namespace": order.namespace, "labels": _labels(order, config),
        "annotations": _annotations(order, config),
    }  # fmt: skip
    queue = config.for_kind(order.run.spec.algorithm).queue
    if queued and queue:
        found["labels"][QUEUE_LABEL] = queue
    if order.owner is not None:
        found["ownerReferences"] = [dict(order.owner)]
    return found


def pod_template(order: RunOrder, config: KubernetesConfig, command: list[str]) -> Manifest:
    """The pod of a run, with a container that runs the command."""
    settings = config.for_kind(order.run.spec.algorithm)
    spec: Manifest = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": max(1, math.ceil(order.stop_grace_seconds)),
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": _USER, "runAsGroup": _USER, "fsGroup": _USER, "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(order, config, settings, command)],
        "volumes": _volumes(order, config, settings),
    }  # fmt: skip
    if config.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in config.image_pull_secrets]
    optional = {
        "serviceAccountName": config.service_account, "nodeSelector": dict(settings.node_selector), "runtimeClassName": settings.runtime_class,
        "priorityClassName": settings.priority_class, "tolerations": [_toleration(each) for each in settings.tolerations],
    }  # fmt: skip
    spec |= {name: value for name, value in optional.items() if value}
    return {"metadata": {"labels": _labels(order, config), "annotations": _annotations(order, config)}, "spec": spec}


def memory_of(order: RunOrder, config: KubernetesConfig) -> int:
    """Bytes that a pod of the run asks for: what the configuration says, else the plan's peak with headroom, in steps of 64 MiB."""
    settings = config.for_kind(order.run.spec.algorithm)
    if settings.memory:
        return quantity_bytes(settings.memory)
    wanted = int(order.memory_bytes * config.memory_headroom) + (quantity_bytes(settings.shared_memory) if settings.shared_memory else 0)
    return max(1, math.ceil(wanted / _MEMORY_STEP)) * _MEMORY_STEP


def _container(order: RunOrder, config: KubernetesConfig, settings: PodSettings, command: list[str]) -> Manifest:
    resources: Manifest = {"cpu": settings.cpu or str(order.run.threads), "memory": f"{memory_of(order, config) // 2**20}Mi"}
    if settings.gpus:
        resources[settings.gpu_resource] = str(settings.gpus)
    limits = {name: amount for name, amount in resources.items() if name != "cpu"}  # idle cores are there to be used
    container: Manifest = {
        "name": CONTAINER,
        "image": config.image,
        "imagePullPolicy": config.image_pull_policy,
        "command": command,
        "workingDir": "/tmp",
        "env": _environment(order, config),
        "resources": {"requests": resources, "limits": limits},
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(config, settings),
    }
    if config.secret_environment:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in config.secret_environment]
    return container


def _environment(order: RunOrder, config: KubernetesConfig) -> list[Manifest]:
    values = {
        "OMP_NUM_THREADS": str(order.run.threads), "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false",
    } | config.environment  # fmt: skip
    return [{"name": name, "value": value} for name, value in sorted(values.items())]


def _mounts(config: KubernetesConfig, settings: PodSettings) -> list[Manifest]:
    mounts: list[Manifest] = [{"name": "run-file", "mountPath": _RUN_FILE_FOLDER, "readOnly": True}, {"name": "scratch", "mountPath": "/tmp"}]
    if _has_empty_cache(config):
        mounts.append({"name": "cache", "mountPath": config.cache_path})
    if settings.shared_memory:
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
    for index, claim in enumerate(config.claims):
        mount: Manifest = {"name": f"claim-{index}", "mountPath": claim.mount_path}
        if claim.sub_path:
            mount["subPath"] = claim.sub_path
        if claim.read_only:
            mount["readOnly"] = True
        mounts.append(mount)
    mounts += [{"name": f"secret-{index}", "mountPath": each.mount_path, "readOnly": True} for index, each in enumerate(config.secrets)]
    return mounts


def _has_empty_cache(config: KubernetesConfig) -> bool:
    return config.cache_path not in [claim.mount_path for claim in config.claims]


def _volumes(order: RunOrder, config: KubernetesConfig, settings: PodSettings) -> list[Manifest]:
    volumes: list[Manifest] = [
        {"name": "run-file", "configMap": {"name": object_name(config.instance, order.run.name)}},
        {"name": "scratch", "emptyDir": {"sizeLimit": config.scratch}},
    ]
    if _has_empty_cache(config):
        volumes.append({"name": "cache", "emptyDir": {"sizeLimit": config.scratch}})
    if settings.shared_memory:
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory}})
    for index, claim in enumerate(config.claims):
        source: Manifest = {"claimName": claim.claim}
        if claim.read_only:
            source["readOnly"] = True
        volumes.append({"name": f"claim-{index}", "persistentVolumeClaim": source})
    volumes += [{"name": f"secret-{index}", "secret": {"secretName": each.secret}} for index, each in enumerate(config.secrets)]
    return volumes


def _labels(order: RunOrder, config: KubernetesConfig) -> Manifest:
    return {
        **config.labels,
        "app.kubernetes.io/name": "accord",
        "app.kubernetes.io/instance": config.instance,
        "app.kubernetes.io/component": COMPONENT,
        "app.kubernetes.io/managed-by": "accord-trainer",
        LABEL_RUN: object_name(config.instance, order.run.name),
        LABEL_KIND: order.run.spec.algorithm.replace("_", "-"),
    }


def _annotations(order: RunOrder, config: KubernetesConfig) -> Manifest:
    return {**config.annotations, ANNOTATION_NAME: order.run.name, ANNOTATION_ATTEMPT: str(order.attempt)}


def _toleration(toleration: Toleration) -> Manifest:
    values = {"key": toleration.key, "operator": toleration.operator, "value": toleration.value, "effect": toleration.effect}
    found: Manifest = {name: value for name, value in values.items() if value}
    if toleration.toleration_seconds is not None:
        found["tolerationSeconds"] = toleration.toleration_seconds
    return found
