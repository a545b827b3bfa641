"""Objects of runs: Kubernetes takes them, Pod Security's restricted profile lets them in, and they say what the configuration says."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from tests.unit.launch import schema
from tests.unit.launch.orders import FULL, NEW, OLD, PLAIN, RUNS, WITH_JOBSET, config, order

from accord.errors import FailedPreconditionError, InvalidArgumentError
from accord.launch.jobset import build_several
from accord.launch.manifest import Features, build_config_map, build_job, object_name
from accord.launch.settings import KubernetesConfig, quantity_bytes
from accord.rpc.config import parse_config
from accord.rundir import RunFile


def pod_specs() -> list[dict[str, Any]]:
    """The pod of every kind of object."""
    jobs = [build_job(order(algorithm), config(values), features) for algorithm in ("dpo", "ppo") for values in (FULL,) for features in (NEW, OLD)]
    jobs += [build_several(order("sft"), config(FULL), NEW)[-1]]
    sets = build_several(order("sft"), config(FULL), WITH_JOBSET)[-1]["spec"]["replicatedJobs"]
    return [job["spec"]["template"]["spec"] for job in (*jobs, *(each["template"] for each in sets))]


def container(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = job["spec"]["template"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("features", [NEW, OLD, Features.of(22, jobset=False), Features.of(28, jobset=False)])
@pytest.mark.parametrize("algorithm", ["dpo", "ppo"])
def test_kubernetes_takes_the_job_and_its_config_map(features: Features, algorithm: str) -> None:
    schema.check(build_job(order(algorithm), config(FULL), features))
    schema.check(build_config_map(order(algorithm), config(FULL)))


def test_the_schema_check_sees_a_misspelt_field_and_a_wrong_type() -> None:
    for name, value in (("backofLimit", 3), ("backoffLimit", "three")):
        job = build_job(order(), config(), NEW)
        job["spec"][name] = value
        with pytest.raises((AssertionError, ValueError), match=re.compile(r"backof|three|int", re.IGNORECASE)):
            schema.check(job)


def test_kubernetes_takes_the_objects_of_several_nodes() -> None:
    service, job = build_several(order("sft"), config(FULL), NEW)
    schema.check(service)
    schema.check(job)
    (jobset,) = build_several(order("sft"), config(FULL), WITH_JOBSET)
    (group,) = jobset["spec"]["replicatedJobs"]
    schema.check(group["template"], "JobTemplate")


@pytest.mark.parametrize("pod", pod_specs())
def test_every_pod_keeps_to_the_restricted_profile(pod: dict[str, Any]) -> None:
    assert pod["securityContext"] | {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}} == pod["securityContext"]
    assert pod["securityContext"]["runAsUser"] == 65532
    assert not pod["automountServiceAccountToken"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert not any("hostPath" in volume for volume in pod["volumes"])
    for each in pod["containers"]:
        rules = each["securityContext"]
        assert rules["allowPrivilegeEscalation"] is False
        assert rules["readOnlyRootFilesystem"] is True
        assert rules["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= set(each["resources"]["requests"])
        assert "memory" in each["resources"]["limits"]
        assert "cpu" not in each["resources"]["limits"], "a run would be held below the idle cores of its node"
        mounted = [mount["name"] for mount in each["volumeMounts"]]
        assert sorted(mounted) == sorted(volume["name"] for volume in pod["volumes"])


def test_a_name_is_the_runs_and_fits_what_kubernetes_appends() -> None:
    name = object_name("accord", "runs/support-dpo-0a1b2c3d4e")
    assert name == object_name("accord", "runs/support-dpo-0a1b2c3d4e")
    assert name != object_name("accord", "runs/support-dpo-0a1b2c3d4f")
    assert name != object_name("other", "runs/support-dpo-0a1b2c3d4e")
    assert name.startswith("accord-support-dpo-0a1b2")
    for instance in ("a", "a" * 53, "a" * 19 + "-b"):
        for run in ("runs/x", f"runs/{'y' * 100}", "runs/" + "y" * 19 + "-z"):
            found = object_name(instance, run)
            assert len(f"{found}-1023-abcde") <= 63
            assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", found), found


def test_the_config_map_holds_the_whole_run_file() -> None:
    data = yaml.safe_load(build_config_map(order(), config())["data"]["run.yaml"])
    assert RunFile.model_validate(data) == order().run
    job = build_job(order(), config(), NEW)
    command = container(job)["command"]
    assert command == ["python", "-m", "accord.training", "--config", "/etc/accord/run/run.yaml", "--directory", f"{RUNS}/support-dpo-0a1b2c3d4e"]
    mount = next(mount for mount in container(job)["volumeMounts"] if mount["mountPath"] == "/etc/accord/run")
    volume = next(volume for volume in job["spec"]["template"]["spec"]["volumes"] if volume["name"] == mount["name"])
    assert volume["configMap"]["name"] == build_config_map(order(), config())["metadata"]["name"]


def test_memory_is_the_plans_with_headroom_or_what_the_configuration_says() -> None:
    def memory(plan: int, **more: Any) -> int:
        resources = container(build_job(order(memory_bytes=plan), config(**more), NEW))["resources"]
        assert resources["requests"] == resources["limits"] | {"cpu": resources["requests"]["cpu"]}
        return quantity_bytes(resources["limits"]["memory"])

    assert memory(2**30) == 1280 * 2**20
    assert memory(2**30 + 1) == 1344 * 2**20
    assert memory(2**30, memory_headroom=2.0) == 2 * 2**30
    assert memory(2**30, defaults={"shared_memory": "1Gi"}) == 2304 * 2**20
    assert memory(2**30, kinds={"dpo": {"memory": "3Gi"}}) == 3 * 2**30
    assert memory(2**30, kinds={"sft": {"memory": "3Gi"}}) == 1280 * 2**20


def test_a_kind_overrides_the_defaults_field_by_field() -> None:
    given = config(defaults={"gpus": 1, "retries": 7, "node_selector": {"pool": "a"}}, kinds={"ppo": {"gpus": 4}, "evaluate": {"gpus": 0}})
    assert (given.for_kind("ppo").gpus, given.for_kind("ppo").retries) == (4, 7)
    assert (given.for_kind("evaluate").gpus, given.for_kind("evaluate").node_selector) == (0, {"pool": "a"})
    assert given.for_kind("dpo") == given.defaults
    resources = container(build_job(order("ppo"), given, NEW))["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == "4"
    assert resources["requests"]["cpu"] == "4", "as many as the run has threads"
    assert "nvidia.com/gpu" not in container(build_job(order("dpo"), config(), NEW))["resources"]["limits"]


def test_the_cache_is_a_claim_or_an_empty_folder_and_never_the_image() -> None:
    def volume(values: dict[str, Any]) -> dict[str, Any]:
        job = build_job(order(), config(values), NEW)
        (mount,) = (mount for mount in container(job)["volumeMounts"] if mount["mountPath"] == "/var/cache/accord")
        found: dict[str, Any] = next(volume for volume in job["spec"]["template"]["spec"]["volumes"] if volume["name"] == mount["name"])
        return found

    assert volume(FULL)["persistentVolumeClaim"]["claimName"] == "models"
    assert volume(PLAIN)["emptyDir"] == {"sizeLimit": "4Gi"}


def test_what_an_api_server_does_not_know_is_left_out() -> None:
    old, new = (build_job(order("ppo"), config(FULL), features)["spec"] for features in (OLD, NEW))
    assert set(new) - set(old) == {"suspend", "podFailurePolicy", "podReplacementPolicy"}
    assert (new["suspend"], new["backoffLimit"], new["activeDeadlineSeconds"], new["ttlSecondsAfterFinished"]) == (True, 5, 86400, 86400)
    ignored, failed, stopped = new["podFailurePolicy"]["rules"]
    assert (ignored["action"], ignored["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert (failed["action"], failed["onExitCodes"]["values"]) == ("FailJob", [2, 5])
    assert (stopped["action"], stopped["onExitCodes"]["values"]) == ("Ignore", [3])


def test_a_queue_admits_the_job_and_nothing_else() -> None:
    labelled = build_job(order("ppo"), config(FULL), NEW)["metadata"]["labels"]
    assert labelled["kueue.x-k8s.io/queue-name"] == "alignment"
    other = build_job(order("dpo"), config(FULL), NEW)
    assert "kueue.x-k8s.io/queue-name" not in other["metadata"]["labels"]
    assert "suspend" not in other["spec"]
    assert build_job(order("dpo"), config(defaults={"suspend": True}), NEW)["spec"]["suspend"] is True


def test_several_nodes_meet_at_pod_0() -> None:
    several = order("sft", distribution={"processes": 8})
    service, job = build_several(several, config(FULL), NEW)
    name = job["metadata"]["name"]
    command = container(job)["command"]
    assert command[:3] == ["python", "-m", "accord.training.agent"]
    assert {"--nnodes=3", "--nproc-per-node=8", "--node-rank=$(JOB_COMPLETION_INDEX)", f"--master-addr={name}-0.{name}"} <= set(command)
    assert command[command.index("accord.training") - 1] == "-m"
    assert (job["spec"]["completionMode"], job["spec"]["parallelism"], job["spec"]["completions"]) == ("Indexed", 3, 3)
    assert job["spec"]["backoffLimit"] == 8, "three tries of three pods"
    assert (service["spec"]["clusterIP"], service["metadata"]["name"]) == ("None", job["spec"]["template"]["spec"]["subdomain"])
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert service["spec"]["ports"][0]["port"] == container(job)["ports"][0]["containerPort"]
    assert f"--master-port={service['spec']['ports'][0]['port']}" in command


def test_names_of_a_jobset_s_pods_are_within_63_characters_on_all_the_nodes_that_may_be() -> None:
    """JobSet's webhook refuses others: with the index of the last pod, and the five characters that Kubernetes appends."""
    values = FULL | {"instance": "a" * 53, "kinds": {"sft": {"nodes": 1024}}}
    (jobset,) = build_several(order("sft", name=f"runs/{'y' * 100}"), config(values), WITH_JOBSET)
    (group,) = jobset["spec"]["replicatedJobs"]
    assert len(jobset["metadata"]["name"]) == 48
    assert len(f"{jobset['metadata']['name']}-{group['name']}-0-1023-abcde") == 63


