"""Labels and ratings, whoever asks: the judge's answers, what they come to, and the label in the ledger before it is given.

What does not belong here: protobuf (`accord.feedback.convert`), data sets (`accord.feedback.job_run`), the arithmetic (`accord.feedback.labels`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from accord.client.feedback import Judge, Label, LabelPairItem, Rating
from accord.errors import AccordError, InternalError, InvalidArgumentError, OutOfRangeError
from accord.feedback.config import FeedbackConfig
from accord.feedback.desk import Desk
from accord.feedback.judge_model import JudgeChangedError, JudgeModel
from accord.feedback.labels import Answered, check_prompt, check_text, entry_of, label_of, questions_of
from accord.feedback.ledger import Ledger
from accord.feedback.records import Answer, JudgeIdentity, LabelEntry, Origin, Question
from accord.feedback.room import Room
from accord.feedback.settings import Settings, read_settings
from accord.text.chat import Message
from accord.text.judge import scaled_rating
from accord.text.tasks import Task

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings with the judge that will answer; a pinned plan fails where that judge is no longer there, others go on with the new one."""

    settings: Settings
    judge: JudgeIdentity
    pinned: bool = False


class Labeller:
    """Labels pairs and rates responses. Lives on one event loop.

    Args:
        ledger: where labels go.
        model: who judges.
        desk: where questions are answered.
        config: limits and the default kind.
    """

    def __init__(self, ledger: Ledger, model: JudgeModel, desk: Desk, config: FeedbackConfig) -> None:
        self._ledger = ledger
        self._model = model
        self._desk = desk
        self._config = config
        self.room = Room(config.max_queue_pairs)

    def settings(self, judge: Judge) -> Settings:
        """What a request asks for, with this server's defaults. Raises as `read_settings`."""
        return read_settings(judge, self._config.default_judge)

    async def plan(self, settings: Settings, *, pinned: bool = False) -> Plan:
        """Settings with the judge as it is now. Raises as `JudgeModel.identify`."""
        return Plan(settings, await self._model.identify(settings.adapter), pinned)

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
        label = label_of(pair, plan.settings, plan.judge, (), reason=reason)
        await asyncio.to_thread(self._ledger.append_labels, [entry_of(pair, plan.settings, label, origin)])
        return label

    async def rate(self, task: Task, messages: tuple[Message, ...], response: str, judge: Judge, origin: Origin) -> Rating:
        """The rating of one response.

        Raises:
            OutOfRangeError, InvalidArgumentError: the judge cannot read prompt and response.
            AccordError: as `label`.
        """
        check_prompt(messages, "prompt", self._config.max_text_bytes)
        check_text(response, "response", self._config.max_text_bytes)
        settings = self.settings(judge)
        rubric = settings.rubric_for(task)
        if rubric is None:
            raise InternalError("a rating needs a rubric")

        async def asked(plan: Plan) -> Answer:
            return (await self._desk.answer(Question("rating", task, messages, response, None, rubric, plan.judge), origin))[0]

        answer = await self._with_judge(asked, await self.plan(settings))
        if answer.evidence_first is None:
            refusal = OutOfRangeError if answer.abstention_reason.startswith("context overflow") else InvalidArgumentError
            raise refusal(f"the judge cannot rate this: {answer.abstention_reason}", field="response")
        mean = answer.evidence_first
        return Rating(answer.distributions[0], mean, scaled_rating(mean), rubric.id, rubric.digest)

    async def _judged(self, pair: LabelPairItem, plan: Plan, origin: Origin) -> tuple[Label, LabelEntry]:
        """A label and its ledger entry, which is not in the ledger yet."""

        async def judged(plan: Plan) -> tuple[Label, LabelEntry]:
            shown = questions_of(pair, plan.settings, plan.judge)
            answers = await _together(self._desk.answer(item.question, origin) for item in shown)
            answered = [Answered(item, answer, cached) for item, (answer, cached) in zip(shown, answers, strict=True)]
            label = label_of(pair, plan.settings, plan.judge, answered)
            return label, entry_of(pair, plan.settings, label, origin)

        return await self._with_judge(judged, plan)

    async def _with_judge(self, work: Callable[[Plan], Awaitable[T]], plan: Plan) -> T:
        """The work's result under the plan's judge, or under the one that has taken its place."""
        try:
            return await work(plan)
        except JudgeChangedError:
            if plan.pinned:
                raise
        return await work(await self.plan(plan.settings))


async def _together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; where one fails, or the caller leaves, the others are cancelled."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _caught(coroutine: Coroutine[Any, Any, T]) -> T | AccordError:
    try:
        return await coroutine
    except AccordError as error:
        return error


def _label_or_error(result: tuple[Label, LabelEntry] | AccordError) -> Label | AccordError:
    return result if isinstance(result, AccordError) else result[0]
