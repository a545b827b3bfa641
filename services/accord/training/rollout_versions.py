"""The policy in training as versions that the policy service can load: one for each batch of rollouts, the older ones without files.

What does not belong here: the version that a run publishes at its end (`accord.training.loop`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from accord.training.adapter_state import POLICY
from accord.training.context import RunContext
from accord.training.waiting import store_in_words, with_patience

_KEPT_VERSIONS = 2
_LOOKED_BACK = 8  # one that was sampled by again, because its rollouts were damaged, has its files back and newer ones without behind it


def publish_rollout_version(context: RunContext, *, parents: Sequence[str], data_digest: str, step: int, adapter: str = POLICY) -> str:
    """Publishes an adapter of the run, the policy as it is, after `step` updates; returns the version's name, the same one again where nothing
    has changed since. Waits for a store that is away."""

    def publish() -> str:
        return _published(context, parents=parents, data_digest=data_digest, step=step, adapter=adapter)

    return with_patience(context, "", store_in_words(context), publish)


def _published(context: RunContext, *, parents: Sequence[str], data_digest: str, step: int, adapter: str) -> str:
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
    """The files of all but the last few; manifests stay, for lineage. Looks back no further than to some of the run's own whose files are gone: a
    run makes thousands, and each is a request where the store is behind a URL."""
    kept, gone = 1, 0
    for manifest in context.store.newest_first(name):
        if manifest.name == newest or manifest.run != context.run.name:
            continue
        if manifest.removed:
            gone += 1
        elif kept < _KEPT_VERSIONS:
            kept += 1
        else:
            context.store.remove(manifest.name)
        if gone >= _LOOKED_BACK:
            return
