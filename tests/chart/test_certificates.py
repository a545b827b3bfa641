"""The certificate of the example of mutual TLS has each name that a client of the release asks for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import yaml
from tests.chart.rendering import ROOT, Object, of_kind, pods, render, run_helm

MUTUAL = ROOT / "deploy" / "examples" / "mtls-values.yaml"


def texts(value: Any) -> Iterator[str]:
    """Every string of a document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts(part)


def asked_for(objects: list[Object]) -> set[str]:
    """Hosts of addresses in the configuration of services, runs and clients, and the names that probes expect."""
    documents = [yaml.safe_load(text) for item in of_kind(objects, "ConfigMap") for text in item["data"].values()]
    hosts = {text.removeprefix("dns:///").removesuffix(":50051") for text in texts(documents) if text.endswith(":50051")}
    for _, pod in pods(objects):
        for container in pod["containers"]:
            words = container.get("readinessProbe", {}).get("exec", {}).get("command", [])
            hosts |= {name for option, name in pairwise(words) if option == "--server-name"}
            hosts |= {word.removeprefix("dns:///").removesuffix(":50051") for word in " ".join(container.get("args", [])).split() if ":50051" in word}
    return hosts - {"0.0.0.0"}


@pytest.mark.parametrize("domain", ["", "cluster.local", "corp.example"])
def test_the_certificate_of_the_example_has_every_name_that_is_asked_for(domain: str) -> None:
    objects = render(MUTUAL, f"clusterDomain={domain}")
    (certificate,) = [item for item in of_kind(objects, "Certificate") if item["metadata"]["name"] == "accord"]
    names = certificate["spec"]["dnsNames"]
    asked = asked_for(objects)
    assert len(asked) == (8 if domain else 6)
    assert asked <= set(names)
    assert len(set(names)) == len(names)


def test_the_name_that_the_notes_give_to_clients_outside_is_in_the_certificate() -> None:
    objects = render(MUTUAL, "clusterDomain=corp.example")
    (certificate,) = [item for item in of_kind(objects, "Certificate") if item["metadata"]["name"] == "accord"]
    notes = run_helm("install", "accord", str(ROOT / "charts" / "accord"), "--dry-run=client", "--namespace", "accord", "--values", str(MUTUAL))
    assert notes.returncode == 0, notes.stderr
    name = notes.stdout.split("--tls-server-name ")[1].split()[0]
    assert name in certificate["spec"]["dnsNames"]
