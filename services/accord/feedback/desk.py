"""Where questions wait for the judge: looked up in the ledger first, asked once whoever else asks the same, in batches, and never in vain.

A question that nobody waits for any more is not asked; a call to the judge whose questions are all abandoned is cancelled, unless the judge
has answered already: then the answers go to the ledger first. While the ledger takes no answers (a full disk), none are bought: those that it has
not taken wait for it. What does not belong here: labels (`accord.feedback.labeller`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import structlog

from accord.errors import AccordError, UnavailableError
from accord.feedback.judge_model import JudgeChangedError
from accord.feedback.judges.asking import Judge, answer_by_rule
from accord.feedback.ledger import Ledger
from accord.feedback.metrics import JUDGEMENTS, WAITING
from accord.feedback.records import Answer, Kind, Origin, Question

_log = structlog.get_logger(__name__)
_AnswerRow = tuple[Question, Answer, Origin]


@dataclass(frozen=True, slots=True)
class Lane:
    """How one judge is asked: by kind, with so many calls in flight, each of at most so many questions, fewer for a kind with a weight."""

    judges: Mapping[Kind, Judge]
    concurrency: int
    batch_pairs: int


@dataclass(eq=False)
class _Entry:
    """A question on the desk; `future` has (answer, whether the ledger had it)."""

    question: Question
    origin: Origin
    future: asyncio.Future[tuple[Answer, bool]]
    waiters: int = 0
    batch: _Batch | None = None
    asked_at: float = field(default_factory=time.monotonic)

    def kept(self, answer: Answer) -> Answer:
        """The answer as the ledger keeps it: with its key, its sample, and how long the question has waited for it."""
        key, waited = self.question.kept_as(answer).key, time.monotonic() - self.asked_at
        return replace(answer, sample=self.question.sample, latency_seconds=waited, key=key)

    @property
    def lane(self) -> str:
        """Name of the judge that is asked."""
        return self.question.judge.configured

    @property
    def group(self) -> Hashable:
        """Questions of one group can share a call to the judge."""
        question = self.question
        return question.kind, question.judge, question.rationale, question.max_rationale_tokens, question.temperature, question.verdict_source


@dataclass(eq=False)
class _Batch:
    """One call to the judge; from `answered` on it is worth keeping."""

    entries: list[_Entry]
    answered: bool = False
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def lane(self) -> str:
        """Name of the judge that is asked."""
        return self.entries[0].lane


class Desk:
    """Answers questions from the ledger or their judges. Lives on one event loop.

    Args:
        ledger: where answers are looked for and kept.
        lanes: how each judge of the configuration is asked; a slow one holds up no other.
    """

    def __init__(self, ledger: Ledger, lanes: Mapping[str, Lane]) -> None:
        self._ledger = ledger
        self._lanes = lanes
        self._entries: dict[str, _Entry] = {}
        self._new: list[_Entry] = []
        self._waiting: dict[Hashable, dict[str, _Entry]] = {}
        self._batches: set[_Batch] = set()
        self._unsaved: list[_AnswerRow] = []
        self._saving = asyncio.Lock()
        self._look: asyncio.Task[None] | None = None

    async def answer(self, question: Question, origin: Origin) -> tuple[Answer, bool]:
        """The answer, which is in the ledger by now, and whether it cost nothing: it was there before, or another caller had asked already.

        Raises:
            AccordError: the judge cannot be asked, or the ledger not be used.
        """
        entry = self._entries.get(question.key)
        joined = entry is not None
        if entry is None:
            entry = self._enter(question, origin)
        entry.waiters += 1
        try:
            answer, stored = await asyncio.shield(entry.future)
        finally:
            entry.waiters -= 1
            if not entry.waiters and not entry.future.done():
                self._leave(entry)
        JUDGEMENTS.labels(entry.lane, question.kind, "ledger" if joined or stored else "judge").inc()
        return answer, joined or stored

    async def close(self) -> None:
        """Cancels what is being asked and keeps what is answered; whoever still waits gets UnavailableError."""
        for entry in tuple(self._entries.values()):
            self._fail(entry, UnavailableError("the service is stopping", retry_after_seconds=1.0))
        self._waiting.clear()
        tasks = [batch.task for batch in self._batches if batch.task is not None] + ([self._look] if self._look else [])
        for batch in self._batches:
            if batch.task is not None and not batch.answered:
                batch.task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _enter(self, question: Question, origin: Origin) -> _Entry:
        entry = _Entry(question, origin, asyncio.get_running_loop().create_future())
        entry.future.add_done_callback(lambda future: future.cancelled() or future.exception())  # its waiters may all have left
        self._entries[question.key] = entry
        self._new.append(entry)
        if self._look is None:
            self._look = asyncio.create_task(self._look_up())
        return entry

    async def _look_up(self) -> None:
        """Takes what came since the last look to the ledger, and what is not there to the queue."""
        try:
            while self._new:
                entries, self._new = self._new, []
                await self._look_up_part(entries)
                self._pump()
        finally:
            self._look = None

    async def _look_up_part(self, entries: Sequence[_Entry]) -> None:
        try:
            await self._save([])
            found = await asyncio.to_thread(self._ledger.answers, [entry.question for entry in entries])
        except Exception as error:  # noqa: BLE001 - whoever waits gets it, a defect included
            for entry in entries:
                self._fail(entry, error)
            return
        for entry in entries:
            key = entry.question.key
            if key in found:
                self._settle(entry, found[key], stored=True)
            elif self._entries.get(key) is entry:
                self._waiting.setdefault(entry.group, {})[key] = entry
                WAITING.inc()

    def _pump(self) -> None:
        """Starts calls to judges while there is work and room; groups take turns."""
        while (group := self._next_group()) is not None:
            queue = self._waiting.pop(group)
            first = next(iter(queue.values()))
            lane = self._lanes[first.lane]
            keys = list(queue)[: max(1, lane.batch_pairs // lane.judges[first.question.kind].weight)]
            batch = _Batch([queue.pop(key) for key in keys])
            if queue:
                self._waiting[group] = queue
            WAITING.dec(len(keys))
            for entry in batch.entries:
                entry.batch = batch
            self._batches.add(batch)
            batch.task = asyncio.create_task(self._run(batch))
            batch.task.add_done_callback(partial(self._end, batch))  # not a `finally`: a task cancelled before its first step runs nothing

    def _next_group(self) -> Hashable | None:
        """The group whose turn it is among those whose judge has room."""
        in_flight = Counter(batch.lane for batch in self._batches)
        for group, queue in self._waiting.items():
            lane = next(iter(queue.values())).lane
            if in_flight[lane] < self._lanes[lane].concurrency:
                return group
        return None

    async def _run(self, batch: _Batch) -> None:
        try:
            await self._save([])
            answers = await self._ask(batch.entries)
            batch.answered = True
            await self._save([row for entry, answer in zip(batch.entries, answers, strict=True) if (row := _row(entry, answer)) is not None])
            for entry, answer in zip(batch.entries, answers, strict=True):
                if isinstance(answer, Answer):
                    self._settle(entry, answer, stored=False)
                else:
                    self._fail(entry, answer)
        except Exception as error:  # noqa: BLE001 - whoever waits gets it, a defect included
            for entry in batch.entries:
                self._fail(entry, error)

    async def _save(self, rows: Sequence[_AnswerRow]) -> None:
        """Brings answers to the ledger, first those that it did not take before; where it raises, they are kept for another try."""
        if not rows and not self._unsaved:
            return
        async with self._saving:
            before = self._unsaved
            self._unsaved = [*before, *rows]
            try:
                if self._unsaved:
                    await asyncio.to_thread(self._ledger.append_judgements, self._unsaved)
            except (AccordError, asyncio.CancelledError):  # a row that is there already is not added again
                raise
            except Exception:  # a defect, which another try would not help
                self._unsaved = before
                raise
            self._unsaved = []

    def _end(self, batch: _Batch, _: asyncio.Task[None]) -> None:
        self._batches.discard(batch)
        self._pump()

    async def _ask(self, entries: Sequence[_Entry]) -> list[Answer | AccordError]:
        """Answers in the order of the entries; the judge is not asked where a rule answers."""
        known: list[Answer | AccordError | None] = [answer_by_rule(entry.question) for entry in entries]
        questions = [entry.question for entry, answer in zip(entries, known, strict=True) if answer is None]
        judge = self._lanes[entries[0].lane].judges[entries[0].question.kind]
        asked = iter(await judge.ask(questions) if questions else [])
        answers = [next(asked) if answer is None else answer for answer in known]
        return [entry.kept(answer) if isinstance(answer, Answer) else answer for entry, answer in zip(entries, answers, strict=True)]

    def _leave(self, entry: _Entry) -> None:
        """Nobody waits for an entry any more."""
        key, batch = entry.question.key, entry.batch
        if batch is None:
            self._entries.pop(key, None)
            queue = self._waiting.get(entry.group, {})
            if queue.pop(key, None) is not None:
                WAITING.dec()
            if not queue:
                self._waiting.pop(entry.group, None)
        elif not batch.answered and batch.task is not None and not any(other.waiters for other in batch.entries):
            for other in batch.entries:
                self._entries.pop(other.question.key, None)
            batch.task.cancel()
            _log.info("judge_call_abandoned", questions=len(batch.entries))

    def _settle(self, entry: _Entry, answer: Answer, *, stored: bool) -> None:
        self._forget(entry)
        if not entry.future.done():
            entry.future.set_result((answer, stored))

    def _fail(self, entry: _Entry, error: Exception) -> None:
        self._forget(entry)
        if not entry.future.done():
            entry.future.set_exception(error)

    def _forget(self, entry: _Entry) -> None:
        if self._entries.get(entry.question.key) is entry:
            del self._entries[entry.question.key]


def _row(entry: _Entry, answer: Answer | AccordError) -> _AnswerRow | None:
    """What the ledger keeps: an answer, also one by a judge that has taken the place of the one that was asked."""
    if isinstance(answer, Answer):
        return entry.question.kept_as(answer), answer, entry.origin
    if isinstance(answer, JudgeChangedError) and answer.judge is not None and answer.answer is not None:
        return replace(entry.question, judge=answer.judge).kept_as(answer.answer), entry.kept(answer.answer), entry.origin
    return None
