"""The `rating` judge: a distribution over the ratings 1 to 10 of each response, read alone; the label compares the two distributions.

d-RLAIF (Lee et al. 2023, section 3.2). The preference is P(rating of first > rating of second) + P(equal) / 2 with both ratings drawn
independently: unlike a comparison of the means it is a probability, and 1/2 for equal distributions. An answer is closed (`10]`) before it
is compared, since "1" alone begins "10" too. What does not belong here: rubrics, and the arithmetic of one distribution (`accord.text.judge`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from accord.client.policy import LogprobsItem, LogprobsResult
from accord.errors import AccordError, InternalError
from accord.feedback.judge_model import JudgeModel
from accord.feedback.judges.asking import NOT_FINITE, alternative_logprobs, finite, no_answer, scored_tokens, user_turn
from accord.feedback.records import Answer, Question
from accord.text.judge import expected_rating, fenced, render_conversation, render_template
from accord.text.ratings import RATINGS

_CLOSING = "]"


class RatingJudge:
    """Implements `Judge` with one call for a batch; a question without a second response asks for one rating."""

    weight = 4

    def __init__(self, model: JudgeModel) -> None:
        self._model = model

    async def ask(self, questions: Sequence[Question]) -> list[Answer | AccordError]:
        """Evidence is each response's expected rating; the distributions are kept."""
        items: list[LogprobsItem] = []
        for question in questions:
            items += [_item(question, response) for response in (question.first, question.second) if response is not None]
        results = iter((await self._model.compute_logprobs(items, questions[0].judge)).results)
        return [_answer([next(results) for _ in range(1 if question.second is None else 2)]) for question in questions]


def rating_preference(first: Sequence[float], second: Sequence[float]) -> float:
    """P(a draw from `first` is higher than one from `second`) + P(equal) / 2.

    ``rating_preference(x, y) + rating_preference(y, x) == 1`` up to rounding; the result p is such that ``1 - (1 - p) == p`` exactly.
    """
    higher = math.fsum(share * other for rating, share in enumerate(first) for other in second[:rating])
    equal = math.fsum(share * other for share, other in zip(first, second, strict=True))
    lower = math.fsum(share * other for rating, share in enumerate(second) for other in first[:rating])
    larger = min(1.0, 0.5 + abs(higher - lower) / (2 * (higher + equal + lower)))
    return larger if higher >= lower else 1.0 - larger


def rating_prompt(question: Question, response: str) -> str:
    """The rubric with the prompt and one response, fenced so that it stays material to judge."""
    if question.rubric is None:
        raise InternalError("a rating needs a rubric")
    values = {"prompt": render_conversation(question.messages), "response": fenced(response)}
    return render_template(question.rubric.template, values)


def _item(question: Question, response: str) -> LogprobsItem:
    rubric = question.rubric
    if rubric is None:
        raise InternalError("a rating needs a rubric")
    answers = tuple(f"{rubric.verdict_prefix}{rating}{_CLOSING}" for rating in RATINGS)
    return LogprobsItem(user_turn(rating_prompt(question, response)), answers)


def _answer(results: Sequence[LogprobsResult]) -> Answer | AccordError:
    distributions, means = [], []
    prompt_tokens = response_tokens = 0
    for result in results:
        if result.error is not None:
            return no_answer(result.error)
        prompt_tokens += len(result.prompt_token_ids)
        response_tokens += scored_tokens(result.responses)
        logprobs = alternative_logprobs(result.responses)
        if not finite(logprobs):
            return Answer(None, abstention_reason=NOT_FINITE, prompt_tokens=prompt_tokens, response_tokens=response_tokens)
        distribution, mean = expected_rating(logprobs)
        distributions.append(distribution)
        means.append(mean)
    alone = len(results) == 1
    return Answer(
        None if alone else rating_preference(*distributions), means[0], None if alone else means[1], tuple(distributions),
        prompt_tokens=prompt_tokens, response_tokens=response_tokens,
    )  # fmt: skip
