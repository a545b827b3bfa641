"""The launcher against an API server that behaves: started once, seen through breaks, said in words, and gone when it is told to go."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.launch.fake_api import NAMESPACE, USER, FakeApi
from tests.unit.launch.orders import config as make_config
from tests.unit.launch.orders import run_file

from accord.errors import AccordError, AlreadyExistsError, FailedPreconditionError, NotFoundError, PermissionDeniedError, UnavailableError
from accord.launch.jobs import JobLauncher
from accord.launch.kubernetes import Cluster
from accord.launch.launcher import NotYetError, Observation
from accord.rundir import RunDirectory

RUNNING = {"phase": "Running", "containerStatuses": [{"name": "run", "state": {"running": {}}}]}
MIB = 2**20


def ended(code: int, **more: Any) -> dict[str, Any]:
    phase = "Succeeded" if code == 0 else "Failed"
    return {"phase": phase, "containerStatuses": [{"name": "run", "state": {"terminated": {"exitCode": code, **more}}}]}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class World:
    """A server, a launcher, and the folder of one run."""

    def __init__(self, folder: Path, **api: Any) -> None:
        self.api = FakeApi(**api)
        self.folder = folder
        self.clock = Clock()
        self.launchers: list[JobLauncher] = []
        self.directory = folder / "runs" / "support-dpo-0a1b2c3d4e"
        RunDirectory(self.directory).write_run_file(run_file())
        self.launcher = self.launch()

    def launch(self, *, peak_bytes: int = 512 * MIB, **more: Any) -> JobLauncher:
        """Another launcher on the same cluster, as after a restart."""
        values = {"request_seconds": 5, "kubeconfig": self.api.kubeconfig(self.folder / "kubeconfig"), **more}
        config = make_config(**values)
        launcher = JobLauncher(config, Cluster(config), stop_grace_seconds=30.0, peak_bytes=lambda run: peak_bytes, clock=self.clock)
        self.launchers.append(launcher)
        return launcher

    def start(self, attempt: int = 1) -> dict[str, Any]:
        self.launcher.start(self.directory, attempt)
        return self.api.the_job()

    def seen(self, state: str, words: str = "", *, seconds: float = 10.0, launcher: JobLauncher | None = None) -> Observation:
        """What is observed, once it is in a state and its message holds some words."""
        deadline, found = time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            try:
                found = (launcher or self.launcher).observe(self.directory)
            except UnavailableError as error:
                found = error
            if isinstance(found, Observation) and found.state == state and words in found.message:
                return found
            time.sleep(0.02)
        raise AssertionError(f"{state} {words!r} was not seen within {seconds:g} s; last: {found}")

    def until_fault(self, wanted: Callable[[str | None], bool]) -> Any:
        """The launcher's fault, once it is as wanted."""
        deadline = time.monotonic() + 10
        while not wanted(fault := self.launcher.fault()):
            assert time.monotonic() < deadline, fault
            time.sleep(0.02)
        return fault

    def close(self) -> None:
        for launcher in self.launchers:
            launcher.close()
        self.api.stop()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def build(**api: Any) -> World:
        made.append(World(tmp_path, **api))
        return made[-1]

    yield build
    for world in made:
        world.close()


@pytest.fixture
def world(make: Callable[..., World]) -> World:
    return make()


# Starting


def test_a_run_is_unknown_then_a_job_then_done(world: World) -> None:
    assert world.launcher.observe(world.directory) == Observation("unknown")
    job = world.start()
    assert job["metadata"]["namespace"] == NAMESPACE
    assert world.launcher.observe(world.directory).state == "waiting", "the Job just created is seen at once"
    world.api.set_pod(job, RUNNING)
    assert "node-1" in world.seen("running", "runs on node").message
    world.api.set_pod(job, ended(0))
    world.api.finish(job["metadata"]["name"], "Complete")
    assert world.seen("ended").exit_code == 0


