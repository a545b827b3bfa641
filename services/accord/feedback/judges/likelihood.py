"""The `likelihood` judge: which response does the prompt make more probable than it is without the prompt.

Pointwise mutual information, summed over the response's tokens. It says how much a response is about its prompt, nothing of taste or harm. Each
response is read alone, so there is no position to prefer. What does not belong here: the arithmetic (`accord.text.judge`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from accord.client.messages import EmptyPrompt
from accord.client.policy import LogprobsItem, LogprobsResult
from accord.errors import AccordError
from accord.feedback.judge_model import JudgeModel
from accord.feedback.judges.asking import NOT_FINITE, finite, no_answer, scored_tokens
from accord.feedback.records import Answer, Question
from accord.text.judge import mutual_information_preference


class LikelihoodJudge:
    """Implements `Judge` with one call for a batch: each response under its prompt and under the empty prompt."""

    weight = 1

    def __init__(self, model: JudgeModel) -> None:
        self._model = model

    async def ask(self, questions: Sequence[Question]) -> list[Answer | AccordError]:
        """Evidence is each response's mutual information with the prompt, in nats."""
        items = []
        for question in questions:
            responses = (question.first, question.second or "")
            items += [LogprobsItem(question.messages, responses), LogprobsItem(EmptyPrompt(), responses)]
        results = (await self._model.compute_logprobs(items, questions[0].judge)).results
        return [_answer(results[2 * index], results[2 * index + 1]) for index in range(len(questions))]


def _answer(given: LogprobsResult, alone: LogprobsResult) -> Answer | AccordError:
    for result in (given, alone):
        if result.error is not None:
            return no_answer(result.error)
    first, second = (
        with_prompt.sequence_logprob - without.sequence_logprob for with_prompt, without in zip(given.responses, alone.responses, strict=True)
    )
    known = Answer(
        None,
        prompt_tokens=len(given.prompt_token_ids) + len(alone.prompt_token_ids),
        response_tokens=scored_tokens(given.responses) + scored_tokens(alone.responses),
    )
    if not finite((first, second)):
        return replace(known, abstention_reason=NOT_FINITE)
    return replace(known, probability_first=mutual_information_preference(first, second), evidence_first=first, evidence_second=second)
