"""Clients inside the cluster: the endpoints that the chart writes for them, the study as a Job, and `helm test` over TLS."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.rendering import ROOT, Object, named, of_kind, refused, render
from tests.unit.cli.conftest import Accord, accord  # noqa: F401

from accord.client.endpoints import ServiceEndpoints, read_endpoints

OWN_RECIPE = ROOT / "deploy" / "examples" / "study-values.yaml"
BY_HAND = ROOT / "deploy" / "examples" / "study-job.yaml"
TLS = ("tls.enabled=true", "tls.secret=certs", "tls.mutual=true")


def endpoints(objects: list[Object], folder: Path) -> tuple[ServiceEndpoints, Path]:
    file = folder / "endpoints.yaml"
    file.write_text(named(objects, "ConfigMap", "accord-endpoints")["data"]["endpoints.yaml"])
    return read_endpoints(file), file


def study_job(objects: list[Object]) -> Object:
    (found,) = of_kind(objects, "Job")
    return found


def container(job: Object) -> Object:
    (found,) = job["spec"]["template"]["spec"]["containers"]
    return found


def test_endpoints_name_the_services_that_there_are(tmp_path: Path) -> None:
    objects = render(None, "feedback.enabled=false", "policy.replicas=2")
    found, _ = endpoints(objects, tmp_path)
    assert found.feedback == ""
    services = {item["metadata"]["name"]: item for item in of_kind(objects, "Service")}
    for name in ("policy", "reward", "trainer"):
        host, _, port = getattr(found, name).removeprefix("dns:///").rpartition(":")
        service, namespace, kind = host.split(".")
        assert (services[service]["metadata"]["namespace"], kind) == (namespace, "svc")
        assert int(port) in {entry["port"] for entry in services[service]["spec"]["ports"]}


def test_the_shared_folder_is_one_that_feedback_and_runs_see() -> None:
    objects = render()
    shared = yaml.safe_load(named(objects, "ConfigMap", "accord-endpoints")["data"]["endpoints.yaml"])["shared_folder"]
    feedback = named(objects, "Deployment", "accord-feedback")["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    (mount,) = [entry for entry in feedback if entry["mountPath"] == shared]
    runs = yaml.safe_load(named(objects, "ConfigMap", "accord-trainer")["data"]["config.yaml"])["kubernetes"]["claims"]
    (claim,) = [entry for entry in runs if entry["claim"] == "accord-work"]
    assert f"{claim['mount_path']}/{mount['subPath']}" == shared


def test_the_tests_of_a_release_call_over_tls(tmp_path: Path) -> None:
    objects = render(None, *TLS)
    found, _ = endpoints(objects, tmp_path)
    assert found.tls is not None
    pod = named(objects, "Pod", "accord-test")["spec"]
    mounts = {entry["mountPath"]: entry["name"] for entry in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts["/etc/accord/tls"]]["secret"] == {"secretName": "certs"}
    assert volumes[mounts["/etc/accord"]]["configMap"] == {"name": "accord-endpoints"}
    for file in (found.tls.ca, found.tls.cert, found.tls.key):
        assert str(file).startswith("/etc/accord/tls/")
    assert {"name": "ACCORD_ENDPOINTS", "value": "/etc/accord/endpoints.yaml"} in pod["containers"][0]["env"]
    script = pod["containers"][0]["args"][0]
    assert [command in script for command in ("accord generate", "accord label", "accord train", "accord score")] == [True] * 4
    plain = named(render(), "Pod", "accord-test")["spec"]["containers"][0]["args"][0].replace(
        " --timeout 60", " --timeout 60 --ca /etc/accord/tls/ca.crt --cert /etc/accord/tls/tls.crt --key /etc/accord/tls/tls.key"
    )
    assert _without_id(script) == _without_id(plain)


def _without_id(script: str) -> str:
    """The id of the test's run is another where the trainer's configuration is."""
    return re.sub(r"--request-id [a-z0-9-]+", "", script)


def test_commands_of_the_tests_take_their_options(accord: Accord) -> None:  # noqa: F811
    script = named(render(), "Pod", "accord-test")["spec"]["containers"][0]["args"][0]
    lines = re.findall(r"\baccord (generate|label|train|runs|resume|watch|score) ([^;]*?)(?: ;;|\)\"|$)", script, re.MULTILINE)
    assert len(lines) == 7
    for command, rest in lines:
        known = accord(command, "--help").stdout
        assert all(option in known for option in re.findall(r"--[a-z-]+", rest)), command


def test_there_is_no_study_unless_it_is_asked_for() -> None:
    assert not of_kind(render(), "Job")
    assert "study.enabled needs reward.enabled" in refused("study.enabled=true", "reward.enabled=false")
    for setting, says in (("study.name=A b", "name"), ("study.recipe=quik", "recipe"), ("study.seed=-1", "seed")):
        assert says in refused("study.enabled=true", setting)
    assert "stepz" in refused("study.ownRecipe.sft.stepz=3", case=OWN_RECIPE)


@pytest.mark.parametrize("settings", [(), ("study.recipe=full", "study.seed=0"), TLS])
def test_the_study_of_the_job_is_one_that_the_command_plans(accord: Accord, tmp_path: Path, settings: tuple[str, ...]) -> None:  # noqa: F811
    objects = render(None, "study.enabled=true", *settings)
    planned = accord(*arguments(objects, tmp_path), "--plan")
    assert planned.exit_code == 0, planned.stderr
    assert "steps to do" in planned.stdout


def test_a_recipe_of_one_s_own_reaches_the_command(accord: Accord, tmp_path: Path) -> None:  # noqa: F811
    objects = render(OWN_RECIPE)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(named(objects, "ConfigMap", "accord-study")["data"]["recipe.yaml"])
    told = arguments(objects, tmp_path)
    assert told[-1] == "--recipe=/etc/accord/study/recipe.yaml"
    assert {"name": "recipe", "mountPath": "/etc/accord/study", "readOnly": True} in container(study_job(objects))["volumeMounts"]
    planned = accord(*told[:-1], f"--recipe={recipe}", "--plan")
    assert planned.exit_code == 0, planned.stderr
    assert "rivers" in planned.stdout
    assert "dpo-ai" in planned.stdout
    assert "ppo" not in planned.stdout


def arguments(objects: list[Object], folder: Path) -> list[str]:
    """The command line of the Job's container with folders of this machine."""
    main = container(study_job(objects))
    assert {"name": "ACCORD_ENDPOINTS", "value": "/etc/accord/endpoints.yaml"} in main["env"]
    _, file = endpoints(objects, folder)
    words = [word.replace("/var/lib/accord/shared", str(folder)) for word in main["args"]]
    return [*main["command"][1:], f"--endpoints={file}", *words]


