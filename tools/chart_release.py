"""What an upgrade of the chart must not change, frozen for each released version, and what a chart of today would change of it.

python tools/chart_release.py freeze    # at a release: writes tests/golden/released/accord-VERSION.yaml from the chart as it is

Kubernetes refuses an upgrade that changes such a field, and a claim under another name or at another path leaves the data behind. A frozen file is
never rewritten for a version that is out. What does not belong here: upgrading a release on a cluster (tests/cluster).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from chart import CHART, find  # noqa: E402

RELEASED = ROOT / "tests" / "golden" / "released"
Object = dict[str, Any]
Frozen = dict[str, Any]
_FIELDS = {
    "Deployment": ("selector",),
    "StatefulSet": ("selector", "serviceName", "volumeClaimTemplates", "podManagementPolicy"),
    "PersistentVolumeClaim": ("accessModes", "storageClassName", "volumeName", "volumeMode", "resources"),
    "PodDisruptionBudget": ("selector",),
}
"""Fields of `spec` that the API refuses to change (of a claim: but for a larger size; a budget's selector since policy/v1 only if it is replaced)."""


def immutable(objects: list[Object]) -> dict[str, Frozen]:
    """By `Kind/name` what must stay: immutable fields, a Service's being headless, a binding's role, and where claims are mounted."""
    found: dict[str, Frozen] = {}
    for item in objects:
        kind, spec = item["kind"], item.get("spec", {})
        kept: Frozen = {name: spec[name] for name in _FIELDS.get(kind, ()) if name in spec}
        if kind == "Service":
            kept = {"headless": spec.get("clusterIP") == "None", "type": spec.get("type", "ClusterIP"), "ports": _ports(spec)}
        elif kind == "RoleBinding":
            kept = {"roleRef": item["roleRef"]}
        if kind in ("Deployment", "StatefulSet"):
            kept["claims"] = _claims(spec["template"]["spec"])
        if kept:
            found[f"{kind}/{item['metadata']['name']}"] = kept
    return found


def _ports(spec: Object) -> dict[str, int]:
    return {port["name"]: port["port"] for port in spec["ports"]}


def _claims(pod: Object) -> dict[str, list[str]]:
    """Where each claim is mounted: paths below are in the registry, in manifests and in run files."""
    claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume}
    mounts: dict[str, list[str]] = {claim: [] for claim in claims.values()}
    for container in pod["containers"]:
        for mount in container["volumeMounts"]:
            if mount["name"] in claims:
                mounts[claims[mount["name"]]].append(f"{mount['mountPath']}:{mount.get('subPath', '')}")
    return {claim: sorted(set(paths)) for claim, paths in mounts.items()}


def violations(frozen: dict[str, Frozen], objects: list[Object]) -> list[str]:
    """Sentences on what an upgrade from the frozen chart to these objects would break; none where it may be done."""
    now, said = immutable(objects), []
    for name, before in frozen.items():
        if name not in now:
            if name.startswith("PersistentVolumeClaim/"):
                said.append(f"{name} is gone: what is on it would be left behind")
            continue
        for field, value in before.items():
            after = now[name].get(field)
            if after != value and not (field == "resources" and _larger(value, after)):
                said.append(f"{name}: {field} was {value}, is {after}")
    return said


def _larger(before: Object, after: Object | None) -> bool:
    """Whether a claim only grew."""
    return after is not None and _bytes(after["requests"]["storage"]) >= _bytes(before["requests"]["storage"])


def _bytes(quantity: str) -> float:
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    for unit, factor in units.items():
        if quantity.endswith(unit):
            return float(quantity.removesuffix(unit)) * factor
    return float(quantity)


def cases() -> dict[str, list[str]]:
    """What is frozen: the chart's defaults and every example, by name, as options of helm."""
    files = sorted((ROOT / "deploy" / "examples").glob("*-values.yaml"))
    return {"default": [], **{file.stem.removesuffix("-values"): ["--values", str(file)] for file in files}}


def chart_version() -> str:
    """The version of the chart as it is."""
    return str(yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["version"])


def freeze() -> None:
    """Writes the file of the chart's version; one that is there stays, unless it says that the version is not released.

    Raises:
        SystemExit: the version is released, or helm is not at hand.
    """
    path, helm = RELEASED / f"accord-{chart_version()}.yaml", find("helm")
    if path.exists() and yaml.safe_load(path.read_text(encoding="utf-8"))["released"]:
        raise SystemExit(f"{path.name} is of a version that is out; raise the version in Chart.yaml first")
    if helm is None:
        raise SystemExit("helm is not at hand: run make chart-tools")
    found: dict[str, Any] = {"version": chart_version(), "released": False, "cases": {}}
    for name, options in cases().items():
        command = [helm, "template", "accord", str(CHART), "--namespace", "accord", "--kube-version", "1.31", *options]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found["cases"][name] = immutable([item for item in yaml.safe_load_all(text) if item])
    header = "# Written by tools/chart_release.py freeze. At a release, released becomes true, and the file is never written again.\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header + yaml.safe_dump(found, sort_keys=True, width=160), encoding="utf-8")


if __name__ == "__main__":
    {"freeze": freeze}[sys.argv[1] if len(sys.argv) > 1 else "freeze"]()
