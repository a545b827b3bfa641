"""What all kinds of judge share: their protocol, what an abstention is, and logprobs of alternatives that begin alike.

What does not belong here: what one kind asks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

from accord.client.policy import ResponseLogprobs
from accord.errors import AccordError, FailedPreconditionError, InvalidArgumentError, OutOfRangeError
from accord.feedback.records import EMPTY, IDENTICAL, OVERFLOW, Answer, Question
from accord.text.chat import Message
from accord.text.judge import visible


class Judge(Protocol):
    """Answers questions of its kind. `weight` is how many pairs of a batch one question counts for: a rating reads its prompt ten times."""

    weight: int

    async def ask(self, questions: Sequence[Question]) -> list[Answer | AccordError]:
        """One answer, or the error of that question alone, for each question, in order.

        The questions share judge and options. Raises AccordError where the judge cannot answer any of them.
        """
        ...


def user_turn(text: str) -> tuple[Message, ...]:
    """A conversation of one question."""
    return (Message("user", text),)


def no_answer(error: AccordError) -> Answer | AccordError:
    """An abstention where the judge cannot read this question (too long, not tokenizable); any other error as it is."""
    if isinstance(error, OutOfRangeError):
        return Answer(None, abstention_reason=f"{OVERFLOW}: {error.message}")
    if isinstance(error, InvalidArgumentError):
        return Answer(None, abstention_reason=f"unreadable text: {error.message}")
    return error


def answer_by_rule(question: Question) -> Answer | None:
    """The answer that needs no judge: an empty response loses to any other, and identical ones tie. None where a judge is needed.

    Space around a response is no part of it: responses that differ in it alone are identical, and one that is nothing else is empty.
    """
    if question.second is None:
        return None
    first, second = visible(question.first).strip(), visible(question.second).strip()
    if first == second:
        return Answer(0.5, parsed=IDENTICAL if first else EMPTY)
    return None if first and second else Answer(float(bool(first)), parsed=EMPTY)


def alternative_logprobs(responses: Sequence[ResponseLogprobs]) -> list[float]:
    """Logprob in nats of each alternative ending, given the tokens that all alternatives share.

    The responses are the same beginning with different endings. Tokens up to the first difference have the same context in each, so they
    cancel; the rest is summed, however many tokens an ending (or its seam with the beginning) takes.

    Raises:
        FailedPreconditionError: one alternative is a beginning of another, so that the two do not exclude each other.
    """
    sequences = [response.token_ids for response in responses]
    shared = 0
    while all(len(ids) > shared for ids in sequences) and len({ids[shared] for ids in sequences}) == 1:
        shared += 1
    if any(len(ids) == shared for ids in sequences):
        raise FailedPreconditionError("the judge's tokenizer does not tell the possible answers apart", field="judge.kind")
    return [math.fsum(response.logprobs[shared:]) for response in responses]


def finite(values: Iterable[float]) -> bool:
    """Whether all logprobs are numbers to calculate with."""
    return all(math.isfinite(value) for value in values)


def scored_tokens(responses: Sequence[ResponseLogprobs]) -> int:
    """Tokens whose logprobs were computed."""
    return sum(len(response.token_ids) for response in responses)


NOT_FINITE = "not finite: the judge's logprobs are not finite"
