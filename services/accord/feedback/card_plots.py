"""The two pictures of a label card: how far confidence means accuracy, and how agreement goes with the difference in length.

What does not belong here: how a picture is drawn (`accord.pages.chart`).
"""

from __future__ import annotations

import math

from accord.client.label_cards import LabelCard, LengthBin, Share
from accord.pages.chart import BLUE, BROWN, GREY, Axis, Chart

_SHARES = tuple((step / 5, f"{step * 20} %") for step in range(6))
_CONFIDENCES = tuple((0.5 + step / 10, f"{50 + step * 10} %") for step in range(6))


def reliability_plot(card: LabelCard) -> str:
    """How often people take the judge's response against how sure it was; on the diagonal confidence is accuracy. Empty without human labels."""
    if not card.reliability:
        return ""
    chart = Chart("Reliability", Axis("judge's confidence", 0.48, 1.02, _CONFIDENCES), Axis("people take its response", 0.0, 1.0, _SHARES))
    chart.line([(0.5, 0.5), (1.0, 1.0)], GREY, dashed=True)
    most = max(found.accuracy.n for found in card.reliability)
    for found in card.reliability:
        chart.interval(found.confidence, found.accuracy.low, found.accuracy.high, BLUE)
        radius = 3 + 5 * math.sqrt(found.accuracy.n / most)
        chart.dot(found.confidence, found.accuracy.value, BLUE, radius=radius, hint=f"{found.confidence:.2f} sure: {words_of(found.accuracy)}")
    return chart.svg()


def length_plot(card: LabelCard) -> str:
    """Agreement with people (blue) and that of taking the longer response (brown) by how unlike the lengths are. Empty without human labels."""
    bins = card.agreement_by_length
    if not bins:
        return ""
    ticks = [(place, f"{ratio_words(found)}") for place, found in enumerate(bins)]
    x = Axis("longer response over shorter one, in characters", -0.6, len(bins) - 0.4, ticks)
    chart = Chart("Agreement with people by length", x, Axis("agreement", 0.0, 1.0, _SHARES))
    chart.line([(-0.6, 0.5), (len(bins) - 0.4, 0.5)], GREY, dashed=True)
    for place, found in enumerate(bins):
        for offset, share, colour, who in ((-0.12, found.agreement, BLUE, "judge"), (0.12, found.length_baseline, BROWN, "the longer one")):
            chart.interval(place + offset, share.low, share.high, colour)
            chart.dot(place + offset, share.value, colour, hint=f"{who}: {words_of(share)}")
    return chart.svg()


def ratio_words(found: LengthBin) -> str:
    """A bin of length ratios for people."""
    return f"{found.ratio_low:g} to {found.ratio_high:g}" if found.ratio_high is not None else f"{found.ratio_low:g} or more"


def words_of(share: Share) -> str:
    """A share for people, with its interval."""
    return f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%}, n={share.n})"
