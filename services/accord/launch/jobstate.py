"""What a run's Job and its pods say, in words a person understands: from the API server's JSON to an `Observation`. Nothing here does I/O.

What does not belong here: fetching the objects (`accord.launch.kubernetes`), and states of runs (`accord.trainer.supervisor`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from accord.launch.launcher import Observation
from accord.launch.manifest import ANNOTATION_ATTEMPT, CONTAINER, QUEUE_LABEL
from accord.rundir import EXIT_AWAY, EXIT_CONFIGURATION, EXIT_DONE, EXIT_GUARDED, EXIT_STOPPED

Json = Mapping[str, Any]
FATAL_WAITS: Mapping[str, str] = {
    "ErrImagePull": "its image cannot be pulled",
    "ImagePullBackOff": "its image cannot be pulled",
    "ErrImageNeverPull": "its image is not on the node, and must not be pulled (image_pull_policy Never)",
    "InvalidImageName": "its image's name is not valid",
    "CreateContainerConfigError": "its container cannot be configured",
    "CreateContainerError": "its container cannot be created",
    "RunContainerError": "its container cannot be started",
}
_STUCK_STARTS = ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox")
_FAILED_CREATIONS = ("FailedCreate", "FailedCreatePod", "JobCreationFailed", "HeadlessServiceCreationFailed")  # the last two of a JobSet
_OF_SCHEDULING = ("FailedScheduling", "TriggeredScaleUp", "NotTriggerScaleUp", "FailedScaleUp", "Scheduled")  # once a pod has a node, this has passed
_NO_PROGRESS = (*_OF_SCHEDULING, "SandboxChanged")  # the last one comes before each further try
_SECOND = len("2026-01-01T00:00:00")  # some events' times have fractions of it
_FINAL_CODES = (EXIT_CONFIGURATION, EXIT_GUARDED)  # another pod would end in the same way
_SIGNALS = 128  # what a signal adds to its number
_GRACE_SECONDS = 30  # Kubernetes' own, of pods that name none
_DISRUPTIONS: Mapping[str, str] = {
    "PreemptionByScheduler": "made room for a pod of higher priority",
    "DeletionByTaintManager": "its node was tainted (lost, or taken out of service)",
    "EvictionByEvictionAPI": "was evicted through the API, as when a node is drained",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "was ended by its node (short of memory or disk, or shutting down)",
}


def observe_job(job: Json | None, pods: Sequence[Json], events: Sequence[Json] = (), *, overdue: bool = False) -> Observation:
    """What goes on with a run.

    Args:
        job: its Job or JobSet; None where there is none.
        pods: its pods, in any order.
        events: about what `whose_events` names, in any order; warnings say why a pod does not start, and the others that this has passed.
        overdue: whether the `outliving_pods` have had their time to checkpoint; without it the run goes on with them.

    A run with a pod that can never start is `stuck`: the caller decides how long it may be. On several nodes a pod that waits is told of before
    those that run, which wait for it; `waiting` is the run while its first pod, the one that writes into its folder, does not run. `exit_code` is
    that of the newest container, on several nodes of the one that explains most.
    """
    if job is None:
        return Observation("unknown")
    finished, current = finishing_condition(job), current_pods(pods)
    if finished is not None:
        outliving = () if overdue else outliving_pods(job, pods)
        return _outlived(finished, outliving[0]) if outliving else _ended(job, finished, min(current, key=_telling, default=None))
    if job["metadata"].get("deletionTimestamp"):
        return Observation("running", message="is being removed; its pod has time to checkpoint")
    hopeless = next((pod for pod in pods if exit_code_of(pod) in _FINAL_CODES), None)
    if hopeless is not None:  # a Job without podFailurePolicy tries again at once, so that the next pod may be there already
        return Observation("ended", exit_code_of(hopeless), message=describe_pod_end(hopeless))
    if job["spec"].get("suspend"):
        if any(_goes_on(pod) for pod in current):  # its admission was taken back
            return Observation("running", message="is suspended; its pod has time to checkpoint")
        queue = job["metadata"].get("labels", {}).get(QUEUE_LABEL)
        return Observation("waiting", message=f"admission by the queue {queue}" if queue else "somebody to resume its Job, which is suspended")
    awaited = awaited_pod(pods)
    seen = _without_pod(job, [pod for pod in current if _has_failed(pod)], events) if awaited is None else _pending(awaited, events)
    if awaited is None and current and not (seen.stuck and _lacks_pods(job, current)):
        return _observe_pod(min(current, key=lambda pod: (_is_over(pod), _phase(pod) != "Unknown", _telling(pod))))
    first = next((pod for pod in current if _index(pod) == 0 and _goes_on(pod)), None)
    if first is None:
        return seen
    return Observation("running", message=f"{_observe_pod(first).message}, and waits for {seen.message}", stuck=seen.stuck)


def outliving_pods(job: Json | None, pods: Sequence[Json]) -> list[Json]:
    """The pods that go on though their Job has failed: before 1.31 one that ran too long, or lost another pod for good, says so while they stop."""
    finished = None if job is None else finishing_condition(job)
    return [pod for pod in current_pods(pods) if _goes_on(pod)] if finished is not None and finished["type"] == "Failed" else []


def grace_seconds(pod: Json) -> float:
    """The time that a pod has between SIGTERM and SIGKILL."""
    return float(pod["metadata"].get("deletionGracePeriodSeconds") or pod["spec"].get("terminationGracePeriodSeconds") or _GRACE_SECONDS)


def current_pods(pods: Sequence[Json]) -> list[Json]:
    """Of each node of a run its newest pod, a living one before an ended one; in the order of the nodes."""
    nodes: dict[int, list[Json]] = {}
    for pod in pods:
        nodes.setdefault(_index(pod), []).append(pod)
    return [max(nodes[index], key=_age) for index in sorted(nodes)]


def awaited_pod(pods: Sequence[Json]) -> Json | None:
    """The Pending pod that keeps a run from starting: one that can never start before one without a node, and this before others."""
    pending = [pod for pod in current_pods(pods) if _phase(pod) == "Pending"]
    return max(pending, key=lambda pod: (_waiting_state(pod).get("reason") in FATAL_WAITS, _is_unscheduled(pod)), default=None)


def whose_events(job: Json, pods: Sequence[Json]) -> list[str]:
    """Names of the objects whose events say why a run does not start: the pod that it waits for, or a Job that lacks one and the Jobs of a JobSet."""
    awaited, name = awaited_pod(pods), job["metadata"]["name"]
    if awaited is not None:
        return [awaited["metadata"]["name"]]
    if not _lacks_pods(job, current_pods(pods)) or job["spec"].get("suspend") or job["metadata"].get("deletionTimestamp"):
        return []
    return [name, *(f"{name}-{group['name']}-0" for group in job["spec"].get("replicatedJobs", []))]


def attempt_of(item: Json) -> str | None:
    """The attempt of a run that an object was created for; None where it does not say."""
    attempt: str | None = (item["metadata"].get("annotations") or {}).get(ANNOTATION_ATTEMPT)
    return attempt


def is_pod_of(pod: Json, job: Json) -> bool:
    """Whether a pod is of a Job's or JobSet's attempt, and of no other Job of its name; a JobSet's pods have an owner of another name."""
    owners = [owner for owner in pod["metadata"].get("ownerReferences") or [] if owner.get("name") == job["metadata"]["name"]]
    return attempt_of(pod) == attempt_of(job) and all(owner["uid"] == job["metadata"]["uid"] for owner in owners)


