"""The label jobs of a server: creating, running, watching and cancelling them, and taking them up again after a restart.

What does not belong here: one job's work (`accord.feedback.job_run`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from accord.client.feedback import LabelJob, LabelJobSpec
from accord.data.files import shown
from accord.data.formats import FORMATS
from accord.data.readers import check_source
from accord.errors import AccordError, AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from accord.feedback.candidates import CandidateSource
from accord.feedback.config import FeedbackConfig
from accord.feedback.job_data import CARD_FILE, CARD_PAGE, LABELS_FILE
from accord.feedback.job_files import JobFiles, JobRecord
from accord.feedback.job_output import check_no_strangers, check_output, is_output_there, is_same_place, output_place
from accord.feedback.job_run import JobRun
from accord.feedback.labeller import Labeller
from accord.feedback.ledger import Ledger
from accord.feedback.limits import LimitReachedError
from accord.rpc.logs import describe_exception

_log = structlog.get_logger(__name__)
_PREFIX = "labelJobs/"
_LOOK_AGAIN_SECONDS = 0.1
_COMPARE_SECONDS = 5.0


class LabelJobs:
    """All jobs of a server. Lives on one event loop.

    Args:
        labeller: labels the pairs.
        ledger: knows what is done.
        config: where the job files are, and limits.
        source: samples candidates; None where this server cannot.
    """

    def __init__(self, labeller: Labeller, ledger: Ledger, config: FeedbackConfig, source: CandidateSource | None = None) -> None:
        self._labeller = labeller
        self._ledger = ledger
        self._config = config
        self._source = source
        self._files = JobFiles(config.jobs)
        self._jobs: dict[str, _Job] = {}
        self._creating = asyncio.Lock()
        self._turns = asyncio.Semaphore(config.max_running_jobs)

    async def start(self) -> None:
        """Takes up the jobs of the folder; those that had not ended go on.

        Raises:
            DataLossError: a job's file is damaged.
        """
        for record in await asyncio.to_thread(self._files.read_all):
            job = self._add(record)
            await job.run.count()
            if not record.ended:
                job.begin(self._turns)

    async def stop_taking(self) -> None:
        """Lets the pairs in work be finished and begins no others; the jobs go on after the next start."""
        for job in self._jobs.values():
            job.run.stopping = True
        await asyncio.gather(*(job.task for job in self._jobs.values() if job.task is not None), return_exceptions=True)

    async def close(self) -> None:
        """Ends the work at once; the jobs go on after the next start."""
        for job in self._jobs.values():
            if job.task is not None:
                job.task.cancel()
        await asyncio.gather(*(job.task for job in self._jobs.values() if job.task is not None), return_exceptions=True)

    async def create(self, spec: LabelJobSpec) -> LabelJob:
        """Starts a job, or returns the one that this request id started, which goes on under the limits given now where those had ended it.

        One that has succeeded and whose files are gone writes them again, out of the ledger, and tries that again where it could not. The message of
        one that has succeeded says who would label now, where that is another judge or other candidates, or is not known.

        Raises:
            AlreadyExistsError: the request id was used with another payload.
            NotFoundError: there is no such data set or rubric.
            InvalidArgumentError: the format, the judge's options or the output folder are wrong.
            FailedPreconditionError: the output folder belongs to another job, or cannot be made; or money is limited for a judge without a price.
        """
        job = await self._created(spec)
        found = job.snapshot()
        return replace(found, message=await self._compared(job)) if found.state == "succeeded" else found

    async def _created(self, spec: LabelJobSpec) -> _Job:
        async with self._creating:
            record = _record(spec)
            self._labeller.check_limits(spec.judge, spec.limits)
            known = self._jobs.get(record.name)
            if known is not None:
                if known.run.record.payload_digest != record.payload_digest:
                    raise AlreadyExistsError(f"request_id {spec.request_id!r} was used with another payload", field="request_id")
                await self._take_up(known, record)
                return known
            self._labeller.settings(spec.judge).rubric_for(spec.task)
            await asyncio.to_thread(self._check, record)
            await asyncio.to_thread(self._files.write, record)
            job = self._add(record)
            job.begin(self._turns)
            return job

    async def _compared(self, job: _Job) -> str:
        """What would be another now than when a job was done; nothing is judged for it."""
        try:
            async with asyncio.timeout(_COMPARE_SECONDS):
                return await job.run.changes()
        except TimeoutError:
            return f"who would label now is not known: no answer within {_COMPARE_SECONDS:g} s"
        except AccordError as error:
            return f"who would label now is not known: {error}"

    async def _take_up(self, job: _Job, asked: JobRecord) -> None:
        """Gives a job that runs, or has ended at a limit, the limits that are asked for now; lets one that has lost its files write them again."""
        record = job.run.record
        if await self._has_lost_its_files(record):
            await asyncio.to_thread(self._check_output, record)
            await job.reopen(asked.spec, self._turns)
        elif record.spec.limits == asked.spec.limits:
            return
        elif record.state == "running":
            await job.run.save(spec=asked.spec)
        elif record.at_limit:
            await asyncio.to_thread(self._check_output, record)
            await job.reopen(asked.spec, self._turns)

    async def _has_lost_its_files(self, record: JobRecord) -> bool:
        """Whether a job that has succeeded once has no files; also where it could not write them again, or was cancelled over it."""
        if record.state == "succeeded":
            return not await asyncio.to_thread(is_output_there, record.output, (LABELS_FILE, CARD_FILE, CARD_PAGE))
        return record.ended and record.was_finished and not record.at_limit

    def get(self, name: str) -> LabelJob:
        """A job as it stands.

        Raises:
            NotFoundError: there is none of that name.
        """
        return self._find(name).snapshot()

    def newest(self, *, dataset_digest: str, before: int | None, limit: int) -> list[tuple[int, LabelJob]]:
        """Jobs older than a place (None is the beginning), the newest first, each with its own place: when it was created, in nanoseconds.

        With a digest, jobs whose labelled data set has it, of its file or of its rows.
        """
        placed = sorted(((round(job.run.record.create_time * 1e9), job) for job in self._jobs.values()), key=lambda item: item[0], reverse=True)
        found = [(place, job) for place, job in placed if before is None or place < before]
        if dataset_digest:
            found = [(place, job) for place, job in found if dataset_digest in (job.run.record.dataset_digest, job.run.record.rows_digest)]
        return [(place, job.snapshot()) for place, job in found[:limit]]

    async def watch(self, name: str) -> AsyncIterator[LabelJob]:
        """A job each time that it changed, until it ends. Raises as `get`."""
        job = self._find(name)
        last: LabelJob | None = None
        while True:
            changed = job.changed
            now = job.snapshot()
            if now != last:
                yield now
                last = now
            if now.ended:
                return
            await changed.wait()

    async def cancel(self, name: str) -> LabelJob:
        """Ends a job's work; what was judged stays in the ledger. A job that has ended, or is writing its output, stays as it is. Raises as `get`."""
        job = self._find(name)
        await job.cancel()
        return job.snapshot()

    def _find(self, name: str) -> _Job:
        if name not in self._jobs:
            raise NotFoundError(f"there is no label job {name!r}", field="name")
        return self._jobs[name]

    def _add(self, record: JobRecord) -> _Job:
        job = self._jobs[record.name] = _Job(partial(JobRun, record, self._labeller, self._ledger, self._files, self._config, self._source))
        return job

    def _check(self, record: JobRecord) -> None:
        """What can be known to be wrong before any work."""
        if record.spec.dataset_format and record.spec.dataset_format not in FORMATS:
            raise InvalidArgumentError(f"format {record.spec.dataset_format!r} is not one of {', '.join(FORMATS)}", field="dataset_format")
        try:
            check_source(record.data_uri)
        except AccordError as error:
            raise type(error)(error.message, field="dataset_uri") from error
        if record.spec.candidates is not None:
            if self._source is None:
                raise FailedPreconditionError("this server has no policy service to sample candidates from", field="candidates")
            self._source.check(record.spec.candidates)
        self._check_output(record)

    def _check_output(self, record: JobRecord) -> None:
        """Refuses an output that would take the place of the job's own data, of what another job has written or will write, or of a stranger's."""
        if is_same_place(f"{record.output}/{LABELS_FILE}", record.data_uri):
            raise InvalidArgumentError(f"the job would write over its own data, {shown(record.data_uri)}; give another folder", field="output_uri")
        for job in self._jobs.values():
            other = job.run.record
            if other.name != record.name and other.state in ("running", "succeeded") and is_same_place(other.output, record.output):
                raise FailedPreconditionError(f"{shown(record.output)} is the output folder of {other.name}; give another", field="output_uri")
        if not record.was_finished:  # what one that has succeeded finds there, it wrote, whether or not its card is gone
            check_no_strangers(record.output, LABELS_FILE)
        check_output(record.output)