@pytest.mark.parametrize("where", ["defaults", "kinds"])
def test_several_nodes_need_an_instance_that_can_begin_the_name_of_a_service(where: str) -> None:
    """A label of RFC 1035, as JobSet asks of its own name too; a Job's name may begin with a digit."""
    several = {"defaults": {"nodes": 2}} if where == "defaults" else {"kinds": {"sft": {"nodes": 2}}}
    with pytest.raises(ValueError, match=r"nodes is 2, and the instance 7b, which begins a Service's name, needs a letter first"):
        config(instance="7b", **several)
    assert config(instance="7b").instance == "7b"
    assert config(instance="b7", **several).instance == "b7"


def test_a_jobset_restarts_all_pods_and_not_after_an_error_of_the_configuration_or_its_deadline() -> None:
    (jobset,) = build_several(order("sft"), config(FULL), WITH_JOBSET)
    name, spec = jobset["metadata"]["name"], jobset["spec"]
    job = spec["replicatedJobs"][0]["template"]
    assert f"--master-addr={name}-n-0-0.{spec['network']['subdomain']}" in container(job)["command"]
    assert spec["failurePolicy"] == {
        "maxRestarts": 2,
        "rules": [{"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy", "DeadlineExceeded"]}],
    }
    assert job["spec"]["backoffLimit"] == 0
    assert spec["ttlSecondsAfterFinished"] == 86400
    assert "ttlSecondsAfterFinished" not in job["spec"]