def test_the_job_owns_its_config_map_and_is_owned_as_configured(world: World) -> None:
    world.api.put("deployments", {"metadata": {"name": "accord-trainer"}})
    world.launcher = world.launch(owner={"kind": "Deployment", "name": "accord-trainer"})
    job = world.start()
    assert job["metadata"]["ownerReferences"][0]["uid"] == world.api.objects["deployments", "accord-trainer"]["metadata"]["uid"]
    (name,) = world.api.names("configmaps")
    (owner,) = world.api.objects["configmaps", name]["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("Job", job["metadata"]["uid"])
    world.launcher = world.launch(owner={"kind": "Deployment", "name": "other"})
    with pytest.raises(FailedPreconditionError, match="Deployment other, which is to own the Jobs, is not in namespace training"):
        world.launcher.start(world.directory, 1)


def test_starting_the_same_attempt_again_is_success_and_makes_nothing(world: World) -> None:
    first = world.start()
    again = world.launch()
    again.start(world.directory, 1)
    assert world.api.the_job()["metadata"]["uid"] == first["metadata"]["uid"]
    assert world.seen("waiting", launcher=again)


def test_what_outlives_its_job_has_its_grace_and_is_over_after_that(world: World) -> None:
    job = world.start()
    world.api.set_pod(job, RUNNING)
    world.seen("running", "runs on node")
    world.api.finish(job["metadata"]["name"], "Failed", "DeadlineExceeded")
    for now in (0.0, 30.0, 40.0):  # the pod's grace, and ten seconds for its node to hear of it
        world.clock.now = now
        world.seen("running", "has time to checkpoint")
    world.clock.now = 40.1
    world.seen("ended", "longer than its deadline")


def test_a_server_killed_between_config_map_and_job_goes_on(world: World) -> None:
    world.api.forbidden.add(("create", "jobs"))
    with pytest.raises(PermissionDeniedError):
        world.launcher.start(world.directory, 1)
    assert world.api.names("configmaps")
    world.api.forbidden.clear()
    job = world.start()
    (name,) = world.api.names("configmaps")
    assert world.api.objects["configmaps", name]["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]


def test_a_server_killed_right_after_the_job_was_created_gives_it_its_config_map_later(world: World) -> None:
    world.start()
    (name,) = world.api.names("configmaps")
    orphan = world.api.objects["configmaps", name]
    world.api.put("configmaps", {**orphan, "metadata": {**orphan["metadata"], "ownerReferences": []}})
    world.seen("waiting", launcher=world.launch())
    assert world.api.objects["configmaps", name]["metadata"]["ownerReferences"][0]["kind"] == "Job"


def test_a_name_that_somebody_else_has_is_refused_with_whose_it_is(world: World) -> None:
    world.start()
    with pytest.raises(AlreadyExistsError, match=r"is attempt 1 of runs/support-dpo-0a1b2c3d4e; two releases .* instances of different names"):
        world.launcher.start(world.directory, 2)
    job = world.api.the_job()
    job["metadata"]["annotations"] = {}
    world.api.put("jobs", job)
    with pytest.raises(AlreadyExistsError, match="is not a run's"):
        world.launcher.start(world.directory, 1)


def test_memory_below_the_plan_is_refused_before_anything_is_created(world: World) -> None:
    world.launcher = world.launch(peak_bytes=3000 * MIB, kinds={"dpo": {"memory": "2Gi"}})
    with pytest.raises(FailedPreconditionError, match="needs 3000 MiB and its pods get 2048 MiB; raise memory of dpo") as caught:
        world.launcher.start(world.directory, 1)
    assert caught.value.field == "kubernetes.kinds.dpo.memory"
    assert not world.api.names("jobs") + world.api.names("configmaps")


@pytest.mark.parametrize(("verb", "resource"), [("create", "jobs"), ("create", "configmaps")])
def test_a_missing_permission_is_named(world: World, verb: str, resource: str) -> None:
    world.api.forbidden.add((verb, resource))
    with pytest.raises(PermissionDeniedError) as caught:
        world.launcher.start(world.directory, 1)
    assert caught.value.message == f"{USER} may not {verb} {resource} in namespace training; its Role lacks the verb {verb}"
    assert caught.value.metadata == {"verb": verb, "resource": resource}


def test_a_refusal_by_admission_is_told_as_the_cluster_says_it(world: World) -> None:
    world.api.denied = "exceeded quota: compute, requested: limits.memory=1Gi, used: limits.memory=8Gi, limited: limits.memory=8Gi"
    with pytest.raises(PermissionDeniedError, match=r"refuses to create configmaps in namespace training: exceeded quota: compute"):
        world.launcher.start(world.directory, 1)


def start_anew(world: World) -> None:
    world.launcher.forget(world.directory)
    world.launcher.start(world.directory, 1)


@pytest.mark.parametrize("asked", [("create", "configmaps"), ("create", "jobs"), ("patch", "configmaps"), ("delete", "jobs")])
def test_what_somebody_else_changed_at_the_same_time_is_asked_again(world: World, asked: tuple[str, str]) -> None:
    """A ResourceQuota that is behind refuses with a Conflict, as does any change of one object by two."""
    world.api.conflicts.append(asked)
    with pytest.raises(NotYetError, match='on resourcequotas "compute": the object has been modified'):
        start_anew(world)
    start_anew(world)
    assert world.seen("waiting")


# Seeing


def test_a_job_whose_config_map_somebody_else_changes_is_seen_at_the_next_look(world: World) -> None:
    world.start()
    again = world.launch()  # which knows of no belongings
    world.api.conflicts.append(("patch", "configmaps"))
    with pytest.raises(UnavailableError, match="the object has been modified"):
        again.observe(world.directory)
    assert again.observe(world.directory).state == "waiting"


def test_a_missing_permission_to_watch_is_a_fault_that_names_it(world: World) -> None:
    world.api.forbidden |= {("watch", "pods"), ("list", "pods")}
    with pytest.raises(AccordError, match="may not list pods"):
        world.launcher.observe(world.directory)
    assert f"{USER} may not list pods in namespace training" in str(world.launcher.fault())
    world.api.forbidden.clear()
    world.seen("unknown")
    assert world.launcher.fault() is None


def test_an_api_server_that_is_away_says_nothing_about_the_run(world: World) -> None:
    job = world.start()
    world.api.set_pod(job, RUNNING)
    world.seen("running")
    world.api.stop()
    time.sleep(0.3)
    assert world.launcher.observe(world.directory).state == "running"
    world.api.set_pod(job, ended(0))  # while nobody could see it
    world.api.finish(job["metadata"]["name"], "Complete")
    world.api.start()
    assert world.seen("ended").exit_code == 0
    world.api.stop()
    with pytest.raises(UnavailableError, match=r"the Kubernetes API server at http://127.0.0.1:\d+ does not answer"):
        world.launch(request_seconds=1).observe(world.directory)
    world.api.start()


def test_a_fault_is_told_once_the_api_server_has_been_away_for_a_minute(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.start()
    world.seen("waiting")
    world.api.stop()
    time.sleep(0.5)
    assert world.launcher.fault() is None
    monkeypatch.setattr("accord.launch.jobs._OUTAGE_SECONDS", 0.0)
    assert "cannot be watched" in str(world.launcher.fault())
    world.api.start()
    world.seen("waiting")


def test_an_api_server_that_was_away_before_any_run_could_start_is_a_fault_while_it_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accord.launch.jobs._OUTAGE_SECONDS", 0.0)
    assert world.launcher.fault() is None
    world.api.stop()
    with pytest.raises(NotYetError):
        world.launcher.forget(world.directory)
    assert world.until_fault(lambda fault: fault is not None).startswith("the cluster's jobs cannot be watched for ")
    world.api.start()
    assert world.until_fault(lambda fault: fault is None) is None, "whether or not anything is started meanwhile"


def test_changes_arrive_by_the_watch_without_further_lists(world: World) -> None:
    job = world.start()
    world.seen("waiting")
    before = world.api.requests.count(("list", "pods"))
    for status, state in ((RUNNING, "running"), (ended(1), "waiting"), (RUNNING, "running")):
        world.api.set_pod(job, status)
        world.seen(state)
    world.api.remove("pods", f"{job['metadata']['name']}-a")
    world.seen("waiting", "the pod of Job")
    assert world.api.requests.count(("list", "pods")) == before


def test_a_watch_that_the_server_ends_goes_on_where_it_was(world: World) -> None:
    job = world.start()
    world.seen("waiting")
    lists = world.api.requests.count(("list", "pods"))
    for status, state in ((RUNNING, "running"), (ended(1), "waiting")):
        world.api.end_watches()
        world.api.set_pod(job, status)
        world.seen(state)
    assert world.api.requests.count(("list", "pods")) == lists


def test_a_version_that_is_too_old_is_listed_again_and_what_was_deleted_meanwhile_is_gone(world: World) -> None:
    job = world.start()
    world.api.set_pod(job, RUNNING)
    world.seen("running")
    with world.api.lock:
        world.api.end_watches()
        world.api.remove("jobs", job["metadata"]["name"])
        world.api.compact()
    world.seen("unknown")


def test_requests_that_fail_are_asked_again(world: World) -> None:
    job = world.start()
    world.seen("waiting")
    world.api.broken = True
    world.api.end_watches()
    world.api.set_pod(job, RUNNING)
    time.sleep(0.4)
    assert world.launcher.observe(world.directory).state == "waiting"
    world.api.broken = False
    world.seen("running")


def test_events_say_why_there_is_no_pod_and_are_asked_for_sparingly(world: World) -> None:
    job = world.start()
    world.seen("waiting", "the pod of Job")
    name = job["metadata"]["name"]
    world.api.warn(name, "FailedCreate", 'Error creating: pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true')
    world.clock.now += 10
    assert world.seen("waiting", "violates PodSecurity").stuck
    asked = world.api.requests.count(("list", "events"))
    for _ in range(20):
        world.launcher.observe(world.directory)
    assert world.api.requests.count(("list", "events")) <= asked + 1


def test_events_of_several_runs_are_asked_for_as_sparingly(world: World) -> None:
    other = world.folder / "runs" / "other-dpo-0a1b2c3d4e"
    RunDirectory(other).write_run_file(run_file(name=f"runs/{other.name}"))
    for directory in (world.directory, other):
        world.launcher.start(directory, 1)
    asked = world.api.requests.count(("list", "events"))
    for _ in range(10):
        assert {world.launcher.observe(directory).state for directory in (world.directory, other)} == {"waiting"}
    assert world.api.requests.count(("list", "events")) == asked + 2, "once a run"
    world.clock.now += 6
    world.launcher.observe(world.directory)
    assert len(world.launcher._events) == 1, "what is too old is not kept"


def test_what_can_never_start_has_ended_after_the_grace_and_not_before(world: World) -> None:
    job = world.start()
    reason = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "accord/training:1.0"'}
    world.api.set_pod(job, {"phase": "Pending", "containerStatuses": [{"name": "run", "state": {"waiting": reason}}]})
    world.seen("waiting", "ImagePullBackOff")
    world.clock.now += 299
    assert world.launcher.observe(world.directory).state == "waiting"
    world.clock.now += 2
    found = world.launcher.observe(world.directory)
    assert (found.state, found.exit_code) == ("ended", None)
    assert found.message.startswith("it could not start within 300 s: pod ")
    assert 'its image cannot be pulled (ImagePullBackOff): Back-off pulling image "accord/training:1.0"' in found.message
    world.api.set_pod(job, RUNNING)
    world.seen("running")
    world.api.set_pod(job, {"phase": "Pending", "containerStatuses": [{"name": "run", "state": {"waiting": reason}}]})
    assert world.seen("waiting", "ImagePullBackOff"), "the grace begins anew"


def test_a_run_whose_next_pod_is_refused_says_so_and_ends_after_the_grace(world: World) -> None:
    job = world.start()
    name = job["metadata"]["name"]
    preempted = {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]}
    world.api.set_pod(job, {**ended(143), **preempted})
    world.api.warn(name, "SuccessfulCreate", f"Created pod: {name}-a", kind="Normal", at=time.time() - 60)
    assert not world.seen("waiting", "made room for a pod of higher priority").stuck
    world.clock.now += 10
    world.api.warn(name, "FailedCreate", f'Error creating: pods "{name}-b" is forbidden: exceeded quota: gpus', at=time.time() + 5)
    found = world.seen("waiting", "exceeded quota: gpus")
    assert (found.stuck, "made room for a pod of higher priority" in found.message) == (True, True)
    world.clock.now += 301
    assert "it could not start within 300 s: its pod, which cannot be created" in world.seen("ended").message


def test_a_pod_that_pulls_its_image_is_not_stuck_by_an_early_warning(world: World) -> None:
    job = world.start()
    pod = f"{job['metadata']['name']}-a"
    creating = {"name": "run", "state": {"waiting": {"reason": "ContainerCreating"}}}
    world.api.set_pod(job, {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}], "containerStatuses": [creating]})
    world.api.warn(pod, "FailedCreatePodSandBox", "network plugin is not ready: cni config uninitialized")
    world.clock.now += 10
    assert world.seen("waiting", "FailedCreatePodSandBox").stuck
    world.api.warn(pod, "Pulling", 'Pulling image "accord/training:cuda"', kind="Normal", at=time.time() + 5)
    world.clock.now += 10
    assert not world.seen("waiting", 'Pulling image "accord/training:cuda"').stuck
    world.clock.now += 3600
    assert world.launcher.observe(world.directory).state == "waiting"


