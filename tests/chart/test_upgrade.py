"""An upgrade from the last released chart: what Kubernetes refuses to change, and where the data lies, is as that chart had it.

There is no release yet: the only frozen file is of 0.1.0 before it is out, and `released: false` in it says so. It keeps 0.1.0 from drifting, and is
the first that later versions are held against (tools/chart_release.py). An upgrade on a cluster is in tests/cluster.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.rendering import EXAMPLES, ROOT, case_id, render

sys.path.insert(0, str(ROOT / "tools"))
from chart_release import RELEASED, chart_version, violations


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


FILES = sorted(RELEASED.glob("accord-*.yaml"), key=lambda path: _numbers(path.stem.removeprefix("accord-")))


def last() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILES[-1].read_text())
    return found


def test_the_frozen_charts_are_in_order_and_say_whether_they_are_out() -> None:
    frozen = [yaml.safe_load(path.read_text()) for path in FILES]
    assert len(frozen) >= 1
    assert [f"accord-{each['version']}.yaml" for each in frozen] == [path.name for path in FILES]
    assert all(each["released"] for each in frozen[:-1])
    assert _numbers(frozen[-1]["version"]) <= _numbers(chart_version())
    if not frozen[-1]["released"]:
        assert frozen[-1]["version"] == chart_version(), "a version that was never out is no chart to upgrade from: freeze today's"


@pytest.mark.parametrize("case", [None, *EXAMPLES], ids=case_id)
def test_an_upgrade_changes_nothing_that_must_stay(case: Path | None) -> None:
    frozen = last()["cases"].get(case_id(case))
    if frozen is None:
        pytest.skip(f"{case_id(case)} is newer than {last()['version']}, the last frozen chart")
    assert len([name for name in frozen if name.startswith("Deployment/")]) >= 2
    assert not violations(frozen, render(case))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("nameOverride=other", "fullnameOverride=accord"), "Deployment/accord-policy: selector was"),
        (("fullnameOverride=elsewhere",), "PersistentVolumeClaim/accord-artefacts is gone"),
        (("storage.work.size=1Gi",), "PersistentVolumeClaim/accord-work: resources was"),
        (("storage.models.accessMode=ReadWriteOnce",), "PersistentVolumeClaim/accord-models: accessModes was"),
        (("storage.artefacts.existingClaim=other",), "Deployment/accord-policy: claims was"),
    ],
)
def test_a_break_is_found_and_named(settings: tuple[str, ...], says: str) -> None:
    found = violations(last()["cases"]["default"], render(None, *settings))
    assert [text for text in found if text.startswith(says)], found


def test_more_room_and_other_replicas_are_no_break() -> None:
    assert not violations(
        last()["cases"]["default"], render(None, "storage.work.size=1Ti", "policy.replicas=3", "images.tag=9.9", "study.enabled=true")
    )
