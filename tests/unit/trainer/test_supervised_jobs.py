"""The trainer over a cluster: what is seen of Jobs becomes the state and the message of a run, and what those who watch it read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.launch.fake_api import USER, FakeApi, Refused
from tests.unit.launch.orders import run_file

from accord.api.trainer.v1 import trainer_pb2 as pb
from accord.errors import InvalidArgumentError, PermissionDeniedError, UnavailableError
from accord.launch.jobs import JobLauncher
from accord.launch.kubernetes import Cluster
from accord.rpc.config import parse_config
from accord.rundir import EXIT_CONFIGURATION, EXIT_DONE, EXIT_STOPPED, RunDirectory, RunEvent, RunResult
from accord.runspec import parse_spec
from accord.trainer.config import TrainerConfig
from accord.trainer.convert import event_to_proto
from accord.trainer.planner import available_bytes
from accord.trainer.registry import Registry, RunRecord
from accord.trainer.supervisor import Supervisor

RUNNING = {"phase": "Running", "containerStatuses": [{"name": "run", "state": {"running": {}}}]}
NO_GPU = {
    "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."}
    ]
}


def ended(code: int, reason: str = "Error") -> dict[str, Any]:
    state = {"terminated": {"exitCode": code, "reason": reason}}
    return {"phase": "Failed" if code else "Succeeded", "containerStatuses": [{"name": "run", "state": state}]}


class World:
    """A cluster, a registry with one run, and a supervisor that looks when it is told to."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.folder, self.api = folder, FakeApi()
        kubernetes = {
            "image": "accord/training:1.0", "claims": [{"claim": "data", "mount_path": str(folder)}], "request_seconds": 5, "start_grace_seconds": 0,
            "kubeconfig": self.api.kubeconfig(folder / "kubeconfig"), **config,
        }  # fmt: skip
        values = {
            "runs": str(folder / "runs"), "database": f"sqlite:///{folder}/registry.sqlite", "artefacts": str(folder / "artefacts"), "stop_grace_seconds": 1.0,
            "launcher": "kubernetes", "kubernetes": kubernetes,
        }  # fmt: skip
        self.config = TrainerConfig.model_validate(values)
        self.registry = Registry(self.config.database)
        spec = run_file().spec
        self.directory = RunDirectory(folder / "runs" / "one")
        self.record, _ = self.registry.create("runs/one", "request", spec, str(self.directory.path))
        self.launchers: list[JobLauncher] = []
        self.restart()

    def restart(self) -> None:
        """A new trainer: nothing is kept but the registry, the folder and the cluster."""
        assert self.config.kubernetes is not None
        self.launchers.append(
            JobLauncher(self.config.kubernetes, Cluster(self.config.kubernetes), stop_grace_seconds=1.0, peak_bytes=lambda run: 2**29)
        )
        self.supervisor = Supervisor(self.registry, self.launchers[-1], self.config)

    def until(self, state: str, words: str = "", *, attempts: int = 0) -> RunRecord:
        """Looks until the run is in a state with some words in its message, and has been started so often."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            self.supervisor.tick()
            found = self.registry.get("runs/one")
            if found.state == state and words in found.message and found.attempts >= attempts:
                return found
            time.sleep(0.02)
        raise AssertionError(f"{state} {words!r} was not seen; last: {found.state} {found.message!r}")

    def started(self, status: dict[str, Any] = RUNNING) -> dict[str, Any]:
        """The run's Job, with a pod that the launcher's watch has told of."""
        self.until("STARTING")
        job = self.api.the_job()
        pod = self.api.set_pod(job, status)["metadata"]["name"]
        deadline = time.monotonic() + 10
        while pod not in self.launchers[-1]._watch("pods").objects(timeout_seconds=5):
            assert time.monotonic() < deadline, f"{pod} was not seen"
            time.sleep(0.01)
        return job

    def phase(self, phase: str) -> None:
        self.directory.append_event(RunEvent("state", time.time() + 0.001, phase=phase))

    def messages(self) -> list[str]:
        return [event.text for event in self.directory.events() if event.kind == "message"]

    def close(self) -> None:
        for launcher in self.launchers:
            launcher.close()
        self.registry.close()
        self.api.stop()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def build(**config: Any) -> World:
        made.append(World(tmp_path, **config))
        return made[-1]

    yield build
    for world in made:
        world.close()


@pytest.fixture
def world(make: Callable[..., World]) -> World:
    return make()


def test_a_run_goes_through_its_states(world: World) -> None:
    job = world.started()
    assert "runs on node node-1" in world.until("STARTING", "runs on node").message
    world.phase("train")
    world.until("RUNNING")
    world.phase("checkpoint")
    world.until("CHECKPOINTING")
    world.directory.write_result(RunResult(EXIT_DONE, "10 steps done", 10, "adapters/support/versions/1"))
    world.api.set_pod(job, ended(0))
    world.api.finish(job["metadata"]["name"], "Complete")
    done = world.until("SUCCEEDED")
    assert (done.message, done.exit_code, done.attempts) == ("10 steps done", 0, 1)
    assert world.api.names("jobs"), "a Job that has ended stays until its time to live is over"


def test_what_it_waits_for_is_said_once_to_those_who_watch_it_and_it_runs_when_there_is_room(world: World) -> None:
    job = world.started({"phase": "Pending", **NO_GPU})
    waiting = world.until("STARTING", "Insufficient nvidia.com/gpu")
    for _ in range(5):
        world.supervisor.tick()
    world.restart()
    world.supervisor.tick()
    assert world.messages().count(f"waits for {waiting.message}") == 1
    state = next(event for event in world.directory.events() if event.waiting_on == waiting.message)
    wire = event_to_proto(state, waiting)
    assert wire is not None
    assert (wire.run.state, wire.run.phase) == (pb.RUN_STATE_STARTING, "pending")
    assert "1 Insufficient nvidia.com/gpu" in wire.run.waiting_on
    world.api.set_pod(job, RUNNING)
    world.until("STARTING", "runs on node")
    world.phase("train")
    world.until("RUNNING")


def test_a_run_behind_one_that_waits_for_a_gpu_says_so(world: World) -> None:
    job = world.started({"phase": "Pending", **NO_GPU})
    world.registry.create("runs/two", "second", run_file().spec, str(world.folder / "runs" / "two"))
    world.until("STARTING", "Insufficient nvidia.com/gpu")
    waiting = world.registry.get("runs/two")
    assert (waiting.state, waiting.message) == ("QUEUED", "waits for its turn: 1 run at once (max_running), runs/one is before it")
    world.directory.write_result(RunResult(EXIT_DONE, "10 steps done", 10))
    world.api.set_pod(job, ended(0))
    world.api.finish(job["metadata"]["name"], "Complete")
    world.until("SUCCEEDED")
    started = world.registry.get("runs/two")
    assert (started.state, started.message) == ("STARTING", "")


def test_a_pod_that_is_deleted_is_followed_by_another_one_and_the_run_goes_on(world: World) -> None:
    job = world.started()
    world.phase("train")
    world.until("RUNNING")
    world.directory.write_result(RunResult(EXIT_STOPPED, "stopped on request after step 4, with a checkpoint", 4))
    world.api.remove("pods", f"{job['metadata']['name']}-a")
    world.until("STARTING", "the pod of Job")
    world.api.set_pod(job, RUNNING, name=f"{job['metadata']['name']}-b")
    world.directory.clear_result()  # as accord.training does first
    world.phase("train")
    world.until("RUNNING")
    world.directory.write_result(RunResult(EXIT_DONE, "10 steps done", 10))
    world.api.set_pod(job, ended(0), name=f"{job['metadata']['name']}-b")
    world.api.finish(job["metadata"]["name"], "Complete")
    assert world.until("SUCCEEDED").attempts == 1


def test_out_of_memory_fails_with_the_limit_and_the_last_words(world: World) -> None:
    job = world.started()
    world.api.logs[f"{job['metadata']['name']}-a"] = "loading\nstep 3 done\n"
    world.api.set_pod(job, ended(137, "OOMKilled"))
    world.api.finish(job["metadata"]["name"], "Failed", "BackoffLimitExceeded")
    found = world.until("FAILED")
    assert "used more memory than its limit of 640Mi (OOMKilled); ask for more memory" in found.message
    assert found.message.endswith("; its last words: step 3 done")
    assert found.exit_code == 137


def test_an_image_that_cannot_be_pulled_fails_and_its_job_is_removed(world: World) -> None:
    reason = {"reason": "ErrImagePull", "message": "accord/training:1.0: manifest unknown"}
    world.started({"phase": "Pending", "containerStatuses": [{"name": "run", "state": {"waiting": reason}}]})
    found = world.until("FAILED")
    assert "its image cannot be pulled (ErrImagePull): accord/training:1.0: manifest unknown" in found.message
    assert not world.api.names("jobs")


def test_an_error_of_the_configuration_fails_at_once_in_the_runs_own_words(world: World) -> None:
    job = world.started()
    world.directory.write_result(RunResult(EXIT_CONFIGURATION, "spec.dpo.beta: must be positive", 0))
    world.api.set_pod(job, ended(2))
    found = world.until("FAILED")
    assert found.message.startswith("spec.dpo.beta: must be positive (pod ")
    assert found.exit_code == 2
    assert not world.api.names("jobs"), "a Job that would try again is removed"


def test_a_cancelled_run_checkpoints_and_its_job_goes(world: World) -> None:
    job = world.started()
    world.phase("train")
    world.until("RUNNING")
    assert world.supervisor.cancel("runs/one").state == "CANCELLING"
    pod = f"{job['metadata']['name']}-a"
    assert world.api.objects["pods", pod]["metadata"]["deletionTimestamp"]
    world.supervisor.tick()
    assert world.registry.get("runs/one").state == "CANCELLING"
    world.directory.write_result(RunResult(EXIT_STOPPED, "stopped on request after step 4, with a checkpoint", 4))
    world.api.remove("pods", pod)
    found = world.until("CANCELLED")
    assert (found.message, found.exit_code) == ("stopped on request after step 4, with a checkpoint", 3)
    assert not world.api.names("jobs")


def test_a_run_that_does_not_stop_is_killed_after_the_grace(world: World) -> None:
    job = world.started()
    world.phase("train")
    world.until("RUNNING")
    world.supervisor.cancel("runs/one")
    pod = f"{job['metadata']['name']}-a"
    deadline = time.monotonic() + 10
    while world.api.objects["pods", pod]["metadata"]["deletionGracePeriodSeconds"] != 1 and time.monotonic() < deadline:
        world.supervisor.tick()
        time.sleep(0.05)
    world.registry.update(world.registry.get("runs/one"), cancel_time=time.time() - 60)
    world.supervisor.tick()
    world.api.remove("pods", pod)
    assert "had not stopped 1 s after it was asked to, and was killed" in world.until("CANCELLED").message


def test_a_run_over_its_deadline_is_not_killed_before_it_has_written_its_checkpoint(world: World) -> None:
    """Kubernetes 1.28 to 1.30: the Job is Failed while its pod, asked to stop, still has its grace."""
    job = world.started()
    name, pod = job["metadata"]["name"], f"{job['metadata']['name']}-a"
    world.phase("train")
    world.until("RUNNING")
    world.api.set_pod(job, RUNNING, deletionTimestamp="2026-01-01T00:00:00Z", deletionGracePeriodSeconds=60)
    world.api.finish(name, "Failed", "DeadlineExceeded")
    world.until("RUNNING", f"its Job has failed (DeadlineExceeded); pod {pod} has time to checkpoint")
    for _ in range(3):
        world.supervisor.tick()
    assert world.api.objects["pods", pod]["metadata"]["deletionGracePeriodSeconds"] == 60
    world.directory.write_result(RunResult(EXIT_STOPPED, "stopped on request after step 4, with a checkpoint", 4))
    world.api.set_pod(job, ended(EXIT_STOPPED))
    found = world.until("FAILED")
    assert found.message == "stopped on request after step 4, with a checkpoint (it ran longer than its deadline allows (DeadlineExceeded))"


def test_a_run_that_its_queue_suspends_is_not_written_to_beside_its_pod(world: World) -> None:
    job = world.started()
    world.phase("train")
    world.until("RUNNING")
    world.api.set_pod(job, RUNNING, deletionTimestamp="2026-01-01T00:00:00Z", deletionGracePeriodSeconds=60)
    world.api.put("jobs", {**world.api.the_job(), "spec": {**job["spec"], "suspend": True}})
    world.until("RUNNING", "is suspended; its pod has time to checkpoint")
    assert not world.messages()
    world.api.remove("pods", f"{job['metadata']['name']}-a")
    waiting = world.until("STARTING", "somebody to resume its Job, which is suspended")
    assert world.messages() == [f"waits for {waiting.message}"]


def test_a_run_cancelled_while_it_waits_never_starts(world: World) -> None:
    job = world.started({"phase": "Pending", **NO_GPU})
    world.until("STARTING", "Insufficient")
    world.supervisor.cancel("runs/one")
    assert world.until("CANCELLED").message == "cancelled before it started"
    assert not world.api.names("jobs") + world.api.names("pods"), job["metadata"]["name"]


def test_a_trainer_killed_in_between_finds_its_run_again_without_a_second_job(world: World) -> None:
    job = world.started()
    world.phase("train")
    world.until("RUNNING")
    world.restart()
    world.until("RUNNING", "runs on node")
    assert world.api.the_job()["metadata"]["uid"] == job["metadata"]["uid"]
    world.directory.write_result(RunResult(EXIT_DONE, "10 steps done", 10))
    world.api.remove("pods", f"{job['metadata']['name']}-a")
    world.api.remove("jobs", job["metadata"]["name"])  # its time to live was over while no trainer ran
    world.restart()
    assert world.until("SUCCEEDED").message == "10 steps done"


def test_a_job_that_somebody_deleted_starts_again_and_those_who_watch_are_told(world: World) -> None:
    job = world.started()
    world.phase("train")
    world.until("RUNNING")
    world.api.remove("pods", f"{job['metadata']['name']}-a")
    world.api.remove("jobs", job["metadata"]["name"])
    assert world.until("STARTING", "the pod of Job", attempts=2).attempts == 2  # before, it waits for another pod of the old one
    assert world.api.the_job()["metadata"]["uid"] != job["metadata"]["uid"]
    assert "nothing is left of its process; it starts again" in world.messages()


def test_a_resumed_run_waits_for_the_pod_of_its_earlier_attempt(world: World) -> None:
    job = world.started()
    world.registry.update(world.registry.get("runs/one"), state="FAILED")
    world.supervisor.resume("runs/one")
    pod = f"{job['metadata']['name']}-a"
    waiting = world.until("QUEUED", f"pod {pod}")
    assert waiting.attempts == 1
    for _ in range(3):
        world.supervisor.tick()
    assert world.messages().count(f"waits for {waiting.message}") == 1
    world.api.remove("pods", pod)
    assert world.until("STARTING").attempts == 2


def test_a_resumed_run_is_not_ended_by_what_watches_still_hold_of_its_earlier_attempt(world: World) -> None:
    """After a break the trainer's requests reach the API server before its watches do, which wait for up to 10 s."""
    job = world.started(ended(1))
    name = job["metadata"]["name"]
    world.api.finish(name, "Failed", "BackoffLimitExceeded")
    world.until("FAILED", "ended with exit code 1")
    world.api.go_blind()
    world.supervisor.resume("runs/one")
    assert world.until("STARTING").attempts == 2
    second = world.api.the_job()
    world.api.set_pod(second, RUNNING, name=f"{name}-b")
    for _ in range(3):
        world.supervisor.tick()
    assert world.registry.get("runs/one").state == "STARTING"
    assert "deletionTimestamp" not in world.api.the_job()["metadata"]
    world.api.blind = False
    world.until("STARTING", f"pod {name}-b runs on node")
    assert world.api.the_job()["metadata"]["uid"] == second["metadata"]["uid"]