def test_what_a_pod_printed_is_in_the_runs_log_once(world: World) -> None:
    job = world.start()
    name = f"{job['metadata']['name']}-a"
    world.api.logs[name] = "step 1\nthe learning rate has caught fire\n"
    world.api.set_pod(job, RUNNING)
    world.seen("running")
    assert not RunDirectory(world.directory).log.exists()
    world.api.set_pod(job, ended(1))
    world.seen("waiting", "ended with exit code 1")
    second = f"{job['metadata']['name']}-b"
    world.api.logs[second] = "step 2"
    world.api.set_pod(job, ended(1), name=second, creationTimestamp="2999-01-01T00:00:00Z")
    world.seen("waiting", second)
    world.seen("waiting", second, launcher=world.launch())
    assert RunDirectory(world.directory).log.read_text() == f"==> pod {name} <==\n{world.api.logs[name]}==> pod {second} <==\nstep 2\n"


def test_what_a_running_pod_prints_can_be_read_and_is_not_said_twice(world: World) -> None:
    job = world.start()
    name = f"{job['metadata']['name']}-a"
    with pytest.raises(NotFoundError, match="none of its pods has begun"):
        world.launcher.log(world.directory)
    world.api.logs[name] = "step 1\n"
    world.api.set_pod(job, RUNNING)
    assert world.launcher.log(world.directory).decode() == f"==> pod {name} <==\nstep 1\n"
    world.api.logs[name] += "step 2\n"
    assert world.launcher.log(world.directory).decode() == f"==> pod {name} <==\nstep 1\nstep 2\n"
    world.api.set_pod(job, ended(1))
    world.seen("waiting", "ended with exit code 1")
    second = f"{job['metadata']['name']}-b"
    world.api.logs[second] = "step 3"
    world.api.set_pod(job, RUNNING, name=second, creationTimestamp="2999-01-01T00:00:00Z")
    assert world.launcher.log(world.directory).decode() == f"==> pod {name} <==\nstep 1\nstep 2\n==> pod {second} <==\nstep 3"


