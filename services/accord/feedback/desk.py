"""Where questions wait for the judge: looked up in the ledger first, asked once whoever else asks the same, in batches, and never in vain.

A question that nobody waits for any more is not asked; a call to the judge whose questions are all abandoned is cancelled, unless the judge
has answered already: then the answers go to the ledger first. What does not belong here: labels (`accord.feedback.labeller`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import structlog
from prometheus_client import Counter, Gauge

from accord.errors import AccordError, UnavailableError
from accord.feedback.judges.asking import Judge, empty_response_answer
from accord.feedback.ledger import Ledger
from accord.feedback.records import Answer, Kind, Origin, Question

_log = structlog.get_logger(__name__)
_JUDGEMENTS = Counter("accord_feedback_judgements_total", "Judgements answered", ["kind", "source"])
_TOKENS = Counter("accord_feedback_judge_tokens_total", "Tokens that the judge read, and wrote or scored", ["direction"])
_WAITING = Gauge("accord_feedback_waiting_judgements", "Judgements that wait for a call to the judge")


@dataclass(eq=False)
class _Entry:
    """A question on the desk; `future` has (answer, whether the ledger had it)."""

    question: Question
    origin: Origin
    future: asyncio.Future[tuple[Answer, bool]]
    waiters: int = 0
    batch: _Batch | None = None
    asked_at: float = field(default_factory=time.monotonic)

    def timed(self, answer: Answer | AccordError) -> Answer | AccordError:
        """The answer with how long the question has waited for it."""
        return replace(answer, latency_seconds=time.monotonic() - self.asked_at) if isinstance(answer, Answer) else answer

    @property
    def group(self) -> Hashable:
        """Questions of one group can share a call to the judge."""
        question = self.question
        return question.kind, question.judge, question.rationale, question.max_rationale_tokens


@dataclass(eq=False)
class _Batch:
    """One call to the judge; from `answered` on it is worth keeping."""

    entries: list[_Entry]
    answered: bool = False
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Desk:
    """Answers questions from the ledger or the judge. Lives on one event loop.

    Args:
        ledger: where answers are looked for and kept.
        judges: one for each kind.
        concurrency: most calls to the judge in flight.
        batch_pairs: most questions of one call, fewer for a judge with a weight.
    """

    def __init__(self, ledger: Ledger, judges: Mapping[Kind, Judge], *, concurrency: int, batch_pairs: int) -> None:
        self._ledger = ledger
        self._judges = judges
        self._concurrency = concurrency
        self._batch_pairs = batch_pairs
        self._entries: dict[str, _Entry] = {}
        self._new: list[_Entry] = []
        self._waiting: dict[Hashable, dict[str, _Entry]] = {}
        self._batches: set[_Batch] = set()
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
        _JUDGEMENTS.labels(question.kind, "ledger" if joined or stored else "judge").inc()
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
            found = await asyncio.to_thread(self._ledger.find, [entry.question.key for entry in entries])
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
                _WAITING.inc()

    def _pump(self) -> None:
        """Starts calls to the judge while there is work and room; groups take turns."""
        while self._waiting and len(self._batches) < self._concurrency:
            group = next(iter(self._waiting))
            queue = self._waiting.pop(group)
            judge = self._judges[next(iter(queue.values())).question.kind]
            keys = list(queue)[: max(1, self._batch_pairs // judge.weight)]
            batch = _Batch([queue.pop(key) for key in keys])
            if queue:
                self._waiting[group] = queue
            _WAITING.dec(len(keys))
            for entry in batch.entries:
                entry.batch = batch
            self._batches.add(batch)
            batch.task = asyncio.create_task(self._run(batch))
            batch.task.add_done_callback(partial(self._end, batch))  # not a `finally`: a task cancelled before its first step runs nothing

    async def _run(self, batch: _Batch) -> None:
        try:
            answers = await self._ask(batch.entries)
            batch.answered = True
            rows = [
                (entry.question, answer, entry.origin) for entry, answer in zip(batch.entries, answers, strict=True) if isinstance(answer, Answer)
            ]
            await asyncio.to_thread(self._ledger.append_judgements, rows)
            for entry, answer in zip(batch.entries, answers, strict=True):
                if isinstance(answer, Answer):
                    self._settle(entry, answer, stored=False)
                else:
                    self._fail(entry, answer)
        except Exception as error:  # noqa: BLE001 - whoever waits gets it, a defect included
            for entry in batch.entries:
                self._fail(entry, error)

    def _end(self, batch: _Batch, _: asyncio.Task[None]) -> None:
        self._batches.discard(batch)
        self._pump()

    async def _ask(self, entries: Sequence[_Entry]) -> list[Answer | AccordError]:
        """Answers in the order of the entries; the judge is not asked about empty responses."""
        known: list[Answer | AccordError | None] = [empty_response_answer(entry.question) for entry in entries]
        questions = [entry.question for entry, answer in zip(entries, known, strict=True) if answer is None]
        asked = iter(await self._judges[entries[0].question.kind].ask(questions) if questions else [])
        answers = [entry.timed(next(asked) if answer is None else answer) for entry, answer in zip(entries, known, strict=True)]
        for answer in answers:
            if isinstance(answer, Answer):
                _TOKENS.labels("read").inc(answer.prompt_tokens)
                _TOKENS.labels("written_or_scored").inc(answer.response_tokens)
        return answers

    def _leave(self, entry: _Entry) -> None:
        """Nobody waits for an entry any more."""
        key, batch = entry.question.key, entry.batch
        if batch is None:
            self._entries.pop(key, None)
            queue = self._waiting.get(entry.group, {})
            if queue.pop(key, None) is not None:
                _WAITING.dec()
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
