"""An engine beside the policy service: which of the two stops first, and what a scaler needs of both."""

from __future__ import annotations

import re
import socket
import subprocess
import sys

import pytest
from tests.chart.rendering import ROOT, Object, named, of_kind, refused, render

ENGINE = ROOT / "deploy" / "examples" / "gpu-vllm-values.yaml"


def pod_of(*settings: str) -> Object:
    pod: Object = named(render(ENGINE, *settings), "Deployment", "accord-policy")["spec"]["template"]["spec"]
    return pod


def before_stop(pod: Object, name: str) -> list[str]:
    (container,) = [found for found in pod["containers"] if found["name"] == name]
    command: list[str] = container["lifecycle"]["preStop"]["exec"]["command"]
    return command


@pytest.mark.parametrize("drain", [0, 30, 45])
def test_the_grace_of_a_pod_covers_the_drain_and_then_the_engine_s_end(drain: int) -> None:
    pod = pod_of(f"policy.config.server.drain_seconds={drain}")
    (longest,) = map(int, re.findall(r"monotonic\(\) \+ (\d+)$", before_stop(pod, "engine")[-1], re.MULTILINE))
    wait = int(before_stop(pod, "policy")[-1])
    assert longest >= wait + drain + 5
    assert pod["terminationGracePeriodSeconds"] >= longest + 10


def test_an_engine_waits_as_long_as_the_policy_service_listens() -> None:
    """Which it does until it has drained; its command is run here, towards a port of this machine."""
    python, *arguments = before_stop(pod_of(), "engine")
    assert python == "python3"
    with socket.create_server(("127.0.0.1", 0)) as policy:
        own = [text.replace("50051", str(policy.getsockname()[1])) for text in arguments]
        assert own != arguments
        with subprocess.Popen([sys.executable, *own]) as waiting:
            try:
                with pytest.raises(subprocess.TimeoutExpired):
                    waiting.wait(3)
                policy.close()
                assert waiting.wait(20) == 0
            finally:
                waiting.kill()


SCALED = "policy.autoscaling.enabled=true"
ASKS_FOR_NO_CPU = ("policy.engine.enabled=true", "policy.engine.image=vllm/vllm-openai:v1", SCALED)


def test_a_scaler_by_cpu_is_refused_where_a_container_does_not_say_what_it_asks_for() -> None:
    """Kubernetes then has no number for any pod, and never scales."""
    for settings, value in ((ASKS_FOR_NO_CPU, "policy.engine"), (("policy.resources.requests.cpu=null", SCALED), "policy")):
        assert f"policy.autoscaling by cpuPercent needs {value}.resources.requests.cpu" in refused(*settings)
    assert "reward.autoscaling by cpuPercent needs reward.resources.requests.cpu" in refused(
        "reward.autoscaling.enabled=true", "reward.resources.requests.cpu=null"
    )


@pytest.mark.parametrize(
    "settings",
    [
        (*ASKS_FOR_NO_CPU, "policy.engine.resources.requests.cpu=4"),
        (*ASKS_FOR_NO_CPU, "policy.engine.resources.limits.cpu=4"),
        (*ASKS_FOR_NO_CPU, "policy.autoscaling.cpuPercent=0", "policy.autoscaling.queueDepth=4"),
    ],
)
def test_a_scaler_that_has_its_numbers_is_made(settings: tuple[str, ...]) -> None:
    objects = render(None, *settings)
    (scaler,) = of_kind(objects, "HorizontalPodAutoscaler")
    if {metric["type"] for metric in scaler["spec"]["metrics"]} == {"Resource"}:
        for container in named(objects, "Deployment", "accord-policy")["spec"]["template"]["spec"]["containers"]:
            assert "cpu" in {**container["resources"].get("limits", {}), **container["resources"].get("requests", {})}, container["name"]


def test_keda_s_scaler_by_depth_needs_no_cpu() -> None:
    keda = ("policy.autoscaling.keda=true", "policy.autoscaling.queueDepth=4", "policy.autoscaling.prometheus=http://prometheus:9090")
    assert of_kind(render(None, *ASKS_FOR_NO_CPU, *keda), "ScaledObject")
