"""How runs become Kubernetes Jobs: the `kubernetes` section of the trainer's YAML.

What does not belong here: the manifests made from it (`accord.launch.manifest`), and whatever speaks to a cluster.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from accord.errors import InvalidArgumentError
from accord.rpc.config import FrozenModel
from accord.runspec import Algorithm

_UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
DnsLabel = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
Quantity = Annotated[str, StringConstraints(pattern=r"^([1-9][0-9]*(Ki|Mi|Gi|Ti)?)?$")]
Cpu = Annotated[str, StringConstraints(pattern=r"^([1-9][0-9]*m?)?$")]
ResourceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", max_length=317)]
AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/[^:]+$")]


class Toleration(FrozenModel):
    """A taint that a run's pod tolerates."""

    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    toleration_seconds: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.operator == "Exists" and self.value:
            raise ValueError("a toleration whose operator is Exists has no value")
        if self.operator == "Equal" and not self.key:
            raise ValueError("a toleration whose operator is Equal needs a key")
        return self


class ClaimMount(FrozenModel):
    """A persistent volume claim and where runs see it."""

    claim: ObjectName
    mount_path: AbsolutePath
    sub_path: str = Field("", pattern=r"^([^/.][^:]*)?$", description="folder inside the volume, relative")
    read_only: bool = False


class SecretMount(FrozenModel):
    """A secret and where runs see its keys as files."""

    secret: ObjectName
    mount_path: AbsolutePath


class Owner(FrozenModel):
    """An object of the same namespace that owns the Jobs, so that they go when it goes (`helm uninstall`)."""

    kind: Literal["Deployment", "StatefulSet", "ConfigMap", "ServiceAccount"]
    name: ObjectName


class PodSettings(FrozenModel):
    """What the pods of one kind of run ask for. Sizes as in Kubernetes: 500m, 4Gi."""

    cpu: Cpu = Field("", description="CPUs that a pod asks for, and may exceed where there are more; empty: as many as the run has threads")
    memory: Quantity = Field("", description="memory of a pod, request and limit; empty: what the run's plan says, with memory_headroom")
    gpus: int = Field(0, ge=0, le=64, description="devices of a pod")
    gpu_resource: ResourceName = Field("nvidia.com/gpu", description="the resource that a device is counted as")
    node_selector: dict[str, str] = Field(default={}, description="labels that the node must have")
    tolerations: tuple[Toleration, ...] = ()
    runtime_class: str = Field("", description="runtimeClassName, for example nvidia")
    priority_class: str = Field("", description="priorityClassName")
    queue: str = Field("", max_length=63, description="Kueue's local queue; the Job is created suspended and the queue admits it")
    suspend: bool = Field(False, description="create the Job suspended; somebody else resumes it")
    nodes: int = Field(1, ge=1, le=1024, description="pods of a run, one a node; more than one are started by torchrun")
    retries: int = Field(3, ge=0, le=100, description="new pods after failures that are neither disruptions nor errors of the configuration")
    deadline_seconds: int = Field(0, ge=0, description="longest time from the Job's start; 0 for no limit")
    shared_memory: Quantity = Field("", description="/dev/shm in memory, counted to the pod's memory; empty for the runtime's 64 MiB")


