"""What a policy judge's answers cost, by the price table: its tokens times their prices, with each answer as it goes to the ledger.

An endpoint is billed by what it says to have used, and prices its own (`accord.feedback.endpoint`). What does not belong here: the table
(`accord.feedback.judge_config`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from accord.errors import AccordError
from accord.feedback.judge_config import Price
from accord.feedback.judges.asking import Judge
from accord.feedback.metrics import COST
from accord.feedback.records import Answer, Question


class PricedJudge:
    """A judge whose answers have a cost. Implements `accord.feedback.judges.asking.Judge`.

    Tokens that were scored cost what written ones do. What an answer shares with others (a prompt in the prefix cache, a response that two pairs
    have) is counted with each: the ledger answers questions one by one, and their price must not depend on their neighbours.

    Args:
        judge: answers.
        price: of its tokens.
        name: of the judge in the configuration.
    """

    def __init__(self, judge: Judge, price: Price, name: str) -> None:
        self._judge = judge
        self._price = price
        self._name = name
        self.weight = judge.weight

    async def ask(self, questions: Sequence[Question]) -> list[Answer | AccordError]:
        """As the judge that it stands for."""
        return [self._priced(answer) if isinstance(answer, Answer) else answer for answer in await self._judge.ask(questions)]

    def _priced(self, answer: Answer) -> Answer:
        cost = self._price.cost(answer.prompt_tokens, answer.response_tokens)
        COST.labels(self._name).inc(cost)
        return replace(answer, cost=cost)
