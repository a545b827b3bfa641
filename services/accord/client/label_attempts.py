"""A label job that is asked for again and again until one attempt is worth following, for `accord label`, `accord judges` and the study.

What does not belong here: following a job, and what is made of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from accord.errors import UnavailableError

if TYPE_CHECKING:
    from accord.client.feedback import FeedbackClient, LabelJob, LabelJobSpec

_ATTEMPTS = 1000


def is_lost(job: LabelJob) -> bool:
    """Whether a job was cancelled or has failed, so that asking for it under its id only gives it back.

    One that has ended at a limit is not lost: it goes on under a higher one, and a new attempt would spend as much once more.
    """
    return job.state in ("failed", "cancelled") and not job.at_limit


def create_attempt(
    client: FeedbackClient, spec: LabelJobSpec, *, lost: Callable[[LabelJob], bool] = is_lost, output_of: Callable[[int], str] | None = None
) -> LabelJob:
    """The first attempt of a job that is not lost: one that runs or has ended well, or else a new one, which finds all judgements in the ledger.

    A job that is created runs, so that one call begins at most one attempt.

    Args:
        client: of the service.
        spec: the job; its request id is that of the first attempt, the others are `{request id}-{attempt}`.
        lost: whether an attempt is to be left behind.
        output_of: the output folder of an attempt, which counts from 1; None gives all of them that of `spec`, which the service allows where those
            before have not succeeded.

    Raises:
        UnavailableError: too many attempts are lost.
        AccordError: as CreateLabelJob.
    """
    for attempt in range(1, _ATTEMPTS):
        request_id = spec.request_id if attempt == 1 else f"{spec.request_id}-{attempt}"
        job = client.create_label_job(replace(spec, request_id=request_id, output_uri=output_of(attempt) if output_of else spec.output_uri))
        if not lost(job):
            return job
    raise UnavailableError(f"{_ATTEMPTS - 1} attempts of label job {spec.request_id} were in vain; one with another output folder begins anew")
