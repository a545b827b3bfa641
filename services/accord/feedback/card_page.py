"""Label cards as one HTML file that needs nothing else and runs nothing: responses may hold HTML, and are text here.

What does not belong here: figures (`accord.feedback.cards`) and pictures (`accord.feedback.card_plots`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accord.client.label_cards import LabelCard, Share
from accord.feedback.card_plots import length_plot, ratio_words, reliability_plot
from accord.pages.page import render_page


def render_cards(cards: Sequence[LabelCard], facts: Mapping[str, Any]) -> str:
    """The page of a job's cards.

    Args:
        cards: of the job; none where nothing was labelled.
        facts: `job`, `source`, `dataset_digest`, `rows` and `rejected_rows` (counts by reason) of the job.
    """
    pictures = [(reliability_plot(card), length_plot(card)) for card in cards]
    return render_page(
        "accord.feedback", "card.html", {"percent": _percent, "interval": _interval, "ratio": ratio_words},
        cards=list(zip(cards, pictures, strict=True)), facts=facts,
    )  # fmt: skip


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _interval(share: Share) -> str:
    return f"{100 * share.low:.1f} to {100 * share.high:.1f} %"
