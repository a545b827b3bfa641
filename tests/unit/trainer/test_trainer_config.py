"""Paths of the trainer's own YAML: a run begins in its own folder, and must find there what the trainer means."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from accord.artefacts.store import ArtefactStore
from accord.launch.local import LocalLauncher
from accord.rpc.config import parse_config
from accord.runspec import parse_spec
from accord.trainer.config import TrainerConfig
from accord.trainer.registry import Registry
from accord.trainer.supervisor import Supervisor

LOOK = """\
import json, sys
from pathlib import Path
from accord.artefacts.store import ArtefactStore
from accord.rundir import read_run_file
run = read_run_file(sys.argv[1])
print(json.dumps([ArtefactStore(run.artefacts).adapters(), Path(run.base_model).is_dir()]))
"""


def configure(**values: Any) -> TrainerConfig:
    return parse_config({"runs": "runs", "database": "sqlite:///registry.sqlite", "artefacts": "artefacts", **values}, TrainerConfig, source="x")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "models" / "llama").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("field", "given", "meant"),
    [
        ("runs", "runs", "{}/runs"),
        ("runs", "~/runs", "{}/home/runs"),
        ("runs", "/data/runs", "/data/runs"),
        ("artefacts", "kept/artefacts", "{}/kept/artefacts"),
        ("artefacts", "file://artefacts", "file://{}/artefacts"),
        ("artefacts", "file:///data/artefacts", "file:///data/artefacts"),
        ("artefacts", "s3://bucket/artefacts", "s3://bucket/artefacts"),
        ("base_model", "models/llama", "{}/models/llama"),
        ("base_model", "./models/other", "{}/models/other"),
        ("base_model", "embedded", "embedded"),
        ("base_model", "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("model_folder", "models/llama", "{}/models/llama"),
        ("model_folder", "", ""),
    ],
)
def test_a_relative_path_is_the_trainers_and_a_name_stays(here: Path, field: str, given: str, meant: str) -> None:
    assert getattr(configure(**{field: given}), field) == meant.format(here)


def test_certificates_for_the_runs_are_found_by_them(here: Path) -> None:
    tls = configure(endpoints={"tls": {"ca": "tls/ca.pem", "server_name": "accord"}}).endpoints.tls
    assert tls is not None
    assert (tls.ca, tls.cert, tls.server_name) == (here / "tls" / "ca.pem", None, "accord")


def test_a_run_sees_the_store_and_the_model_that_the_trainer_sees(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(base_model="models/llama")
    made = here / "made"
    made.mkdir()
    (made / "adapter_config.json").write_text("{}")
    ArtefactStore(config.artefacts).publish("known", made, kind="policy", step=1)
    monkeypatch.setenv("PYTHONPATH", str(Path(sys.modules["accord"].__path__[0]).parent))
    launcher, registry = LocalLauncher((sys.executable, "-c", LOOK), threads=1), Registry(config.database)
    directory = Path(config.runs) / "one"
    spec = parse_spec({"adapter": "a", "steps": 1, "sft": {"data": {"uri": "x"}}})
    registry.create("runs/one", "request", spec, str(directory))
    Supervisor(registry, launcher, config).tick()
    launcher._children[directory].wait(30)
    assert json.loads((here / "runs" / "one" / "log.txt").read_text()) == [["adapters/known"], True]
    registry.close()
