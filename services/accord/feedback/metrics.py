"""What a feedback server counts. `judge` is a judge's name in the configuration, so that there are as many series as judges."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

JUDGEMENTS = Counter("accord_feedback_judgements_total", "Judgements answered", ["judge", "kind", "source"])
CALLS = Counter("accord_feedback_judge_calls_total", "Calls to a judge that compute, its tries again included", ["judge", "method"])
TOKENS = Counter("accord_feedback_judge_tokens_total", "Tokens that a judge read, and wrote or scored", ["judge", "direction"])
COST = Counter("accord_feedback_judge_cost_total", "Money that a judge has cost, in the currency of the price table", ["judge"])
RETRIES = Counter("accord_feedback_judge_retries_total", "Tries again of a judge's answer, by the reason of the failure", ["judge", "reason"])
WAITING = Gauge("accord_feedback_waiting_judgements", "Judgements that wait for a call to a judge")


def count_tokens(judge: str, read: int, written_or_scored: int) -> None:
    """Adds the tokens of one call."""
    TOKENS.labels(judge, "read").inc(read)
    TOKENS.labels(judge, "written_or_scored").inc(written_or_scored)
