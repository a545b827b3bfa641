"""The `likelihood` judge: which response does the prompt make more probable than it is without the prompt.

Pointwise mutual information, summed over the response's tokens. It says how much a response is about its prompt, nothing of taste or harm. Each
response is read alone, so there is no position to prefer. What does not belong here: the arithmetic (`accord.text.judge`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from accord.client.messages import EmptyPrompt
from accord.client.policy import LogprobsItem, LogprobsResult
from accord.errors import AccordError
from accord.feedback.judge_model import JudgeModel
from accord.feedback.judges.asking import NOT_FINITE, finite, no_answer, scored_tokens
from accord.feedback.records import Answer, Question
from accord.text.chat import Message
from accord.text.judge import mutual_information_preference, visible


class LikelihoodJudge:
    """Implements `Judge` with one call for a batch: each response under its prompt and under the empty prompt."""

    weight = 1

    def __init__(self, model: JudgeModel) -> None:
        self._model = model

    async def ask(self, questions: Sequence[Question]) -> list[Answer | AccordError]:
        """Evidence is each response's mutual information with the prompt, in nats.

        A prompt of several questions is read once, and so is each of its responses: an arm of a study is compared with many others.
        """
        responses: dict[tuple[Message, ...], dict[str, None]] = {}
        for question in questions:
            responses.setdefault(question.messages, {}).update(dict.fromkeys(_texts(question)))
        items = []
        for messages, texts in responses.items():
            items += [LogprobsItem(messages, tuple(texts)), LogprobsItem(EmptyPrompt(), tuple(texts))]
        results = (await self._model.compute_logprobs(items, questions[0].judge)).results
        read = {messages: _Read(tuple(texts), *results[2 * place : 2 * place + 2]) for place, (messages, texts) in enumerate(responses.items())}
        return [_answer(question, read[question.messages]) for question in questions]


@dataclass(frozen=True, slots=True)
class _Read:
    """What came of one prompt's responses: under the prompt, and alone."""

    texts: tuple[str, ...]
    given: LogprobsResult
    alone: LogprobsResult


def _texts(question: Question) -> tuple[str, str]:
    """Both responses as they are read: hidden characters are likely or unlikely too, and would count."""
    return visible(question.first), visible(question.second or "")


def _answer(question: Question, read: _Read) -> Answer | AccordError:
    for result in (read.given, read.alone):
        if result.error is not None:
            return no_answer(result.error)
    places = [read.texts.index(text) for text in _texts(question)]
    given = [read.given.responses[place] for place in places]
    alone = [read.alone.responses[place] for place in places]
    first, second = (with_prompt.sequence_logprob - without.sequence_logprob for with_prompt, without in zip(given, alone, strict=True))
    known = Answer(
        None,
        prompt_tokens=len(read.given.prompt_token_ids) + len(read.alone.prompt_token_ids),
        response_tokens=scored_tokens(given) + scored_tokens(alone),
    )
    if not finite((first, second)):
        return replace(known, abstention_reason=NOT_FINITE)
    return replace(known, probability_first=mutual_information_preference(first, second), evidence_first=first, evidence_second=second)
