"""What Jobs and pods say, in words: each of the states that a person meets, as an API server describes it."""

from __future__ import annotations

from typing import Any

import pytest

from accord.launch.jobstate import awaited_pod, current_pods, grace_seconds, observe_job, outliving_pods, whose_events

JOB = {"metadata": {"name": "accord-x", "labels": {}}, "spec": {"backoffLimit": 3}}


def job(*conditions: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {**JOB, "spec": {**JOB["spec"], **spec}, "status": {"conditions": list(conditions)}}  # type: ignore[dict-item]


def failed(reason: str, message: str = "") -> dict[str, Any]:
    return {"type": "Failed", "status": "True", "reason": reason, "message": message}


def pod(
    phase: str, state: dict[str, Any] | None = None, *, name: str = "accord-x-a", created: str = "2026-01-01T00:00:00Z", **more: Any
) -> dict[str, Any]:
    statuses = [{"name": "sidecar", "state": {"running": {}}}, {"name": "run", "state": state or {}}]
    return {
        "metadata": {"name": name, "creationTimestamp": created},
        "spec": {"nodeName": "gpu-7", "containers": [{"image": "accord/training:1.0", "resources": {"limits": {"memory": "2Gi"}}}]},
        "status": {"phase": phase, "containerStatuses": statuses, **more},
    }


def terminated(code: int, reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason}}


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": status, "reason": reason, "message": message}]}


