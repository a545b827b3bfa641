"""deploy/compose.yaml on a Docker engine that may have no `docker compose`: each service is started as the file says, in a network of its own."""

from __future__ import annotations

import json
import re
import shutil
import time
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.release import ROOT, TAG, not_at_hand, run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]
SERVICES = ("policy", "reward", "feedback", "trainer")
HANDLED = {
    "init", "restart", "read_only", "user", "cap_drop", "security_opt", "stop_grace_period", "tmpfs", "networks", "image", "entrypoint", "command", "volumes",
    "depends_on", "healthcheck", "configs", "ports", "pull_policy",
}  # fmt: skip


class Stack:
    """The services of the file as containers of `docker run`; ports are not published, so that nothing of this machine is in the way."""

    def __init__(self, folder: Path) -> None:
        self.file: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
        self.name = f"accord-compose-{uuid.uuid4().hex[:8]}"
        self._folder = folder
        run("docker", "network", "create", self.name)

    def start(self, service: str, *, wait: bool = False) -> None:
        """Starts a service; with `wait` until it has ended well."""
        run("docker", "run", *([] if wait else ["--detach"]), *self._arguments(service), timeout=600)

    def call(self, service: str, *command: str, timeout: float = 800) -> str:
        """What a command in a service's container prints."""
        return run("docker", "exec", f"{self.name}-{service}", *command, timeout=timeout).stdout

    def logs(self, service: str) -> str:
        done = run("docker", "logs", "--tail", "20", f"{self.name}-{service}", check=False)
        return done.stdout + done.stderr

    def remove(self) -> None:
        for service in self.file["services"]:
            run("docker", "rm", "--force", "--volumes", f"{self.name}-{service}", check=False)
        for volume in self.file["volumes"]:
            run("docker", "volume", "rm", f"{self.name}-{volume}", check=False)
        run("docker", "network", "rm", self.name, check=False)

    def _arguments(self, service: str) -> list[str]:
        values = self.file["services"][service]
        assert set(values) <= HANDLED, set(values) - HANDLED
        entrypoint, *first = values.get("entrypoint") or [""]
        words = ["--name", f"{self.name}-{service}", "--network", self.name, "--network-alias", service, "--user", values["user"]]
        words += [f"--cap-drop={name}" for name in values["cap_drop"]] + [f"--security-opt={option}" for option in values["security_opt"]]
        words += ["--read-only"] * values["read_only"] + ["--init"] * values["init"] + [f"--tmpfs={each}" for each in values["tmpfs"]]
        words += [f"--volume={self.name}-{volume}" for volume in values.get("volumes", [])]
        for config in values.get("configs", []):
            file = self._folder / f"{config['source']}.yaml"  # where the engine sees it, which may not see this checkout
            shutil.copyfile(ROOT / "deploy" / self.file["configs"][config["source"]]["file"], file)
            words.append(f"--volume={file}:{config['target']}:ro")
        words += ["--entrypoint", entrypoint] if entrypoint else []
        return [*words, values["image"].replace("${TAG:-0.1.0}", TAG), *first, *values.get("command", [])]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if shutil.which("docker") is None or run("docker", "image", "inspect", f"accord/training:{TAG}", check=False).returncode != 0:
        not_at_hand(f"no Docker engine with the images accord/*:{TAG} is at hand; the compose file was not tried")
    made = Stack(tmp_path_factory.mktemp("compose"))
    try:
        made.start("model", wait=True)
        for service in SERVICES:
            made.start(service)
        yield made
    finally:
        made.remove()


def test_every_service_becomes_healthy(stack: Stack) -> None:
    for service in SERVICES:
        probe = stack.file["services"][service]["healthcheck"]["test"][1:]
        deadline = time.monotonic() + 600
        while run("docker", "exec", f"{stack.name}-{service}", *probe, check=False).returncode != 0:
            assert time.monotonic() < deadline, stack.logs(service)
            time.sleep(1)


def test_the_stack_generates_labels_trains_and_scores(stack: Stack) -> None:
    assert stack.call(
        "feedback", "accord", "generate", "Name a river.", "--max-tokens", "8", "--temperature", "0", "--policy", "policy:50051"
    ).strip()
    pair = ("--task", "conversation", "--prompt", "Name a river.", "--a", "The Danube.", "--b", "No.")
    assert json.loads(stack.call("feedback", "accord", "label", *pair, "--feedback", "feedback:50051", "--json"))
    small = ["steps=1", "batch_size=2", "micro_batch_size=1", "lora.rank=2", "max_prompt_tokens=256", "max_response_tokens=64", "checkpoint_every_steps=0",
             "eval_every_steps=0", "reward_model.eval_data=null", "reward_model.data.limit=4", 'parent_adapter=""', "adapter=compose"]  # fmt: skip
    settings = [word for setting in small for word in ("--set", setting)]
    run_of_a_step = json.loads(stack.call("feedback", "accord", "train", "reward-model", *settings, "--trainer", "trainer:50051", "--json"))
    assert run_of_a_step["state"] == "succeeded", run_of_a_step
    scored = stack.call("feedback", "accord", "score", "Name a river.", "The Danube.", "No.", "--reward-model", "adapters/compose", "--reward",
                        "reward:50051", "--json")  # fmt: skip
    assert json.loads(scored)


_INSIDE = """
import json, os, shutil
print(json.dumps({
    "user": os.getuid(),
    "read_only": bool(os.statvfs("/").f_flag & os.ST_RDONLY),
    "tools": [name for name in ("gcc", "cc", "ld", "make", "pip", "pip3", "apt", "apt-get", "perl") if shutil.which(name)],
}))
"""


@pytest.mark.parametrize("image", ["policy", "policy-proxy", "reward", "feedback", "trainer", "training"])
def test_an_image_runs_as_nobody_on_a_read_only_root_without_tools_and_says_what_it_is(stack: Stack, image: str) -> None:
    """Without a user or an entrypoint of ours; `stack` says whether there is an engine."""
    name = f"accord/{image}:{TAG}"
    said = run("docker", "run", "--rm", "--read-only", "--network", "none", "--entrypoint", "python", name, "-c", _INSIDE).stdout
    assert json.loads(said) == {"user": 65532, "read_only": True, "tools": []}
    (labels,) = [found["Config"]["Labels"] for found in json.loads(run("docker", "image", "inspect", name).stdout)]
    prefix = "org.opencontainers.image."
    assert labels[f"{prefix}title"] == f"accord-{image}"
    assert {labels[f"{prefix}version"], labels[f"{prefix}licenses"]} == {version(), "Apache-2.0"}
    assert re.fullmatch("[0-9a-f]{40}|unknown", labels[f"{prefix}revision"])
    assert labels[f"{prefix}base.name"]


def version() -> str:
    """The distribution's."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["version"])
