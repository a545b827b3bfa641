"""Runs as Jobs of a cluster: `accord.launch.launcher.Launcher` over the Kubernetes API.

The name of a run's Job follows from the run's name alone, so a trainer that was killed while it started a run finds the Job, and two cannot be
there at once. A watch keeps Jobs and pods at hand; the truth stays in the cluster and in the run's folder, which must be on a volume that trainer
and runs share. What does not belong here: manifests (`manifest`, `jobset`), the meaning of what is seen (`jobstate`), requests (`kubernetes`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from accord.errors import AccordError, AlreadyExistsError, FailedPreconditionError, NotFoundError, UnavailableError
from accord.launch.jobset import build_several
from accord.launch.jobstate import (
    Json,
    attempt_of,
    exit_code_of,
    finishing_condition,
    grace_seconds,
    is_pod_of,
    observe_job,
    outliving_pods,
    whose_events,
)
from accord.launch.kubernetes import Cluster, LabelledCollection
from accord.launch.launcher import NotYetError, Observation
from accord.launch.manifest import (
    ANNOTATION_ATTEMPT,
    ANNOTATION_NAME,
    CONTAINER,
    LABEL_RUN,
    Features,
    Manifest,
    RunOrder,
    build_config_map,
    build_job,
    memory_of,
    object_name,
    selector,
)
from accord.launch.reflector import Reflector
from accord.launch.settings import KubernetesConfig
from accord.rundir import RunDirectory, RunFile, read_run_file

_RESOURCES = {"Job": "jobs", "JobSet": "jobsets", "Service": "services", "ConfigMap": "configmaps"}
_WATCHED = ("jobs", "pods")  # whatever a run is
_OWNERS = {"Deployment": ("deployments", "apps/v1"), "StatefulSet": ("statefulsets", "apps/v1"), "ConfigMap": ("configmaps", "v1"),
           "ServiceAccount": ("serviceaccounts", "v1")}  # fmt: skip
_OUTAGE_SECONDS = 60.0
_EVENTS_EVERY_SECONDS = 5.0
_KILL_SECONDS = 1
_LATE_SECONDS = 10.0  # a node hears late that a pod is to stop
_log = structlog.get_logger(__name__)


class JobLauncher:
    """Starts runs as Jobs.

    Args:
        config: the trainer's `kubernetes` section.
        cluster: the namespace.
        stop_grace_seconds: time to checkpoint between SIGTERM and SIGKILL.
        peak_bytes: the peak of a run's plan, 0 where it cannot be known.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: KubernetesConfig,
        cluster: Cluster,
        *,
        stop_grace_seconds: float,
        peak_bytes: Callable[[RunFile], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._stop_grace_seconds = stop_grace_seconds
        self._peak_bytes = peak_bytes
        self._clock = clock
        self._several_nodes = any(settings.nodes > 1 for settings in (config.defaults, *config.kinds.values()))
        self._features: Features | None = None
        self._watches: dict[str, Reflector] = {}
        self._stuck: dict[str, float] = {}
        self._outlived: dict[str, float] = {}
        self._attempts: dict[str, str] = {}
        self._adopted: set[str] = set()
        self._logged: set[str] = set()
        self._events: dict[str, tuple[float, list[Json]]] = {}

    def start(self, directory: Path, attempt: int) -> None:
        """Creates the ConfigMap and the Job; see `Launcher.start`."""
        try:
            order = self._order(read_run_file(directory / "run.yaml"), directory, attempt)
            self._check_memory(order)
            self._write_config_map(order)
            for manifest in self._objects(order):
                created = self._create(manifest, order)
            self._adopt(created)
        except UnavailableError as error:
            raise NotYetError(str(error)) from error
        self._attempts[created["metadata"]["name"]] = str(attempt)
        self._watch(_RESOURCES[created["kind"]]).note(created)

    def observe(self, directory: Path) -> Observation:
        """Looks at the Job and its pods; see `Launcher.observe`. Takes over what an ended pod has printed."""
        name = self._name(directory)
        job, pods = self._seen(name)
        self._take_logs(directory, pods)
        if job is not None and name not in self._adopted:
            self._adopt(job)
        overdue = self._overdue(name, outliving_pods(job, pods))
        seen = observe_job(job, pods, overdue=overdue)
        if job is not None and seen.state != "ended" and not seen.stuck:
            seen = observe_job(job, pods, [event for about in whose_events(job, pods) for event in self._events_of(about)], overdue=overdue)
        return self._patience(name, seen)

    def forget(self, directory: Path) -> None:
        """Removes what is left of an earlier attempt; see `Launcher.forget`."""
        name = self._name(directory)
        for resource in _WATCHED:  # from the first run on, so that `fault` knows of an API server that is away before any run could be looked at
            self._watch(resource)
        try:
            self._remove(name)
            pods, _ = self._cluster.find("pods", labels=selector(self._config.instance, name))
            left = [f"{resource[:-1]} {name}" for resource in self._top() if self._is_there(resource, name)]
            left += [f"pod {pod}" for pod in _alive(pods)]
            if left:
                raise NotYetError(f"its earlier attempt has not gone yet: {', '.join(left)}")
            self._cluster.delete("configmaps", name)
            if self._several_nodes:
                self._cluster.delete("services", name)
        except NotYetError:
            raise
        except UnavailableError as error:
            raise NotYetError(str(error)) from error
        self._adopted.discard(name)
        self._stuck.pop(name, None)
        self._outlived.pop(name, None)
        self._attempts.pop(name, None)

    def stop(self, directory: Path, *, force: bool) -> None:
        """Deletes the Job in the foreground, so that its pods get SIGTERM and their grace, with `force` a second; see `Launcher.stop`.

        A Job that has ended stays with its pods, for people to look at, until its time to live is over.
        """
        name = self._name(directory)
        pods, _ = self._cluster.find("pods", labels=selector(self._config.instance, name))
        self._take_logs(directory, pods, running_too=True)
        for resource in self._top():
            try:
                if finishing_condition(self._cluster.get(resource, name)) is None or _alive(pods):
                    self._cluster.delete(resource, name, foreground=True)
            except NotFoundError:
                continue
        for pod in _alive(pods) if force else ():
            self._cluster.delete("pods", pod, grace_seconds=_KILL_SECONDS)

    def log(self, directory: Path) -> bytes:
        """What pods have printed: those that have ended from the run's log, those that run from the cluster; see `Launcher.log`."""
        file = RunDirectory(directory).log
        known = file.read_bytes() if file.exists() else b""
        pods, _ = self._cluster.find("pods", labels=selector(self._config.instance, self._name(directory)))
        for name in (pod["metadata"]["name"] for pod in _by_age(pods) if pod.get("status", {}).get("phase") == "Running"):
            if _mark(name).encode() not in known:
                with contextlib.suppress(NotFoundError):  # it went between the two requests
                    known += f"{_mark(name)}{self._cluster.log(name, CONTAINER)}".encode()
        if not known:
            raise NotFoundError(f"{directory.name} has no log.txt: none of its pods has begun", field="file")
        return known

    def fault(self) -> str | None:
        """What keeps the cluster from being seen, once this has lasted for a minute; a missing permission at once."""
        for watch in list(self._watches.values()):  # the look at the runs, in another thread, may begin one
            problem = watch.problem()
            if problem is not None and (problem[1] > _OUTAGE_SECONDS or not isinstance(problem[0], UnavailableError)):
                return f"the cluster's {watch.what} cannot be watched for {problem[1]:.0f} s: {problem[0]}"
        return None

    def close(self) -> None:
        """Ends the watches; Jobs go on."""
        for watch in self._watches.values():
            watch.close()
        self._cluster.close()

    def _name(self, directory: Path) -> str:
        return object_name(self._config.instance, f"runs/{directory.name}")

    def _features_now(self) -> Features:
        if self._features is None:
            self._features = self._cluster.features()
        return self._features

    def _top(self) -> tuple[str, ...]:
        """The resources that a run can be. A cluster may have JobSets for others: the Role lets them be read only where runs have several nodes."""
        return ("jobsets", "jobs") if self._several_nodes and self._features_now().jobset else ("jobs",)

    def _watch(self, resource: str) -> Reflector:
        if resource not in self._watches:
            self._watches[resource] = Reflector(resource, LabelledCollection(self._cluster, resource, selector(self._config.instance)))
        return self._watches[resource]

    def _seen(self, name: str) -> tuple[Json | None, list[Json]]:
        """A run's Job or JobSet and its pods, from the watches, without what is left there of another attempt.

        `forget` and `start` speak with the server itself: after a break a new attempt is there before the watches go on, and the end of the one
        before it must not be taken for its own.
        """
        seconds, attempt = self._config.request_seconds, self._attempts.get(name)
        tops = [self._watch(resource).objects(timeout_seconds=seconds).get(name) for resource in self._top()]
        top = next((top for top in tops if top is not None and attempt in (None, attempt_of(top))), None)
        pods = self._watch("pods").objects(timeout_seconds=seconds).values()
        mine = [pod for pod in pods if pod["metadata"]["labels"].get(LABEL_RUN) == name and attempt in (None, attempt_of(pod))]
        return top, [pod for pod in mine if top is None or is_pod_of(pod, top)]

    def _order(self, run: RunFile, directory: Path, attempt: int) -> RunOrder:
        return RunOrder(run, str(directory), attempt, self._peak_bytes(run), self._stop_grace_seconds, self._cluster.namespace, self._owner())

    def _owner(self) -> Manifest | None:
        owner = self._config.owner
        if owner is None:
            return None
        resource, version = _OWNERS[owner.kind]
        try:
            found = self._cluster.get(resource, owner.name)
        except NotFoundError as error:
            raise FailedPreconditionError(
                f"{owner.kind} {owner.name}, which is to own the Jobs, is not in namespace {self._cluster.namespace}", field="kubernetes.owner"
            ) from error
        return {"apiVersion": version, "kind": owner.kind, "name": owner.name, "uid": found["metadata"]["uid"]}

    def _check_memory(self, order: RunOrder) -> None:
        asked = memory_of(order, self._config)
        if order.memory_bytes > asked:
            kind = order.run.spec.algorithm
            raise FailedPreconditionError(
                f"the plan of {order.run.name} needs {order.memory_bytes // 2**20} MiB and its pods get {asked // 2**20} MiB; raise memory of {kind}",
                field=f"kubernetes.kinds.{kind}.memory",
            )

    def _objects(self, order: RunOrder) -> list[Manifest]:
        nodes = self._config.for_kind(order.run.spec.algorithm).nodes
        if nodes > 1:
            return build_several(order, self._config, self._features_now())
        return [build_job(order, self._config, self._features_now())]

    def _create(self, manifest: Manifest, order: RunOrder) -> Json:
        """The object; the one that is there already where it is of this run and attempt, as after a server that was killed here."""
        resource, name = _RESOURCES[manifest["kind"]], manifest["metadata"]["name"]
        try:
            return {**self._cluster.create(resource, manifest), "kind": manifest["kind"], "apiVersion": manifest["apiVersion"]}
        except AlreadyExistsError:
            known = self._cluster.get(resource, name)
        notes = known["metadata"].get("annotations") or {}
        if known["metadata"].get("deletionTimestamp"):
            raise NotYetError(f"{manifest['kind']} {name} of an earlier attempt is still being removed")
        if (notes.get(ANNOTATION_NAME), notes.get(ANNOTATION_ATTEMPT)) != (order.run.name, str(order.attempt)):
            whose = f"attempt {notes.get(ANNOTATION_ATTEMPT)} of {notes.get(ANNOTATION_NAME)}" if ANNOTATION_NAME in notes else "not a run's"
            raise AlreadyExistsError(
                f"{manifest['kind']} {name} is in namespace {self._cluster.namespace} already, and is {whose}; two releases in a namespace need "
                f"instances of different names"
            )
        return {**known, "kind": manifest["kind"], "apiVersion": manifest["apiVersion"]}

    def _write_config_map(self, order: RunOrder) -> None:
        manifest = build_config_map(order, self._config)
        try:
            self._cluster.create("configmaps", manifest)
        except AlreadyExistsError:
            details = {name: manifest["metadata"][name] for name in ("labels", "annotations")}
            self._cluster.patch("configmaps", manifest["metadata"]["name"], {"metadata": details, "data": manifest["data"]})

    def _adopt(self, top: Json) -> None:
        """Makes the Job the owner of what belongs to it, so that this goes with it."""
        name = top["metadata"]["name"]
        kind = top.get("kind") or ("JobSet" if "replicatedJobs" in top["spec"] else "Job")
        version = "batch/v1" if kind == "Job" else "jobset.x-k8s.io/v1alpha2"
        owner = {"apiVersion": version, "kind": kind, "name": name, "uid": top["metadata"]["uid"]}
        belongings = ["configmaps", *(["services"] if top["spec"].get("completionMode") == "Indexed" else [])]
        for resource in belongings:
            try:
                self._cluster.patch(resource, name, {"metadata": {"ownerReferences": [owner]}})
            except NotFoundError:
                _log.warning("belonging_gone", resource=resource, job=name)
        self._adopted.add(name)

    def _remove(self, name: str) -> None:
        for resource in self._top():
            self._cluster.delete(resource, name, foreground=True)

    def _is_there(self, resource: str, name: str) -> bool:
        try:
            self._cluster.get(resource, name)
        except NotFoundError:
            return False
        return True

    def _events_of(self, about: str) -> list[Json]:
        """Events of a Job or pod, asked for every few seconds at most."""
        asked, found = self._events.get(about, (float("-inf"), []))
        if self._clock() - asked < _EVENTS_EVERY_SECONDS:
            return found
        self._events = {each: known for each, known in self._events.items() if self._clock() - known[0] < _EVENTS_EVERY_SECONDS}
        found, _ = self._cluster.find("events", fields=f"involvedObject.name={about}")
        self._events[about] = (self._clock(), found)
        return found

    def _patience(self, name: str, seen: Observation) -> Observation:
        """What was seen; a run that has been stuck for longer than the grace has ended."""
        if not seen.stuck:
            self._stuck.pop(name, None)
            return seen
        waited = self._clock() - self._stuck.setdefault(name, self._clock())
        if waited < self._config.start_grace_seconds:
            return seen
        return Observation("ended", None, message=f"it could not start within {self._config.start_grace_seconds:g} s: {seen.message}")

    def _overdue(self, name: str, outliving: list[Json]) -> bool:
        """Whether pods that outlive their Job have had their grace since this was first seen; clocks of other machines are not asked."""
        if not outliving:
            self._outlived.pop(name, None)
            return False
        since = self._outlived.setdefault(name, self._clock())
        return self._clock() - since > max(map(grace_seconds, outliving)) + _LATE_SECONDS

    def _take_logs(self, directory: Path, pods: list[Json], *, running_too: bool = False) -> None:
        """Appends what pods have printed to the run's log, each pod's once, when it has ended."""
        for pod in _by_age(pods):
            name = pod["metadata"]["name"]
            over = exit_code_of(pod) is not None or (running_too and pod.get("status", {}).get("phase") == "Running")
            if not over or name in self._logged:
                continue
            try:
                _append_log(RunDirectory(directory).log, name, lambda name=name: self._cluster.log(name, CONTAINER))  # type: ignore[misc]
            except UnavailableError:
                continue
            except (AccordError, OSError) as error:
                _log.warning("log_lost", pod=name, reason=str(error))
            self._logged.add(name)


def _by_age(pods: list[Json]) -> list[Json]:
    return sorted(pods, key=lambda each: str(each["metadata"].get("creationTimestamp", "")))


def _mark(pod: str) -> str:
    """The line before what a pod has printed."""
    return f"==> pod {pod} <==\n"


def _append_log(log: Path, pod: str, read: Callable[[], str]) -> None:
    mark = _mark(pod)
    if log.exists() and mark in log.read_text(encoding="utf-8", errors="replace"):
        return
    text = read()
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{mark}{text}{'' if text.endswith(chr(10)) else chr(10)}")


def _alive(pods: list[Json]) -> list[str]:
    """Names of the pods that have not ended."""
    return [pod["metadata"]["name"] for pod in pods if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")]