# Stopping


def test_a_stop_lets_the_pod_checkpoint_and_the_job_stays_until_it_has_gone(world: World) -> None:
    job = world.start()
    name = f"{job['metadata']['name']}-a"
    world.api.set_pod(job, RUNNING)
    world.seen("running")
    world.launcher.stop(world.directory, force=False)
    pod = world.api.objects["pods", name]["metadata"]
    assert (pod["deletionTimestamp"] is not None, pod["deletionGracePeriodSeconds"]) == (True, 30)
    assert world.seen("running", "time to checkpoint")
    world.launcher.stop(world.directory, force=True)
    assert world.api.objects["pods", name]["metadata"]["deletionGracePeriodSeconds"] == 1
    world.api.remove("pods", name)
    world.seen("unknown")
    assert not world.api.names("configmaps"), "what the Job owned went with it"


def test_an_ended_job_stays_for_people_to_look_at(world: World) -> None:
    job = world.start()
    world.api.set_pod(job, ended(0))
    world.api.finish(job["metadata"]["name"], "Complete")
    world.seen("ended")
    for force in (False, True):
        world.launcher.stop(world.directory, force=force)
    assert world.api.names("jobs") == [job["metadata"]["name"]]
    assert world.api.names("pods") == [f"{job['metadata']['name']}-a"]


