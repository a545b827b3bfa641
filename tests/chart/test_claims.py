"""Claims are made for what mounts them: on storage that waits for a first consumer any other stays unbound, and `helm install --wait` with it."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import yaml
from tests.chart.rendering import COMPONENTS, EXAMPLES, Object, case_id, of_kind, pods, render

SUBSETS = [subset for subset in product((True, False), repeat=4) if any(subset)]


def claimed(objects: list[Object]) -> set[str]:
    return {item["metadata"]["name"] for item in of_kind(objects, "PersistentVolumeClaim")}


def mounted(objects: list[Object]) -> set[str]:
    """By pods that are rendered, and by those of runs that the trainer would start."""
    found = {
        volume["persistentVolumeClaim"]["claimName"] for _, pod in pods(objects) for volume in pod["volumes"] if "persistentVolumeClaim" in volume
    }
    for item in of_kind(objects, "ConfigMap"):
        if item["metadata"]["name"] == "accord-trainer":
            jobs = yaml.safe_load(item["data"]["config.yaml"]).get("kubernetes", {"claims": []})
            found |= {mount["claim"] for mount in jobs["claims"]}
    return found


@pytest.mark.parametrize("subset", SUBSETS, ids=lambda subset: "-".join(name for name, there in zip(COMPONENTS, subset, strict=True) if there))
def test_a_claim_is_made_for_what_mounts_it_and_for_nothing_else(subset: tuple[bool, ...]) -> None:
    objects = render(None, *(f"{name}.enabled={str(there).lower()}" for name, there in zip(COMPONENTS, subset, strict=True)))
    assert claimed(objects) == mounted(objects) != set()


@pytest.mark.parametrize("case", EXAMPLES, ids=case_id)
def test_the_examples_make_the_claims_that_they_mount(case: Path) -> None:
    objects = render(case)
    existing = {claim["existingClaim"] for claim in (yaml.safe_load(case.read_text()).get("storage") or {}).values() if "existingClaim" in claim}
    assert claimed(objects) == mounted(objects) - existing != set()


def test_runs_in_the_trainer_s_pod_have_the_same_claims() -> None:
    objects = render(None, "trainer.launcher=local", "policy.enabled=false", "reward.enabled=false", "feedback.enabled=false")
    assert claimed(objects) == mounted(objects) == {"accord-models", "accord-artefacts", "accord-work", "accord-trainer"}
    stored_elsewhere = render(None, "artefacts.uri=s3://bucket/accord", "database.url=postgresql+psycopg://accord@db/accord")
    assert claimed(stored_elsewhere) == mounted(stored_elsewhere) == {"accord-models", "accord-work", "accord-feedback"}
