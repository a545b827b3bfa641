"""The files of label jobs: one JSON file a job in the jobs folder, replaced whole, so that a kill leaves the old text or the new.

A file says what to do and how it ended; what is done already is in the ledger. What does not belong here: running a job (`accord.feedback.job_run`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from accord.client.feedback import Candidates, JobState, Judge, LabelJobSpec, LabelLimits
from accord.errors import DataLossError, UnavailableError
from accord.feedback.records import digest_of
from accord.rundir import write_atomically
from accord.text.tasks import Task


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job as its file has it.

    `data_uri` and `output` are absolute where they are paths. `input_digest` and `judge_digest` are set once the job has begun: it goes on
    with the same rows and the same judge, or fails. `dataset_digest` and what is around it is set at the end: it is that of the file, `rows_digest`
    that of its rows as every reader names them. `at_limit` says that the job failed because it may not spend more; `candidates_from` are the
    versions and digests that its candidates are sampled from, where it samples them.
    """

    name: str
    spec: LabelJobSpec
    data_uri: str
    output: str
    create_time: float
    state: JobState = "running"
    message: str = ""
    total_pairs: int = 0
    input_digest: str = ""
    judge_digest: str = ""
    rejected_rows: Mapping[str, int] = field(default_factory=dict)
    dataset_uri: str = ""
    dataset_digest: str = ""
    rows_digest: str = ""
    card_uri: str = ""
    end_time: float | None = None
    at_limit: bool = False
    candidates_from: Mapping[str, str] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("succeeded", "failed", "cancelled")

    @property
    def was_finished(self) -> bool:
        """Whether it has written its output once, so that all its labels are in the ledger, whatever has become of the files."""
        return bool(self.dataset_digest)

    @property
    def payload_digest(self) -> str:
        """sha256 of what the caller asked for: what a second use of the request id is compared with. Limits are no part of it."""
        return digest_of(asdict(replace(self.spec, limits=LabelLimits())))


class JobFiles:
    """The jobs folder, made where there is none."""

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)

    def write(self, record: JobRecord) -> None:
        """Replaces a job's file.

        Raises:
            UnavailableError: it cannot be written now.
        """
        try:
            write_atomically(self._path(record.name), json.dumps(asdict(record), indent=1))
        except OSError as error:
            raise UnavailableError(f"the job's file cannot be written to {self._folder}: {error.strerror}", retry_after_seconds=1.0) from error

    def read_all(self) -> list[JobRecord]:
        """All jobs, oldest first.

        Raises:
            DataLossError: a file is not a job; names it.
        """
        return sorted((_read(path) for path in self._folder.glob("*.json")), key=lambda record: record.create_time)

    def candidates(self, name: str) -> Path:
        """Where a job keeps what it has sampled."""
        return self._path(name).with_suffix(".candidates.jsonl")

    def _path(self, name: str) -> Path:
        """A request id is any text; the file's name is a digest of it."""
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"


def _read(path: Path) -> JobRecord:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        spec = values.pop("spec")
        judge, limits, candidates = Judge(**spec.pop("judge")), LabelLimits(**spec.pop("limits", {})), spec.pop("candidates", None)
        sampled = None if candidates is None else Candidates(**candidates)
        return JobRecord(spec=LabelJobSpec(**{**spec, "task": Task(spec["task"])}, judge=judge, limits=limits, candidates=sampled), **values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataLossError(f"{path} is no label job: {error}; move it away to start without it", field="jobs") from error
