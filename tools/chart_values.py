"""The values of charts/accord as pydantic models: what values.yaml, values.schema.json and the chart's README are written from (tools/chart.py).

Keys are camelCase, as in other charts; a `config` is a service's own YAML and keeps its names. What does not belong here: how values become objects
(charts/accord/templates).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from accord.feedback.config import FeedbackConfig
from accord.launch.settings import ResourceName
from accord.policy.config import PolicyConfig
from accord.reward.config import RewardConfig
from accord.study.recipe import StudyRecipe
from accord.trainer.config import TrainerConfig

Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
Name = Annotated[str, StringConstraints(pattern=r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?$")]
Objects = list[dict[str, Any]]


class Part(BaseModel):
    """Base of all parts of the values: a key that is not known is refused."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Image(Part):
    """Where an image comes from; empty fields take the chart's."""

    registry: str = Field("", description="host and folder before the name, without a slash at the end")
    name: str = Field("", description="name of the image; empty: accord/ and the service's")
    tag: str = Field("", json_schema_extra={"not": {"const": "latest"}}, description="empty: the chart's appVersion; latest is refused")
    digest: str = Field("", pattern=r"^(sha256:[0-9a-f]{64})?$", description="wins over the tag")
    pull_policy: Literal["", "IfNotPresent", "Always", "Never"] = ""


class Images(Part):
    """Of all images, where a service says nothing else."""

    registry: str = Field("", description="host and folder before accord/policy and the others, without a slash at the end")
    tag: str = Field("", json_schema_extra={"not": {"const": "latest"}}, description="empty: the chart's appVersion; latest is refused")
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    pull_secrets: list[Name] = Field([], description="secrets of this namespace with the registry's credentials")


class Model(Part):
    """The base model of the policy, reward and trainer services and of runs."""

    name: str = Field("embedded", min_length=1, description="embedded (in the images), a folder of the model cache, or a hub id")
    download: bool = Field(False, description="an init container downloads a hub id into the model cache; without it the cache must have it")
    token_secret: Name = Field("", description="secret with the key HF_TOKEN, for gated models")


class Claim(Part):
    """A persistent volume claim that several pods share; kept by helm uninstall."""

    existing_claim: Name = Field("", description="use this claim instead of making one")
    size: Quantity = "10Gi"
    storage_class: Name = Field("", description="empty: the cluster's default")
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany"] = "ReadWriteMany"


class OwnClaim(Claim):
    """A persistent volume claim of one pod."""

    access_mode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"] = "ReadWriteOnce"  # type: ignore[assignment]


class Storage(Part):
    """What is kept. Where all pods run on one node, ReadWriteOnce does for all."""

    models: Claim = Field(Claim(size="20Gi"), description="the model cache of policy, reward, trainer and runs")
    artefacts: Claim = Field(Claim(size="50Gi"), description="adapters; not used where artefacts.uri is set")
    work: Claim = Field(Claim(size="50Gi"), description="run directories, and labels that runs read")
    trainer: OwnClaim = Field(OwnClaim(size="1Gi"), description="the trainer's SQLite registry; not used with a database URL")
    feedback: OwnClaim = Field(OwnClaim(size="5Gi"), description="the ledger of labels")


class Artefacts(Part):
    """Where adapters are kept."""

    uri: str = Field("", pattern=r"^([a-z0-9]+://.+)?$", description="s3://bucket/folder or another fsspec URL; empty: the claim storage.artefacts")
    secret: Name = Field(
        "", description="secret whose keys become environment variables (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)"
    )


class Database(Part):
    """The trainer's registry."""

    url: str = Field(
        "", pattern=r"^(postgresql\+psycopg://[^:@/]+@.+)?$", description="postgresql+psycopg://user@host/name, no password; empty: SQLite on a claim"
    )
    secret: Name = Field("", description="secret with the key PGPASSWORD")


class Tls(Part):
    """TLS between the services, and for their clients."""

    enabled: bool = False
    secret: Name = Field(
        "", description="secret with tls.crt, tls.key and ca.crt; its names must cover all services, see deploy/examples/mtls-values.yaml"
    )
    mutual: bool = Field(False, description="clients must show a certificate of the same ca.crt")


class ServiceMonitor(Part):
    """Scraping by the Prometheus operator."""

    enabled: bool = False
    interval: str = Field("30s", pattern=r"^[0-9]+[smh]$")
    labels: dict[str, str] = Field({}, description="what the Prometheus object selects by")


