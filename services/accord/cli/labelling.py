"""Label jobs as `accord label` starts and follows them.

What does not belong here: what is shown (`accord.cli.label`, `accord.cli.cards`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from accord.errors import DeadlineExceededError, NotFoundError, UnavailableError

if TYPE_CHECKING:
    from accord.client.feedback import FeedbackClient, LabelJob, LabelJobSpec

_STREAM_SECONDS = 3000.0
_PAUSE_SECONDS = 1.0
_PATIENCE = 60
_ATTEMPTS = 1000


def absolute_source(dataset: str) -> str:
    """The data set as the service understands it: a path becomes absolute.

    Raises:
        NotFoundError: there is no such file.
    """
    if dataset.startswith(("sample:", "hub:")) or "://" in dataset:
        return dataset
    path = Path(dataset).expanduser().absolute()
    if not path.is_file():
        raise NotFoundError(f"there is no file {dataset}; give a file, sample:NAME or hub:NAME", field="DATASET")
    return str(path)


def request_id_of(spec: LabelJobSpec) -> str:
    """The id of a job: the same for the same command and the same file, so that a repeated command finds its job again."""
    content = hashlib.sha256(json.dumps(asdict(spec), sort_keys=True).encode())
    path = Path(spec.dataset_uri)
    if path.is_file():
        content.update(path.read_bytes())
    return content.hexdigest()[:20]


def create_job(client: FeedbackClient, spec: LabelJobSpec, request_id: str) -> LabelJob:
    """The job of this id, or where that was cancelled or has failed the next attempt, which finds all judgements in the ledger."""
    for attempt in range(1, _ATTEMPTS):
        job = client.create_label_job(replace(spec, request_id=request_id if attempt == 1 else f"{request_id}-{attempt}"))
        if job.state in ("running", "succeeded"):
            return job
    raise UnavailableError(f"{_ATTEMPTS} attempts of this job have failed; change --output to begin a new one")


def job_states(client: FeedbackClient, job: LabelJob, *, timeout_seconds: float | None = None) -> Iterator[LabelJob]:
    """The job each time that it changed, to its end, whatever breaks in between.

    Raises:
        DeadlineExceededError: it has not ended in time.
        UnavailableError: the service stays away.
    """
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    failures = 0
    while not job.ended:
        left = _STREAM_SECONDS if deadline is None else min(_STREAM_SECONDS, deadline - time.monotonic())
        if left <= 0:
            raise DeadlineExceededError(f"{job.name} has not ended within {timeout_seconds:g} s; it goes on")
        try:
            for job in client.watch_label_job(job.name, timeout_seconds=left):  # noqa: PLR1704, B020
                failures = 0
                yield job
        except DeadlineExceededError:
            continue
        except UnavailableError:
            failures += 1
            if failures > _PATIENCE:
                raise
            time.sleep(_PAUSE_SECONDS)