def test_an_api_server_that_is_away_ends_no_run(world: World) -> None:
    world.started()
    world.phase("train")
    world.until("RUNNING")
    world.api.stop()
    for _ in range(3):
        world.supervisor.tick()
    assert world.registry.get("runs/one").state == "RUNNING"
    with pytest.raises(UnavailableError):
        world.supervisor.cancel("runs/one")
    assert world.registry.get("runs/one").state == "RUNNING", "it was not asked to stop"
    world.restart()
    world.supervisor.tick()
    assert world.registry.get("runs/one").state == "RUNNING"
    world.api.start()
    world.until("RUNNING", "runs on node")


def test_no_permission_to_create_jobs_is_one_sentence(world: World) -> None:
    world.api.forbidden.add(("create", "jobs"))
    expected = f"it could not be started: {USER} may not create jobs in namespace training; its Role lacks the verb create"
    assert world.until("FAILED").message == expected
    world.api.forbidden = {("delete", "jobs")}
    world.registry.update(world.registry.get("runs/one"), state="QUEUED")
    with pytest.raises(PermissionDeniedError, match="may not delete jobs"):
        world.supervisor._launcher.forget(world.directory.path)


@pytest.mark.parametrize("resource", ["configmaps", "jobs"])
def test_a_quota_that_is_behind_fails_no_run(world: World, resource: str) -> None:
    world.api.conflicts.append(("create", resource))
    assert world.until("QUEUED", 'on resourcequotas "compute": the object has been modified').attempts == 0
    world.started()
    assert world.until("STARTING", "runs on node").attempts == 1