def test_results_stay_on_the_claim_when_the_pod_is_gone() -> None:
    job = study_job(render(None, "study.enabled=true", "study.name=mine"))
    (home,) = [word.removeprefix("--home=") for word in container(job)["args"] if word.startswith("--home=")]
    (mount,) = [entry for entry in container(job)["volumeMounts"] if Path(home).is_relative_to(entry["mountPath"])]
    (volume,) = [entry for entry in job["spec"]["template"]["spec"]["volumes"] if entry["name"] == mount["name"]]
    assert volume["persistentVolumeClaim"] == {"claimName": "accord-work"}
    assert Path(home).name == "mine"


def test_a_changed_study_is_another_job_and_the_same_one_is_not() -> None:
    def name(*settings: str) -> str:
        return str(study_job(render(None, "study.enabled=true", *settings))["metadata"]["name"])

    first = name()
    assert re.fullmatch(r"accord-study-[0-9a-f]{8}", first)
    assert name("policy.replicas=3", "feedback.config.concurrency=7") == first
    others = [name(setting) for setting in ("study.recipe=full", "study.seed=4", "images.tag=2.0", "study.name=other")]
    others.append(study_job(render(OWN_RECIPE))["metadata"]["name"])
    others.append(study_job(render(OWN_RECIPE, "study.ownRecipe.sft.steps=21"))["metadata"]["name"])
    assert len({first, *others}) == 7


MUTABLE = {"backoffLimit", "parallelism", "suspend", "activeDeadlineSeconds", "ttlSecondsAfterFinished"}
"""Of a Job's `spec`; the API refuses an upgrade that changes anything else."""


def test_two_jobs_that_kubernetes_would_not_change_into_each_other_have_two_names() -> None:
    """Of clusters too, which are upgraded below a release."""
    kept, changed = ("retries=10", "retries=2", "recipe=quick"), ("seed=4", "resources.limits.memory=3Gi", "tolerations[0].key=x")
    fixed: dict[str, list[Object]] = {}
    for version in ("1.30", "1.31"):
        for setting in (*kept, *changed):
            job = study_job(render(None, "study.enabled=true", f"study.{setting}", version=version))
            fixed.setdefault(job["metadata"]["name"], []).append({key: value for key, value in job["spec"].items() if key not in MUTABLE})
    assert len(fixed) == 8, "two kinds of clusters, and four specifications"
    for name, specs in fixed.items():
        assert all(spec == specs[0] for spec in specs), name


def test_the_job_by_hand_is_the_chart_s() -> None:
    by_hand: dict[str, Any] = yaml.safe_load(BY_HAND.read_text())
    rendered = study_job(render(None, "study.enabled=true", "study.name=by-hand"))
    assert by_hand["spec"] == rendered["spec"]
    assert by_hand["apiVersion"] == rendered["apiVersion"]


def test_studies_have_no_rights_and_no_token() -> None:
    objects = render(None, "study.enabled=true")
    pod = study_job(objects)["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod
    subjects = [subject["name"] for binding in of_kind(objects, "RoleBinding") for subject in binding["subjects"]]
    assert subjects == ["accord-trainer"]
