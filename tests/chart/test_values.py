"""Values that are wrong stop `helm install` in a sentence that names them; generated files are fresh; rendered objects are as they were."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.chart.rendering import CHART, CI, EXAMPLES, ROOT, case_id, named, refused, render, run_helm


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("policy.replicsa=2", "replicsa"),
        ("policy.config.max_batch_row=2", "max_batch_row"),
        ("policy.config.server.listen=0.0.0.0:1", "listen"),
        ("trainer.config.max_running=many", "max_running"),
        ("reward.config.threads=0", "threads"),
        ("feedback.replicas=2", "replicas"),
        ("images.tag=latest", "tag"),
        ("database.url=postgresql+psycopg://accord:secret@db/accord", "url"),
        ("policy.gpu.count=-1", "count"),
        ("networkPolicy.egress.polcy[0].ports[0].port=5", "polcy"),
        ("trainer.config.kubernetes.image=x:1", "image"),
        ("trainer.config.kubernetes.kinds.pppo.gpus=1", "pppo"),
        ("tls.enabled=true", "tls.secret is required with tls.enabled"),
        ("policy.engine.enabled=true", "policy.engine.image is required"),
        ("policy.engine.image=vllm/vllm-openai:latest", "/policy/engine/image"),
        ("policy.engine.image=registry:5000/vllm-openai", "/policy/engine/image"),
        ("fullnameOverride=a-name-that-is-a-good-deal-longer-than-forty", "fullnameOverride"),
    ],
)
def test_a_wrong_value_is_refused_by_name(setting: str, says: str) -> None:
    assert says in refused(setting)


def test_a_scaler_that_cannot_work_is_refused() -> None:
    for setting in ("policy", "reward"):
        on = f"{setting}.autoscaling.enabled=true"
        assert f"{setting}.autoscaling needs a target: set cpuPercent or queueDepth above 0" in refused(on, f"{setting}.autoscaling.cpuPercent=0")
        for by in ("queueDepth=4", "keda=true"):
            assert f"{setting}.autoscaling by queueDepth needs metrics.enabled" in refused(on, f"{setting}.autoscaling.{by}", "metrics.enabled=false")
    assert "at most maxReplicas (2) is allowed" in refused(
        "policy.autoscaling.enabled=true", "policy.autoscaling.minReplicas=3", "policy.autoscaling.maxReplicas=2"
    )
    assert "queueDepth must be at least 1 with keda" in refused("policy.autoscaling.enabled=true", "policy.autoscaling.keda=true")


@pytest.mark.parametrize("component", ["feedback", "trainer"])
def test_a_scaler_of_what_has_one_replica_is_refused(component: str) -> None:
    assert f"{component}.autoscaling.enabled must be false" in refused(f"{component}.autoscaling.enabled=true")


def test_a_monitor_of_metrics_that_are_off_is_refused() -> None:
    assert "metrics.serviceMonitor.enabled needs metrics.enabled" in refused("metrics.serviceMonitor.enabled=true", "metrics.enabled=false")


@pytest.mark.parametrize("kind", ["defaults", "kinds.dpo"])
def test_runs_over_several_nodes_that_the_role_would_not_allow_are_refused(kind: str) -> None:
    setting = f"trainer.config.kubernetes.{kind}.nodes=2"
    assert f"has 2 nodes for {kind.removeprefix('kinds.')}" in refused(setting)
    assert render(None, setting, "trainer.severalNodes=true")


def test_a_release_name_that_cannot_begin_the_name_of_a_service_is_refused_for_several_nodes() -> None:
    """Objects of runs are named after the release, whatever fullnameOverride says."""
    assert 'the release name "7b" begins the names of Services' in refused("trainer.severalNodes=true", "fullnameOverride=accord", release="7b")
    assert render(None, "fullnameOverride=accord", release="7b")


def test_settings_of_jobs_without_jobs_are_refused() -> None:
    assert "is of no use with trainer.launcher local" in refused("trainer.launcher=local", "trainer.config.kubernetes.ttl_seconds=1")


def test_a_secret_of_one_s_own_where_runs_have_the_certificates_is_refused() -> None:
    tls, secrets = ("tls.enabled=true", "tls.secret=certs"), "trainer.config.kubernetes.secrets[0]"
    there = f"{secrets}.mount_path=/etc/accord/tls"
    assert 'has "mine" at /etc/accord/tls, where runs have tls.secret ("certs")' in refused(*tls, f"{secrets}.secret=mine", there)
    config = yaml.safe_load(named(render(None, *tls, f"{secrets}.secret=certs", there), "ConfigMap", "accord-trainer")["data"]["config.yaml"])
    assert config["kubernetes"]["secrets"] == [{"secret": "certs", "mount_path": "/etc/accord/tls"}]


def test_a_release_name_that_makes_names_too_long_is_refused_in_one_sentence() -> None:
    assert "at most 44 are allowed" in refused(release="a-release-with-a-name-of-fifty-characters-or-so")


@pytest.mark.parametrize(
    ("release", "settings", "says"),
    [
        ("1st", (), 'the name "1st-accord" cannot begin the name of a Service'),
        ("a.b", (), 'the name "a.b-accord" cannot begin the name of a Service'),
        ("a.b", ("fullnameOverride=ab",), 'the release name "a.b" has a dot'),
        ("accord", ("nameOverride=Big",), 'the name "accord-Big" cannot begin'),
    ],
)
def test_a_name_that_kubernetes_would_refuse_half_way_is_refused_before(release: str, settings: tuple[str, ...], says: str) -> None:
    assert says in refused(*settings, release=release)


def test_a_release_whose_name_begins_with_a_digit_gets_another_by_override() -> None:
    assert "first-policy" in {item["metadata"]["name"] for item in render(None, "fullnameOverride=first", release="1st")}


def test_two_releases_share_no_object() -> None:
    first, second = ({(item["kind"], item["metadata"]["name"]) for item in render(None, release=name)} for name in ("accord", "other"))
    assert not first & second


def test_no_command_of_the_documents_makes_the_namespace_where_values_name_secrets() -> None:
    """Helm makes it after rendering, which then cannot see that a secret is missing; the chart's README says what comes first."""
    documents = [ROOT / "README.md", CHART / "README.md", *(path for path in (ROOT / "deploy").rglob("*") if path.suffix in (".yaml", ".sh"))]
    lines = [line for path in documents for line in path.read_text().replace("\\\n", " ").splitlines()]
    making = [line.split(" #")[0] for line in lines if re.search(r"helm .*charts/accord.* --create-namespace", line)]
    assert len(making) == 3
    for line in making:
        values = [(ROOT / file).read_text() for file in re.findall(r"--values (\S+)", line)]
        assert "secret" not in "".join([line, *values]).lower(), line
    assert re.search(
        r"^kubectl create namespace accord\nkubectl create secret .*\nhelm install accord .*--values", (CHART / "README.md").read_text(), re.M
    )


