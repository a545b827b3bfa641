"""Label jobs as `accord label` starts and follows them.

What does not belong here: what is shown (`accord.cli.label`, `accord.cli.cards`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.client.label_attempts import create_attempt
from accord.errors import DeadlineExceededError, InvalidArgumentError, NotFoundError, UnavailableError

if TYPE_CHECKING:
    from accord.client.feedback import Candidates, FeedbackClient, LabelJob, LabelJobSpec

_STREAM_SECONDS = 3000.0
_PAUSE_SECONDS = 1.0
_PATIENCE = 60
_PACE_SECONDS = 60.0


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


def absolute_output(output: str) -> str:
    """The output folder as the service understands it: a path becomes absolute, a URL stays."""
    return output if "://" in output else str(Path(output).expanduser().absolute())


def read_candidates(text: str) -> Candidates | None:
    """The options of ``--candidates KEY=VALUE,...``, the others at their defaults; None where the option is not given.

    Raises:
        InvalidArgumentError: a key that there is not, or a value of another type.
    """
    if not text:
        return None
    from accord.client.feedback import Candidates

    types: dict[str, Callable[[str], Any]] = {name: type(value) for name, value in asdict(Candidates()).items()}
    values: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = part.strip().partition("=")
        if not equals or key not in types:
            raise InvalidArgumentError(f"{part!r} is not KEY=VALUE with a key out of {', '.join(types)}", field="--candidates")
        try:
            values[key] = types[key](value)
        except ValueError as error:
            raise InvalidArgumentError(f"{key} cannot be {value!r}: it is a number", field="--candidates") from error
    return Candidates(**values)


def request_id_of(spec: LabelJobSpec) -> str:
    """The id of a job: the same for the same command and the same file, so that a repeated command finds its job again, under whatever limits."""
    asked = asdict(spec)
    del asked["limits"]
    content = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    path = Path(spec.dataset_uri)
    if path.is_file():
        content.update(path.read_bytes())
    return content.hexdigest()[:20]


def create_job(client: FeedbackClient, spec: LabelJobSpec, request_id: str) -> LabelJob:
    """The job of this id, or where that was cancelled or has failed the next attempt. As `create_attempt`."""
    return create_attempt(client, replace(spec, request_id=request_id))


class JobPace:
    """How fast a job has been of late, out of its states as they come.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def of(self, job: LabelJob) -> str:
        """Pairs a second over the last minute and the time left at that rate; empty while nothing can be said, and once all are done."""
        now = self._clock()
        self._seen.append((now, job.done_pairs))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _PACE_SECONDS:
            self._seen.popleft()
        began, done = self._seen[0]
        if now - began < 1.0 or job.done_pairs <= done or job.done_pairs >= job.total_pairs:
            return ""
        rate = (job.done_pairs - done) / (now - began)
        left = (job.total_pairs - job.done_pairs) / rate
        return f"{rate:.3g} pairs/s, {_duration(left)} left"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


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
