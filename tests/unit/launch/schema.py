"""Kubernetes objects against the official client's model classes, strictly: an unknown field, a wrong type or a missing field fails."""

from __future__ import annotations

import json
from typing import Any

from kubernetes.client import ApiClient

CLASSES = {"Job": "V1Job", "ConfigMap": "V1ConfigMap", "Service": "V1Service", "JobTemplate": "V1JobTemplateSpec"}


def check(manifest: dict[str, Any], kind: str = "") -> None:
    """What the model classes keep of the object must be all of it."""
    client = ApiClient()
    found = client.deserialize(json.dumps(manifest), CLASSES[kind or manifest["kind"]], "application/json")
    kept = client.sanitize_for_serialization(found)
    assert kept == manifest, difference(manifest, kept)


def difference(given: Any, kept: Any, path: str = "") -> str:
    """The first place at which two objects differ."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for name in given:
            if given[name] != kept.get(name):
                return difference(given[name], kept.get(name), f"{path}.{name}")
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return next(
            difference(mine, theirs, f"{path}[{index}]") for index, (mine, theirs) in enumerate(zip(given, kept, strict=True)) if mine != theirs
        )
    return f"{path}: {given!r} is not {kept!r}"
