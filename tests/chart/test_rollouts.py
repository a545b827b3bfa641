"""What a pod has while another takes its place: the link to its base model, spare pods, time for an engine; and the chart below another one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tests.chart.rendering import CHART, ROOT, Object, named, of_kind, refused, render, run_helm

ENGINE = ROOT / "deploy" / "examples" / "gpu-vllm-values.yaml"


def folders(*settings: str) -> set[str]:
    """The base model's folder as the init container links it, the engine reads it and the trainer plans with it."""
    objects = render(ENGINE, *settings)
    pod = named(objects, "Deployment", "accord-policy")["spec"]["template"]["spec"]
    (engine,) = [found["args"] for found in pod["containers"] if found["name"] == "engine"]
    fetch = pod["initContainers"][0]["command"]
    trainer = yaml.safe_load(named(objects, "ConfigMap", "accord-trainer")["data"]["config.yaml"])
    return {engine[engine.index("--model") + 1], fetch[fetch.index("--link") + 1], trainer["model_folder"]}


def test_each_model_has_a_link_of_its_own() -> None:
    """An engine that starts again after a roll-back finds what its name says, though the other revision's init container ran last."""
    (one,), (other,) = folders("model.name=org/one"), folders("model.name=org/other")
    assert one != other
    assert {one} == folders("model.name=org/one", "model.download=true")


def test_a_policy_service_has_as_long_to_start_as_the_engine_that_it_waits_for() -> None:
    containers = named(render(ENGINE, "policy.startupSeconds=600", "policy.engine.startupSeconds=1800"), "Deployment", "accord-policy")
    own = next(found for found in containers["spec"]["template"]["spec"]["containers"] if found["name"] == "policy")["startupProbe"]
    assert own["periodSeconds"] * own["failureThreshold"] >= 1800 + 60


@pytest.mark.parametrize("component", ["policy", "reward"])
def test_where_no_spare_device_is_free_a_pod_may_go_before_its_successor_comes(component: str) -> None:
    def strategy(*settings: str) -> Object:
        found: Object = named(render(None, *settings), "Deployment", f"accord-{component}")["spec"]["strategy"]["rollingUpdate"]
        return found

    assert strategy() == {"maxSurge": 1, "maxUnavailable": 0}
    no_surge = f"{component}.rollingUpdate.maxSurge=0"
    assert strategy(no_surge, f"{component}.rollingUpdate.maxUnavailable=1") == {"maxSurge": 0, "maxUnavailable": 1}
    assert f"{component}.rollingUpdate: maxSurge and maxUnavailable are both 0" in refused(no_surge)


def test_a_claim_that_several_pods_share_is_not_one_pod_s() -> None:
    for name in ("models", "artefacts", "work"):
        assert "accessMode" in refused(f"storage.{name}.accessMode=ReadWriteOncePod")
    for name in ("trainer", "feedback"):
        claim = named(render(None, f"storage.{name}.accessMode=ReadWriteOncePod"), "PersistentVolumeClaim", f"accord-{name}")
        assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]


def test_the_notes_say_who_may_call() -> None:
    def notes(*settings: str) -> str:
        sets = [word for setting in settings for word in ("--set", setting)]
        done = run_helm("install", "accord", str(CHART), "--dry-run=client", "--namespace", "accord", *sets)
        assert done.returncode == 0, done.stderr
        return done.stdout

    nobody, everybody = "No client outside the release may call the services", "Every pod of the cluster may call the services"
    assert nobody in notes()
    assert everybody not in notes()
    open_to_all = notes("networkPolicy.enabled=false")
    assert everybody in open_to_all
    assert nobody not in open_to_all


def test_below_another_chart_under_another_name_every_pod_is_under_the_policy_that_lets_it_resolve_names(tmp_path: Path) -> None:
    """An alias is the chart's name there, and so its pods' label, but for the trainer's Jobs, which are always named accord."""
    dependency = {"name": "accord", "alias": "rlhf", "version": "*", "repository": ""}
    chart = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": [dependency]}
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "accord").symlink_to(CHART)
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(chart))
    done = run_helm("template", "ours", str(tmp_path), "--kube-version", "1.31")
    assert done.returncode == 0, done.stderr
    objects = [item for item in yaml.safe_load_all(done.stdout) if item]
    (deny,) = [item["spec"]["podSelector"] for item in of_kind(objects, "NetworkPolicy") if item["metadata"]["name"].endswith("-default-deny")]
    pods = [item["spec"]["template"]["metadata"]["labels"] for item in of_kind(objects, "Deployment", "Job")]
    assert len(pods) >= 4
    (names,) = [rule["values"] for rule in deny["matchExpressions"] if rule["key"] == "app.kubernetes.io/name"]
    assert {pod["app.kubernetes.io/name"] for pod in pods} | {"accord"} == set(names)