def break_after_the_job(world: World) -> None:
    """Creates the Job; its answer is lost, and so are the ones of all that is asked afterwards."""

    def lose(resource: str, item: dict[str, Any]) -> None:
        if resource == "jobs":
            world.api.broken = True
            raise Refused(500, "InternalError", "etcdserver: request timed out")

    world.api.on_create = lose


def start_and_lose_the_answer(world: World) -> dict[str, Any]:
    break_after_the_job(world)
    world.until("QUEUED", "etcdserver: request timed out")
    job = world.api.the_job()
    world.api.set_pod(job, RUNNING)
    return job


def test_a_queued_run_whose_start_may_have_made_a_job_is_not_cancelled_before_that_is_gone(world: World) -> None:
    job = start_and_lose_the_answer(world)
    with pytest.raises(UnavailableError, match="request timed out"):
        world.supervisor.cancel("runs/one")
    assert world.registry.get("runs/one").state == "QUEUED", "nobody would look after its Job"
    world.api.broken = False
    assert world.supervisor.cancel("runs/one").state == "CANCELLED"
    pod = world.api.objects["pods", f"{job['metadata']['name']}-a"]["metadata"]
    assert pod["deletionGracePeriodSeconds"] == 1
    world.api.remove("pods", pod["name"])
    assert not world.api.names("jobs")


