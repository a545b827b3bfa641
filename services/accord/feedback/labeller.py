"""Labels and ratings, whoever asks: the judge's answers, what they come to, and the label in the ledger before it is given.

What does not belong here: protobuf (`accord.feedback.convert`), data sets (`accord.feedback.job_run`), the arithmetic (`accord.feedback.labels`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from accord.client.feedback import ABSTENTION, Judge, Label, LabelLimits, LabelPairItem, Rating
from accord.errors import AccordError, FailedPreconditionError, InternalError, InvalidArgumentError, OutOfRangeError
from accord.feedback.config import FeedbackConfig
from accord.feedback.desk import Desk
from accord.feedback.judge_model import JudgeChangedError
from accord.feedback.judges.asking import answer_by_rule
from accord.feedback.labels import Answered, check_prompt, check_text, entry_of, finding_of, label_of, questions_of
from accord.feedback.ledger import Ledger
from accord.feedback.panels import Ensemble, Escalation, Finding, Seat, combined, escalated, is_unsure, judges_of, mean_distribution
from accord.feedback.records import OVERFLOW, Answer, JudgeIdentity, LabelEntry, Origin, Question
from accord.feedback.room import Room
from accord.feedback.roster import Roster
from accord.feedback.settings import Settings, read_settings
from accord.text.chat import Message
from accord.text.judge import scaled_rating
from accord.text.tasks import Task

T = TypeVar("T")
_UNREADABLE = (InvalidArgumentError, OutOfRangeError)
"""What is wrong with one response, and no reason to fail its neighbours."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings with who will answer; a pinned plan fails where that judge is no longer there, others go on with the new one."""

    settings: Settings
    judge: Seat
    pinned: bool = False


