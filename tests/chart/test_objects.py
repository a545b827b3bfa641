"""What holds for every object that the chart makes, under every values file that comes with it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.rendering import (
    CASES,
    COMPONENTS,
    EXAMPLES,
    ROOT,
    Object,
    case_id,
    containers,
    is_native,
    named,
    of_kind,
    pods,
    render,
    tools_package,
)

from accord.errors import InvalidArgumentError
from accord.launch import jobset, manifest
from accord.rpc.config import parse_config
from accord.runspec import ALGORITHMS
from accord.trainer.config import TrainerConfig
from accord.workspace.configuration import CONFIG_CLASSES

VERSIONS = ("1.20", "1.31")
every_case = pytest.mark.parametrize("case", CASES, ids=case_id)
every_version = pytest.mark.parametrize("version", VERSIONS)


@every_case
@every_version
def test_pods_keep_the_restricted_standard(case: Path | None, version: str) -> None:
    found = pods(render(case, version=version))
    assert len(found) >= 3
    for name, pod in found:
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] == 65532, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
        assert all(set(volume) - {"name"} <= {"configMap", "emptyDir", "secret", "persistentVolumeClaim"} for volume in pod["volumes"]), name
        for container in containers(pod):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert own["capabilities"] == {"drop": ["ALL"]}


@every_case
def test_every_container_has_a_memory_limit_and_a_fixed_image(case: Path | None) -> None:
    for name, pod in pods(render(case)):
        for container in containers(pod):
            assert "memory" in container["resources"]["limits"], f"{name}/{container['name']}"
            image = container["image"]
            assert "@sha256:" in image or (":" in image.rpartition("/")[2] and not image.endswith(":latest")), image


@every_case
def test_a_service_that_holds_weights_has_memory_for_them(case: Path | None) -> None:
    """Two bytes a weight on a GPU (they come through the pod's memory), four on a CPU, by the size that the base model's name says."""
    objects = render(case)
    for component in ("policy", "reward"):
        config = yaml.safe_load(named(objects, "ConfigMap", f"accord-{component}")["data"]["config.yaml"])
        size = re.search(r"(\d+)b\b", config["base_model"].lower())
        if size is None or config.get("backend", "inprocess") != "inprocess":
            continue
        (container,) = [found for found in dict(pods(objects))[f"accord-{component}"]["containers"] if found["name"] == component]
        limits = container["resources"]["limits"]
        need = int(size.group(1)) * (2 if config.get("device") == "cuda" else 4)
        assert int(limits["memory"].removesuffix("Gi")) > need, f"{component}: {limits}, but {config['base_model']} takes {need} GB"


@every_case
def test_runs_of_a_large_model_have_a_device(case: Path | None) -> None:
    """Of a billion weights and more, by the name; an evaluation loads a sentence encoder."""
    trainer = yaml.safe_load(named(render(case), "ConfigMap", "accord-trainer")["data"]["config.yaml"])
    if re.search(r"\d+b\b", trainer["base_model"].lower()) is None:
        return
    runs = parse_config(trainer, TrainerConfig, source="trainer").kubernetes
    assert runs is not None
    for kind in ALGORITHMS:
        assert (runs.for_kind(kind).gpus > 0) == (kind != "evaluate"), kind


def test_the_example_of_several_nodes_is_what_its_own_command_runs() -> None:
    """The command in its head, over the objects of the configuration that the chart makes of it."""
    (example,) = [case for case in EXAMPLES if case.name == "fsdp-jobset-values.yaml"]
    (line,) = [line for line in example.read_text().splitlines() if "accord train dpo" in line]
    settings = dict(word.split("=", 1) for word in shlex.split(line.split("accord train dpo", 1)[1]) if "=" in word)
    runs = parse_config(
        yaml.safe_load(named(render(example), "ConfigMap", "accord-trainer")["data"]["config.yaml"]), TrainerConfig, source="it"
    ).kubernetes
    assert runs is not None
    processes, batch = int(settings["distribution.processes"]), int(settings["batch_size"])
    runs.check_processes("dpo", processes, batch)
    assert (runs.for_kind("dpo").nodes, runs.for_kind("dpo").gpus) == (2, processes)
    with pytest.raises(InvalidArgumentError, match="it counts the processes of one pod"):
        runs.check_processes("dpo", 2 * processes, batch)


@every_case
def test_no_pod_but_a_launching_trainer_s_has_a_token(case: Path | None) -> None:
    objects = render(case)
    launches = bool(of_kind(objects, "Role"))
    for name, pod in pods(objects):
        assert pod["automountServiceAccountToken"] is (launches and name == "accord-trainer"), name
    for account in of_kind(objects, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


@every_case
def test_roles_grant_nothing_by_a_star(case: Path | None) -> None:
    objects = render(case)
    assert not of_kind(objects, "ClusterRole", "ClusterRoleBinding")
    for role in of_kind(objects, "Role"):
        assert "*" not in yaml.safe_dump(role["rules"])
    for binding in of_kind(objects, "RoleBinding"):
        assert [subject["name"] for subject in binding["subjects"]] == ["accord-trainer"]


def _grants(role: Object) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb) for rule in role["rules"] for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]
    }


def test_the_trainer_s_role_grants_what_its_launcher_needs_and_nothing_else() -> None:
    def needed(*tables: tuple[tuple[str, str, tuple[str, ...]], ...]) -> set[tuple[str, str, str]]:
        return {(group, resource, verb) for table in tables for group, resource, verbs in table for verb in verbs}

    owner = {("apps", "deployments", "get")}
    assert _grants(named(render(), "Role", "accord-trainer")) == needed(manifest.PERMISSIONS) | owner
    several = named(render(None, "trainer.severalNodes=true"), "Role", "accord-trainer")
    assert _grants(several) == needed(manifest.PERMISSIONS, jobset.PERMISSIONS) | owner
    (rule,) = [rule for rule in several["rules"] if rule["resources"] == ["deployments"]]
    assert rule["resourceNames"] == ["accord-trainer"]
    assert not of_kind(render(None, "trainer.launcher=local"), "Role", "RoleBinding")


def test_a_run_s_pod_has_the_volumes_secrets_and_place_of_the_release() -> None:
    objects = render(
        None, "artefacts.secret=keys", "tls.enabled=true", "tls.secret=certs", "images.pullSecrets[0]=registry", "trainer.runImage.tag=v9",
        "trainer.config.kubernetes.kinds.ppo.gpus=1", release="accord",
    )  # fmt: skip
    config = yaml.safe_load(named(objects, "ConfigMap", "accord-trainer")["data"]["config.yaml"])
    section = config["kubernetes"]
    claims = {mount["claim"] for mount in section["claims"]}
    assert claims == {"accord-work", "accord-models", "accord-artefacts"}
    assert claims <= {item["metadata"]["name"] for item in of_kind(objects, "PersistentVolumeClaim")}
    trainer = {mount["mountPath"] for mount in pods([named(objects, "Deployment", "accord-trainer")])[0][1]["containers"][0]["volumeMounts"]}
    assert {mount["mount_path"] for mount in section["claims"]} <= trainer
    assert (section["image"], section["image_pull_secrets"]) == ("accord/training:v9", ["registry"])
    assert (section["secrets"], section["secret_environment"]) == ([{"secret": "certs", "mount_path": "/etc/accord/tls"}], ["keys"])
    assert section["kinds"] == {"ppo": {"gpus": 1}}
    assert config["endpoints"]["tls"] == {"ca": "/etc/accord/tls/ca.crt"}
    assert named(objects, "ServiceAccount", section["service_account"])
    assert named(objects, "Deployment", section["owner"]["name"])


def test_secrets_of_one_s_own_come_beside_those_that_the_chart_gives_to_runs() -> None:
    """Behind them: where two secrets have one variable, a pod takes the last. One that is named twice is there once."""
    own, secrets = "trainer.config.kubernetes.secret_environment", "trainer.config.kubernetes.secrets"
    objects = render(
        None, "tls.enabled=true", "tls.secret=certs", "artefacts.secret=bucket", f"{own}[0]=hf", f"{own}[1]=bucket",
        f"{secrets}[0].secret=notes", f"{secrets}[0].mount_path=/etc/notes",
    )  # fmt: skip
    config = yaml.safe_load(named(objects, "ConfigMap", "accord-trainer")["data"]["config.yaml"])
    runs = parse_config(config, TrainerConfig, source="trainer").kubernetes
    assert runs is not None
    assert runs.secret_environment == ("bucket", "hf")
    assert [(mount.secret, mount.mount_path) for mount in runs.secrets] == [("certs", "/etc/accord/tls"), ("notes", "/etc/notes")]
    alone = yaml.safe_load(named(render(None, f"{own}[0]=hf"), "ConfigMap", "accord-trainer")["data"]["config.yaml"])
    assert alone["kubernetes"]["secret_environment"] == ["hf"]


@every_case
def test_each_port_says_its_protocol(case: Path | None) -> None:
    objects = render(case)
    ports = [port for service in of_kind(objects, "Service") for port in service["spec"]["ports"]]
    ports += [port for _, pod in pods(objects) for container in containers(pod) for port in container.get("ports", [])]
    assert len(ports) >= 6
    assert {port.get("protocol") for port in ports} == {"TCP"}


@every_case
def test_selectors_hold_what_never_changes(case: Path | None) -> None:
    objects = render(case)
    for deployment in of_kind(objects, "Deployment"):
        chosen = deployment["spec"]["selector"]["matchLabels"]
        assert set(chosen) == {f"app.kubernetes.io/{key}" for key in ("name", "instance", "component")}
        assert chosen.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    upgraded = render(case, "images.tag=2.0", "policy.podLabels.team=x")
    for deployment in of_kind(objects, "Deployment"):
        assert named(upgraded, "Deployment", deployment["metadata"]["name"])["spec"]["selector"] == deployment["spec"]["selector"]


@every_case
@every_version
def test_each_service_reads_the_configuration_that_it_is_given(case: Path | None, version: str) -> None:
    objects = render(case, version=version)
    deployed = {item["metadata"]["labels"]["app.kubernetes.io/component"] for item in of_kind(objects, "Deployment")}
    assert deployed <= set(COMPONENTS)
    for component in deployed:
        text = named(objects, "ConfigMap", f"accord-{component}")["data"]["config.yaml"]
        config = parse_config(yaml.safe_load(text), CONFIG_CLASSES[component], source=component)  # type: ignore[index]
        assert config.server.listen == "0.0.0.0:50051"  # type: ignore[attr-defined]


def test_a_trainer_alone_reads_its_configuration() -> None:
    objects = render(None, *(f"{name}.enabled=false" for name in ("policy", "reward", "feedback")))
    assert [item["metadata"]["name"] for item in of_kind(objects, "Deployment")] == ["accord-trainer"]
    text = named(objects, "ConfigMap", "accord-trainer")["data"]["config.yaml"]
    config = parse_config(yaml.safe_load(text), CONFIG_CLASSES["trainer"], source="trainer")
    assert config.endpoints.policy == config.endpoints.reward == config.endpoints.feedback == ""  # type: ignore[attr-defined]


@every_case
@pytest.mark.parametrize("version", ["1.28", "1.37"])
def test_objects_fit_the_schemas_of_kubernetes(case: Path | None, version: str) -> None:
    kubernetes_validate = tools_package("kubernetes_validate")
    native = [item for item in render(case, version=version) if is_native(item)]
    assert len(native) >= 15
    for item in native:
        kubernetes_validate.validate(item, version, strict=True)


@every_case
def test_names_are_unique_and_short_enough(case: Path | None) -> None:
    objects = render(case)
    keys = [(item["kind"], item["metadata"]["name"]) for item in objects]
    assert len(set(keys)) == len(keys)
    assert all(len(name) <= 63 for _, name in keys)
    assert {item["metadata"].get("namespace") for item in objects if "accord.api" not in item["apiVersion"]} <= {"accord", None}


def _probes(objects: list[Object]) -> list[dict[str, Any]]:
    return [
        container[kind]
        for item in of_kind(objects, "Deployment")
        for container in item["spec"]["template"]["spec"]["containers"]
        for kind in ("startupProbe", "readinessProbe", "livenessProbe")
    ]


def test_the_cluster_s_version_decides_how_probes_ask_and_which_apis_are_used() -> None:
    settings = ("policy.autoscaling.enabled=true", "policy.replicas=2")
    old, new = render(None, *settings, version="1.20"), render(None, *settings, version="1.31")
    assert len(_probes(old)) == len(_probes(new)) == 12
    assert all("exec" in probe and probe["exec"]["command"][:3] == ["python", "-m", "accord.rpc.probe"] for probe in _probes(old))
    assert all("grpc" in probe and probe["grpc"]["port"] == 50051 for probe in _probes(new))
    (old_budget,), (new_budget,) = of_kind(old, "PodDisruptionBudget"), of_kind(new, "PodDisruptionBudget")
    assert (old_budget["apiVersion"], new_budget["apiVersion"]) == ("policy/v1beta1", "policy/v1")
    (old_scaler,), (new_scaler,) = of_kind(old, "HorizontalPodAutoscaler"), of_kind(new, "HorizontalPodAutoscaler")
    assert (old_scaler["apiVersion"], new_scaler["apiVersion"]) == ("autoscaling/v2beta2", "autoscaling/v2")
    assert "replicas" not in named(new, "Deployment", "accord-policy")["spec"]


def test_a_server_with_tls_is_asked_by_a_command_with_its_certificates() -> None:
    objects = render(None, "tls.enabled=true", "tls.secret=certs", "tls.mutual=true")
    for probe in _probes(objects):
        assert "/etc/accord/tls/ca.crt" in probe["exec"]["command"]
        assert "/etc/accord/tls/tls.key" in probe["exec"]["command"]


def test_time_to_stop_covers_the_drain_and_time_to_start_the_weights() -> None:
    objects = render(None, "reward.config.server.drain_seconds=45", "reward.startupSeconds=1200")
    pod = named(objects, "Deployment", "accord-reward")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 55
    probe = pod["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 1200


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [((), 120), (("trainer.config.stop_grace_seconds=45",), 45), (("trainer.config.server.drain_seconds=200",), 200)],
    ids=["default", "grace", "drain"],
)
def test_runs_of_the_trainers_own_pod_have_time_to_checkpoint_before_it_goes(settings: tuple[str, ...], seconds: int) -> None:
    objects = render(None, "trainer.launcher=local", *settings)
    config = yaml.safe_load(named(objects, "ConfigMap", "accord-trainer")["data"]["config.yaml"])
    assert (config["stop_runs"], config["server"]["drain_seconds"]) == (True, seconds)
    assert named(objects, "Deployment", "accord-trainer")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == seconds + 10
    assert "stop_runs" not in named(render(), "ConfigMap", "accord-trainer")["data"]["config.yaml"]


def test_a_changed_configuration_restarts_that_service_alone() -> None:
    before, after = render(), render(None, "feedback.config.concurrency=7")
    for component in COMPONENTS:
        marks = [
            named(objects, "Deployment", f"accord-{component}")["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
            for objects in (before, after)
        ]
        assert (marks[0] != marks[1]) is (component == "feedback"), component


def test_devices_placement_and_secrets_reach_the_pod() -> None:
    objects = render(
        None, "policy.gpu.count=2", "policy.nodeSelector.pool=gpu", "policy.runtimeClass=nvidia", "policy.priorityClass=high",
        "policy.tolerations[0].key=nvidia.com/gpu", "policy.tolerations[0].operator=Exists", "images.pullSecrets[0]=registry",
        "artefacts.uri=s3://bucket/accord", "artefacts.secret=keys", "database.url=postgresql+psycopg://accord@db/accord", "database.secret=db",
    )  # fmt: skip
    pod = named(objects, "Deployment", "accord-policy")["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert "nvidia.com/gpu" not in pod["initContainers"][0]["resources"]["limits"]
    assert (pod["nodeSelector"], pod["runtimeClassName"], pod["priorityClassName"]) == ({"pool": "gpu"}, "nvidia", "high")
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "keys"}}]
    claims = {item["metadata"]["name"] for item in of_kind(objects, "PersistentVolumeClaim")}
    assert claims == {"accord-models", "accord-work", "accord-feedback"}
    trainer = named(objects, "Deployment", "accord-trainer")["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "PGPASSWORD", "valueFrom": {"secretKeyRef": {"name": "db", "key": "PGPASSWORD"}}} in trainer["env"]
    assert "device: cuda" in named(objects, "ConfigMap", "accord-policy")["data"]["config.yaml"]


@pytest.mark.parametrize("component", ["policy", "reward"])
def test_the_download_of_a_model_goes_the_way_that_the_values_name(component: str) -> None:
    settings = (
        "model.tokenSecret=hub", "model.download=true", f"{component}.env[0].name=HTTPS_PROXY", f"{component}.env[0].value=http://proxy:3128",
        f"{component}.envFrom[0].configMapRef.name=mirror",
    )  # fmt: skip
    pod = named(render(None, *settings), "Deployment", f"accord-{component}")["spec"]["template"]["spec"]
    (fetch,) = pod["initContainers"]
    token = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "HF_TOKEN"}}}
    assert fetch["env"] == [token, {"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]
    assert fetch["envFrom"] == [{"configMapRef": {"name": "mirror"}}]


def test_a_variable_of_the_values_takes_the_place_of_the_charts() -> None:
    studied = ROOT / "deploy" / "examples" / "study-values.yaml"
    engine = ROOT / "deploy" / "examples" / "gpu-vllm-values.yaml"
    for case, where in ((None, "policy"), (None, "trainer"), (studied, "study"), (engine, "policy.engine")):
        objects = render(case, f"{where}.env[0].name=HF_HUB_OFFLINE", f"{where}.env[0].value=no")
        values = [
            [each["value"] for each in container["env"] if each["name"] == "HF_HUB_OFFLINE"]
            for _, pod in pods(objects)
            for container in pod["containers"]
            if container["name"] == where.rpartition(".")[2]
        ]
        assert values == [["no"]], where


def test_what_is_encrypted_is_not_announced_as_plain_http2() -> None:
    for case, protocol in ((None, "kubernetes.io/h2c"), (ROOT / "deploy" / "examples" / "mtls-values.yaml", "https")):
        ports = [port for item in of_kind(render(case), "Service") for port in item["spec"]["ports"] if port["name"] == "grpc"]
        assert len(ports) == 6
        assert {port["appProtocol"] for port in ports} == {protocol}
