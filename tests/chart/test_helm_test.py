"""The script of `helm test`, run by a shell over a trainer whose runs are scripted: a test that did not pass may pass when it is asked again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.chart.rendering import ROOT, named, render
from tests.unit.cli.fakes import FakeTrainer, add_trainer, serving

from accord.api.trainer.v1 import trainer_pb2 as pb
from accord.errors import InvalidArgumentError
from accord.rpc.validation import validate

DOUBLES = {
    "accord": f'case "$1" in train|runs|resume|watch) exec {sys.executable} -m accord.cli "$@" ;; *) echo "did $1" ;; esac',
    "python": 'echo "asked $3"',
}


class Trainer(FakeTrainer):
    """Runs end as `outcome` says; one that is resumed succeeds."""

    def ResumeRun(self, request: pb.ResumeRunRequest, context: Any) -> pb.ResumeRunResponse:
        self._outcome = pb.RUN_STATE_SUCCEEDED
        known = self._find(request.name, context)
        known.events = self._script(known.run)
        return super().ResumeRun(request, context)


def script(*settings: str, release: str = "accord") -> str:
    text: str = named(render(None, *settings, release=release), "Pod", "accord-test")["spec"]["containers"][0]["args"][0]
    return text


def run_script(trainer: Trainer, folder: Path) -> subprocess.CompletedProcess[str]:
    """What the test's container does, over this trainer."""
    for name, body in DOUBLES.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    with serving(add_trainer(trainer)) as address:
        (folder / "endpoints.yaml").write_text(f"trainer: {address}\n")
        surroundings = {
            **os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "services"),
            "ACCORD_ENDPOINTS": str(folder / "endpoints.yaml"),
        }  # fmt: skip
        return subprocess.run(["sh", "-euc", script()], env=surroundings, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("outcome", [pb.RUN_STATE_FAILED, pb.RUN_STATE_CANCELLED])
def test_a_test_whose_run_did_not_succeed_passes_when_it_is_asked_again(tmp_path: Path, outcome: int) -> None:
    trainer = Trainer(outcome=outcome)
    first = run_script(trainer, tmp_path)
    assert (first.returncode, trainer.resumed) == (1, [])
    assert "all tests passed" not in first.stdout
    (name,) = trainer.runs
    done = run_script(trainer, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("did score\nall tests passed\n")
    assert (list(trainer.runs), trainer.resumed) == ([name], [name])


def test_a_test_whose_run_succeeds_passes_and_resumes_nothing(tmp_path: Path) -> None:
    trainer = Trainer()
    done = run_script(trainer, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{next(iter(trainer.runs))} succeeded" in done.stdout
    assert trainer.resumed == []


def request_id(*settings: str, release: str = "accord") -> str:
    (found,) = re.findall(r"--request-id ([a-z0-9-]+)", script(*settings, release=release))
    return str(found)


def test_another_model_recipe_or_revision_has_a_run_of_its_own() -> None:
    """A request id belongs to one specification for ever, in a registry that an uninstall leaves; a revision's number begins at 1 again then."""
    first = request_id()
    assert first.startswith("helm-test-accord-1-")
    assert request_id("policy.replicas=3") == first
    others = [("model.name=other",), ("artefacts.uri=s3://bucket/accord",), ("images.tag=2.0",), ("trainer.config.threads=1",)]
    assert len({first, *(request_id(*settings) for settings in others)}) == 5


def test_the_longest_name_of_a_release_leaves_room_for_the_request_id() -> None:
    longest = request_id("fullnameOverride=accord", release="a" * 53)
    assert longest.startswith(f"helm-test-{'a' * 53}-1-")
    with pytest.raises(InvalidArgumentError) as refused:
        validate(pb.CreateRunRequest(request_id=longest.replace("-1-", f"-{2**31}-", 1)))
    assert refused.value.field == "spec"
