"""`accord lineage`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accord.cli.connect import command, local_command, reach
from accord.cli.failures import advice
from accord.cli.options import DEFAULT_HOME, FeedbackAddress, Home, Json
from accord.cli.output import console, harmless, print_json, print_line, print_table
from accord.errors import FailedPreconditionError, NotFoundError, UnavailableError

if TYPE_CHECKING:
    from rich.tree import Tree

    from accord.artefacts.manifest import Manifest
    from accord.cli.lineage_labels import JobLabels

_DIGEST = 12
_CALL_SECONDS = 60.0


def lineage(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="adapters/x/versions/1, or adapters/x; without it, all are listed.", show_default=False)
    ] = "",
    artefacts: Annotated[
        str | None, typer.Option("--artefacts", metavar="URI", help="The artefact store, instead of the workspace's.", show_default=False)
    ] = None,
    labels: Annotated[bool, typer.Option("--labels", help="List each label behind it.", show_default=False)] = False,
    feedback: FeedbackAddress = None,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Shows where an adapter comes from, or lists all.

    Its run, its data and its parents, back to the base model; and the label jobs behind its data, with judges, rubrics and how many labels. Adapters
    need no service, labels the feedback service.

    \b
    Example:
        accord lineage adapters/ppo/versions/1
        accord lineage adapters/rm/versions/1 --labels
        accord lineage
    """
    from accord.artefacts.store import ArtefactStore
    from accord.workspace import Workspace

    store = ArtefactStore(artefacts or Workspace(home).artefacts)
    if not adapter:
        _show_all(store.list(), store.uri, home, as_json=as_json)
        return
    with advice(NotFoundError, text=f"`{local_command('lineage', home, artefacts=artefacts)}` lists the adapters"):
        found = store.lineage(adapter)
    jobs = _label_jobs(found, home, feedback, keep_labels=labels)
    if as_json:
        print_json([_facts(manifest) | {"label_jobs": None if jobs is None else _job_facts(jobs.get(manifest.name, ()))} for manifest in found])
        return
    console().print(_tree(found[0].name, {manifest.name: manifest for manifest in found}, jobs or {}))
    if labels:
        _show_labels(jobs or {})


def _label_jobs(manifests: Sequence[Manifest], home: Path, address: str | None, *, keep_labels: bool) -> dict[str, list[JobLabels]] | None:
    """The label jobs behind adapters; None, and a line on stderr, where they cannot be asked for. Raises instead where labels were asked for."""
    from accord.cli.lineage_labels import label_jobs_of

    if not any(manifest.data_digest or "label_jobs" in manifest.facts for manifest in manifests):
        return {}
    try:
        with reach("feedback", home, address, _CALL_SECONDS) as target:
            return label_jobs_of(target, manifests, keep_labels=keep_labels)
    except (UnavailableError, FailedPreconditionError) as error:
        if keep_labels:
            raise
        sys.stderr.write(f"labels behind the data are not shown: {error}\n")
        return None


def _job_facts(jobs: Sequence[JobLabels]) -> list[dict[str, object]]:
    return [
        {
            "name": job.name, "job": job.job, "count": job.count, "outcomes": job.outcomes,
            "judges": [{**asdict(by), "labels": count} for by, count in sorted(job.judges.items())], "labels": job.labels,
        }
        for job in jobs
    ]  # fmt: skip


def _show_labels(jobs: Mapping[str, Sequence[JobLabels]]) -> None:
    """Every label of every job, once."""
    for job in {job.name: job for found in jobs.values() for job in found}.values():
        rows = [
            (
                record.label.pair_id, record.label.outcome, "" if record.label.preference is None else f"{record.label.preference:.3f}",
                record.label.judge_digest[:_DIGEST], record.content_key[:_DIGEST],
                " ".join(judgement.ledger_key[:_DIGEST] for judgement in record.label.judgements),
            )
            for record in job.labels
        ]  # fmt: skip
        print_table(("pair", "outcome", "P(A)>", "judge", "content", "judgements"), rows, title=job.name)


def _show_all(manifests: Sequence[Manifest], uri: str, home: Path, *, as_json: bool) -> None:
    if as_json:
        print_json([_facts(manifest) for manifest in manifests])
    elif not manifests:
        print_line(f"there are no adapters in {uri}; `{command('train sft', home)}` makes one")
    else:
        rows = [
            (manifest.name, manifest.kind + (" (removed)" if manifest.removed else ""), manifest.run, manifest.step, manifest.created_at[:19])
            for manifest in manifests
        ]
        print_table(("adapter", "kind", "run", "step>", "created (UTC)"), rows)


def _facts(manifest: Manifest) -> dict[str, object]:
    return {
        "name": manifest.name, "kind": manifest.kind, "digest": manifest.digest, "parents": manifest.parents, "run": manifest.run,
        "data_digest": manifest.data_digest, "step": manifest.step, "base_model_digest": manifest.base_model_digest,
        "tokenizer_digest": manifest.tokenizer_digest, "created_at": manifest.created_at, "size_bytes": manifest.size_bytes,
        "removed": manifest.removed, "facts": dict(manifest.facts),
    }  # fmt: skip


def _tree(name: str, manifests: Mapping[str, Manifest], jobs: Mapping[str, Sequence[JobLabels]]) -> Tree:
    """The adapter with what it was made from below it; an ancestor of two children is under both."""
    from rich.text import Text
    from rich.tree import Tree

    manifest = manifests[name]
    tree = Tree(Text(harmless(f"{name} ({manifest.kind}{', removed' if manifest.removed else ''})")))
    tree.add(Text(f"digest {manifest.digest[:_DIGEST]}, made {manifest.created_at[:19]} UTC"))
    if manifest.run:
        tree.add(Text(harmless(f"{manifest.run}, step {manifest.step}")))
    if manifest.data_digest:
        data = tree.add(Text(f"data {manifest.data_digest[:_DIGEST]}"))
        for job in jobs.get(name, ()):
            branch = data.add(Text(harmless(_job_line(job))))
            for by, count in sorted(job.judges.items()):
                rubric = f", {by.rubric} {by.rubric_digest[:_DIGEST]}" if by.rubric else ""
                branch.add(Text(harmless(f"{by.kind} by {by.judge} {by.judge_digest[:_DIGEST]}{rubric}: {count} labels")))
    if not manifest.parents:
        tree.add(Text(f"base model {manifest.base_model_digest[:_DIGEST] or 'not recorded'}"))
    for parent in manifest.parents:
        tree.add(_tree(parent, manifests, jobs))
    return tree


def _job_line(found: JobLabels) -> str:
    if found.job is None and not found.online:
        return f"{found.name}, which this feedback service does not know"
    outcomes = ", ".join(f"{found.outcomes[outcome]} {outcome}" for outcome in ("a", "b", "tie", "abstain") if found.outcomes[outcome])
    origin = "its own samples, labelled as it learned" if found.job is None else f"{found.name} ({found.job.state}), of {found.job.source_uri}"
    return f"{origin}: {found.count} labels ({outcomes or 'this feedback service has none'})"