def test_a_job_that_would_try_again_is_removed_when_the_run_has_ended(make: Callable[..., World]) -> None:
    world = make(minor=20)
    job = world.start()
    assert "podFailurePolicy" not in job["spec"]
    world.api.set_pod(job, ended(2))
    found = world.seen("ended")
    assert found.exit_code == 2
    assert "found an error in the run's configuration (exit code 2)" in found.message
    world.launcher.stop(world.directory, force=True)
    assert not world.api.names("jobs")


def test_stopping_what_is_not_there_is_no_error(world: World) -> None:
    world.launcher.stop(world.directory, force=False)
    world.launcher.stop(world.directory, force=True)


# Again


def test_a_new_attempt_waits_until_nothing_of_the_earlier_one_can_write(world: World) -> None:
    job = world.start()
    name = f"{job['metadata']['name']}-a"
    world.api.set_pod(job, RUNNING)
    with pytest.raises(NotYetError, match=f"has not gone yet: job {job['metadata']['name']}, pod {name}"):
        world.launcher.forget(world.directory)
    world.api.remove("pods", name)
    world.launcher.forget(world.directory)
    assert not world.api.names("jobs") + world.api.names("configmaps")
    world.seen("unknown")
    again = world.start(attempt=2)
    assert again["metadata"]["name"] == job["metadata"]["name"]
    assert again["metadata"]["annotations"]["accord.api/attempt"] == "2"
    assert world.seen("waiting")


