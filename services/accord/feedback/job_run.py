"""One label job at work: a data set's pairs labelled with patience, then `labels.jsonl`, `card.json` and `card.html`.

What is labelled is in the ledger, so a run begins at the first pair that is not, whenever it was interrupted. What does not belong here: which
jobs there are (`accord.feedback.jobs`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from accord.client.feedback import Candidates, Label, LabelPairItem
from accord.data.files import is_url, shown
from accord.data.records import PreferencePair, Prompt
from accord.errors import FailedPreconditionError, InvalidArgumentError
from accord.feedback.candidates import Candidate, CandidateSource
from accord.feedback.config import FeedbackConfig
from accord.feedback.job_candidates import CandidateFile, candidate_pairs, fill
from accord.feedback.job_data import read_job_pairs, read_job_prompts, write_output
from accord.feedback.job_files import JobFiles, JobRecord
from accord.feedback.job_stages import STAGES, Asked, JobWork, Stage
from accord.feedback.labeller import Labeller, Plan
from accord.feedback.ledger import Ledger
from accord.feedback.limits import Budget, Pace, Spending
from accord.feedback.patience import Patience
from accord.feedback.records import Origin, Question, is_added


@dataclass(frozen=True, slots=True)
class JobCounts:
    """How far a job is: pairs with a label or an abstention, the abstentions, judgements that cost nothing, tokens and money paid, escalations."""

    done: int = 0
    abstained: int = 0
    cached_judgements: int = 0
    tokens: int = 0
    cost: float = 0.0
    escalated: int = 0

    def plus(self, label: Label, spent: Spending) -> JobCounts:
        """The counts with one more label, and what its judgements cost this job."""
        of_the_data = not is_added(label.pair_id)
        return JobCounts(
            self.done + of_the_data,
            self.abstained + (of_the_data and label.outcome == "abstain"),
            self.cached_judgements + sum(judgement.cached for judgement in label.judgements),
            self.tokens + spent.tokens,
            self.cost + spent.cost,
            self.escalated + (of_the_data and label.escalated),
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
        source: samples candidates; None where this server cannot.
        on_change: called after each change of `record` or `counts`.
    """

    def __init__(
        self, record: JobRecord, labeller: Labeller, ledger: Ledger, files: JobFiles, config: FeedbackConfig, source: CandidateSource | None,
        on_change: Callable[[], None],
    ) -> None:  # fmt: skip
        self.record = record
        self.counts = JobCounts()
        self.finishing = False
        self.stopping = False
        self._labeller = labeller
        self._ledger = ledger
        self._files = files
        self._config = config
        self._source = source
        self._saving = asyncio.Lock()
        self._on_change = on_change
        self._origin = Origin(request_id=record.spec.request_id, job=record.name)
        self._doing = ""
        self._patience = Patience(config.judge_wait_seconds, lambda words: self.say(words or self._doing), self._check_stopping)
        self._budget = Budget(lambda: self.record.spec.limits, lambda: Spending(self.counts.cost, self.counts.tokens))
        self._pace = Pace(lambda: self.record.spec.limits.max_judgements_per_second, self._check_stopping)

    async def count(self) -> frozenset[str]:
        """Takes the counts from the ledger and returns the ids of the pairs that have a label."""
        progress = await asyncio.to_thread(self._ledger.job_progress, self.record.name)
        done = sum(not is_added(pair_id) for pair_id in progress.labelled)
        self.counts = JobCounts(done, progress.abstained, progress.cached_judgements, progress.tokens, progress.cost, progress.escalated)
        self._on_change()
        return progress.labelled

    async def run(self, turns: asyncio.Semaphore) -> None:
        """Labels what is not labelled yet and writes the output, once it is this job's turn. A job that only writes its output again needs no judge,
        nor a policy that candidates were sampled from: neither may be there any more.

        Returns early, with the job still running, once `stopping` is set.

        Raises:
            AccordError: the job cannot go on; the message says why.
        """
        if turns.locked():
            self.say("waiting for its turn: max_running_jobs jobs are running")
        async with turns:
            with contextlib.suppress(_StoppingError):
                await self._run()

    async def changes(self) -> str:
        """Who would label or sample another way now than the job had it, empty where it would be the same.

        Raises:
            AccordError: that is not known, since the judge or the policy of candidates is away, or there is none of that name any more.
        """
        record, options = self.record, self.record.spec.candidates
        found = []
        judge = (await self._labeller.plan(self._labeller.settings(record.spec.judge))).judge
        if judge.digest != record.judge_digest:
            found.append(f"the judge is another one now ({judge.name}, digest {judge.digest}; then {record.judge_digest})")
        if options is not None and self._source is not None:
            lineage = await self._source.identify(options)
            if lineage != dict(record.candidates_from):
                found.append(f"what candidates are sampled from is another now: {_changes(record, lineage)}")
        return "; ".join(found)

    async def save(self, **changes: object) -> None:
        """Changes the record, its file first; a cancellation waits until both agree.

        Raises:
            UnavailableError: the file cannot be written now; the record stays as it is.
        """
        async with self._saving:
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
            self.show(message=message)

    def show(self, **changes: object) -> None:
        """Changes the record for those who look at the job, and not its file."""
        self.record = replace(self.record, **changes)  # type: ignore[arg-type]
        self._on_change()

    def _do(self, words: str) -> None:
        """Says what is being done, now and whenever nothing is waited for."""
        self._doing = words
        self.say(words)

    async def _run(self) -> None:
        labelled = await self.count()
        self._check_stopping()
        pairs = await self._read()
        if not self.record.was_finished or any(pair.pair_id not in labelled for pair in pairs):
            work = JobWork(self.record.name, self.record.spec, pairs, await self._patience.of(self._plan), self._ledger)
            for stage in STAGES:
                await self._label_all(stage, work)
            await self.count()
        await self._patience.of(partial(self._finish, pairs))

    async def _label_all(self, stage: Stage, work: JobWork) -> None:
        """Labels what a stage asks for and has no label yet."""
        labelled = await self.count()
        asked = await asyncio.to_thread(lambda: [(pair, plan) for pair, plan in stage.asked(work) if pair.pair_id not in labelled])
        todo = self._shown(stage, asked)
        at_once = self.record.spec.limits.concurrency or self._config.concurrency * self._config.batch_pairs
        workers = [asyncio.create_task(self._work(todo)) for _ in range(at_once)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        self._check_stopping()

    def _shown(self, stage: Stage, asked: Sequence[Asked]) -> Iterator[Asked]:
        """The pairs one after the other, with a message how far a stage is whose pairs are not those of the data."""
        for number, item in enumerate(asked):
            if stage.name:
                self._do(f"judging {stage.name}: {number} of {len(asked)}")
            yield item
        self._do("")

    async def _read(self) -> tuple[PreferencePair, ...]:
        """The pairs of the data, or those sampled for its prompts."""
        if self.record.spec.candidates is None:
            pairs, rejected, digest = await asyncio.to_thread(read_job_pairs, self.record)
            await self._account(len(pairs), rejected, digest)
            return pairs
        prompts, rejected, digest = await asyncio.to_thread(read_job_prompts, self.record)
        await self._account(len(prompts), rejected, digest)
        return await self._sampled(prompts)

    async def _account(self, rows: int, rejected: dict[str, int], digest: str) -> None:
        """Notes what was read, which stays the same to the end of the job."""
        known = self.record.input_digest
        if known and known != digest:
            raise FailedPreconditionError(f"{shown(self.record.data_uri)} has changed since the job began (sha256 {known}, now {digest})")
        await self._patience.of(partial(self.save, total_pairs=rows, input_digest=digest, rejected_rows=rejected))

    async def _sampled(self, prompts: tuple[Prompt, ...]) -> tuple[PreferencePair, ...]:
        """A pair of candidates for each prompt that the policy can answer."""
        source, options = self._source, self.record.spec.candidates
        if source is None or options is None:
            raise FailedPreconditionError("this server has no policy service to sample candidates from", field="candidates")
        lineage = await self._lineage(source, options)
        file = CandidateFile(self._files.candidates(self.record.name))

        async def sample(part: list[Prompt]) -> list[Candidate]:
            self._check_stopping()
            candidates = await self._patience.of(partial(source.sample, part, options, lineage, self.record.spec.seed))
            await self._patience.of(partial(asyncio.to_thread, file.append, candidates))
            return candidates

        found = await fill(
            file, prompts, sample,
            lambda count: self._do(f"sampling candidates: {count} of {len(prompts)} prompts"),
            batch=self._config.batch_pairs, concurrency=self._config.concurrency,
        )  # fmt: skip
        self._do("")
        pairs, refused = candidate_pairs(prompts, found, self.record.spec, lineage)
        counted = {**self.record.rejected_rows, **refused}
        await self._patience.of(partial(self.save, total_pairs=len(pairs), rejected_rows=counted, message=""))
        return pairs

    async def _lineage(self, source: CandidateSource, options: Candidates) -> dict[str, str]:
        """What candidates are sampled from, which stays the same to the end of the job; where all are sampled it is not asked again."""
        if self.record.was_finished:
            return dict(self.record.candidates_from)
        lineage = await self._patience.of(partial(source.identify, options))
        if self.record.candidates_from and dict(self.record.candidates_from) != lineage:
            raise FailedPreconditionError(f"what candidates are sampled from has changed since the job began: {_changes(self.record, lineage)}")
        await self._patience.of(partial(self.save, candidates_from=lineage))
        return lineage

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
                label = await self._patience.of(partial(self._labeller.abstain, pair, plan, f"unusable pair: {error}", self._origin))
                self.counts = self.counts.plus(label, Spending())
            else:
                await self._label(pair, plan)
            self._on_change()

    async def _label(self, pair: LabelPairItem, plan: Plan) -> None:
        """Labels one pair once it is its turn; where nothing has to be bought for it, limits do not hold it up."""
        questions = await self._patience.of(partial(self._labeller.unanswered, pair, plan))
        async with contextlib.AsyncExitStack() as stack:
            learn = await stack.enter_async_context(self._budget.pair()) if questions else None
            await self._pace.take(len(questions))
            await stack.enter_async_context(self._labeller.room.wait())
            label = await self._patience.of(partial(self._labeller.label, pair, plan, self._origin))
            spent = await self._patience.of(partial(self._spent_on, questions))
            self.counts = self.counts.plus(label, spent)
            if learn is not None:
                learn(spent)

    async def _spent_on(self, questions: Sequence[Question]) -> Spending:
        """What the job has paid for questions: asked of the ledger, since the last try of a pair finds there what earlier ones have paid for."""
        keys = [key for question in questions for key in (question.key, question.overflow.key)]
        return Spending(*await asyncio.to_thread(self._ledger.spent, self.record.name, keys)) if keys else Spending()

    def _check_stopping(self) -> None:
        if self.stopping:
            raise _StoppingError

    async def _finish(self, pairs: tuple[PreferencePair, ...]) -> None:
        """Writes the output. A job that waits for a place that cannot be written, or writes to a URL, which may take long, can be cancelled."""
        self.finishing = not is_url(self.record.output)
        try:
            facts = await asyncio.to_thread(write_output, self._ledger, self.record, pairs)
            await self.save(state="succeeded", message="", end_time=time.time(), **facts)
        finally:
            self.finishing = False


def _changes(record: JobRecord, lineage: Mapping[str, str]) -> str:
    """What is another now than when the job began."""
    before = record.candidates_from
    return ", ".join(f"{name} {before.get(name, '')!r} is now {value!r}" for name, value in lineage.items() if before.get(name) != value)
