"""Two releases in a namespace, of the trainer alone: they share nothing, and one that would take the other's names is refused."""

from __future__ import annotations

import pytest
from tests.cluster.release import CHART_ARGUMENTS, WAIT, Release

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
OFF = tuple(f"{name}.enabled=false" for name in ("policy", "reward", "feedback"))


def test_two_releases_in_a_namespace_share_nothing_and_one_name_is_refused(release: Release) -> None:
    release.install(*OFF)
    off = [word for setting in OFF for word in ("--set", setting)]
    refused = release.helm("install", "other", *CHART_ARGUMENTS, *off, "--set", "fullnameOverride=accord", check=False)
    assert refused.returncode != 0
    assert "invalid ownership metadata" in refused.stderr
    assert 'must equal "other": current value is "accord"' in refused.stderr
    before = release.objects()
    release.helm("install", "other", *CHART_ARGUMENTS, *off, *WAIT, timeout=960)
    assert {"deployment.apps/other-accord-trainer", "role.rbac.authorization.k8s.io/other-accord-trainer"} <= release.objects() - before
    release.helm("uninstall", "other", "--wait", "--timeout", "300s", timeout=360)
    mine = [f"pvc/other-accord-{name}" for name in ("models", "artefacts", "work", "trainer")]
    release.kubectl("delete", *mine)
    release.until_only(before)