@pytest.mark.parametrize("code", [1, 2])
def test_a_new_attempt_is_not_taken_for_the_one_before_it_that_watches_still_hold(world: World, code: int) -> None:
    """Exit code 2 ends a run by the pod alone, whatever is known of the Job."""
    job = world.start()
    name = job["metadata"]["name"]
    world.api.set_pod(job, ended(code))
    world.api.finish(name, "Failed", "BackoffLimitExceeded" if code == 1 else "PodFailurePolicy")
    world.seen("ended")
    world.api.go_blind()
    world.launcher.forget(world.directory)
    second = world.start(attempt=2)
    assert world.launcher.observe(world.directory) == Observation("waiting", message=f"the pod of Job {name}")
    assert world.api.objects["configmaps", name]["metadata"]["ownerReferences"][0]["uid"] == second["metadata"]["uid"]
    world.api.set_pod(second, RUNNING, name=f"{name}-b")
    world.api.blind = False
    world.seen("running", f"{name}-b")


def test_a_pod_of_another_job_of_the_same_attempt_says_nothing(world: World) -> None:
    """As where a start was broken off after it had created the Job: the next one is of the same attempt."""
    job = world.start()
    other = {"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"], "uid": "other", "controller": True}
    world.api.set_pod(job, ended(2), ownerReferences=[other])
    world.api.set_pod(job, RUNNING, name=f"{job['metadata']['name']}-b", ownerReferences=[{**other, "uid": job["metadata"]["uid"]}])
    world.seen("running", f"{job['metadata']['name']}-b")


