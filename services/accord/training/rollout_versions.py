"""The policy in training as versions that the policy service can load: one for each batch of rollouts, the older ones without files.

What does not belong here: the version that a run publishes at its end (`accord.training.loop`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from accord.training.adapter_state import POLICY
from accord.training.context import RunContext

_KEPT_VERSIONS = 2


def publish_rollout_version(context: RunContext, *, parents: Sequence[str], data_digest: str, step: int, adapter: str = POLICY) -> str:
    """Publishes an adapter of the run, the policy as it is, after `step` updates; returns the version's name, the same one again where nothing
    has changed since."""
    store, digests = context.store, context.base.digests
    name = f"{context.spec.adapter}-rollout"
    with tempfile.TemporaryDirectory() as folder:
        context.adapted.save(adapter, Path(folder))
        version = store.publish(
            name, Path(folder), kind="policy", base_model_digest=digests.base_model, tokenizer_digest=digests.tokenizer, parents=parents,
            run=context.run.name, data_digest=data_digest, step=step, facts={"transient": True},
        )  # fmt: skip
    _remove_older(context, name, version)
    return version


def _remove_older(context: RunContext, name: str, newest: str) -> None:
    """The files of all but the last few; manifests stay, for lineage."""
    mine = [manifest.name for manifest in context.store.list(name) if manifest.run == context.run.name and not manifest.removed]
    others = sorted((each for each in mine if each != newest), key=lambda each: int(each.rsplit("/", 1)[1]))
    for old in others[: max(0, len(others) - (_KEPT_VERSIONS - 1))]:
        context.store.remove(old)