def test_helm_lint_is_content() -> None:
    for case in (None, *CI, *EXAMPLES):
        done = run_helm("lint", "--strict", str(CHART), *([] if case is None else ["--values", str(case)]))
        assert done.returncode == 0, done.stdout


def test_generated_files_belong_to_the_models() -> None:
    code = "import sys; sys.path.insert(0, 'tools'); import chart; sys.exit(any(p.read_text() != t for p, t in chart.generated().items()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0, "run `make chart`"


def test_every_value_is_used_by_a_template() -> None:
    text = "".join(path.read_text() for path in sorted(CHART.glob("templates/**/*")) if path.is_file())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    keys = {key for top, part in values.items() for key in (top, *(part if isinstance(part, dict) else ()))}
    keys |= {key for part in ("autoscaling", "image", "gpu") for key in values["policy"][part]} | set(values["policy"]["engine"])
    by_variable = {"models", "artefacts", "work", "policy", "reward", "feedback", "trainer"}  # ranged over by name
    assert len(keys) > 50
    assert not sorted(key for key in keys - by_variable if f".{key}" not in text)


GOLDEN_CASES = [(None, "1.31"), *((case, "1.20") for case in CI), *((case, "1.31") for case in EXAMPLES)]


@pytest.mark.parametrize(("case", "version"), GOLDEN_CASES, ids=lambda part: part if isinstance(part, str) else case_id(part))
def test_rendered_objects_are_as_they_were(golden: Callable[[str, str], str], case: Path | None, version: str) -> None:
    text = yaml.safe_dump_all(render(case, version=version), sort_keys=True, width=1000)
    assert text == golden(f"chart-{case_id(case)}-{version}.yaml", text)