def exit_code_of(pod: Json) -> int | None:
    """The exit code of a pod's container; None while it runs, or where the node never said."""
    ended = _container_state(pod).get("terminated")
    return None if ended is None else int(ended["exitCode"])


def describe_pod_end(pod: Json) -> str:
    """How a pod ended, as the rest of a sentence that begins with the pod's name."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    node = f" on node {pod['spec']['nodeName']}" if pod.get("spec", {}).get("nodeName") else ""
    disruption = _condition(pod, "DisruptionTarget")
    if status.get("reason") == "Evicted":
        return f"pod {name} was evicted{node}: {status.get('message', 'no reason given').strip()}"
    ended = _container_state(pod).get("terminated")
    if ended is not None and ended.get("reason") == "OOMKilled":
        limit = _limit(pod, "memory")
        of = f" of {limit}" if limit else ""
        return f"pod {name} was killed{node} because it used more memory than its limit{of} (OOMKilled); ask for more memory"
    if disruption is not None:
        return f"pod {name} {_DISRUPTIONS.get(disruption.get('reason', ''), 'was disrupted')}{node}: {disruption.get('message', '')}".rstrip(": ")
    if status.get("reason") == "DeadlineExceeded":
        return f"pod {name} ran longer than its deadline allows"
    if ended is None:
        return f"pod {name} ended{node}, and the node does not say how{_because(status)}"
    return f"pod {name} {_describe_code(int(ended['exitCode']))}{node}"


def _describe_code(code: int) -> str:
    if code == EXIT_CONFIGURATION:
        return "found an error in the run's configuration (exit code 2)"
    if code == EXIT_STOPPED:
        return "was asked to stop and did, with a checkpoint (exit code 3)"
    if code == EXIT_AWAY:
        return "could not reach a service for too long (exit code 4)"
    if code == EXIT_GUARDED:
        return "was stopped by a guard, with a checkpoint (exit code 5)"
    if code > _SIGNALS:
        return f"was killed by signal {code - _SIGNALS}"
    return f"ended with exit code {code}"


def _observe_pod(pod: Json) -> Observation:
    """Of a pod that runs or is over."""
    name = pod["metadata"]["name"]
    if _is_over(pod):
        code = exit_code_of(pod)
        if code == 0:
            return Observation("running", message=f"pod {name} is done; its Job ends")
        return Observation("waiting", code, message=f"a new pod: {describe_pod_end(pod)}")
    if _phase(pod) == "Unknown":
        return Observation("running", message=f"the node of pod {name} does not answer{_because(pod.get('status', {}))}")
    return Observation("running", message=f"pod {name} runs on node {pod['spec'].get('nodeName', '?')}")


def _pending(pod: Json, events: Sequence[Json]) -> Observation:
    name = pod["metadata"]["name"]
    scheduled = _condition(pod, "PodScheduled")
    if scheduled is not None and _is_unscheduled(pod):
        if scheduled.get("reason") == "SchedulingGated":
            return Observation("waiting", message=f"admission of pod {name}, which is gated")
        why = f"{scheduled.get('reason')}: {scheduled.get('message', '')}".rstrip(": ")
        return Observation("waiting", message=f"a node with room for pod {name} ({why})")
    waiting = _waiting_state(pod)
    reason = waiting.get("reason", "")
    if reason in FATAL_WAITS:
        detail, image = waiting.get("message", ""), _image(pod)
        about = f"{image}: {detail}" if detail and image not in detail and "mage" in reason else detail or image
        return Observation("waiting", message=f"pod {name}: {FATAL_WAITS[reason]} ({reason}): {about}", stuck=True)
    latest = _latest(event for event in events if event.get("involvedObject", {}).get("name") == name and event.get("reason") not in _NO_PROGRESS)
    if _is_warning(latest):
        stuck = latest.get("reason") in _STUCK_STARTS
        return Observation("waiting", message=f"pod {name} to start: {latest.get('reason')}: {latest.get('message', '').strip()}", stuck=stuck)
    if latest.get("reason") == "Pulling":
        return Observation("waiting", message=f"pod {name} to start: {latest.get('message', '').strip() or 'its image is pulled'}")
    if scheduled is None:
        return Observation("waiting", message=f"a node for pod {name}")
    return Observation("waiting", message=f"the container of pod {name} ({reason or 'not yet created'})")


def _without_pod(job: Json, lost: Sequence[Json], events: Sequence[Json]) -> Observation:
    """Of a run that lacks a pod; `lost` are those that have failed, and that no other one has followed yet."""
    created = max(str(each["metadata"].get("creationTimestamp", "")) for each in (job, *lost))[:_SECOND]
    latest = _latest(event for event in events if _event_time(event)[:_SECOND] >= created)  # those of an earlier Job of the name stay for an hour
    if latest.get("reason") in _FAILED_CREATIONS:
        before = f"; before it, {describe_pod_end(min(lost, key=_telling))}" if lost else ""
        return Observation("waiting", message=f"its pod, which cannot be created: {latest.get('message', '').strip()}{before}", stuck=True)
    return Observation("waiting", message=f"the pod of Job {job['metadata']['name']}")


def finishing_condition(job: Json) -> Json | None:
    """The condition that ends a Job (Complete, Failed) or a JobSet (Completed, Failed); None while it goes on."""
    conditions = job.get("status", {}).get("conditions") or []
    return next((each for each in conditions if each["type"] in ("Complete", "Completed", "Failed") and each["status"] == "True"), None)


def _ended(job: Json, condition: Json, pod: Json | None) -> Observation:
    code = exit_code_of(pod) if pod is not None else None
    if condition["type"] != "Failed":
        return Observation("ended", 0 if code is None else code, message="")
    reason, last = condition.get("reason", ""), describe_pod_end(pod) if pod is not None and _is_over(pod) else ""
    seconds = _job_spec(job).get("activeDeadlineSeconds")
    final = reason == "FailJobSetFailurePolicyAction"  # of a JobSet, for one of two reasons; the other one is an exit code
    if reason == "DeadlineExceeded" or (final and seconds and code not in _FINAL_CODES):
        return Observation("ended", code, message=f"it ran longer than its deadline{f' of {seconds} s' if seconds else ''} allows (DeadlineExceeded)")
    if reason == "BackoffLimitExceeded" and last:
        tries = int(job["spec"].get("backoffLimit", 0)) + 1
        return Observation("ended", code, message=f"{last}; that was the last of {tries} {'try' if tries == 1 else 'tries'}")
    return Observation("ended", code, message=last or f"{reason}: {condition.get('message', '')}".strip(": ") or "its Job failed")


def _outlived(condition: Json, pod: Json) -> Observation:
    reason = condition.get("reason") or condition["type"]
    return Observation("running", message=f"its Job has failed ({reason}); pod {pod['metadata']['name']} has time to checkpoint")


def _job_spec(job: Json) -> Json:
    """The spec of a Job, or of a JobSet's Job."""
    jobs = [group["template"] for group in job["spec"].get("replicatedJobs", [])] or [job]
    spec: Json = jobs[0]["spec"]
    return spec


