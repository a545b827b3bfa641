"""What the documents promise exists: commands, targets, recipes, files, and the Python example runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from accord.cli.app import GROUPS
from accord.client.endpoints import read_endpoints
from accord.feedback.config import FeedbackConfig
from accord.models.testing import tiny_model_folder
from accord.rpc.config import parse_config
from accord.study.recipe import load_recipe, shipped_recipes

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.contract.harness import ServerProcess

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    """The `accord` lines of the README, without comments."""
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("accord ")]


def test_the_readme_shows_enough_commands() -> None:
    assert len(commands()) >= 8


@pytest.mark.parametrize("command", commands(), ids=lambda command: " ".join(command[1:3]))
def test_each_command_of_the_readme_is_one_and_takes_its_options(command: list[str]) -> None:
    words = command[1:3] if command[1] in GROUPS else command[1:2]
    found = subprocess.run([sys.executable, "-m", "accord.cli", *words, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stderr
    for option in (word for word in command if word.startswith("--")):
        assert option in found.stdout, option


def test_the_endpoints_of_the_readme_are_endpoints(tmp_path: Path) -> None:
    (text,) = [block for block in blocks("yaml") if "shared_folder:" in block]
    (tls,) = re.findall(r"`(tls: \{ca: [^`]+\})`", README)
    (tmp_path / "endpoints.yaml").write_text(f"{text}\n{tls}\n", encoding="utf-8")
    found = read_endpoints(tmp_path / "endpoints.yaml")
    assert all((found.policy, found.reward, found.feedback, found.trainer, found.shared_folder))
    assert found.tls is not None
    assert found.tls.ca == tmp_path / "ca.crt"
    assert found.tls.server_name == "accord-policy.accord.svc"


def test_the_judges_of_the_readme_are_judges() -> None:
    (text,) = [block for block in blocks("yaml") if "prices:" in block]
    values = {"policy": "127.0.0.1:1", "ledger": "l", "jobs": "j", **yaml.safe_load(text)}
    config = parse_config(values, FeedbackConfig, source="README.md")
    assert set(config.named_judges) == {"default", "large", "ladder", "panel"}


def test_targets_that_the_documents_name_are_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {word for name in DOCUMENTS for word in re.findall(r"`?make ([a-z-]+)", (ROOT / name).read_text(encoding="utf-8"))}
    assert {"demo", "test", "setup", "study", "bench"} <= named
    assert named <= targets | {"x"}, named - targets
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE).group(1).split())  # type: ignore[union-attr]
    assert targets <= phony


def test_ci_runs_what_the_readme_names() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test" in blocks("sh")[0]
    assert "make demo" in blocks("sh")[0]


def test_files_that_the_documents_name_are_there() -> None:
    named = {path for name in DOCUMENTS for path in re.findall(r"\b((?:services|protos|docs|tools|tests)/[\w./-]+\.\w+)", (ROOT / name).read_text())}
    assert len(named) >= 3
    assert not [path for path in named if not (ROOT / path).exists()]


def test_rooms_of_the_architecture_are_all_packages_there_are() -> None:
    rooms = set(re.findall(r"`(\w+)/`", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")))
    packages = {path.parent.name for path in (ROOT / "services" / "accord").glob("*/__init__.py")}
    assert packages <= rooms, packages - rooms


def test_every_shipped_study_recipe_loads() -> None:
    assert len([load_recipe(name) for name in shipped_recipes()]) == 4


@pytest.fixture
def policy(tmp_path: Path) -> Iterator[ServerProcess]:
    folder = tiny_model_folder(tmp_path / "model")
    config = {"base_model": str(folder), "artefacts": str(tmp_path / "artefacts"), "threads": 1}
    with ServerProcess("accord.policy", config, tmp_path) as server:
        yield server


def test_the_python_example_runs(policy: ServerProcess) -> None:
    (example,) = blocks("python")
    assert "127.0.0.1:50051" in example
    code = example.replace("127.0.0.1:50051", policy.address)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() or done.stdout == "\n"
