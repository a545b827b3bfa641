"""A study with services that somebody else started: what it must be told, which data it takes, and when it stops before it begins."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

import pytest
from tests.unit.cli.conftest import Accord, accord  # noqa: F401

from accord import __version__
from accord.client.endpoints import ServiceEndpoints
from accord.client.policy import PolicyClient
from accord.client.reward import RewardClient
from accord.client.trainer import TrainerClient
from accord.errors import AlreadyExistsError, FailedPreconditionError, InternalError, InvalidArgumentError, NotFoundError
from accord.rpc.channels import ChannelTls
from accord.runspec import parse_spec
from accord.study.actions import Clients, StepContext, evaluate, follow_run
from accord.study.graph import Step
from accord.study.recipe import StudyRecipe, load_recipe
from accord.study.services import addressed, check_known_runs, check_same_model
from accord.study.steps import StepResult

ALL = {"policy": "a:1", "reward": "b:1", "feedback": "c:1", "trainer": "d:1", "shared_folder": "/shared"}


def recipe(**task: str) -> StudyRecipe:
    values = load_recipe("quick").model_dump(mode="json")
    if task:
        values["tasks"] = [{"task": "conversation", **task}]
    return StudyRecipe.model_validate(values)


def endpoints(**values: Any) -> ServiceEndpoints:
    return ServiceEndpoints(**{**ALL, **values})


def test_each_service_is_reached_at_its_address_with_the_same_certificates() -> None:
    tls = ChannelTls(ca=Path("ca.pem"))
    found = addressed(recipe(), endpoints(tls=tls))
    assert {name: channel.address for name, channel in found.channels.items()} == {name: ALL[name] for name in found.channels}
    assert len(found.channels) == 4
    assert all(channel.tls == tls for channel in found.channels.values())
    assert found.label_folder == "/shared"


@pytest.mark.parametrize("missing", sorted(ALL))
def test_what_is_missing_is_named(missing: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        addressed(recipe(), endpoints(**{missing: ""}))
    assert error.value.field == missing


@pytest.mark.parametrize("uri", ["sample:conversation", "hub:someone/pairs", "s3://bucket/pairs.jsonl"])
def test_data_that_has_one_name_everywhere_is_taken(uri: str) -> None:
    assert addressed(recipe(uri=uri), endpoints()).channels


def test_a_path_is_taken_below_the_shared_folder_alone(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "pairs.jsonl").touch()
    (tmp_path / "pairs.jsonl").touch()
    where = endpoints(shared_folder=str(shared))
    assert addressed(recipe(uri=f"{shared}/pairs.jsonl"), where)
    assert addressed(recipe(uri=f"file://{shared}/pairs.jsonl"), where)
    for path in (
        "pairs.jsonl",
        f"{tmp_path}/pairs.jsonl",
        f"{shared}/../pairs.jsonl",
        f"file://{tmp_path}/pairs.jsonl",
        f"{tmp_path}/shared-too.jsonl",
    ):
        for field, task in (("uri", {"uri": path}), ("test_uri", {"uri": "sample:conversation", "test_uri": path})):
            with pytest.raises(InvalidArgumentError, match="the services elsewhere cannot read it") as error:
                addressed(recipe(**task), where)
            assert error.value.field == f"tasks[0].{field}"
    with pytest.raises(NotFoundError, match="a study reads its data itself, too"):
        addressed(recipe(uri=f"{shared}/missing.jsonl"), where)


class Served:
    """Doubles as the clients of a policy and a reward service that serve base models."""

    def __init__(self, name: str, policy: str, reward: str, version: str = __version__) -> None:
        self.base_model, self.server_version = name, version
        self._digests = {"policy": policy, "reward": reward}

    def model_info(self) -> Any:
        self.digests = type("Digests", (), {"base_model": self._digests["policy"]})
        return self

    def reward_model_info(self) -> Any:
        return type("Info", (), {"digests": type("Digests", (), {"base_model": self._digests["reward"]})})

    def check(self, wanted: str) -> list[str]:
        values, said = {**recipe().model_dump(mode="json"), "base_model": wanted}, list[str]()
        check_same_model(StudyRecipe.model_validate(values), cast(PolicyClient, self), cast(RewardClient, self), said.append)
        return said


def test_services_must_serve_the_recipe_s_model_and_the_same_one() -> None:
    assert Served("embedded", "aa", "aa").check("embedded") == []
    assert "is Accord 9.9" in Served("embedded", "aa", "aa", "9.9").check("embedded")[0]
    Served("llama", "aa", "aa").check("/models/llama")
    with pytest.raises(FailedPreconditionError, match="say base_model: llama"):
        Served("llama", "aa", "aa").check("embedded")
    with pytest.raises(FailedPreconditionError, match="different base models") as error:
        Served("embedded", "aa", "bb").check("embedded")
    assert error.value.field == "reward"


class Runs:
    """Doubles as the client of a trainer that knows some runs, each with the version that it published."""

    def __init__(self, **versions: str) -> None:
        self._versions = versions

    def get_run(self, name: str) -> Any:
        if name.removeprefix("runs/") not in self._versions:
            raise NotFoundError(f"there is no run {name}", field="name")
        return type("Run", (), {"adapter_version": self._versions[name.removeprefix("runs/")]})


@pytest.mark.parametrize(("runs", "says"), [(Runs(), "does not know runs/a"), (Runs(a="adapters/x/versions/2"), "versions/2 here and")])
def test_results_of_other_services_are_not_gone_on_with(runs: Runs, says: str) -> None:
    known = {
        "t/sft": StepResult("t/sft", "k", {"run": "runs/a", "adapter_version": "adapters/x/versions/1"}, 1.0, 1.0),
        "t/judge": StepResult("t/judge", "l", {"values": {}}, 1.0, 1.0),
    }
    check_known_runs(Path("home"), known, cast(TrainerClient, Runs(a="adapters/x/versions/1")))
    with pytest.raises(FailedPreconditionError, match=says) as error:
        check_known_runs(Path("home"), known, cast(TrainerClient, runs))
    assert error.value.field == "home"


class Failing:
    """Doubles as the client of a trainer whose runs fail, with or without a log."""

    def __init__(self, log: bytes | None) -> None:
        self._log = log

    def create_run(self, spec: Any, request_id: str) -> Any:
        return type("Run", (), {"name": "runs/a", "state": "failed", "message": "no room", "directory": "/elsewhere"})

    def resume_run(self, name: str) -> Any:
        return self.create_run(None, name)

    get_run = resume_run

    def watch_run(self, name: str, *, timeout_seconds: float) -> Any:
        return iter(())

    def read_run_file(self, run: str, file: str) -> bytes:
        if self._log is None:
            raise NotFoundError(f"{run} has no {file}", field="file")
        return self._log


def test_the_log_of_a_run_that_failed_elsewhere_is_here(tmp_path: Path) -> None:
    spec = parse_spec({"threads": 1, "evaluate": {"uri": "rows.jsonl"}})
    for log, says in ((b"killed", f"see {tmp_path}/log.txt"), (None, "it has no log")):
        services = cast(Clients, type("Services", (), {"trainer": Failing(log)}))
        with pytest.raises(InternalError, match=f"no room; {says}"):
            follow_run(spec, StepContext(services, {}, tmp_path, "", "key", lambda _fraction, _text: None), "study-key")
    assert (tmp_path / "log.txt").read_bytes() == b"killed"


class Evaluating:
    """Doubles as the client of a trainer whose runs end well: one id is one specification, and rows are named by their digest."""

    def __init__(self) -> None:
        self.specs: dict[str, Any] = {}

    def upload_rows(self, rows: bytes) -> str:
        return f"{hashlib.sha256(rows).hexdigest()}.jsonl"

    def create_run(self, spec: Any, request_id: str) -> Any:
        if self.specs.setdefault(request_id, spec) != spec:
            raise AlreadyExistsError(f"request_id {request_id!r} was used with another specification", field="request_id")
        return self.get_run(f"runs/{request_id}")

    def get_run(self, name: str) -> Any:
        return type("Run", (), {"name": name, "state": "succeeded", "directory": "/elsewhere"})

    def watch_run(self, name: str, *, timeout_seconds: float) -> Any:
        return iter(())

    def read_run_file(self, run: str, file: str) -> bytes:
        return json.dumps({"run": run}).encode()


def test_rows_that_were_measured_again_with_other_last_bits_are_another_evaluation(tmp_path: Path) -> None:
    """As by a study in a new folder on services on which the same study has run: its runs are found, its measurements made anew."""
    trainer = Evaluating()
    context = StepContext(cast(Clients, type("Services", (), {"trainer": trainer})), {}, tmp_path, "", "key", lambda _fraction, _text: None)
    step = Step("metrics", "evaluate", "metrics", {"seed": 1, "bootstrap_samples": 100})
    first, again, other = (evaluate(step, context, rows)["run"] for rows in ('{"kl": 0.1}', '{"kl": 0.1}', '{"kl": 0.10000001}'))
    assert first == again != other
    assert len(trainer.specs) == 2


def test_the_command_tells_the_targets_apart(accord: Accord, tmp_path: Path) -> None:  # noqa: F811
    file = tmp_path / "endpoints.yaml"
    file.write_text(json.dumps(ALL))
    assert "--policy goes with --target cluster" in accord("study", "--policy", "a:1", "--plan").stderr
    assert "--keep-services goes with --target local" in accord("study", "--target", "cluster", "--keep-services").stderr
    alone = accord("study", "--target", "cluster", "--policy", "a:1", "--plan")
    assert (alone.exit_code, "no address of the reward service" in alone.stderr) == (2, True)
    assert "shared_folder" in accord("study", "--target", "cluster", "--endpoints", str(file), "--shared-folder", "labels", "--plan").stderr
    planned = accord("study", "--target", "cluster", "--endpoints", str(file), "--plan", "--json")
    assert (planned.exit_code, len(json.loads(planned.stdout)["steps"]) > 20) == (0, True)