def test_a_start_that_failed_half_way_is_cleared_away_after_a_restart_too(world: World) -> None:
    start_and_lose_the_answer(world)
    world.restart()
    world.api.broken = False
    assert world.supervisor.cancel("runs/one").message == "cancelled before it started"
    assert world.api.the_job()["metadata"]["deletionTimestamp"]


def test_a_queued_run_that_was_never_started_is_cancelled_while_the_api_server_is_away(world: World) -> None:
    world.api.broken = True
    world.until("QUEUED", "etcdserver: request timed out")
    assert world.supervisor.cancel("runs/one").state == "CANCELLED", "without asking"


def test_a_start_that_fails_after_its_job_was_made_takes_it_away(world: World) -> None:
    world.api.forbidden.add(("patch", "configmaps"))
    expected = f"it could not be started: {USER} may not patch configmaps in namespace training; its Role lacks the verb patch"
    assert world.until("FAILED").message == expected
    assert ("create", "jobs") in world.api.requests
    assert not world.api.names("jobs")


def test_a_run_is_not_failed_while_the_job_of_its_start_may_go_on(world: World) -> None:
    """The start fails for good, and before its Job could be removed the API server goes away."""
    world.api.forbidden.add(("patch", "configmaps"))

    def break_now(verb: str, resource: str) -> None:
        world.api.broken = True

    world.api.on_refusal = break_now
    world.until("QUEUED", "may not patch configmaps")
    assert world.api.names("jobs")
    world.until("QUEUED", "etcdserver: request timed out")
    world.api.on_refusal = lambda verb, resource: None
    world.api.broken = False
    assert "its Role lacks the verb patch" in world.until("FAILED").message
    assert not world.api.names("jobs")


