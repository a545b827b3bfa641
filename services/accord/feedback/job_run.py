"""One label job at work: a data set's pairs labelled with patience, then `labels.jsonl` and `card.json`.

What is labelled is in the ledger, so a run begins at the first pair that is not, whenever it was interrupted. What does not belong here: which
jobs there are (`accord.feedback.jobs`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from accord.client.feedback import Label
from accord.data.records import PreferencePair
from accord.errors import FailedPreconditionError, InvalidArgumentError
from accord.feedback.config import FeedbackConfig
from accord.feedback.job_data import read_job_pairs, write_output
from accord.feedback.job_files import JobFiles, JobRecord
from accord.feedback.job_stages import STAGES, Asked, JobWork, Stage
from accord.feedback.labeller import Labeller, Plan
from accord.feedback.ledger import Ledger
from accord.feedback.patience import Patience
from accord.feedback.records import Origin, is_added


@dataclass(frozen=True, slots=True)
class JobCounts:
    """How far a job is: pairs with a label or an abstention, the abstentions, judgements that cost nothing, tokens paid for."""

    done: int = 0
    abstained: int = 0
    cached_judgements: int = 0
    tokens: int = 0

    def plus(self, label: Label) -> JobCounts:
        """The counts with one more label."""
        paid = [judgement for judgement in label.judgements if not judgement.cached]
        of_the_data = not is_added(label.pair_id)
        return JobCounts(
            self.done + of_the_data,
            self.abstained + (of_the_data and label.outcome == "abstain"),
            self.cached_judgements + len(label.judgements) - len(paid),
            self.tokens + sum(judgement.prompt_tokens + judgement.response_tokens for judgement in paid),
        )


class _StoppingError(Exception):
    """The server stops; the job goes on after its next start."""


class JobRun:
    """Runs one job to its end; `record` and `counts` say where it stands.

    Args:
        record: as it is in its file.
        labeller: labels the pairs.
        ledger: knows what is done.
        files: where the record is kept.
        config: of the server.
        on_change: called after each change of `record` or `counts`.
    """

    def __init__(
        self, record: JobRecord, labeller: Labeller, ledger: Ledger, files: JobFiles, config: FeedbackConfig, on_change: Callable[[], None]
    ) -> None:
        self.record = record
        self.counts = JobCounts()
        self.finishing = False
        self.stopping = False
        self._labeller = labeller
        self._ledger = ledger
        self._files = files
        self._config = config
        self._on_change = on_change
        self._origin = Origin(request_id=record.spec.request_id, job=record.name)
        self._patience = Patience(config.judge_wait_seconds, self.say, self._check_stopping)

    async def count(self) -> frozenset[str]:
        """Takes the counts from the ledger and returns the ids of the pairs that have a label."""
        progress = await asyncio.to_thread(self._ledger.job_progress, self.record.name)
        done = sum(not is_added(pair_id) for pair_id in progress.labelled)
        self.counts = JobCounts(done, progress.abstained, progress.cached_judgements, progress.tokens)
        self._on_change()
        return progress.labelled

    async def run(self, turns: asyncio.Semaphore) -> None:
        """Labels what is not labelled yet and writes the output, once it is this job's turn.

        Returns early, with the job still running, once `stopping` is set.

        Raises:
            AccordError: the job cannot go on; the message says why.
        """
        if turns.locked():
            self.say("waiting for its turn: max_running_jobs jobs are running")
        async with turns:
            with contextlib.suppress(_StoppingError):
                await self._run()

    async def save(self, **changes: object) -> None:
        """Changes the record, its file first; a cancellation waits until both agree."""
        record = replace(self.record, **changes)  # type: ignore[arg-type]
        writing = asyncio.create_task(asyncio.to_thread(self._files.write, record))
        try:
            await asyncio.shield(writing)
        finally:
            await writing
            self.record = record
            self._on_change()

    def say(self, message: str) -> None:
        """Shows a message; it is not worth a write of the file."""
        if message != self.record.message:
            self.record = replace(self.record, message=message)
            self._on_change()

    async def _run(self) -> None:
        await self.count()
        self._check_stopping()
        pairs = await self._read()
        work = JobWork(self.record.name, self.record.spec, pairs, await self._patience.of(self._plan), self._ledger)
        for stage in STAGES:
            await self._label_all(stage, work)
        self.finishing = True
        await self._finish(pairs)

    async def _label_all(self, stage: Stage, work: JobWork) -> None:
        """Labels what a stage asks for and has no label yet."""
        labelled = await self.count()
        asked = await asyncio.to_thread(stage, work)
        todo = ((pair, plan) for pair, plan in asked if pair.pair_id not in labelled)
        workers = [asyncio.create_task(self._work(todo)) for _ in range(self._config.concurrency * self._config.batch_pairs)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        self._check_stopping()

    async def _read(self) -> tuple[PreferencePair, ...]:
        pairs, rejected, digest = await asyncio.to_thread(read_job_pairs, self.record)
        known = self.record.input_digest
        if known and known != digest:
            raise FailedPreconditionError(f"{self.record.data_uri} has changed since the job began (sha256 {known}, now {digest})")
        await self.save(total_pairs=len(pairs), input_digest=digest, rejected_rows=rejected)
        return pairs

    async def _plan(self) -> Plan:
        """The judge, which stays the same to the end of the job."""
        plan = await self._labeller.plan(self._labeller.settings(self.record.spec.judge), pinned=True)
        known = self.record.judge_digest
        if known and known != plan.judge.digest:
            raise FailedPreconditionError(f"the judge has changed since the job began (digest {known}, now {plan.judge.digest})")
        await self.save(judge_digest=plan.judge.digest)
        return plan

    async def _work(self, todo: Iterator[Asked]) -> None:
        for pair, plan in todo:
            if self.stopping:
                return
            try:
                self._labeller.check_pair(pair, "pair")
            except InvalidArgumentError as error:
                call = partial(self._labeller.abstain, pair, plan, f"unusable pair: {error}", self._origin)
            else:
                call = partial(self._labeller.label, pair, plan, self._origin)
            async with self._labeller.room.wait():
                label = await self._patience.of(call)
            self.counts = self.counts.plus(label)
            self._on_change()

    def _check_stopping(self) -> None:
        if self.stopping:
            raise _StoppingError

    async def _finish(self, pairs: tuple[PreferencePair, ...]) -> None:
        await self.count()
        facts = await asyncio.to_thread(write_output, self._ledger, self.record, pairs)
        await self.save(state="succeeded", message="", end_time=time.time(), **facts)
