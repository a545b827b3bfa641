"""An engine beside the policy service: which of the two stops first, and what a scaler needs of both."""

from __future__ import annotations

import re
import socket
import subprocess
import sys

import pytest
from tests.chart.rendering import ROOT, Object, named, render

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