class Labeller:
    """Labels pairs and rates responses. Lives on one event loop.

    Args:
        ledger: where labels go.
        roster: who judges.
        desk: where questions are answered.
        config: limits.
    """

    def __init__(self, ledger: Ledger, roster: Roster, desk: Desk, config: FeedbackConfig) -> None:
        self._ledger = ledger
        self._roster = roster
        self._desk = desk
        self._config = config
        self.room = Room(config.max_queue_pairs)

    def settings(self, judge: Judge) -> Settings:
        """What a request asks for, with this server's defaults. Raises as `read_settings`, `Roster.name_of` and `Roster.check`."""
        name = self._roster.name_of(judge.name)
        settings = replace(read_settings(judge, self._roster.default_kind(name)), judge=name)
        self._roster.check(name, settings.kind, settings.adapter)
        return settings

    def check_limits(self, judge: Judge, limits: LabelLimits) -> None:
        """Raises FailedPreconditionError where a limit of money is set for a judge that costs nothing, whatever it is asked."""
        if limits.max_cost and not self._roster.has_price(name := self._roster.name_of(judge.name)):
            said = f"the judge {name!r} has no price, so that a limit of money would never be reached"
            raise FailedPreconditionError(f"{said}; give it one (policy_price, or judges.{name}.price), or take max_tokens", field="max_cost")

    async def plan(self, settings: Settings, *, pinned: bool = False) -> Plan:
        """Settings with the judge as it is now. Raises as `Roster.seat`."""
        return Plan(settings, await self._roster.seat(settings.judge, settings.adapter), pinned)

    def check_pair(self, pair: LabelPairItem, field: str) -> None:
        """Raises InvalidArgumentError naming the field where no judge could read a pair."""
        check_prompt(pair.messages, f"{field}.prompt", self._config.max_text_bytes)
        for name in ("response_a", "response_b"):
            check_text(getattr(pair, name), f"{field}.{name}", self._config.max_text_bytes)

    async def label(self, pair: LabelPairItem, plan: Plan, origin: Origin) -> Label:
        """The label of a pair that `check_pair` has let through.

        Raises:
            InvalidArgumentError: the rubric is for another task.
            AccordError: the judge or the ledger cannot be used.
        """
        label, entry = await self._judged(pair, plan, origin)
        await asyncio.to_thread(self._ledger.append_labels, [entry])
        return label

    async def unanswered(self, pair: LabelPairItem, plan: Plan) -> tuple[Question, ...]:
        """The questions about a pair that judges may be asked: those that no rule answers and the ledger does not know.

        An escalation's second judge may be asked where the first one is unsure, or has not answered yet.
        """
        questions = [item.question for judge in judges_of(plan.judge) for item in questions_of(pair, plan.settings, judge)]
        by_rule = {question.key: answer for question in questions if (answer := answer_by_rule(question)) is not None}
        known = by_rule | await asyncio.to_thread(self._ledger.answers, [question for question in questions if question.key not in by_rule])
        return tuple({question.key: question for question in _still_open(pair, plan.settings, plan.judge, known)[0]}.values())

    async def label_many(self, pairs: Sequence[LabelPairItem | AccordError], plan: Plan, origin: Origin) -> list[Label | AccordError]:
        """A label or an error for each pair; an error in place of a pair stays where it is.

        Raises:
            AccordError: there were good pairs, and the judge or the ledger failed every one of them; the first such error.
        """
        good = [pair for pair in pairs if isinstance(pair, LabelPairItem)]
        judged = await _together(_caught(self._judged(pair, plan, origin)) for pair in good)
        errors = [result for result in judged if isinstance(result, AccordError)]
        if errors and len(errors) == len(good) and not any(isinstance(error, InvalidArgumentError) for error in errors):
            raise errors[0]
        await asyncio.to_thread(self._ledger.append_labels, [result[1] for result in judged if not isinstance(result, AccordError)])
        results = iter(judged)
        return [pair if isinstance(pair, AccordError) else _label_or_error(next(results)) for pair in pairs]

    async def abstain(self, pair: LabelPairItem, plan: Plan, reason: str, origin: Origin) -> Label:
        """Records that a pair has no label although no judge was asked, as for one that `check_pair` refuses."""
        label = label_of(pair, plan.settings, plan.judge, Finding(None, reason))
        await asyncio.to_thread(self._ledger.append_labels, [entry_of(pair, plan.settings, plan.judge, label, origin)])
        return label

    async def rate(self, task: Task, messages: tuple[Message, ...], response: str, judge: Judge, origin: Origin) -> Rating:
        """The rating of one response.

        Raises:
            OutOfRangeError, InvalidArgumentError: the judge cannot read prompt and response.
            AccordError: as `label`.
        """
        settings = self.settings(judge)
        settings.rubric_for(task)
        return await self._with_judge(lambda plan: self._rating(task, (messages, response), "", plan, origin), await self.plan(settings))

    async def rate_many(
        self, task: Task, items: Sequence[tuple[tuple[Message, ...], str]], judge: Judge, origin: Origin
    ) -> tuple[Seat, list[Rating | AccordError]]:
        """A rating or an error for each prompt and response, all by one judge, and who that was.

        Raises:
            AccordError: the judge or the ledger failed every response that could be read; the first such error.
        """
        settings = self.settings(judge)
        settings.rubric_for(task)

        async def rated(plan: Plan) -> tuple[Seat, list[Rating | AccordError]]:
            results = await _together(_caught(self._rating(task, item, f"items[{place}].", plan, origin)) for place, item in enumerate(items))
            changed = next((result for result in results if isinstance(result, JudgeChangedError)), None)
            if changed is not None:
                raise changed
            failures = [result for result in results if isinstance(result, AccordError) and not isinstance(result, _UNREADABLE)]
            if failures and not any(isinstance(result, Rating) for result in results):
                raise failures[0]
            return plan.judge, results

        return await self._with_judge(rated, await self.plan(settings))

    async def _rating(self, task: Task, item: tuple[tuple[Message, ...], str], field: str, plan: Plan, origin: Origin) -> Rating:
        """The rating of a prompt and response by the plan's judge; errors about them name the fields below `field`."""
        messages, response = item
        check_prompt(messages, f"{field}prompt", self._config.max_text_bytes)
        check_text(response, f"{field}response", self._config.max_text_bytes)
        rubric = plan.settings.rubric_for(task)
        if rubric is None:
            raise InternalError("a rating needs a rubric")
        try:
            distribution = await self._distribution(
                lambda judge: Question("rating", task, messages, response, None, rubric, judge), plan.judge, origin
            )  # fmt: skip
        except _UNREADABLE as error:
            error.field = f"{field}{error.field}" if error.field == "response" else error.field
            raise
        mean = math.fsum(rating * share for rating, share in enumerate(distribution, start=1))
        return Rating(distribution, mean, scaled_rating(mean), rubric.id, rubric.digest)

    async def _distribution(self, ask: Callable[[JudgeIdentity], Question], seat: Seat, origin: Origin) -> tuple[float, ...]:
        """The distribution over ratings that a judge, or the mean of an ensemble, gives; every member must have one."""
        if isinstance(seat, Escalation) or (isinstance(seat, Ensemble) and seat.combine == "majority"):
            raise FailedPreconditionError("a single rating has no majority and no side to be unsure of: take a judge, or a mean", field="judge.judge")
        if isinstance(seat, Ensemble):
            return mean_distribution(await _together(self._distribution(ask, member, origin) for member in seat.members))
        answer, _ = await self._desk.answer(ask(seat), origin)
        if answer.evidence_first is None:
            refusal = OutOfRangeError if answer.abstention_reason.startswith(OVERFLOW) else InvalidArgumentError
            reason = {ABSTENTION: answer.abstention_reason.partition(":")[0]}
            raise refusal(f"{seat.name} cannot rate this: {answer.abstention_reason}", field="response", metadata=reason)
        return answer.distributions[0]

    async def _judged(self, pair: LabelPairItem, plan: Plan, origin: Origin) -> tuple[Label, LabelEntry]:
        """A label and its ledger entry, which is not in the ledger yet."""

        async def judged(plan: Plan) -> tuple[Label, LabelEntry]:
            label = label_of(pair, plan.settings, plan.judge, await self._finding(pair, plan.settings, plan.judge, origin))
            return label, entry_of(pair, plan.settings, plan.judge, label, origin)

        return await self._with_judge(judged, plan)

    async def _finding(self, pair: LabelPairItem, settings: Settings, seat: Seat, origin: Origin) -> Finding[Answered]:
        """What a judge, or several with their rule, say of a pair."""
        if isinstance(seat, Ensemble):
            findings = await _together(self._finding(pair, settings, member, origin) for member in seat.members)
            return combined(findings, seat.combine, settings.tie_margin)
        if isinstance(seat, Escalation):
            first = await self._finding(pair, settings, seat.first, origin)
            return escalated(first, await self._finding(pair, settings, seat.then, origin)) if is_unsure(first, seat.threshold) else first
        shown = questions_of(pair, settings, seat)
        answers = await _together(self._desk.answer(item.question, origin) for item in shown)
        return finding_of([Answered(item, answer, cached) for item, (answer, cached) in zip(shown, answers, strict=True)])

    async def _with_judge(self, work: Callable[[Plan], Awaitable[T]], plan: Plan) -> T:
        """The work's result under the plan's judge, or under the one that has taken its place."""
        try:
            return await work(plan)
        except JudgeChangedError:
            if plan.pinned:
                raise
        return await work(await self.plan(plan.settings))