class Metrics(Part):
    """Prometheus endpoints of the services, on a port of their own."""

    enabled: bool = True
    service_monitor: ServiceMonitor = ServiceMonitor()


class NetworkPolicy(Part):
    """Default deny, then only the arrows of the architecture. Peers and rules as in networking.k8s.io/v1."""

    enabled: bool = True
    clients: Objects = Field([], description="peers that may call the services, for example [{namespaceSelector: {}}]")
    scrapers: Objects = Field([], description="peers that may read metrics")
    egress: dict[Literal["policy", "reward", "feedback", "trainer", "run", "study"], Objects] = Field(
        {}, description="more egress rules by component: object store, database, an external engine, trackers"
    )
    api_server: Objects = Field([], description="peers that are the API server; empty: any address, on ports 443 and 6443")


class Gpu(Part):
    """Devices of a pod."""

    count: int = Field(0, ge=0, le=64)
    resource: ResourceName = "nvidia.com/gpu"


class Resources(Part):
    """What a container asks for, and what it may have."""

    requests: dict[str, Quantity | int] = {}
    limits: dict[str, Quantity | int] = {}


class Autoscaling(Part):
    """A HorizontalPodAutoscaler, or with keda a ScaledObject. `replicas` is not used then."""

    enabled: bool = False
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(4, ge=1)
    cpu_percent: int = Field(80, ge=0, le=1000, description="target of the CPU request's use; 0 leaves it out")
    queue_depth: int = Field(0, ge=0, description="target of accord_queue_depth a pod; needs keda, or an adapter that serves it as a pods metric")
    keda: bool = Field(False, description="ScaledObject of KEDA instead of the HorizontalPodAutoscaler")
    prometheus: str = Field("", description="keda: address of Prometheus")


class Engine(Part):
    """A vLLM server as a second container of the policy pods. For one that runs elsewhere set policy.config.backend and .remote alone."""

    enabled: bool = False
    image: str = Field(
        "",
        pattern=r"^(.*(:[A-Za-z0-9_][A-Za-z0-9_.-]*|@sha256:[0-9a-f]{64}))?$",
        json_schema_extra={"not": {"pattern": ":latest$"}},
        description="image with tag or digest; latest is refused",
    )
    args: list[str] = Field([], description="after --model, --port and --enable-lora")
    env: Objects = []
    resources: Resources = Resources()
    gpu: Gpu = Gpu(count=1)
    startup_seconds: int = Field(1800, ge=10)


class Block(Part):
    """What every service has, in this order."""

    enabled: bool = True
    replicas: int = Field(1, ge=0)
    image: Image = Image()
    resources: Resources = Resources()
    gpu: Gpu = Gpu()
    node_selector: dict[str, str] = {}
    tolerations: Objects = []
    affinity: dict[str, Any] = {}
    runtime_class: Name = ""
    priority_class: Name = ""
    spread: bool = Field(True, description="spread replicas over nodes where that is possible")
    startup_seconds: int = Field(600, ge=10, description="time to load weights before the pod is given up")
    env: Objects = Field([], description="more environment variables, as in a container")
    env_from: Objects = Field([], description="more sources of environment variables, as in a container")
    pod_annotations: dict[str, str] = {}
    pod_labels: dict[str, str] = {}
    service_annotations: dict[str, str] = {}
    autoscaling: Autoscaling = Autoscaling()
    max_unavailable: int = Field(1, ge=1, description="of a PodDisruptionBudget, made where there can be more than one replica")


def _resources(cpu: str, memory: str, most: str) -> Resources:
    return Resources(requests={"cpu": cpu, "memory": memory}, limits={"memory": most})


class RollingUpdate(Part):
    """How pods are replaced. Where no spare GPU is free for a new pod beside the old ones: maxSurge 0 and maxUnavailable 1."""

    max_surge: int = Field(1, ge=0, description="pods beside the replicas while they are replaced")
    max_unavailable: int = Field(0, ge=0, description="replicas that may be away meanwhile; with 0 no call fails")


class Policy(Block):
    """The policy service."""

    rolling_update: RollingUpdate = RollingUpdate()

    resources: Resources = _resources("1", "2Gi", "4Gi")
    engine: Engine = Engine()
    config: PolicyConfig = Field(default=None, description="of accord.policy.config, over what the chart sets")  # type: ignore[assignment]


class Reward(Block):
    """The reward service."""

    rolling_update: RollingUpdate = RollingUpdate()

    resources: Resources = _resources("500m", "2Gi", "4Gi")
    config: RewardConfig = Field(default=None, description="of accord.reward.config, over what the chart sets")  # type: ignore[assignment]