def test_a_job_of_another_one_that_has_the_name_is_not_taken_away(world: World) -> None:
    def come_first(resource: str, item: dict[str, Any]) -> None:
        if resource == "configmaps":
            notes = {"accord.api/run-name": "runs/other", "accord.api/attempt": "1"}
            world.api.put("jobs", {"metadata": {"name": item["metadata"]["name"], "annotations": notes, "labels": {}}, "spec": {}})

    world.api.on_create = come_first
    assert "two releases in a namespace need instances of different names" in world.until("FAILED").message
    assert "deletionTimestamp" not in world.api.the_job()["metadata"]


def test_memory_of_a_cluster_is_what_a_pod_gets_and_not_what_is_free_here(make: Callable[..., World]) -> None:
    world = make(most_memory="10Gi", memory_headroom=1.25, kinds={"ppo": {"memory": "6Gi"}})
    assert available_bytes(world.config, run_file().spec) == 8 * 2**30
    ppo = {"adapter": "a", "steps": 1, "ppo": {"data": {"uri": "x"}, "reward_model": "adapters/r/versions/1"}}
    assert available_bytes(world.config, parse_spec(ppo)) == 6 * 2**30


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"launcher": "kubernetes"}, "launcher is kubernetes; the section kubernetes belongs to launcher kubernetes"),
        ({"kubernetes": {"image": "a:1"}}, "launcher is local; the section kubernetes"),
        ({"launcher": "kubernets"}, "launcher"),
        ({"launcher": "kubernetes", "kubernetes": {"image": "a:1"}, "stop_runs": True}, "stop_runs is of launcher local"),
        ({"launcher": "kubernetes", "kubernetes": {"image": "a:1"}}, "runs is /data/runs, which lies on none of kubernetes.claims"),
        (
            {"launcher": "kubernetes", "kubernetes": {"image": "a:1", "claims": [{"claim": "c", "mount_path": "/data/runs"}]}},
            "artefacts is /data/artefacts, which lies on none of kubernetes.claims",
        ),
        ({"launcher": "kubernetes", "kubernetes": {"image": "a:1", "nodeSelector": {}}}, "kubernetes.nodeSelector: unknown key"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_by_field(change: dict[str, Any], expected: str) -> None:
    values = {"runs": "/data/runs", "database": "sqlite:////data/r.sqlite", "artefacts": "/data/artefacts", **change}
    with pytest.raises(InvalidArgumentError) as caught:
        parse_config(values, TrainerConfig, source="trainer.yaml")
    assert expected in caught.value.message


def test_a_configuration_with_a_claim_or_a_remote_store_is_taken() -> None:
    values = {"runs": "/data/runs", "database": "sqlite:////data/r.sqlite", "launcher": "kubernetes"}
    for artefacts, mount in (("/data/artefacts", "/data"), ("s3://bucket/artefacts", "/data/runs")):
        section = {"image": "a:1", "claims": [{"claim": "c", "mount_path": mount}]}
        assert parse_config({**values, "artefacts": artefacts, "kubernetes": section}, TrainerConfig, source="x").kubernetes is not None
