"""What goes into the images: targets, locks, the compose file. Building them is `make images`, their sizes `make image-sizes`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from accord.rpc.config import parse_config
from accord.workspace.configuration import CONFIG_CLASSES

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "deploy" / "images" / "Dockerfile").read_text()
TARGETS = ("policy", "policy-proxy", "reward", "feedback", "trainer", "training")


def entries(path: Path) -> dict[str, str]:
    """Package to the text of its entry, hashes included."""
    found = re.findall(r"^([\w.\-\[\]]+)==(.*?)(?=^\S|\Z)", path.read_text(), re.MULTILINE | re.DOTALL)
    return dict(found)


def test_each_service_and_the_runs_have_a_target_that_runs_as_nobody() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert set(TARGETS) <= {name for _, name in stages}
    assert {source for source, _ in stages} <= {"${PYTHON_IMAGE}", "scratch"} | {name for _, name in stages}
    runtime = DOCKERFILE.split(" AS runtime\n")[1]
    assert "USER 65532:65532" in runtime.split("FROM ")[0]
    assert "USER" not in runtime.split("USER 65532:65532", 1)[1]
    for name in TARGETS:
        assert f'LABEL org.opencontainers.image.title="accord-{name}" org.opencontainers.image.description="' in DOCKERFILE
    assert "syntax=" not in DOCKERFILE
    assert "ARG PYTHON_IMAGE=python:3.11-slim\n" in DOCKERFILE


@pytest.mark.parametrize("name", ["policy-proxy", "feedback", "trainer", "compute", "training"])
def test_an_image_holds_what_is_locked_and_control_images_no_torch(name: str) -> None:
    main, own = entries(ROOT / "requirements.lock"), entries(ROOT / "deploy" / "images" / f"{name}.lock")
    assert len(own) > 20
    assert {package: text for package, text in own.items() if main.get(package) != text} == {}
    assert all("--hash=sha256:" in text for text in own.values())
    assert not {"torch", "pytest", "trl", "ruff", "mypy"} & set(own)
    if name in ("feedback", "trainer"):
        assert not {"numpy", "transformers", "pyarrow", "pandas", "matplotlib"} & set(own)


def test_the_compose_file_configures_services_as_they_want_it() -> None:
    stack = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    for name in ("policy", "reward", "feedback", "trainer"):
        service = stack["services"][name]
        assert service["read_only"] is True
        assert service["user"] == "65532:65532"
        assert service["cap_drop"] == ["ALL"]
        assert service["pull_policy"] == "never"
        assert service["image"].split(":")[0].removeprefix("accord/") in TARGETS
        assert [port.startswith("127.0.0.1:") for port in service["ports"]] == [True]
        (given,) = service["configs"]
        assert set(stack["configs"][given["source"]]) == {"file"}, "Compose writes no text into a service whose root is read-only"
        text = (ROOT / "deploy" / stack["configs"][given["source"]]["file"]).read_text()
        config = parse_config(yaml.safe_load(text), CONFIG_CLASSES[name], source=name)  # type: ignore[index]
        assert config.server.listen == "0.0.0.0:50051"  # type: ignore[attr-defined]
        assert int(service["stop_grace_period"].removesuffix("s")) >= config.server.drain_seconds + 10  # type: ignore[attr-defined]
        assert getattr(config, "stop_runs", False) is (name == "trainer"), "its runs end with its container"
        volumes = {volume.split(":")[0] for volume in service["volumes"]}
        assert volumes <= set(stack["volumes"])


def test_builders_are_called_with_what_they_understand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", f"https://example.org/wheels {tmp_path}")
    monkeypatch.setenv("TAG", "7")
    code = "import sys; sys.path.insert(0, 'tools'); import images; print(*images.command('policy', sys.argv[1:]))"
    said = [
        subprocess.run([sys.executable, "-c", code, *builder], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for builder in (["docker", "build"], ["other", "build"])
    ]
    assert "--target policy --tag accord/policy:7 . --build-arg REVISION=" in said[0]
    assert f"--build-context wheels={tmp_path} --build-arg PIP_FIND_LINKS=https://example.org/wheels /wheels" in said[0]
    assert "--build-arg VERSION=0.1.0" in said[0]
    assert ". -- --build-arg REVISION=" in said[1]
    assert "PIP_FIND_LINKS" not in said[1]
    assert "wheels" not in said[1]


def test_two_folders_of_wheels_are_one_too_many_for_a_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path} {tmp_path / 'more'}")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.path.insert(0, 'tools'); import images; images.command('policy', ['docker', 'build'])"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("PIP_FIND_LINKS names 2 folders of this machine; an image's build takes one")


@pytest.mark.parametrize(
    ("step", "said"),
    [(("torch", "cuda"), "no such lock"), (("locks", "not-there@one"), "one names no package not-there")],
)  # fmt: skip
def test_a_step_of_the_installer_that_fails_ends_it(tmp_path: Path, step: tuple[str, ...], said: str) -> None:
    """A build would keep the layer of a failed step that ends well."""
    (tmp_path / "one").write_text("other==1\n")
    (tmp_path / "python").write_text('#!/bin/sh\ncase "$*" in *--require-hashes*torch.lock*) echo "no such lock" >&2; exit 1 ;; esac\n')
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run(
        ["sh", str(ROOT / "deploy" / "images" / "install.sh"), *step], cwd=tmp_path, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert said in done.stderr


def test_scripts_are_shell_that_parses() -> None:
    scripts = sorted((ROOT / "deploy").glob("**/*.sh"))
    assert len(scripts) >= 3
    for script in scripts:
        assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0, script