class Feedback(Block):
    """The feedback service; its ledger is one file, so it has one replica at most."""

    replicas: int = Field(1, ge=0, le=1)
    resources: Resources = _resources("100m", "256Mi", "1Gi")
    config: FeedbackConfig = Field(default=None, description="of accord.feedback.config, over what the chart sets")  # type: ignore[assignment]


class Trainer(Block):
    """The trainer service; one process looks after the runs, so it has one replica at most."""

    replicas: int = Field(1, ge=0, le=1)
    resources: Resources = _resources("100m", "512Mi", "1Gi")
    launcher: Literal["kubernetes", "local"] = Field(
        "kubernetes",
        description="kubernetes: runs are Jobs; local: processes of the trainer's pod, with the image training and with their memory",
    )
    run_image: Image = Field(Image(), description="of the Jobs; empty fields take the chart's")
    several_nodes: bool = Field(False, description="the Role also allows JobSets and the headless Services of runs over several nodes")
    config: TrainerConfig = Field(default=None, description="of accord.trainer.config, over what the chart sets")  # type: ignore[assignment]


class Test(Part):
    """`helm test`: health of each service, and one real Generate, Score and Label."""

    reward_model: str = Field("", description="the reward model to score with; empty: one is trained for one step, once a revision")
    timeout_seconds: int = Field(900, ge=10)


class Study(Part):
    """`accord study` as a Job of the release; its results are in storage.work, at /var/lib/accord/shared/studies/NAME."""

    enabled: bool = False
    name: str = Field("quick", pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$", description="folder of the results; a Job goes on with what is there")
    recipe: Literal["quick", "dialogue", "full"] = Field("quick", description="a recipe that comes with Accord; not used with ownRecipe")
    own_recipe: StudyRecipe | None = Field(None, description="a recipe, as `accord study --recipe FILE` reads it")
    seed: int | None = Field(None, ge=0, description="instead of the recipe's")
    image: Image = Field(Image(), description="empty: that of the runs (trainer.runImage)")
    resources: Resources = _resources("100m", "512Mi", "2Gi")
    node_selector: dict[str, str] = {}
    tolerations: Objects = []
    env: Objects = Field([], description="more environment variables, as in a container")
    env_from: Objects = Field([], description="more sources of environment variables, for data in a bucket")
    retries: int = Field(10, ge=0, description="how often a failed pod is started again (ten take half an hour); each goes on where the last stopped")


class Values(Part):
    """All values."""

    name_override: str = Field("", max_length=40)
    fullname_override: str = Field("", max_length=40)
    cluster_domain: str = Field("", description="for addresses, and so for the names of tls.secret; empty: addresses end in .svc")
    check_secrets: bool = Field(
        True, description="stop where a secret that these values name is not in the namespace; false where a parent chart makes it"
    )
    images: Images = Images()
    model: Model = Model()
    artefacts: Artefacts = Artefacts()
    database: Database = Database()
    storage: Storage = Storage()
    tls: Tls = Tls()
    metrics: Metrics = Metrics()
    network_policy: NetworkPolicy = NetworkPolicy()
    policy: Policy = Policy()
    reward: Reward = Reward()
    feedback: Feedback = Feedback()
    trainer: Trainer = Trainer()
    study: Study = Study()
    test: Test = Test()
    extra_objects: Objects = Field([], description="more objects, rendered as templates")
    global_: dict[str, Any] = Field({}, alias="global", description="of charts that this one is part of; not used here")


CONFIGS = {"policy": PolicyConfig, "reward": RewardConfig, "feedback": FeedbackConfig, "trainer": TrainerConfig}
OWNED = {
    "ServerConfig": ("listen", "metrics_listen", "announce_path", "tls"),
    "PolicyConfig": ("artefacts", "base_model"),
    "RewardConfig": ("artefacts", "base_model"),
    "FeedbackConfig": ("policy", "policy_tls", "reward", "reward_tls", "ledger", "jobs"),
    "TrainerConfig": ("runs", "database", "artefacts", "base_model", "model_folder", "endpoints", "launcher"),
    "KubernetesConfig": (
        "image",
        "image_pull_policy",
        "image_pull_secrets",
        "namespace",
        "kubeconfig",
        "context",
        "instance",
        "owner",
        "service_account",
        "claims",
    ),
}
"""Keys that the chart sets itself: they are not in the schema, so that nobody sets them twice."""