NO_GPU = condition("PodScheduled", "False", "Unschedulable", "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
SCHEDULED = condition("PodScheduled", "True", "")


def event(reason: str, message: str, about: str = "accord-x-a", at: str = "2026-01-01T00:00:00Z", kind: str = "Warning") -> dict[str, Any]:
    return {"metadata": {}, "type": kind, "reason": reason, "message": message, "lastTimestamp": at, "involvedObject": {"name": about}}


CREATING = pod("Pending", {"waiting": {"reason": "ContainerCreating"}}, **SCHEDULED)
NO_NETWORK = event("FailedCreatePodSandBox", "network plugin is not ready: cni config uninitialized")
LATER = "2026-01-01T00:00:01Z"
PREEMPTED = pod("Failed", terminated(143), **condition("DisruptionTarget", "True", "PreemptionByScheduler"))


WAITING: dict[str, tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]], str, bool]] = {
    "no pod yet": (job(), [], [], "the pod of Job accord-x", False),
    "quota": (job(), [], [event("FailedCreate", "exceeded quota: compute", "accord-x")], "its pod, which cannot be created: exceeded quota: compute", True),
    "suspended": (job(suspend=True), [], [], "somebody to resume its Job, which is suspended", False),
    "unschedulable": (
        job(), [pod("Pending", **NO_GPU)], [],
        "a node with room for pod accord-x-a (Unschedulable: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu.)", False,
    ),
    "gated": (job(), [pod("Pending", **condition("PodScheduled", "False", "SchedulingGated"))], [], "admission of pod accord-x-a, which is gated", False),
    "image": (
        job(), [pod("Pending", {"waiting": {"reason": "ErrImagePull", "message": "manifest unknown"}}, **SCHEDULED)], [],
        "pod accord-x-a: its image cannot be pulled (ErrImagePull): accord/training:1.0: manifest unknown", True,
    ),
    "image without a reason": (
        job(), [pod("Pending", {"waiting": {"reason": "InvalidImageName"}}, **SCHEDULED)], [],
        "pod accord-x-a: its image's name is not valid (InvalidImageName): accord/training:1.0", True,
    ),
    "secret": (
        job(), [pod("Pending", {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'}}, **SCHEDULED)], [],
        'pod accord-x-a: its container cannot be configured (CreateContainerConfigError): secret "s3" not found', True,
    ),
    "volume": (
        job(), [pod("Pending", {"waiting": {"reason": "ContainerCreating"}}, **SCHEDULED)],
        [event("FailedScheduling", "old", at="2025-01-01T00:00:00Z"), event("FailedMount", 'secret "tls" not found')],
        'pod accord-x-a to start: FailedMount: secret "tls" not found', True,
    ),
    "pulling after a failure": (
        job(), [CREATING], [event("Pulling", 'Pulling image "accord/training:1.0"', at=LATER, kind="Normal"), NO_NETWORK],
        'pod accord-x-a to start: Pulling image "accord/training:1.0"', False,
    ),
    "pulling in the second of a failure": (
        job(), [CREATING], [event("Pulling", 'Pulling image "accord/training:1.0"', kind="Normal"), NO_NETWORK],
        'pod accord-x-a to start: Pulling image "accord/training:1.0"', False,
    ),
    "pulled after a failure": (
        job(), [CREATING], [NO_NETWORK, event("Pulled", "Successfully pulled", at=LATER, kind="Normal")],
        "the container of pod accord-x-a (ContainerCreating)", False,
    ),
    "failing again and again": (
        job(), [CREATING], [NO_NETWORK, event("SandboxChanged", "Pod sandbox changed, it will be killed and re-created.", at=LATER, kind="Normal")],
        "pod accord-x-a to start: FailedCreatePodSandBox: network plugin is not ready: cni config uninitialized", True,
    ),
    "failing in the second of its scheduling": (
        job(), [CREATING], [NO_NETWORK, event("Scheduled", "Successfully assigned", at="2026-01-01T00:00:00.900000Z", kind="Normal")],
        "pod accord-x-a to start: FailedCreatePodSandBox: network plugin is not ready: cni config uninitialized", True,
    ),
    "quota that let it through at last": (
        job(), [], [event("FailedCreate", "exceeded quota: compute", "accord-x"), event("SuccessfulCreate", "Created pod", "accord-x", LATER, "Normal")],
        "the pod of Job accord-x", False,
    ),
    "quota of an earlier Job": (
        job() | {"metadata": {"name": "accord-x", "creationTimestamp": LATER}}, [], [event("FailedCreate", "exceeded quota: compute", "accord-x")],
        "the pod of Job accord-x", False,
    ),
    "creating": (job(), [pod("Pending", {"waiting": {"reason": "ContainerCreating"}}, **SCHEDULED)], [], "the container of pod accord-x-a (ContainerCreating)", False),
    "event of another pod": (job(), [pod("Pending", **SCHEDULED)], [event("FailedMount", "x", "other")], "the container of pod accord-x-a (not yet created)", False),
    "between pods": (
        job(), [pod("Failed", terminated(137, "OOMKilled"))], [],
        "a new pod: pod accord-x-a was killed on node gpu-7 because it used more memory than its limit of 2Gi (OOMKilled); ask for more memory", False,
    ),
    "quota that refuses the next pod": (
        job(), [PREEMPTED], [event("SuccessfulCreate", "Created pod", "accord-x", kind="Normal"), event("FailedCreate", "exceeded quota: gpus", "accord-x", LATER)],
        "its pod, which cannot be created: exceeded quota: gpus; before it, pod accord-x-a made room for a pod of higher priority on node gpu-7", True,
    ),
    "quota that refused an earlier pod": (
        job(), [PREEMPTED], [event("FailedCreate", "exceeded quota: gpus", "accord-x"), event("SuccessfulCreate", "Created pod", "accord-x", LATER, "Normal")],
        "a new pod: pod accord-x-a made room for a pod of higher priority on node gpu-7", False,
    ),
    "quota from before the pod that failed": (
        job(), [pod("Failed", terminated(1), created=LATER)], [event("FailedCreate", "exceeded quota: gpus", "accord-x")],
        "a new pod: pod accord-x-a ended with exit code 1 on node gpu-7", False,
    ),
    "on its node after a wait for it": (
        job(), [CREATING],
        [event("FailedScheduling", "0/1 nodes are available"), event("TriggeredScaleUp", "pod triggered scale-up", at=LATER, kind="Normal"),
         event("FailedScheduling", "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", at="2026-01-01T00:01:00Z"),
         event("Scheduled", "Successfully assigned", at="2026-01-01T00:02:00Z", kind="Normal")],
        "the container of pod accord-x-a (ContainerCreating)", False,
    ),
    "a volume that fails while the autoscaler still speaks": (
        job(), [CREATING],
        [event("FailedMount", 'secret "tls" not found'), event("NotTriggerScaleUp", "pod didn't trigger scale-up", at=LATER, kind="Normal")],
        'pod accord-x-a to start: FailedMount: secret "tls" not found', True,
    ),
    "stopped": (job(), [pod("Failed", terminated(3))], [], "a new pod: pod accord-x-a was asked to stop and did, with a checkpoint (exit code 3) on node gpu-7", False),
}  # fmt: skip


@pytest.mark.parametrize("name", WAITING)
def test_what_a_run_waits_for(name: str) -> None:
    given, pods, events, message, stuck = WAITING[name]
    found = observe_job(given, pods, events)
    assert (found.state, found.message, found.stuck) == ("waiting", message, stuck)


def test_a_queue_is_named() -> None:
    queued = job(suspend=True) | {"metadata": {"name": "accord-x", "labels": {"kueue.x-k8s.io/queue-name": "alignment"}}}
    assert observe_job(queued, []).message == "admission by the queue alignment"


ENDED: dict[str, tuple[dict[str, Any], dict[str, Any], int | None, str]] = {
    "out of memory": (
        failed("BackoffLimitExceeded"), pod("Failed", terminated(137, "OOMKilled")), 137,
        "pod accord-x-a was killed on node gpu-7 because it used more memory than its limit of 2Gi (OOMKilled); ask for more memory; "
        "that was the last of 4 tries",
    ),
    "evicted": (
        failed("BackoffLimitExceeded"), pod("Failed", reason="Evicted", message="The node was low on resource: memory. "), None,
        "pod accord-x-a was evicted on node gpu-7: The node was low on resource: memory.; that was the last of 4 tries",
    ),
    "deadline": (failed("DeadlineExceeded"), pod("Failed", terminated(3)), 3, "it ran longer than its deadline of 60 s allows (DeadlineExceeded)"),
    "configuration": (
        failed("PodFailurePolicy", "Container run for pod a failed with exit code 2 matching FailJob rule at index 1"), pod("Failed", terminated(2)), 2,
        "pod accord-x-a found an error in the run's configuration (exit code 2) on node gpu-7",
    ),
    "killed": (failed("BackoffLimitExceeded"), pod("Failed", terminated(137)), 137, "pod accord-x-a was killed by signal 9 on node gpu-7; that was the last of 4 tries"),
    "preempted": (
        failed("BackoffLimitExceeded"), pod("Failed", terminated(143), **condition("DisruptionTarget", "True", "PreemptionByScheduler", "preempting to accommodate a higher priority pod")), 143,
        "pod accord-x-a made room for a pod of higher priority on node gpu-7: preempting to accommodate a higher priority pod; that was the last of 4 tries",
    ),
    "node lost": (
        failed("BackoffLimitExceeded"), pod("Failed", reason="NodeLost", message="Node gpu-7 is gone"), None,
        "pod accord-x-a ended on node gpu-7, and the node does not say how (NodeLost: Node gpu-7 is gone); that was the last of 4 tries",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDED)
def test_how_a_run_ended(name: str) -> None:
    given, last, code, message = ENDED[name]
    found = observe_job(job(given, activeDeadlineSeconds=60), [last])
    assert (found.state, found.exit_code, found.message) == ("ended", code, message)


@pytest.mark.parametrize("phase", ["Running", "Unknown"])
def test_a_job_that_ran_too_long_goes_on_until_its_pod_has_had_its_time(phase: str) -> None:
    """Before Kubernetes 1.31 a Job is Failed as soon as its pod is asked to stop."""
    late, going = job(failed("DeadlineExceeded"), activeDeadlineSeconds=60), pod(phase, {"running": {}})
    found = observe_job(late, [going])
    assert (found.state, found.message) == ("running", "its Job has failed (DeadlineExceeded); pod accord-x-a has time to checkpoint")
    assert observe_job(late, [going], overdue=True).state == "ended"
    assert outliving_pods(late, [going]) == [going]
    for over in (pod("Pending", **SCHEDULED), pod("Failed", terminated(3))):
        assert (outliving_pods(late, [over]), observe_job(late, [over]).state) == ([], "ended")
    assert (
        outliving_pods(job(), [going]) == outliving_pods(None, [going]) == outliving_pods(job({"type": "Complete", "status": "True"}), [going]) == []
    )


def test_the_grace_is_that_of_the_deletion_then_the_pods_own() -> None:
    given = pod("Running")
    assert grace_seconds(given) == 30
    given["spec"]["terminationGracePeriodSeconds"] = 120
    assert grace_seconds(given) == 120
    given["metadata"]["deletionGracePeriodSeconds"] = 60
    assert grace_seconds(given) == 60


def test_a_run_whose_admission_is_taken_back_has_time_to_checkpoint_and_then_waits() -> None:
    """Kueue suspends a running Job; its pod, which has its grace, writes into the run's folder as long as it goes on."""
    queued = job(suspend=True) | {"metadata": {"name": "accord-x", "labels": {"kueue.x-k8s.io/queue-name": "alignment"}}}
    found = observe_job(queued, [pod("Running", {"running": {}})])
    assert (found.state, found.message) == ("running", "is suspended; its pod has time to checkpoint")
    for pods in ([pod("Pending", **SCHEDULED)], [pod("Failed", terminated(3))], []):
        assert observe_job(queued, pods).message == "admission by the queue alignment"


def test_a_jobset_that_was_not_to_begin_again_says_why() -> None:
    """The condition is the same after the end of the deadline and after an exit code that is final: the pods tell them apart."""
    several = {"replicatedJobs": [{"name": "n", "replicas": 1, "template": {"spec": {"activeDeadlineSeconds": 3600}}}]}
    without = {"replicatedJobs": [{"name": "n", "replicas": 1, "template": {"spec": {}}}]}
    applied = failed("FailJobSetFailurePolicyAction", "applying FailJobSet failure policy action (first failed job: accord-x-n-0)")
    overdue = observe_job(job(applied, **several), [])
    assert (overdue.state, overdue.message) == ("ended", "it ran longer than its deadline of 3600 s allows (DeadlineExceeded)")
    assert observe_job(job(applied, **without), []).message.startswith("FailJobSetFailurePolicyAction: applying FailJobSet")
    wrong = observe_job(job(applied, **several), [pod("Failed", terminated(2))])
    assert wrong.message == "pod accord-x-a found an error in the run's configuration (exit code 2) on node gpu-7"


def test_a_job_that_failed_without_a_pod_says_its_own_reason() -> None:
    found = observe_job(job(failed("FailedJobs", "jobset failed due to one or more job failures")), [])
    assert (found.state, found.exit_code, found.message) == ("ended", None, "FailedJobs: jobset failed due to one or more job failures")
    assert observe_job(job({"type": "Complete", "status": "True"}), []).exit_code == 0


@pytest.mark.parametrize(
    ("code", "words"),
    [(2, "found an error in the run's configuration (exit code 2)"), (5, "was stopped by a guard, with a checkpoint (exit code 5)")],
)
def test_what_another_pod_would_only_repeat_has_ended_before_the_job_says_so(code: int, words: str) -> None:
    broken = pod("Failed", terminated(code))
    for pods in ([broken], [pod("Running", {"running": {}}, name="next", created="2026-01-02T00:00:00Z"), broken]):
        found = observe_job(job(), pods)
        assert (found.state, found.exit_code) == ("ended", code)
        assert found.message == f"pod accord-x-a {words} on node gpu-7"


def test_a_job_that_is_about_to_complete_still_runs() -> None:
    assert observe_job(job(), [pod("Succeeded", terminated(0, "Completed"))]).state == "running"
    assert observe_job(job({"type": "Failed", "status": "False"}), [pod("Running", {"running": {}})]).message == "pod accord-x-a runs on node gpu-7"
    removed = job() | {"metadata": {"name": "accord-x", "deletionTimestamp": "2026-01-01T00:00:00Z"}}
    assert observe_job(removed, [pod("Running")]).state == "running"
    assert observe_job(None, [pod("Running")]).state == "unknown"


def test_the_newest_pod_counts_and_a_living_one_before_an_ended_one() -> None:
    old, new = pod("Failed", terminated(1), name="old"), pod("Failed", terminated(3), name="new", created="2026-01-02T00:00:00Z")
    assert current_pods([new, old]) == [new] == current_pods([old, new])
    living = pod("Running", name="living", created="2025-01-01T00:00:00Z")
    assert current_pods([new, living, old]) == [living]
    assert current_pods([]) == []


# Several nodes


def node(index: int, phase: str, state: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    made = pod(phase, state, name=f"accord-x-{index}-abcde", **more)
    return {**made, "metadata": {**made["metadata"], "annotations": {"batch.kubernetes.io/job-completion-index": str(index)}}}


RUNS = {"running": {}}
LOST = node(1, "Failed", terminated(1))
NO_IMAGE = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}


@pytest.mark.parametrize("status", [NO_GPU, SCHEDULED], ids=["without a node", "without its image"])
def test_a_pod_that_waits_is_told_of_before_one_that_runs(status: dict[str, Any]) -> None:
    waits, stuck = {"waiting": {}} if status is NO_GPU else NO_IMAGE, status is SCHEDULED
    words = "1 Insufficient nvidia.com/gpu" if status is NO_GPU else "its image cannot be pulled (ImagePullBackOff)"
    for pods in ([node(0, "Pending", waits, **status), node(1, "Running", RUNS)], [node(1, "Running", RUNS), node(0, "Pending", waits, **status)]):
        found = observe_job(job(parallelism=2), pods)
        assert (found.state, found.stuck, words in found.message) == ("waiting", stuck, True), found


def test_a_run_whose_first_pod_runs_is_no_waiting_one_since_that_writes_into_its_folder() -> None:
    found = observe_job(job(parallelism=2), [node(0, "Running", RUNS), node(1, "Pending", NO_IMAGE, **SCHEDULED)])
    assert (found.state, found.stuck) == ("running", True)
    assert found.message == (
        "pod accord-x-0-abcde runs on node gpu-7, and waits for pod accord-x-1-abcde: its image cannot be pulled (ImagePullBackOff): "
        "accord/training:1.0: not found"
    )


def test_of_pods_that_wait_one_that_never_starts_comes_first() -> None:
    creating = {"waiting": {"reason": "ContainerCreating"}}
    pods = [
        node(0, "Pending", creating, **SCHEDULED),
        node(1, "Pending", **NO_GPU),
        node(2, "Pending", NO_IMAGE, **SCHEDULED),
        node(3, "Running", RUNS),
    ]
    for expected in (2, 1, 0):
        assert awaited_pod(pods) is pods[expected]
        assert whose_events(job(parallelism=4), pods) == [f"accord-x-{expected}-abcde"]
        pods[expected] = node(expected, "Running", RUNS)
    assert awaited_pod(pods) is None
    assert whose_events(job(parallelism=4), pods) == []


def test_a_pod_that_cannot_be_created_is_told_of_beside_one_that_runs() -> None:
    refused = [event("FailedCreate", "exceeded quota: compute", "accord-x")]
    found = observe_job(job(parallelism=2), [node(0, "Running", RUNS)], refused)
    assert (found.state, found.stuck) == ("running", True)
    assert found.message.endswith("and waits for its pod, which cannot be created: exceeded quota: compute")
    assert whose_events(job(parallelism=2), [node(0, "Running", RUNS)]) == ["accord-x"]
    assert observe_job(job(parallelism=1), [node(0, "Running", RUNS)], refused).message == "pod accord-x-0-abcde runs on node gpu-7"


@pytest.mark.parametrize(
    ("pods", "asked"),
    [
        ([node(0, "Failed", terminated(1))], True),
        ([node(0, "Failed", terminated(1)), node(0, "Running", RUNS, created="2026-01-02T00:00:00Z")], False),
        ([node(0, "Succeeded", terminated(0))], False),
    ],
    ids=["failed", "followed by another one", "done"],
)
def test_a_node_whose_pod_has_failed_lacks_one(pods: list[dict[str, Any]], asked: bool) -> None:
    assert whose_events(job(parallelism=1), pods) == (["accord-x"] if asked else [])
    refused = [event("FailedCreate", "exceeded quota: compute", "accord-x")]
    assert observe_job(job(parallelism=1), pods, refused).stuck == asked
    beside = [node(1, "Running", RUNS), *pods]
    assert whose_events(job(parallelism=2), beside) == (["accord-x"] if asked else [])
    assert observe_job(job(parallelism=2), beside, refused).stuck == asked


def test_a_node_that_cannot_have_its_next_pod_is_told_of_beside_one_that_runs() -> None:
    refused = [event("FailedCreate", "exceeded quota: compute", "accord-x")]
    found = observe_job(job(parallelism=2), [node(0, "Running", RUNS), LOST], refused)
    assert (found.state, found.stuck) == ("running", True)
    assert found.message == (
        "pod accord-x-0-abcde runs on node gpu-7, and waits for its pod, which cannot be created: exceeded quota: compute; before it, "
        "pod accord-x-1-abcde ended with exit code 1 on node gpu-7"
    )


def test_the_jobs_of_a_jobset_say_why_they_have_no_pods() -> None:
    group = {"name": "n", "replicas": 1, "template": {"spec": {"parallelism": 2}}}
    given = job(replicatedJobs=[group])
    assert whose_events(given, []) == ["accord-x", "accord-x-n-0"]
    assert whose_events(job(replicatedJobs=[group], suspend=True), []) == []
    found = observe_job(given, [], [event("FailedCreate", "exceeded quota: compute", "accord-x-n-0")])
    assert (found.message, found.stuck) == ("its pod, which cannot be created: exceeded quota: compute", True)
    found = observe_job(given, [], [event("HeadlessServiceCreationFailed", "exceeded quota: services", "accord-x")])
    assert (found.message, found.stuck) == ("its pod, which cannot be created: exceeded quota: services", True)


FIRST_CAUSES = {
    "out of memory": (node(0, "Failed", terminated(137, "OOMKilled")), 137, "because it used more memory than its limit of 2Gi (OOMKilled)"),
    "evicted": (node(0, "Failed", reason="Evicted", message="The node was low on resource: memory."), None, "was evicted on node gpu-7"),
    "configuration": (node(0, "Failed", terminated(2)), 2, "found an error in the run's configuration (exit code 2)"),
    "guard": (node(0, "Failed", terminated(5)), 5, "was stopped by a guard"),
    "a signal": (node(0, "Failed", terminated(139)), 139, "was killed by signal 11"),
    "node lost": (node(0, "Failed", reason="NodeLost"), None, "the node does not say how (NodeLost)"),
    "service away": (node(0, "Failed", terminated(4)), 4, "could not reach a service for too long (exit code 4)"),
}


@pytest.mark.parametrize("name", FIRST_CAUSES)
def test_of_several_ends_the_one_that_explains_the_others_is_told(name: str) -> None:
    """A node that loses another one's collective ends with exit code 1."""
    cause, code, words = FIRST_CAUSES[name]
    for pods in ([cause, LOST], [LOST, cause], [node(2, "Failed", terminated(3)), LOST, node(3, "Running", RUNS), cause]):
        for conditions in ([failed("BackoffLimitExceeded")], [failed("PodFailurePolicy")]):
            found = observe_job(job(*conditions), pods, overdue=True)
            assert (found.state, found.exit_code) == ("ended", code)
            assert "accord-x-0-abcde" in found.message
            assert words in found.message


def test_a_pod_of_an_earlier_try_explains_nothing() -> None:
    earlier = node(0, "Failed", terminated(137, "OOMKilled"), created="2025-01-01T00:00:00Z")
    found = observe_job(job(failed("BackoffLimitExceeded")), [earlier, LOST, node(0, "Failed", terminated(1))])
    assert (found.exit_code, "exit code 1" in found.message) == (1, True)