def _still_open(pair: LabelPairItem, settings: Settings, seat: Seat, known: Mapping[str, Answer]) -> tuple[list[Question], Finding[Answered] | None]:
    """The questions that the known answers, by question key, leave open; and what they come to where none is open."""
    if isinstance(seat, Escalation):
        left, first = _still_open(pair, settings, seat.first, known)
        if first is not None and not is_unsure(first, seat.threshold):
            return left, first
        more, then = _still_open(pair, settings, seat.then, known)
        return left + more, None if first is None or then is None else escalated(first, then)
    if isinstance(seat, Ensemble):
        parts = [_still_open(pair, settings, member, known) for member in seat.members]
        findings = [finding for _, finding in parts if finding is not None]
        return [question for left, _ in parts for question in left], (
            combined(findings, seat.combine, settings.tie_margin) if len(findings) == len(parts) else None
        )
    shown = questions_of(pair, settings, seat)
    left = [item.question for item in shown if item.question.key not in known]
    return left, None if left else finding_of([Answered(item, known[item.question.key], cached=True) for item in shown])


async def _together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order, or the first error once all have ended: what one judge is being paid for is not broken off for another's failure.

    Where the caller leaves, all are cancelled.
    """
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        if tasks:
            await asyncio.wait(tasks)
    finally:
        for task in tasks:
            task.cancel()
    error = next((found for found in [task.exception() for task in tasks] if found is not None), None)
    if error is not None:
        raise error
    return [task.result() for task in tasks]


async def _caught(coroutine: Coroutine[Any, Any, T]) -> T | AccordError:
    try:
        return await coroutine
    except AccordError as error:
        return error


def _label_or_error(result: tuple[Label, LabelEntry] | AccordError) -> Label | AccordError:
    return result if isinstance(result, AccordError) else result[0]