class KubernetesConfig(FrozenModel):
    """Where and how runs are started as Jobs."""

    image: str = Field(min_length=1, description="image of the runs, with a tag or digest")
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[ObjectName, ...] = ()
    namespace: str = Field("", pattern=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$", description="empty: the trainer's own")
    kubeconfig: str = Field("", description="file with the cluster's address and credentials; empty inside a cluster")
    context: str = Field("", description="context of the kubeconfig; empty for its current one")
    instance: DnsLabel = Field("accord", max_length=53, description="release that the Jobs belong to; a label, and the first part of their names")
    owner: Owner | None = Field(None, description="object that owns the Jobs, so that they are removed with it")
    service_account: str = Field("", description="service account of the runs' pods; they get no token of it")
    command: tuple[str, ...] = Field(
        ("python", "-m", "accord.training"), min_length=1, description="program of a run; --config and --directory follow"
    )
    claims: tuple[ClaimMount, ...] = Field((), description="volumes of artefacts, runs and model cache, where the trainer has them too")
    secrets: tuple[SecretMount, ...] = Field((), description="secrets mounted as files")
    environment: dict[str, str] = Field(default={}, description="environment variables of the runs")
    secret_environment: tuple[ObjectName, ...] = Field((), description="secrets whose keys become environment variables")
    labels: dict[str, str] = Field(default={}, description="more labels of Jobs and pods")
    annotations: dict[str, str] = Field(default={}, description="more annotations of Jobs and pods")
    defaults: PodSettings = Field(PodSettings(), description="of every run")
    kinds: dict[Algorithm, PodSettings] = Field(default={}, description="what is different for a kind of run")
    memory_headroom: float = Field(1.25, ge=1.0, le=10.0, description="memory asked for, as a multiple of the plan's peak")
    most_memory: Quantity = Field("64Gi", min_length=1, description="a run whose plan needs more is refused")
    scratch: Quantity = Field("4Gi", min_length=1, description="most bytes in a pod's /tmp, and in its cache where no claim is mounted there")
    cache_path: AbsolutePath = Field(
        "/var/cache/accord", description="where the image keeps models and other caches; empty unless a claim is mounted there"
    )
    ttl_seconds: int = Field(86400, ge=0, description="a finished Job and its pods are removed after this time")
    start_grace_seconds: float = Field(300.0, ge=0, description="how long an image that cannot be pulled, or the like, may keep a pod from starting")
    request_seconds: float = Field(15.0, gt=0, le=300, description="deadline of a request to the API server")

    @field_validator("image")
    @classmethod
    def _image_is_pinned(cls, image: str) -> str:
        tail = image.rpartition("/")[2]
        if "@sha256:" in image or re.search(r":[\w][\w.-]*$", tail):
            if tail.endswith(":latest"):
                raise ValueError("the tag latest changes between the pods of one run; give another tag or a digest")
            return image
        raise ValueError("a tag or a digest is required, as in accord/training:1.0")

    @model_validator(mode="after")
    def _check_kinds(self) -> Self:
        for name, settings in [("defaults", self.defaults), *((f"kinds.{kind}", self.for_kind(kind)) for kind in self.kinds)]:
            if settings.memory and quantity_bytes(settings.memory) > quantity_bytes(self.most_memory):
                raise ValueError(f"{name}.memory is {settings.memory}, most_memory {self.most_memory}")
            if settings.nodes > 1 and self.instance[0].isdigit():
                raise ValueError(
                    f"{name}.nodes is {settings.nodes}, and the instance {self.instance}, which begins a Service's name, needs a letter first"
                )
        paths = [claim.mount_path for claim in self.claims] + [secret.mount_path for secret in self.secrets]
        for path in paths:
            if paths.count(path) > 1:
                raise ValueError(f"two volumes are mounted at {path}")
        return self

    def for_kind(self, kind: Algorithm) -> PodSettings:
        """What a kind of run asks for: `defaults` with what `kinds` says besides."""
        own = self.kinds.get(kind)
        if own is None:
            return self.defaults
        return self.defaults.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})

    def available_bytes(self, kind: Algorithm) -> int:
        """Most memory that a run of this kind can get in a pod."""
        settings = self.for_kind(kind)
        return quantity_bytes(settings.memory) if settings.memory else int(quantity_bytes(self.most_memory) / self.memory_headroom)

    def room_in_words(self, kind: Algorithm) -> str:
        """`available_bytes`, and which setting it comes from."""
        settings = self.for_kind(kind)
        size = f"{self.available_bytes(kind) // 2**20:,} MiB"
        if settings.memory:
            return f"a pod of this kind gets {size} (kubernetes.kinds.{kind}.memory, or memory of its defaults)"
        return f"a pod may have {size} (kubernetes.most_memory {self.most_memory} / memory_headroom {self.memory_headroom:g})"

    def check_processes(self, kind: Algorithm, processes: int, batch_size: int, *, prefix: str = "") -> None:
        """Holds a run's processes, which are those of one pod, to the pod's devices, and its batch to the processes of all pods.

        Raises:
            InvalidArgumentError: processes without a device or devices without a process, or more processes than rows of a batch.
        """
        settings = self.for_kind(kind)
        if kind != "evaluate" and settings.gpus and processes != settings.gpus:
            raise InvalidArgumentError(
                f"must be {settings.gpus}, not {processes}: it counts the processes of one pod, and kubernetes.kinds.{kind}.gpus gives each pod "
                f"{settings.gpus} devices, one a process",
                field=f"{prefix}distribution.processes",
            )
        if batch_size < settings.nodes * processes:
            raise InvalidArgumentError(
                f"must be at least {settings.nodes * processes}, not {batch_size}: {settings.nodes} pods of {processes} processes share it",
                field=f"{prefix}batch_size",
            )

    def holds(self, path: str) -> bool:
        """Whether a path lies on one of the claims, so that the trainer and the runs see the same files there."""
        return any(path == mount.mount_path or path.startswith(mount.mount_path.rstrip("/") + "/") for mount in self.claims)


def quantity_bytes(text: str) -> int:
    """The bytes of a quantity such as 4Gi."""
    number = text.rstrip("KMGTi")
    return int(number) * _UNITS[text[len(number) :]]