class _Job:
    """A job in memory: its run, its task, and an event that is set at each change and then replaced."""

    def __init__(self, make_run: Callable[[Callable[[], None]], JobRun]) -> None:
        self.run = make_run(self._notify)
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._cancelling = asyncio.Lock()

    def snapshot(self) -> LabelJob:
        """The job as callers see it."""
        record, counts = self.run.record, self.run.counts
        return LabelJob(
            record.name, record.state, record.total_pairs, counts.done, counts.abstained, counts.cached_judgements, counts.tokens,
            record.message, record.dataset_uri, record.dataset_digest, record.card_uri, record.create_time, dict(record.rejected_rows),
            source_uri=shown(record.spec.dataset_uri), rows_digest=record.rows_digest,
            cost=counts.cost, at_limit=record.at_limit, escalated_pairs=counts.escalated,
        )  # fmt: skip

    def begin(self, turns: asyncio.Semaphore) -> None:
        """Starts the work, once it is this job's turn."""
        self.task = asyncio.create_task(self._work(turns))

    async def reopen(self, spec: LabelJobSpec, turns: asyncio.Semaphore) -> None:
        """Lets a job that has ended go on, for the rest of its pairs or to write its files again."""
        if self.task is not None:
            await asyncio.gather(self.task, return_exceptions=True)
        await self.run.save(spec=spec, state="running", message="", at_limit=False, end_time=None)
        self.begin(turns)

    async def cancel(self) -> None:
        async with self._cancelling:
            if self.task is None or self.run.record.ended:
                return
            while self.run.finishing and not self.task.done():
                await asyncio.wait({self.task}, timeout=_LOOK_AGAIN_SECONDS)
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            await self._recount()
            if not self.run.record.ended:
                await self.run.save(state="cancelled", message="cancelled by a caller", end_time=time.time())

    async def _work(self, turns: asyncio.Semaphore) -> None:
        try:
            await self.run.run(turns)
        except LimitReachedError as error:
            await self._recount()
            counts, total = self.run.counts, self.run.record.total_pairs
            kept = f"{counts.done} of {total} pairs are labelled and kept; the same job under a higher limit goes on from there"
            await self._fail(f"{error.message}; {kept}", at_limit=True)
        except AccordError as error:
            await self._recount()
            again = self.run.record.was_finished  # without this a caller would begin another attempt, and pay for the labels once more
            kept = "its files could not be written again, its labels are in the ledger, and the same request tries once more"
            await self._fail(f"{kept}: {error}" if again else str(error))
        except Exception as error:  # noqa: BLE001 - a defect ends the job, and says so
            _log.error("label_job_defect", job=self.run.record.name, **describe_exception(error))
            await self._fail("internal error, see server log")
        finally:
            _log.info("label_job", job=self.run.record.name, state=self.run.record.state)

    async def _recount(self) -> None:
        """Counts what pairs that got no label have cost, too."""
        with contextlib.suppress(AccordError):
            await self.run.count()

    async def _fail(self, message: str, *, at_limit: bool = False) -> None:
        try:
            await self.run.save(state="failed", message=message, end_time=time.time(), at_limit=at_limit)
        except AccordError as error:  # a full disk: whoever watches hears of the end all the same
            said = f"{message}; {error.message}, so that the next start takes the job up again"
            self.run.show(state="failed", message=said, end_time=time.time(), at_limit=at_limit)

    def _notify(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


def _record(spec: LabelJobSpec) -> JobRecord:
    """A new job; paths become absolute, so that a server started elsewhere finds them again."""
    uri = spec.dataset_uri.removeprefix("file://")
    if not uri.startswith(("sample:", "hub:")) and "://" not in uri:
        uri = str(Path(uri).absolute())
    return JobRecord(f"{_PREFIX}{spec.request_id}", spec, uri, output_place(spec.output_uri), time.time())
