"""Schemas of the custom resources that Accord makes, in JSON Schema: the fields that it uses, and no others.

Each was written after its project's definition, named above it with the commit that was read (on 2026-11-27); where a webhook refuses more than the
definition does, that is here too. They are facts about these definitions and not the definitions: a field that is right and missing here is refused
until somebody has read about it and adds it. What does not belong here: objects that Kubernetes itself serves, whose real schemas are at hand
(`tests.chart.test_objects`), and the Jobs inside JobSets, which `jobs_of` hands on to those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 253, "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"}
_LABEL_VALUE: Schema = {"type": "string", "maxLength": 63, "pattern": r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"}
_RFC_1035: Schema = {"type": "string", "maxLength": 63, "pattern": r"^[a-z]([-a-z0-9]*[a-z0-9])?$"}
_FLAG: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}


def _object(*required: str, **fields: Schema) -> Schema:
    """An object of these fields alone."""
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def _list(of: Schema, *, least: int = 1) -> Schema:
    return {"type": "array", "items": of, "minItems": least}


def _map(of: Schema) -> Schema:
    return {"type": "object", "additionalProperties": of}


_LABELS = _map(_LABEL_VALUE)
_OWNER = _object("apiVersion", "kind", "name", "uid", apiVersion=_TEXT, kind=_TEXT, name=_NAME, uid=_TEXT)
_METADATA = _object("name", name=_NAME, namespace=_RFC_1035, labels=_LABELS, annotations=_map(_TEXT), ownerReferences=_list(_OWNER))


def _resource(api_version: str, kind: str, spec: Schema, *, metadata: Schema = _METADATA) -> dict[tuple[str, str], Schema]:
    fields: dict[str, Schema] = {"apiVersion": {"const": api_version}, "kind": {"const": kind}, "metadata": metadata, "spec": spec}
    return {(api_version, kind): _object(*fields, **fields)}


# JobSet. kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go at 0336a8fd9fd3 and, for 0.8, at 816ba51e81df; the webhook's rules (names,
# reasons, names of rules) are of pkg/webhooks/jobset_webhook.go at 01078527ec43. Network and the policies cannot be changed once they are created,
# nor can the groups but while the JobSet is suspended; Accord changes none. An action that the newest alone knows (RestartJob) is left out.
_REASONS = ("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy")
_FAILURE_RULE = _object(
    "name", "action",
    name={"type": "string", "maxLength": 128, "pattern": r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
    onJobFailureReasons={**_list({"enum": list(_REASONS)}), "uniqueItems": True},
)  # fmt: skip
_GROUP = _object(
    "name", "template", name=_RFC_1035, replicas=_COUNT,
    template=_object("spec", metadata=_object(labels=_LABELS, annotations=_map(_TEXT)), spec={"type": "object"}),
)  # fmt: skip
_JOBSET = _object(
    "replicatedJobs",
    network=_object(enableDNSHostnames=_FLAG, subdomain=_RFC_1035, publishNotReadyAddresses=_FLAG),
    failurePolicy=_object(maxRestarts=_COUNT, rules=_list(_FAILURE_RULE)),
    ttlSecondsAfterFinished=_COUNT,
    suspend=_FLAG,
    replicatedJobs=_list(_GROUP),
)

# LocalQueue. kubernetes-sigs/kueue, apis/kueue/v1beta2/localqueue_types.go at 02bc146f48b7. v1beta2 came with 0.15; v1beta1 is no longer served (pull
# request 14558, merged in August 2026; issue 13957 names 0.20), so that it has no schema here. A queue's clusterQueue cannot be changed: a release with another makes another.
_LOCAL_QUEUE = _object("clusterQueue", clusterQueue=_NAME, stopPolicy={"enum": ["None", "Hold", "HoldAndDrain"]})

# ScaledObject. kedacore/keda, apis/keda/v1alpha1/scaledobject_types.go at 01ee1d30b296 and scaletriggers_types.go at 1a230280bc32; the keys of a trigger
# of Prometheus are of pkg/scalers/prometheus_scaler.go at 0805d72eb7d8. That cooldownPeriod is of the step to no replica alone is in kedacore/keda-docs,
# content/docs/2.15/reference/scaledobject-spec.md: where minReplicaCount is at least 1 it would do nothing, and is refused.
_PROMETHEUS = _object(
    "serverAddress", "query", "threshold",
    serverAddress={"type": "string", "pattern": r"^https?://"}, query={"type": "string", "minLength": 1},
    threshold={"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?$"},
)  # fmt: skip
_SCALING_RULES = _object("stabilizationWindowSeconds", stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600})
_SCALED_OBJECT = _object(
    "scaleTargetRef", "triggers", "minReplicaCount", "maxReplicaCount",
    scaleTargetRef=_object("name", name=_NAME),
    minReplicaCount={**_COUNT, "minimum": 1},
    maxReplicaCount={**_COUNT, "minimum": 1},
    advanced=_object(horizontalPodAutoscalerConfig=_object(behavior=_object(scaleDown=_SCALING_RULES))),
    triggers=_list(_object("type", "metadata", type={"const": "prometheus"}, metadata=_PROMETHEUS, metricType={"enum": ["AverageValue", "Value"]})),
)  # fmt: skip

# ServiceMonitor. prometheus-operator/prometheus-operator, pkg/apis/monitoring/v1/servicemonitor_types.go at 323f633371dc; Endpoint and Duration are of
# types.go at a7c5f40307cf.
_PROMETHEUS_DURATION: Schema = {"type": "string", "pattern": r"^(0|([0-9]+y)?([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?)$"}
_SERVICE_MONITOR = _object(
    "endpoints", "selector",
    endpoints=_list(_object("port", port=_TEXT, interval=_PROMETHEUS_DURATION)),
    selector=_object("matchLabels", matchLabels=_LABELS),
)  # fmt: skip

# Certificate and Issuer. cert-manager/cert-manager, pkg/apis/certmanager/v1: types_certificate.go at a39748ae7744, types_issuer.go at 4c8d12badf05, the
# usages of types.go at 0f74d7536e2c; pkg/apis/meta/v1/types.go at 0070f0bd500b for issuerRef. A Certificate needs a name of some sort, and an Issuer is of
# one sort.
_USAGES = (
    "signing", "digital signature", "content commitment", "key encipherment", "key agreement", "data encipherment", "cert sign", "crl sign",
    "encipher only", "decipher only", "any", "server auth", "client auth", "code signing", "email protection", "s/mime", "ipsec end system",
    "ipsec tunnel", "ipsec user", "timestamping", "ocsp signing", "microsoft sgc", "netscape sgc",
)  # fmt: skip
_GO_DURATION: Schema = {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+$"}
_CERTIFICATE = _object(
    "secretName", "issuerRef",
    secretName=_NAME,
    issuerRef=_object("name", name=_NAME, kind={"enum": ["Issuer", "ClusterIssuer"]}, group={"const": "cert-manager.io"}),
    isCA=_FLAG,
    commonName={"type": "string", "minLength": 1, "maxLength": 64},
    dnsNames=_list(_NAME),
    duration=_GO_DURATION,
    usages=_list({"enum": list(_USAGES)}),
) | {"anyOf": [{"required": ["commonName"]}, {"required": ["dnsNames"]}]}  # fmt: skip
_ISSUER = _object(selfSigned=_object(), ca=_object("secretName", secretName=_NAME)) | {"minProperties": 1, "maxProperties": 1}

SCHEMAS: Mapping[tuple[str, str], Schema] = {
    **_resource("jobset.x-k8s.io/v1alpha2", "JobSet", _JOBSET, metadata={"allOf": [_METADATA, {"properties": {"name": _RFC_1035}}]}),
    **_resource("kueue.x-k8s.io/v1beta2", "LocalQueue", _LOCAL_QUEUE),
    **_resource("keda.sh/v1alpha1", "ScaledObject", _SCALED_OBJECT),
    **_resource("monitoring.coreos.com/v1", "ServiceMonitor", _SERVICE_MONITOR),
    **_resource("cert-manager.io/v1", "Certificate", _CERTIFICATE),
    **_resource("cert-manager.io/v1", "Issuer", _ISSUER),
}
"""By version and kind."""


def mistakes(item: Mapping[str, Any]) -> list[str]:
    """What is wrong with a custom resource, each with its place; empty where nothing is. A kind that has no schema here is itself wrong."""
    key = (item["apiVersion"], item["kind"])
    if key not in SCHEMAS:
        return [f"{key[0]} {key[1]} has no schema here: read its definition, and add what of it is used"]
    found = [f"{error.json_path}: {error.message}" for error in Draft202012Validator(SCHEMAS[key]).iter_errors(item)]
    if item["kind"] == "JobSet" and not found:
        found = [f"{name}: no label of RFC 1035" for name in last_names(item) if not Draft202012Validator(_RFC_1035).is_valid(name)]
        names = [rule["name"] for rule in item["spec"].get("failurePolicy", {}).get("rules", [])]
        found += [f"two rules are called {name}" for name in sorted(set(names)) if names.count(name) > 1]
    return found


def last_names(jobset: Mapping[str, Any]) -> list[str]:
    """The longest names that a JobSet gives to Jobs and pods: those of each group's last, with the five characters that Kubernetes appends to a pod's."""
    found = []
    for group in jobset["spec"]["replicatedJobs"]:
        job = f"{jobset['metadata']['name']}-{group['name']}-{group.get('replicas', 1) - 1}"
        found += [job, f"{job}-{group['template']['spec'].get('completions', 1) - 1}-abcde"]
    return found


def jobs_of(jobset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The Jobs that a JobSet makes, one of each group, as objects of batch/v1."""
    return [
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {**group["template"].get("metadata", {}), "name": f"{jobset['metadata']['name']}-{group['name']}-0"},
            "spec": group["template"]["spec"],
        }
        for group in jobset["spec"]["replicatedJobs"]
    ]