def test_several_nodes_are_refused_where_they_cannot_run() -> None:
    with pytest.raises(FailedPreconditionError, match=r"JobSet or Kubernetes 1\.22"):
        build_several(order("sft"), config(FULL), OLD)
    with pytest.raises(FailedPreconditionError, match="python -m module") as caught:
        build_several(order("sft"), config(FULL, command=["/usr/bin/train"]), NEW)
    assert caught.value.field == "kubernetes.command"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"image": "accord/training"}, "image: a tag or a digest is required"),
        ({"image": "registry:5000/accord/training"}, "image: a tag or a digest is required"),
        ({"image": "accord/training:latest"}, "image: the tag latest changes"),
        ({"imagePullPolicy": "Always"}, "unknown key; did you mean image_pull_policy"),
        ({"kinds": {"dop": {}}}, "kinds"),
        ({"kinds": {"ppo": {"memory": "8GB"}}}, "kinds.ppo.memory"),
        ({"kinds": {"ppo": {"memory": "128Gi"}}}, "kinds.ppo.memory is 128Gi, most_memory 64Gi"),
        ({"defaults": {"memory": "128Gi"}}, "defaults.memory is 128Gi, most_memory 64Gi"),
        ({"defaults": {"gpu_resource": "a100"}}, "defaults.gpu_resource"),
        ({"defaults": {"gpus": -1}}, "defaults.gpus"),
        ({"defaults": {"tolerations": [{"operator": "Exists", "value": "x"}]}}, "operator is Exists has no value"),
        ({"instance": "a" * 54}, "instance"),
        ({"instance": "Prod"}, "instance"),
        ({"claims": [{"claim": "a", "mount_path": "/x"}, {"claim": "b", "mount_path": "/x"}]}, "two volumes are mounted at /x"),
        ({"claims": [{"claim": "a", "mount_path": "/x", "sub_path": "../y"}]}, "sub_path"),
        ({"owner": {"kind": "Pod", "name": "x"}}, "owner.kind"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_by_field(change: dict[str, Any], expected: str) -> None:
    values = {"image": "accord/training:1.0"} | change
    with pytest.raises(InvalidArgumentError, match=re.escape(expected)):
        parse_config(values, KubernetesConfig, source="trainer.yaml")


def test_an_image_by_digest_or_from_a_registry_with_a_port_is_taken() -> None:
    for image in ("accord/training@sha256:" + "a" * 64, "registry:5000/accord/training:1.0", "training:v2_rc.1"):
        assert config(image=image).image == image


def test_processes_are_those_of_a_pod_one_a_device() -> None:
    several = config(kinds={"dpo": {"nodes": 2, "gpus": 8}, "sft": {"nodes": 3}}, defaults={"gpus": 4})
    for processes in (1, 16):
        with pytest.raises(
            InvalidArgumentError, match=f"must be 8, not {processes}: it counts the processes of one pod, and .*kinds.dpo.gpus"
        ) as error:
            several.check_processes("dpo", processes, 32, prefix="spec.")
        assert error.value.field == "spec.distribution.processes"
    with pytest.raises(InvalidArgumentError, match="must be at least 16, not 8: 2 pods of 8 processes share it") as error:
        several.check_processes("dpo", 8, 8)
    assert error.value.field == "batch_size"
    several.check_processes("dpo", 8, 16)
    several.check_processes("evaluate", 1, 8)
    config(kinds={"sft": {"nodes": 3}}).check_processes("sft", 2, 6)


def test_a_refusal_names_the_setting_that_gives_a_pod_its_memory() -> None:
    small = config(kinds={"dpo": {"memory": "256Mi"}}, most_memory="10Gi")
    assert small.room_in_words("dpo") == "a pod of this kind gets 256 MiB (kubernetes.kinds.dpo.memory, or memory of its defaults)"
    assert small.room_in_words("sft") == "a pod may have 8,192 MiB (kubernetes.most_memory 10Gi / memory_headroom 1.25)"
