"""What `make bench` and `make bench-peers` run: every benchmark of minutes, every part of the training one once, and no two write the same file."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
BY_NAME = {"reward_model.py", "learning.py"}
"""Those that train for a quarter of an hour and more."""


def run_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_run", ROOT / "benchmarks" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def peers() -> list[str]:
    (line,) = re.findall(r"^bench-peers:.*\n\t\$\(PY\) benchmarks/run\.py (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return shlex.split(line)


def parts_of_training() -> list[str]:
    tree = ast.parse((ROOT / "benchmarks" / "training.py").read_text(encoding="utf-8"))
    (value,) = (each.value for each in tree.body if isinstance(each, ast.Assign) and getattr(each.targets[0], "id", "") == "PARTS")
    return list(ast.literal_eval(value))


def test_every_benchmark_has_a_target_or_a_name_of_its_own() -> None:
    commands = [*run_script().BENCHMARKS, *peers()]
    there = {path.name for path in (ROOT / "benchmarks").glob("*.py") if "options_of(__doc__)" in path.read_text(encoding="utf-8")}
    assert len(there) > 6
    assert {command.split()[0] for command in commands} == there - BY_NAME
    said = (ROOT / "benchmarks" / "run.py").read_text(encoding="utf-8").split('"""')[1]
    assert all(name in said for name in BY_NAME)


def test_every_part_of_the_training_benchmark_is_run_once() -> None:
    asked = [command.split()[-1].split(",") for command in [*run_script().BENCHMARKS, *peers()] if command.startswith("training.py --only ")]
    assert sorted(part for parts in asked for part in parts) == sorted(parts_of_training())
    assert ["ppo"] in asked, "TRL's PPO is installed by make bench-peers alone"


def test_commands_have_files_of_their_own() -> None:
    script = run_script()
    commands = [*script.BENCHMARKS, *peers()]
    assert len({script.file_stem(command) for command in commands}) == len(commands)
    assert script.file_stem("training.py --only dpo,sft") == "training-dpo-sft"
