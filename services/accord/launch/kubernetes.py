"""Requests to a Kubernetes API server through the official client: plain JSON in, plain JSON out, errors in Accord's classes.

JSON rather than the client's model classes, because these check servers of other versions against their own schema. This is the only module that
imports `kubernetes`. What does not belong here: what the objects mean (`manifest`, `jobstate`), and when to ask (`jobs`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import config as client_config
from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.client.rest import RESTResponse

from accord.errors import (
    AccordError,
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from accord.launch.manifest import Features
from accord.launch.reflector import ExpiredError, Object
from accord.launch.settings import KubernetesConfig

RESOURCES: Mapping[str, str] = {
    "jobs": "/apis/batch/v1/namespaces/{namespace}/jobs",
    "jobsets": "/apis/jobset.x-k8s.io/v1alpha2/namespaces/{namespace}/jobsets",
    "pods": "/api/v1/namespaces/{namespace}/pods",
    "configmaps": "/api/v1/namespaces/{namespace}/configmaps",
    "services": "/api/v1/namespaces/{namespace}/services",
    "events": "/api/v1/namespaces/{namespace}/events",
    "deployments": "/apis/apps/v1/namespaces/{namespace}/deployments",
    "statefulsets": "/apis/apps/v1/namespaces/{namespace}/statefulsets",
    "serviceaccounts": "/api/v1/namespaces/{namespace}/serviceaccounts",
}
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_WATCH_SECONDS = 60
_LOG_BYTES = 2**20
_VERBS: Mapping[str, str] = {"POST": "create", "GET": "get", "PATCH": "patch", "DELETE": "delete"}
_MERGE_PATCH = "application/merge-patch+json"


class Cluster:
    """One namespace of a cluster.

    Args:
        config: where it is.

    Raises:
        FailedPreconditionError: there is neither a kubeconfig nor a service account to speak with.
    """

    def __init__(self, config: KubernetesConfig) -> None:
        client = _client_configuration(config)
        client.retries = False  # type: ignore[assignment]  # whoever asks decides about asking again
        self._client = ApiClient(client)
        self._seconds = config.request_seconds
        self.namespace = config.namespace or _own_namespace(config)
        self._streams: set[RESTResponse] = set()

    def features(self) -> Features:
        """What this API server knows."""
        version = self._json("GET", "/version", what="version")
        minor = int("".join(letter for letter in str(version["minor"]) if letter.isdigit()) or 0)
        try:
            self._json("GET", "/apis/jobset.x-k8s.io/v1alpha2", what="jobsets")
        except NotFoundError:
            return Features.of(minor, jobset=False)
        return Features.of(minor, jobset=True)

    def create(self, resource: str, manifest: Object) -> Object:
        """The object as it was created.

        Raises:
            AlreadyExistsError: its name is taken.
        """
        return self._json("POST", self._path(resource), what=resource, body=manifest)

    def get(self, resource: str, name: str) -> Object:
        """The object of a name. Raises NotFoundError."""
        return self._json("GET", self._path(resource, name), what=resource)

    def find(self, resource: str, *, labels: str = "", fields: str = "") -> tuple[list[Object], str]:
        """Objects by selectors, and the version of the collection."""
        query = {name: value for name, value in (("labelSelector", labels), ("fieldSelector", fields)) if value}
        found = self._json("GET", self._path(resource), what=resource, query=query, verb="list")
        return found.get("items") or [], found["metadata"].get("resourceVersion", "")

    def patch(self, resource: str, name: str, change: Object) -> Object:
        """The object after a JSON merge patch."""
        return self._json("PATCH", self._path(resource, name), what=resource, body=change)

    def delete(self, resource: str, name: str, *, foreground: bool = False, grace_seconds: int | None = None) -> None:
        """Deletes an object; no error where there is none. `foreground`: it stays until all that it owns is gone."""
        body: dict[str, Any] = {"propagationPolicy": "Foreground" if foreground else "Background"}
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        with contextlib.suppress(NotFoundError):
            self._json("DELETE", self._path(resource, name), what=resource, body=body)

    def log(self, pod: str, container: str) -> str:
        """The last MiB that a container of a pod has printed. Raises NotFoundError where the pod is gone."""
        query = {"container": container, "tailLines": "5000", "limitBytes": str(_LOG_BYTES)}
        response = self._send("GET", f"{self._path('pods', pod)}/log", what="pods/log", query=query)
        return str(response.read(), "utf-8", "replace")

    def watch(self, resource: str, labels: str, version: str) -> Iterator[tuple[str, Object]]:
        """Changes of a collection after a version, until the server ends the stream, which it does every minute.

        Raises:
            ExpiredError: the version is too old.
        """
        query = {
            "watch": "true", "labelSelector": labels, "resourceVersion": version, "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_SECONDS),
        }  # fmt: skip
        response = self._send("GET", self._path(resource), what=resource, query=query, verb="watch", seconds=_WATCH_SECONDS + self._seconds)
        self._streams.add(response)
        try:
            for line in _lines(response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise _error_of(event["object"].get("code", 500), event["object"], "watch", resource, self.namespace)
                yield event["type"], event["object"]
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise UnavailableError(f"the watch of {resource} broke off: {error}") from error
        finally:
            self._streams.discard(response)
            response.response.close()

    def close(self) -> None:
        """Ends watches and connections."""
        for response in list(self._streams):
            with contextlib.suppress(Exception):
                response.response.shutdown()
        self._client.close()

    def _path(self, resource: str, name: str = "") -> str:
        path = RESOURCES[resource].format(namespace=self.namespace)
        return f"{path}/{name}" if name else path

    def _json(
        self, method: str, path: str, *, what: str, query: Mapping[str, str] | None = None, body: Object | None = None, verb: str = ""
    ) -> Object:
        response = self._send(method, path, what=what, query=query, body=body, verb=verb)
        try:
            found: Object = json.loads(response.read())
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise UnavailableError(f"the Kubernetes API server's answer about {what} broke off: {error}") from error
        return found

    def _send(
        self, method: str, path: str, *, what: str, query: Mapping[str, str] | None = None, body: Object | None = None, verb: str = "",
        seconds: float = 0.0,
    ) -> RESTResponse:  # fmt: skip
        headers = {"Accept": "application/json", "Content-Type": _MERGE_PATCH if method == "PATCH" else "application/json"}
        request = self._client.param_serialize(
            method, path, query_params=list((query or {}).items()), header_params=headers, body=body,
            auth_settings=["BearerToken"],
        )  # fmt: skip
        try:
            response = self._client.call_api(*request, _request_timeout=(self._seconds, seconds or self._seconds))
            if 200 <= response.status <= 299:
                return response
            text = response.read()
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
            raise UnavailableError(f"the Kubernetes API server at {self._client.configuration.host} does not answer: {error}") from error
        raise _error_of(response.status, _status(text), verb or _VERBS[method], what, self.namespace)


class LabelledCollection:
    """The objects of a resource that carry some labels, as `accord.launch.reflector.Collection`."""

    def __init__(self, cluster: Cluster, resource: str, labels: str) -> None:
        self._cluster, self._resource, self._labels = cluster, resource, labels

    def list(self) -> tuple[list[Object], str]:
        """See `Collection.list`."""
        return self._cluster.find(self._resource, labels=self._labels)

    def watch(self, version: str) -> Iterator[tuple[str, Object]]:
        """See `Collection.watch`."""
        return self._cluster.watch(self._resource, self._labels, version)


def _client_configuration(config: KubernetesConfig) -> Configuration:
    client = Configuration()
    try:
        if config.kubeconfig:
            client_config.load_kube_config(config.kubeconfig, context=config.context or None, client_configuration=client)
        else:
            client_config.load_incluster_config(client_configuration=client)
    except (client_config.ConfigException, OSError, ValueError) as error:
        where = f"kubeconfig {config.kubeconfig}" if config.kubeconfig else "no kubeconfig is named and this is not a pod with a service account"
        raise FailedPreconditionError(f"no cluster can be reached: {where}: {error}", field="kubernetes.kubeconfig") from error
    return client


def _own_namespace(config: KubernetesConfig) -> str:
    if config.kubeconfig:
        contexts, current = client_config.list_kube_config_contexts(config.kubeconfig)
        used = next((each for each in contexts if each["name"] == config.context), current)
        return str(used.get("context", {}).get("namespace") or "default")
    return _NAMESPACE_FILE.read_text(encoding="utf-8").strip()


def _lines(response: RESTResponse) -> Iterator[bytes]:
    """The lines of a stream, each as soon as it is whole."""
    rest = b""
    for part in response.response.stream(2**16):
        *whole, rest = (rest + part).split(b"\n")
        yield from (line for line in whole if line.strip())


def _status(text: bytes) -> Object:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"message": text.decode("utf-8", "replace")[:300].strip()}


def _error_of(status: int, answer: Object, verb: str, resource: str, namespace: str) -> AccordError:
    """The error of an answer that is not a success."""
    message = str(answer.get("message") or answer.get("reason") or f"HTTP {status}")
    if status == 403 and " cannot " in message:
        who = message.partition('User "')[2].partition('"')[0] or "the trainer's account"
        return PermissionDeniedError(
            f"{who} may not {verb} {resource} in namespace {namespace}; its Role lacks the verb {verb}", metadata={"verb": verb, "resource": resource}
        )
    if status == 403:  # admission: a quota, Pod Security, a policy
        return PermissionDeniedError(f"the cluster refuses to {verb} {resource} in namespace {namespace}: {message}")
    if status == 401:
        return UnauthenticatedError(f"the Kubernetes API server does not accept the trainer's credentials: {message}")
    if status == 404:
        return NotFoundError(f"{resource}: {message}")
    if status == 409 and answer.get("reason") == "AlreadyExists":
        return AlreadyExistsError(f"{resource}: {message}")
    if status == 410:
        return ExpiredError(f"{resource}: {message}")
    if status in (409, 429) or status >= 500:  # 409: two changed one object at a time, such as a quota that counts this one
        return UnavailableError(f"the Kubernetes API server cannot {verb} {resource} now: {message}")
    return InvalidArgumentError(f"the Kubernetes API server does not take what it was given for {resource}: {message}")