def _nodes(job: Json) -> int:
    return int(_job_spec(job).get("parallelism", 1))


def _lacks_pods(job: Json, current: Sequence[Json]) -> bool:
    """Whether a node of the run is without a pod that lives, or is done."""
    return sum(not _has_failed(pod) for pod in current) < _nodes(job)


def _index(pod: Json) -> int:
    """Which node of the run a pod is."""
    return int((pod["metadata"].get("annotations") or {}).get("batch.kubernetes.io/job-completion-index", 0))


def _age(pod: Json) -> tuple[bool, str, str]:
    return (not _is_over(pod), pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"])


def _telling(pod: Json) -> int:
    """How much the end of a pod explains that of its run, 0 the most: where one ends, the others lose it and end with exit code 1."""
    if not _is_over(pod):
        return 6
    code = exit_code_of(pod)
    if code in _FINAL_CODES:
        return 0
    if pod["status"].get("reason") == "Evicted" or _container_state(pod).get("terminated", {}).get("reason") == "OOMKilled":
        return 1
    if code is None or code > _SIGNALS or code == EXIT_AWAY or _condition(pod, "DisruptionTarget") is not None:
        return 2
    return {EXIT_DONE: 5, EXIT_STOPPED: 4}.get(code, 3)


def _phase(pod: Json) -> str:
    return str(pod.get("status", {}).get("phase", "Pending"))


def _is_over(pod: Json) -> bool:
    return _phase(pod) in ("Succeeded", "Failed")


def _goes_on(pod: Json) -> bool:
    """Whether a pod has begun and is not known to be over: it may write into the run's folder."""
    return _phase(pod) in ("Running", "Unknown")


def _has_failed(pod: Json) -> bool:
    return _phase(pod) == "Failed"


def _is_unscheduled(pod: Json) -> bool:
    return (_condition(pod, "PodScheduled") or {}).get("status") == "False"


def _waiting_state(pod: Json) -> Json:
    waiting: Json = _container_state(pod).get("waiting") or {}
    return waiting


def _container_state(pod: Json) -> Json:
    for status in pod.get("status", {}).get("containerStatuses") or []:
        if status.get("name") == CONTAINER:
            state: Json = status.get("state") or {}
            return state
    return {}


def _condition(pod: Json, kind: str) -> Json | None:
    conditions = pod.get("status", {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == kind and (kind != "DisruptionTarget" or each["status"] == "True")), None)


def _limit(pod: Json, resource: str) -> str:
    containers = pod.get("spec", {}).get("containers") or [{}]
    return str(containers[0].get("resources", {}).get("limits", {}).get(resource, ""))


def _image(pod: Json) -> str:
    containers = pod.get("spec", {}).get("containers") or [{}]
    return str(containers[0].get("image", ""))


def _because(status: Json) -> str:
    parts = [str(status[name]).strip() for name in ("reason", "message") if status.get(name)]
    return f" ({': '.join(parts)})" if parts else ""


def _latest(events: Iterable[Json]) -> Json:
    """The newest event, of those of one second one that is no warning: what still fails says so again. {} where there is none."""
    return max(events, key=lambda event: (_event_time(event)[:_SECOND], not _is_warning(event), _event_time(event)), default={})


def _is_warning(event: Json) -> bool:
    return event.get("type") == "Warning"


def _event_time(event: Json) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp", ""))
