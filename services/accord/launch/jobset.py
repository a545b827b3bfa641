"""Runs over several nodes: a JobSet where the cluster has it, else an Indexed Job behind a headless Service. Nothing here does I/O.

Pod i is torchrun's node i for ever (static rendezvous at pod 0's name), so that a rank finds its own part of a checkpoint again. When a pod
fails, the others lose their collective and end too; a JobSet then starts all of them again at once, an Indexed Job each by itself.

What does not belong here: Jobs on one node (`accord.launch.manifest`).
"""

from __future__ import annotations

from accord.errors import FailedPreconditionError
from accord.launch.manifest import (
    LABEL_RUN,
    Features,
    Manifest,
    RunOrder,
    is_suspended,
    job_spec,
    metadata,
    object_name,
    pod_template,
    run_arguments,
    selector,
)
from accord.launch.settings import KubernetesConfig

RENDEZVOUS_PORT = 29400
_GROUP = "n"
"""The JobSet's one group, a part of its pods' names: JobSet refuses those above 63 characters, and "node" could make them so from 11 nodes on."""
PERMISSIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("jobset.x-k8s.io", "jobsets", ("create", "get", "list", "watch", "delete")),
    ("", "services", ("create", "get", "patch", "delete")),
)
"""What the trainer's Role must grant besides `accord.launch.manifest.PERMISSIONS` for runs over several nodes."""


def build_several(order: RunOrder, config: KubernetesConfig, features: Features) -> list[Manifest]:
    """The objects of a run over several nodes besides its ConfigMap, in the order in which they are created; the last one owns the others.

    Raises:
        FailedPreconditionError: the cluster has neither JobSet nor Indexed Jobs, or the command cannot be started by torchrun.
    """
    if features.jobset:
        return [build_jobset(order, config, features)]
    if not features.suspend:
        raise FailedPreconditionError(
            "several nodes need JobSet or Kubernetes 1.22 (Indexed Jobs); this cluster has neither", field=f"kubernetes.kinds.{_kind(order)}.nodes"
        )
    return [build_service(order, config), build_indexed_job(order, config, features)]


def build_jobset(order: RunOrder, config: KubernetesConfig, features: Features) -> Manifest:
    """A JobSet (jobset.x-k8s.io/v1alpha2) of one Indexed Job; a failure starts all pods again, but neither one that another try would
    repeat (of the configuration, a guard) nor the end of its deadline, after which a JobSet by itself would begin the deadline anew."""
    settings = config.for_kind(order.run.spec.algorithm)
    name = object_name(config.instance, order.run.name)
    job = _indexed(order, config, features, rendezvous=f"{name}-{_GROUP}-0-0.{name}")
    job["backoffLimit"] = 0
    for field in ("ttlSecondsAfterFinished", "activeDeadlineSeconds", "suspend"):
        job.pop(field, None)
    if settings.deadline_seconds:
        job["activeDeadlineSeconds"] = settings.deadline_seconds
    details = metadata(order, config)
    spec: Manifest = {
        "network": {"enableDNSHostnames": True, "subdomain": name, "publishNotReadyAddresses": True},
        "failurePolicy": {
            "maxRestarts": settings.retries,
            "rules": [{"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy", "DeadlineExceeded"]}],
        },
        "ttlSecondsAfterFinished": config.ttl_seconds,
        "replicatedJobs": [{
            "name": _GROUP, "replicas": 1,
            "template": {"metadata": {"labels": details["labels"], "annotations": details["annotations"]}, "spec": job},
        }],
    }  # fmt: skip
    if is_suspended(settings, features):
        spec["suspend"] = True
    return {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata(order, config, queued=True), "spec": spec}


def build_indexed_job(order: RunOrder, config: KubernetesConfig, features: Features) -> Manifest:
    """An Indexed Job whose pods find pod 0 through `build_service`. One failure fails all pods, so that each retry is granted to every node."""
    settings = config.for_kind(order.run.spec.algorithm)
    name = object_name(config.instance, order.run.name)
    job = _indexed(order, config, features, rendezvous=f"{name}-0.{name}")
    job["backoffLimit"] = (settings.retries + 1) * settings.nodes - 1
    job["template"]["spec"]["subdomain"] = name
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata(order, config, queued=True), "spec": job}


def build_service(order: RunOrder, config: KubernetesConfig) -> Manifest:
    """The headless Service that gives the pods of an Indexed Job their names, before they are ready too."""
    name = object_name(config.instance, order.run.name)
    labels = dict(part.split("=", 1) for part in selector(config.instance, name).split(","))
    ports = [{"name": "rendezvous", "port": RENDEZVOUS_PORT, "targetPort": RENDEZVOUS_PORT, "protocol": "TCP"}]
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": labels, "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata(order, config), "spec": spec}


def torchrun_command(order: RunOrder, config: KubernetesConfig, rendezvous: str) -> list[str]:
    """How a pod starts its processes; Kubernetes puts the pod's index in for the node's rank.

    Raises:
        FailedPreconditionError: the configured command is not `python -m module`.
    """
    python, *module = config.command
    if len(module) != 2 or module[0] != "-m":
        raise FailedPreconditionError(
            f"several nodes need a command of the form python -m module, not {' '.join(config.command)}", field="kubernetes.command"
        )
    nodes = config.for_kind(order.run.spec.algorithm).nodes
    options = [
        f"--nnodes={nodes}", f"--nproc-per-node={order.run.spec.distribution.processes}", "--node-rank=$(JOB_COMPLETION_INDEX)",
        f"--master-addr={rendezvous}", f"--master-port={RENDEZVOUS_PORT}", "--max-restarts=0",
    ]  # fmt: skip
    return [python, "-m", "accord.training.agent", *options, *module, *run_arguments(order)]


def _indexed(order: RunOrder, config: KubernetesConfig, features: Features, *, rendezvous: str) -> Manifest:
    nodes = config.for_kind(order.run.spec.algorithm).nodes
    template = pod_template(order, config, torchrun_command(order, config, rendezvous))
    container = template["spec"]["containers"][0]
    container["ports"] = [{"name": "rendezvous", "containerPort": RENDEZVOUS_PORT, "protocol": "TCP"}]
    name = template["metadata"]["labels"][LABEL_RUN]
    one_a_node = {"labelSelector": {"matchLabels": {LABEL_RUN: name}}, "topologyKey": "kubernetes.io/hostname"}
    template["spec"]["affinity"] = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [one_a_node]}}
    spec = job_spec(order, config, features, template)
    return {**spec, "completionMode": "Indexed", "parallelism": nodes, "completions": nodes}


def _kind(order: RunOrder) -> str:
    return order.run.spec.algorithm
