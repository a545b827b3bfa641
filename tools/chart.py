"""Writes the generated files of charts/accord, checks that they are fresh, and finds the programs that charts need.

python tools/chart.py write    # values.yaml, values.schema.json, README.md out of tools/chart_values.py
python tools/chart.py check    # fresh, hadolint; the rest is tests/chart
python tools/chart.py tools    # helm, kubectl and hadolint into build/tools
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
sys.path.insert(0, str(ROOT / "services"))
from chart_values import CONFIGS, OWNED, Values  # noqa: E402

CHART = ROOT / "charts" / "accord"
TOOLS = ROOT / "build" / "tools"
_WIDTH = 160


def schema() -> dict[str, Any]:
    """The JSON schema of the values; a service's config is the schema of its own model, without what the chart sets."""
    found = Values.model_json_schema(by_alias=True)
    for definition in found["$defs"].values():
        definition.pop("description", None)
    for name, keys in OWNED.items():
        definition = found["$defs"][name]
        for key in keys:
            definition["properties"].pop(key, None)
        definition["required"] = [key for key in definition.get("required", []) if key not in keys]
    for component in CONFIGS:
        found["$defs"][component.capitalize()]["properties"]["config"]["default"] = {}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "accord", "description": "Values of the chart accord"}


def defaults(model: type[BaseModel] = Values) -> dict[str, Any]:
    """The default values by the keys of values.yaml."""
    values: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        key = field.alias or name
        value = field.get_default(call_default_factory=True)
        if name == "config":
            values[key] = {}
        elif name != "global_":
            values[key] = value.model_dump(by_alias=True, mode="json") if isinstance(value, BaseModel) else value
            if isinstance(value, BaseModel) and "config" in type(value).model_fields:
                values[key]["config"] = {}
    return values


def values_yaml() -> str:
    """values.yaml, each key under its description."""
    header = "# Written by `make chart` from tools/chart_values.py; README.md has the same as a table. `config` is a service's own YAML.\n"
    return header + "\n".join(_commented(Values, Values(), 0)) + "\n"


def _commented(model: type[BaseModel], value: BaseModel, depth: int) -> list[str]:
    lines: list[str] = []
    for name, field in model.model_fields.items():
        if name == "global_":
            continue
        pad, key, now = "  " * depth, field.alias or name, getattr(value, name)
        text = field.description or (type(now).__doc__ if isinstance(now, BaseModel) else "")
        if text:
            lines.append(f"{pad}# {text}")
        if isinstance(now, BaseModel) and name != "config":
            lines += [f"{pad}{key}:", *_commented(type(now), now, depth + 1)]
        else:
            lines.append(f"{pad}{key}: {json.dumps({} if name == 'config' else now)}")
        if depth == 0:
            lines.append("")
    return lines


def readme() -> str:
    """The chart's README: how to install, and every value."""
    rows = [f"| `{key}` | `{default}` | {text} |" for key, default, text in _rows(Values, Values(), "")]
    head = (CHART / "README.head.md").read_text(encoding="utf-8")
    return head + "\n".join(["| value | default | what it is |", "|---|---|---|", *rows]) + "\n"


def _rows(model: type[BaseModel], value: BaseModel, prefix: str) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for name, field in model.model_fields.items():
        now, key = getattr(value, name), f"{prefix}{field.alias or name}"
        if name == "global_":
            continue
        if isinstance(now, BaseModel) and name != "config":
            rows += _rows(type(now), now, f"{key}.")
        else:
            rows.append((key, json.dumps({} if name == "config" else now), (field.description or "").replace("|", "\\|")))
    return rows


def generated() -> dict[Path, str]:
    """Every generated file with its text."""
    return {
        CHART / "values.schema.json": json.dumps(schema(), indent=1, sort_keys=True) + "\n",
        CHART / "values.yaml": values_yaml(),
        CHART / "README.md": readme(),
    }


def write() -> None:
    """Writes the generated files."""
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")


def check() -> None:
    """Stops where a generated file is stale, values.yaml is not what the models say, or hadolint finds something."""
    stale = [path.name for path, text in generated().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if stale:
        raise SystemExit(f"{', '.join(stale)} of charts/accord is stale: run make chart")
    if yaml.safe_load(values_yaml()) != defaults():
        raise SystemExit("values.yaml does not say what the models say")
    Values.model_validate({key: value for key, value in defaults().items() if key not in CONFIGS})
    linter = find("hadolint")
    if linter is None:
        raise SystemExit("hadolint is not at hand: run make chart-tools")
    subprocess.run([linter, str(ROOT / "deploy" / "images" / "Dockerfile")], check=True)
    print("chart: generated files are fresh; the Dockerfile is clean")


def find(program: str) -> str | None:
    """The path of helm, kubectl or hadolint: of build/tools, else of the PATH; None where there is none."""
    own = TOOLS / "bin" / program
    return str(own) if own.exists() else shutil.which(program)


def tools() -> None:
    """Installs the programs of requirements-tools.lock into build/tools; python packages lie beside them."""
    lock = ROOT / "requirements-tools.lock"
    if (TOOLS / "installed.lock").exists() and (TOOLS / "installed.lock").read_text() == lock.read_text():
        return
    shutil.rmtree(TOOLS, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--target", str(TOOLS), "-r", str(lock)]
    subprocess.run(command, check=True)
    (package,) = TOOLS.glob("aws_cdk/**/*.jsii.tgz")  # a library for another language, which holds the official binaries
    with tarfile.open(package) as archive, zipfile.ZipFile(io.BytesIO(_member(archive, "package/lib/layer.zip"))) as layer:
        for program in ("helm", "kubectl"):
            (TOOLS / "bin" / program).write_bytes(layer.read(f"{program}/{program}"))
            os.chmod(TOOLS / "bin" / program, 0o755)
    shutil.rmtree(TOOLS / "aws_cdk")
    (TOOLS / "installed.lock").write_text(lock.read_text())


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()


if __name__ == "__main__":
    {"write": write, "check": check, "tools": tools}[sys.argv[1] if len(sys.argv) > 1 else "check"]()
