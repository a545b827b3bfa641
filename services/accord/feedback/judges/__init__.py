"""How judges judge: `verdict`, `rating` and `likelihood` by the logprobs of given texts, and `written`, as an endpoint writes them.

What does not belong here: batching, the ledger, averaging of orders.
"""

from __future__ import annotations

from accord.feedback.judge_config import Price
from accord.feedback.judge_model import JudgeModel
from accord.feedback.judges.asking import Judge
from accord.feedback.judges.likelihood import LikelihoodJudge
from accord.feedback.judges.priced import PricedJudge
from accord.feedback.judges.rating import RatingJudge
from accord.feedback.judges.verdict import VerdictJudge
from accord.feedback.judges.written import Endpoint, WrittenRatingJudge, WrittenVerdictJudge
from accord.feedback.records import Kind


def make_judges(model: JudgeModel, price: Price | None = None, name: str = "default") -> dict[Kind, Judge]:
    """A judge of each kind over one model, whose answers cost money where there is a price; `name` is the judge's in the configuration."""
    judges: dict[Kind, Judge] = {"verdict": VerdictJudge(model), "rating": RatingJudge(model), "likelihood": LikelihoodJudge(model)}
    return judges if price is None else {kind: PricedJudge(judge, price, name) for kind, judge in judges.items()}


def make_written_judges(endpoint: Endpoint) -> dict[Kind, Judge]:
    """A judge of each kind that an endpoint can do."""
    return {"verdict": WrittenVerdictJudge(endpoint), "rating": WrittenRatingJudge(endpoint)}
