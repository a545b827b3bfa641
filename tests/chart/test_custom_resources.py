"""Custom resources of the chart, of its examples and of runs, against what their projects' definitions say (`tests.chart.custom_resources`)."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.custom_resources import SCHEMAS, jobs_of, mistakes
from tests.chart.rendering import CASES, ROOT, Object, case_id, is_native, named, of_kind, render, tools_package
from tests.unit.launch.orders import FULL, WITH_JOBSET, config, order

from accord.launch.jobset import build_several

QUEUE_DEPTH, KUEUE, MUTUAL = (ROOT / "deploy" / "examples" / f"{name}-values.yaml" for name in ("queue-depth", "kueue", "mtls"))
GOLDEN_JOBS = sorted((ROOT / "tests" / "golden" / "files").glob("*job*.yaml"))
LONGEST = {"instance": "a" * 53, "kinds": {"sft": {"nodes": 1024}}}
SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "queued": {"kinds": {"sft": {"nodes": 2, "queue": "research"}}},
    "deadline and no retry": {"kinds": {"sft": {"nodes": 2, "deadline_seconds": 3600, "retries": 0}}},
    "longest names": LONGEST,
}


def custom(objects: list[Object]) -> list[Object]:
    """The custom resources among objects."""
    return [item for item in objects if not is_native(item)]


def plain_files() -> Iterator[Object]:
    """Objects of files that are no values: examples to apply as they are, and golden objects of runs (but not charts, which are rendered here)."""
    examples = [path for path in (ROOT / "deploy" / "examples").glob("*.yaml") if not path.stem.endswith("-values")]
    for path in (*examples, *GOLDEN_JOBS):
        if not path.name.startswith("chart-"):
            yield from (item for item in yaml.safe_load_all(path.read_text()) if item)


def jobset(settings: dict[str, Any]) -> Object:
    """What the launcher makes of a run over several nodes."""
    run = "runs/" + "y" * 100 if settings is LONGEST else "runs/support-dpo-0a1b2c3d4e"
    (found,) = build_several(order("sft", name=run), config(FULL | settings), WITH_JOBSET)
    return found


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_custom_resources_of_the_chart_are_as_their_definitions_say(case: Path | None) -> None:
    for item in custom(render(case)):
        assert not mistakes(item), item["metadata"]["name"]


def test_custom_resources_in_files_are_as_their_definitions_say() -> None:
    objects = list(plain_files())
    assert {"Job", "JobSet", "ConfigMap", "Service"} <= {item["kind"] for item in objects}
    assert [(item["kind"], mistakes(item)) for item in custom(objects)] == [("JobSet", [])]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_jobsets_of_runs_and_the_jobs_in_them_are_as_their_definitions_say(name: str, version: str) -> None:
    """1.28 asks in its schema, though not in its server, for onPodConditions in each rule of a podFailurePolicy."""
    item = jobset(SETTINGS[name])
    assert not mistakes(item)
    (job,) = jobs_of(item)
    tools_package("kubernetes_validate").validate(job, version, strict=True)


def test_every_schema_is_of_something_that_is_made() -> None:
    made = custom([item for case in CASES for item in render(case)] + list(plain_files()))
    assert {(item["apiVersion"], item["kind"]) for item in made} == set(SCHEMAS)
    assert len(made) >= 12


def changed(item: Object, path: str, value: Any) -> Object:
    """A copy with another value at a path of keys and indices; the last key may be new."""
    found = deepcopy(item)
    *parents, last = path.split(".")
    inside: Any = found
    for key in parents:
        inside = inside[int(key) if key.isdigit() else key]
    inside[int(last) if last.isdigit() else last] = value
    return found


def examples() -> dict[str, Object]:
    """One good object of each kind."""
    depth, mutual = render(QUEUE_DEPTH), render(MUTUAL)
    return {
        "JobSet": jobset({}),
        "LocalQueue": of_kind(render(KUEUE), "LocalQueue")[0],
        "ScaledObject": named(depth, "ScaledObject", "accord-policy"),
        "ServiceMonitor": named(depth, "ServiceMonitor", "accord-policy"),
        "Certificate": named(mutual, "Certificate", "accord"),
        "Issuer": named(mutual, "Issuer", "accord"),
    }


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("JobSet", "spec.failurePolicy.maxRestart", 2),
        ("JobSet", "spec.failurePolicy.maxRestarts", "2"),
        ("JobSet", "spec.failurePolicy.rules.0.action", "FailJob"),
        ("JobSet", "spec.failurePolicy.rules.0.onJobFailureReasons.0", "PodFailed"),
        ("JobSet", "spec.failurePolicy.rules.0.name", "no-hyphen"),
        ("JobSet", "spec.network.subdomain", "7b"),
        ("JobSet", "spec.replicatedJobs.0.name", "node" * 6),
        ("LocalQueue", "apiVersion", "kueue.x-k8s.io/v1beta1"),
        ("LocalQueue", "spec.clusterQueues", "research"),
        ("LocalQueue", "spec.clusterQueue", ["research"]),
        ("LocalQueue", "spec.stopPolicy", "Drain"),
        ("ScaledObject", "spec.cooldownPeriod", 600),
        ("ScaledObject", "spec.triggers.0.metadata.threshold", 32),
        ("ScaledObject", "spec.triggers.0.metricType", "Utilization"),
        ("ServiceMonitor", "spec.endpoints.0.intervals", "30s"),
        ("ServiceMonitor", "spec.endpoints.0.port", 9090),
        ("ServiceMonitor", "spec.endpoints.0.interval", "30 seconds"),
        ("Certificate", "spec.dnsName", "accord.svc"),
        ("Certificate", "spec.isCA", "true"),
        ("Certificate", "spec.usages.0", "server-auth"),
        ("Issuer", "spec.ca.secret", "accord-authority"),
        ("Issuer", "spec.ca.secretName", 1),
        ("Issuer", "spec.selfSigned", {}),
        ("Issuer", "metadata.labels", {"team": "a b"}),
    ],
)  # fmt: skip
def test_a_mistake_in_an_object_is_found(kind: str, path: str, value: Any) -> None:
    """Typing errors, wrong types, values that are none of an enumeration, and what webhooks refuse."""
    good = examples()[kind]
    assert not mistakes(good)
    found = mistakes(changed(good, path, value))
    assert len(found) >= 1


def test_a_kind_without_a_schema_is_a_mistake() -> None:
    (found,) = mistakes({"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ClusterQueue", "metadata": {"name": "research"}, "spec": {}})
    assert found.startswith("kueue.x-k8s.io/v1beta2 ClusterQueue has no schema here")


def test_a_scaler_of_keda_keeps_replicas_as_long_as_the_autoscaler_of_kubernetes_does() -> None:
    settings = ("policy.autoscaling.enabled=true", "policy.autoscaling.queueDepth=4")
    (plain,) = of_kind(render(None, *settings, "policy.resources.requests.cpu=1"), "HorizontalPodAutoscaler")
    keda = named(render(QUEUE_DEPTH), "ScaledObject", "accord-policy")
    assert keda["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == plain["spec"]["behavior"]


def test_the_authority_of_the_example_outlives_what_it_signs() -> None:
    """By years: cert-manager renews a certificate by its own age, and signs past the end of the authority without a word (its issues 5864 and 5851)."""
    certificates = {item["metadata"]["name"]: item["spec"] for item in of_kind(render(MUTUAL), "Certificate")}
    assert certificates["accord-authority"]["isCA"] is True
    assert int(certificates["accord-authority"]["duration"].removesuffix("h")) >= 5 * 365 * 24
    assert "duration" not in certificates["accord"], "90 days by default"
