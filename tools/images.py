"""Builds the images and says how large they are.

python tools/images.py build [IMAGE...]    # with IMAGE_BUILD (default: docker build), TAG, TORCH, PYTHON_IMAGE, SOURCE from the environment
python tools/images.py sizes               # fails where one is larger than it may be
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = "deploy/images/Dockerfile"
LIMITS = {"policy": 1600, "policy-proxy": 300, "reward": 1600, "feedback": 300, "trainer": 300, "training": 1600}
"""Most MB of each image with torch's CPU build; a CUDA build is several GB, which nobody can help."""
_ENGINE = {"DOCKER_BUILDKIT": "1", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
"""BuildKit's mounts are needed; attestations would make an index of each image, which `kind load` does not take from a containerd image store."""
_PASSED = ("PYTHON_IMAGE", "TORCH", "SOURCE", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL")


def version() -> str:
    """The version of the distribution."""
    line = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version"))
    return line.split('"')[1]


def tag() -> str:
    """The tag of all images: TAG, else the version."""
    return os.environ.get("TAG") or version()


def command(image: str, builder: list[str]) -> list[str]:
    """How an image is built. A builder that is not docker itself gets docker's arguments behind a `--`."""
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    arguments = ["--build-arg", f"REVISION={revision}", "--build-arg", f"VERSION={version()}"]
    own = builder[0].endswith("docker")
    given = {name: os.environ[name] for name in _PASSED if os.environ.get(name) and (own or not name.startswith("PIP_"))}
    if "PIP_FIND_LINKS" in given:
        folder, given["PIP_FIND_LINKS"] = wheels(given["PIP_FIND_LINKS"].split())
        arguments += ["--build-context", f"wheels={folder}"] if folder else []
    for name, value in given.items():
        arguments += ["--build-arg", f"{name}={value}"]
    return [*builder, "--file", DOCKERFILE, "--target", image, "--tag", f"accord/{image}:{tag()}", ".", *([] if own else ["--"]), *arguments]


def wheels(places: list[str]) -> tuple[str, str]:
    """The folder of this machine among pip's places, "" where there is none, and the places as the build sees them: the folder is /wheels there."""
    folders = [place for place in places if Path(place).is_dir()]
    if len(folders) > 1:
        raise SystemExit(f"PIP_FIND_LINKS names {len(folders)} folders of this machine; an image's build takes one: {', '.join(folders)}")
    return "".join(folders), " ".join("/wheels" if place in folders else place for place in places)


def build(images: list[str]) -> None:
    """Builds some images, all where none is named."""
    builder = shlex.split(os.environ.get("IMAGE_BUILD", "docker build"))
    for image in images or list(LIMITS):
        if image not in LIMITS:
            raise SystemExit(f"there is no image {image}; there are {', '.join(LIMITS)}")
        done = subprocess.run(command(image, builder), cwd=ROOT, env={**os.environ, **_ENGINE}, check=False)
        if done.returncode:
            raise SystemExit(f"{image} could not be built")


def size_megabytes(image: str) -> float:
    """The size of an image, its base included, in MB (10^6 bytes), as the engine reports it."""
    query = ["docker", "image", "inspect", "--format", "{{.Size}}", f"accord/{image}:{tag()}"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"accord/{image}:{tag()} is not there: {done.stderr.strip()}; run make images")
    return int(done.stdout) / 1e6


def sizes() -> None:
    """Prints the sizes; stops where one is above its limit."""
    found = {image: size_megabytes(image) for image in LIMITS}
    for image, megabytes in found.items():
        print(f"accord/{image}:{tag()}  {megabytes:7.0f} MB of at most {LIMITS[image]}")
    large = [image for image, megabytes in found.items() if megabytes > LIMITS[image]]
    if large and os.environ.get("TORCH", "cpu") == "cpu":
        raise SystemExit(f"too large: {', '.join(large)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["build"]:
        build(sys.argv[2:])
    elif sys.argv[1:] == ["sizes"]:
        sizes()
    else:
        raise SystemExit("usage: python tools/images.py build [IMAGE...] | sizes")
