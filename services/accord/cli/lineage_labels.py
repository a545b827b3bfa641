"""From adapters on to the labels that they were trained on: the label jobs behind their data, and what is in the ledger of each.

A job is found by the name that a run recorded of its data's rows, and by the digest of its data. A run of online DPO has its own samples labelled,
without a job: its labels are those of pairs named after the run (`accord.training.sampled_pairs`). What does not belong here: adapters and what is
shown (`accord.cli.lineage`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from accord.client.feedback import FeedbackClient, LabelJob
from accord.client.ledger import LabelQuery, LabelRecord, LedgerClient
from accord.errors import NotFoundError
from accord.feedback.records import is_added

if TYPE_CHECKING:
    from accord.artefacts.manifest import Manifest
    from accord.client.connection import Target

_PAGE = 500


@dataclass(frozen=True, slots=True, order=True)
class LabelledBy:
    """Who labelled, how, and under which rubric."""

    judge: str
    judge_digest: str
    kind: str
    rubric: str
    rubric_digest: str


@dataclass
class JobLabels:
    """A label job with what the ledger has of it; `job` is None where the service does not know a job that a run recorded.

    With `online` it is no job but the run of that name, which had its own samples labelled.
    """

    name: str
    job: LabelJob | None = None
    online: bool = False
    outcomes: Counter[str] = field(default_factory=Counter)
    judges: Counter[LabelledBy] = field(default_factory=Counter)
    labels: list[LabelRecord] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Labels of the job, abstentions included."""
        return sum(self.outcomes.values())

    def add(self, record: LabelRecord) -> None:
        """Takes the next label."""
        label = record.label
        self.outcomes[label.outcome] += 1
        self.judges[LabelledBy(label.judge, label.judge_digest, label.kind, label.rubric, label.rubric_digest)] += 1


def label_jobs_of(target: Target, manifests: Iterable[Manifest], *, keep_labels: bool = False) -> dict[str, list[JobLabels]]:
    """The label jobs behind each adapter's data, by the adapter's name; adapters without any are not in it.

    Raises:
        UnavailableError: the feedback service cannot be reached.
    """
    known: dict[str, JobLabels] = {}
    found: dict[str, list[JobLabels]] = {}
    with FeedbackClient(target) as feedback, LedgerClient(target) as ledger:
        for manifest in manifests:
            jobs = dict.fromkeys(manifest.facts.get("label_jobs", ()))
            if manifest.data_digest:
                jobs |= dict.fromkeys(job.name for job in ledger.label_jobs(dataset_digest=manifest.data_digest))
            for name in jobs:
                if name not in known:
                    known[name] = _read(feedback, ledger, name, keep_labels=keep_labels)
            if manifest.run and manifest.facts.get("algorithm") == "online_dpo":
                if manifest.run not in known:
                    known[manifest.run] = _read_online(ledger, manifest.run, keep_labels=keep_labels)
                jobs[manifest.run] = None
            if jobs:
                found[manifest.name] = [known[name] for name in jobs]
    return found


def _read(feedback: FeedbackClient, ledger: LedgerClient, name: str, *, keep_labels: bool) -> JobLabels:
    found = JobLabels(name)
    try:
        found.job = feedback.get_label_job(name)
    except NotFoundError:
        return found  # another ledger's, or its file is gone: the run's own word of it stays
    for record in ledger.labels(LabelQuery(job=name), page_size=_PAGE):
        if is_added(record.label.pair_id):
            continue  # judged to measure the judge; no data set has it
        found.add(record)
        if keep_labels:
            found.labels.append(record)
    return found


def _read_online(ledger: LedgerClient, run: str, *, keep_labels: bool) -> JobLabels:
    """The labels of a run's own samples; of a pair that was asked about again, after a fault or a kill, the last, which the run learned from."""
    last = {record.label.pair_id: record for record in ledger.labels(LabelQuery(pair_id_prefix=f"{run}/"), page_size=_PAGE)}
    found = JobLabels(run, online=True, labels=list(last.values()) if keep_labels else [])
    for record in last.values():
        found.add(record)
    return found
