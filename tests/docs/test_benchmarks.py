"""What `make bench` runs: every benchmark, every part of the training one once, no two write the same file, and all run though one fails."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_run", ROOT / "benchmarks" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands() -> list[str]:
    script = run_script()
    return [*script.OWN, *script.PEERS, *script.LONG]


def parts_of_training() -> list[str]:
    tree = ast.parse((ROOT / "benchmarks" / "training.py").read_text(encoding="utf-8"))
    (value,) = (each.value for each in tree.body if isinstance(each, ast.Assign) and getattr(each.targets[0], "id", "") == "PARTS")
    return list(ast.literal_eval(value))


def test_every_benchmark_is_run() -> None:
    there = {path.name for path in (ROOT / "benchmarks").glob("*.py") if "options_of(__doc__)" in path.read_text(encoding="utf-8")}
    assert len(there) > 6
    assert {command.split()[0] for command in commands()} == there


def test_every_part_of_the_training_benchmark_is_run_once() -> None:
    asked = [command.split()[-1].split(",") for command in commands() if command.startswith("training.py --only ")]
    assert sorted(part for parts in asked for part in parts) == sorted(parts_of_training())
    assert "training.py --only ppo" in run_script().PEERS, "TRL's PPO has an environment of its own"


def test_commands_have_files_of_their_own() -> None:
    script = run_script()
    assert len({script.file_stem(command) for command in commands()}) == len(commands())
    assert script.file_stem("training.py --only dpo,sft") == "training-dpo-sft"


def test_all_of_a_set_run_though_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a target names, in its order; the table and the exit code come of all."""
    script, ran = run_script(), []

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        ran.append(Path(command[1]).name)
        Path(command[-1]).write_text(json.dumps({"title": ran[-1], "machine": {}, "figures": []}), encoding="utf-8")
        return SimpleNamespace(returncode=3 if ran[-1] == "services.py" else 0)

    monkeypatch.setattr(script, "FOLDER", tmp_path)
    monkeypatch.setattr(script.subprocess, "run", run)
    assert script.main(["--own"]) == 3
    assert ran == [command.split()[0] for command in script.OWN]
    assert all(f"## {name}" in (tmp_path / "figures.md").read_text(encoding="utf-8") for name in ran)
    ran.clear()
    script.main([])
    assert ran == [command.split()[0] for command in commands()]
