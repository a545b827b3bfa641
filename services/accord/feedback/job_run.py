"""One label job at work: a data set's pairs labelled with patience, then `labels.jsonl` and `card.json`.

What is labelled is in the ledger, so a run begins at the first pair that is not, whenever it was interrupted. What does not belong here: which
jobs there are (`accord.feedback.jobs`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from accord.client.feedback import Label
from accord.data.records import PreferencePair
from accord.errors import AccordError, DeadlineExceededError, FailedPreconditionError, InvalidArgumentError, UnavailableError
from accord.feedback.config import FeedbackConfig
from accord.feedback.job_data import read_job_pairs, shown_pair, write_output
from accord.feedback.job_files import JobFiles, JobRecord
from accord.feedback.labeller import Labeller, Plan
from accord.feedback.ledger import Ledger
from accord.feedback.records import Origin

T = TypeVar("T")
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 15.0


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
        return JobCounts(
            self.done + 1,
            self.abstained + (label.outcome == "abstain"),
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

    async def count(self) -> frozenset[str]:
        """Takes the counts from the ledger and returns the ids of the pairs that have a label."""
        progress = await asyncio.to_thread(self._ledger.job_progress, self.record.name)
        self.counts = JobCounts(len(progress.labelled), progress.abstained, progress.cached_judgements, progress.tokens)
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
        labelled = await self.count()
        self._check_stopping()
        pairs = await self._read()
        plan = await self._patiently(self._plan)
        todo = (pair for pair in pairs if pair.pair_id not in labelled)
        workers = [asyncio.create_task(self._work(todo, plan)) for _ in range(self._config.concurrency * self._config.batch_pairs)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        self._check_stopping()
        self.finishing = True
        await self._finish(pairs)

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

    async def _work(self, todo: Iterator[PreferencePair], plan: Plan) -> None:
        for pair in todo:
            if self.stopping:
                return
            item = shown_pair(pair, self.record.spec.seed)
            try:
                self._labeller.check_pair(item, "pair")
            except InvalidArgumentError as error:
                call = partial(self._labeller.abstain, item, plan, f"unusable pair: {error}", self._origin)
            else:
                call = partial(self._labeller.label, item, plan, self._origin)
            async with self._labeller.room.wait():
                label = await self._patiently(call)
            self.counts = self.counts.plus(label)
            self._on_change()

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """The call's result, tried again while that can help, for at most `judge_wait_seconds`; the message says what is waited for.

        Raises:
            UnavailableError: what is needed stayed away for too long.
            AccordError: an error that a retry cannot help.
        """
        first_failure: float | None = None
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                result = await call()
            except AccordError as error:
                if not (error.retryable or isinstance(error, DeadlineExceededError)):
                    raise
                now = time.monotonic()
                first_failure = now if first_failure is None else first_failure
                if now - first_failure >= self._config.judge_wait_seconds:
                    raise UnavailableError(f"waited {now - first_failure:.0f} s; last reason: {error}") from error
                self._check_stopping()
                self.say(f"waiting: {error}")
                await asyncio.sleep(min(max(pause, error.retry_after_seconds or 0.0), _LONGEST_PAUSE_SECONDS))
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            else:
                self.say("")
                return result

    def _check_stopping(self) -> None:
        if self.stopping:
            raise _StoppingError

    async def _finish(self, pairs: tuple[PreferencePair, ...]) -> None:
        await self.count()
        facts = await asyncio.to_thread(write_output, self._ledger, self.record, pairs)
        await self.save(state="succeeded", message="", end_time=time.time(), **facts)