def test_an_earlier_job_that_a_late_watch_brings_again_is_no_end_of_the_new_one(world: World) -> None:
    job = world.start()
    world.api.finish(job["metadata"]["name"], "Failed", "BackoffLimitExceeded")
    world.seen("ended")
    old = world.api.the_job()
    world.api.go_blind()
    world.launcher.forget(world.directory)
    world.start(attempt=2)
    world.launcher._watch("jobs").note(old)
    assert world.launcher.observe(world.directory) == Observation("unknown")
    world.api.blind = False
    world.seen("waiting")
    assert world.seen("waiting", launcher=world.launch()), "nor is it for a trainer that did not start it"


def test_while_the_api_server_is_away_a_run_is_not_yet_started(world: World) -> None:
    world.api.broken = True
    for call in (lambda: world.launcher.forget(world.directory), lambda: world.launcher.start(world.directory, 1)):
        with pytest.raises(NotYetError, match="etcdserver: request timed out"):
            call()


def test_a_run_over_several_nodes_is_a_jobset_and_is_seen_through_it(make: Callable[..., World]) -> None:
    world = make(jobset=True)
    world.launcher = world.launch(kinds={"dpo": {"nodes": 2}})
    world.launcher.start(world.directory, 1)
    (name,) = world.api.names("jobsets")
    jobset = json.loads(json.dumps(world.api.objects["jobsets", name]))
    assert world.seen("waiting")
    template = jobset["spec"]["replicatedJobs"][0]["template"]
    world.api.set_pod({"metadata": {"name": name}, "spec": template["spec"]}, RUNNING)
    assert world.seen("running")
    jobset["status"] = {"conditions": [{"type": "Completed", "status": "True", "reason": "AllJobsCompleted"}]}
    world.api.put("jobsets", jobset)
    world.seen("ended")
    with pytest.raises(NotYetError):
        world.launcher.forget(world.directory)
    world.api.remove("pods", f"{name}-a")
    world.launcher.forget(world.directory)
    assert not world.api.names("jobsets")


def set_node(world: World, index: int, status: dict[str, Any]) -> str:
    job = world.api.the_job()
    notes = {**job["spec"]["template"]["metadata"]["annotations"], "batch.kubernetes.io/job-completion-index": str(index)}
    return str(world.api.set_pod(job, status, name=f"{job['metadata']['name']}-{index}-a", annotations=notes)["metadata"]["name"])


@pytest.mark.parametrize("index", [0, 1])
def test_a_run_on_several_nodes_ends_when_one_of_them_can_never_start(world: World, index: int) -> None:
    world.launcher = world.launch(kinds={"dpo": {"nodes": 2}})
    world.start()
    creating = {"name": "run", "state": {"waiting": {"reason": "ContainerCreating"}}}
    set_node(world, 1 - index, RUNNING)
    waits = set_node(world, index, {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}], "containerStatuses": [creating]})
    world.api.warn(waits, "FailedMount", 'secret "tls" not found')
    world.clock.now += 10
    found = world.seen("running" if index else "waiting", f'pod {waits} to start: FailedMount: secret "tls" not found')
    assert found.stuck
    world.clock.now += 301
    assert world.seen("ended").message.startswith("it could not start within 300 s: pod ")


def test_why_the_job_of_a_jobset_has_no_pods_is_told(make: Callable[..., World]) -> None:
    world = make(jobset=True)
    world.launcher = world.launch(kinds={"dpo": {"nodes": 2}})
    world.launcher.start(world.directory, 1)
    (name,) = world.api.names("jobsets")
    world.api.warn(f"{name}-n-0", "FailedCreate", 'Error creating: pods "x" is forbidden: exceeded quota: compute')
    assert world.seen("waiting", "exceeded quota: compute").stuck


def test_the_service_of_an_indexed_job_goes_with_it(world: World) -> None:
    world.launcher = world.launch(kinds={"dpo": {"nodes": 2}})
    job = world.start()
    (service,) = world.api.names("services")
    assert service == job["metadata"]["name"]
    assert world.api.objects["services", service]["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    world.launcher.stop(world.directory, force=False)
    assert not world.api.names("services") + world.api.names("jobs")


def test_only_the_promised_permissions_are_used(make: Callable[..., World]) -> None:
    from accord.launch import jobset, manifest

    for with_jobset in (False, True):
        world = make(jobset=with_jobset)
        world.launcher = world.launch(kinds={"dpo": {"nodes": 2 if with_jobset else 1}})
        world.launcher.start(world.directory, 1)
        world.launcher.start(world.directory, 1)
        (name,) = world.api.names("jobsets" if with_jobset else "jobs")
        item = world.api.objects["jobsets" if with_jobset else "jobs", name]
        template = item["spec"]["replicatedJobs"][0]["template"]["spec"] if with_jobset else item["spec"]
        world.api.set_pod({"metadata": {"name": name}, "spec": template}, ended(1))
        world.seen("waiting", "ended with exit code 1")
        world.launcher.stop(world.directory, force=True)
        world.launcher.forget(world.directory)
        granted = {(verb, resource) for _, resource, verbs in (*manifest.PERMISSIONS, *(jobset.PERMISSIONS if with_jobset else ())) for verb in verbs}
        assert set(world.api.requests) <= granted, "what the chart's Role does not grant"


def test_jobsets_that_others_use_are_not_asked_for(make: Callable[..., World]) -> None:
    world = make(jobset=True)
    world.api.forbidden |= {(verb, "jobsets") for verb in ("create", "get", "list", "watch", "delete")}
    job = world.start()
    world.api.set_pod(job, RUNNING)
    world.seen("running")
    world.launcher.stop(world.directory, force=True)
    world.api.remove("pods", f"{job['metadata']['name']}-a")
    world.launcher.forget(world.directory)
    assert not world.api.names("jobs")
    assert not [asked for asked in world.api.requests if asked[1] == "jobsets"]


@pytest.mark.parametrize(("context", "namespace"), [("", "here"), ("other", "there")])
def test_the_namespace_is_that_of_the_context_that_is_used(tmp_path: Path, context: str, namespace: str) -> None:
    contexts = [
        {"name": name, "context": {"cluster": "one", "user": "me", "namespace": space}} for name, space in (("current", "here"), ("other", "there"))
    ]
    file = tmp_path / "kubeconfig"
    clusters, users = [{"name": "one", "cluster": {"server": "http://127.0.0.1:1"}}], [{"name": "me", "user": {"token": "not-a-secret"}}]
    file.write_text(
        json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "current", "clusters": clusters, "contexts": contexts, "users": users})
    )
    cluster = Cluster(make_config(kubeconfig=str(file), context=context))
    assert cluster.namespace == namespace
    cluster.close()


def test_neither_kubeconfig_nor_service_account_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="no kubeconfig is named and this is not a pod with a service account"):
        Cluster(make_config())
    with pytest.raises(FailedPreconditionError, match="kubeconfig /nowhere"):
        Cluster(make_config(kubeconfig="/nowhere"))


def test_credentials_that_are_not_accepted_are_told(world: World) -> None:
    path = Path(world.api.kubeconfig(world.folder / "wrong"))
    path.write_text(path.read_text().replace("not-a-secret", "wrong"))
    launcher = world.launch(kubeconfig=str(path))
    with pytest.raises(AccordError, match="does not accept the trainer's credentials"):
        launcher.start(world.directory, 1)
