"""Label cards: how far to trust a judge, out of the labels that it gave. Pure functions.

A card is for one judge, kind, rubric and task. Shares come with Wilson's 95 % interval, agreement with people beside the length baseline on the
very same pairs: a judge that does not beat "take the longer one" has shown nothing. Lengths are characters, so that no tokenizer is needed.
What does not belong here: reading the ledger.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from accord.client.feedback import InjectionFamily, LabelCard, Share
from accord.data.agreement import wilson_interval
from accord.feedback.attacks import is_twin
from accord.feedback.card_notes import notes_on
from accord.feedback.injections import hits_by_family
from accord.feedback.records import JudgementFacts, LabelFacts, is_added


def make_cards(labels: Iterable[LabelFacts]) -> tuple[LabelCard, ...]:
    """One card for each judge, kind, rubric and task, in the order of these.

    A pair that was labelled more than once with the same settings counts once, with its last label. Attacked twins count in the injections alone.
    """
    groups: dict[tuple[str, ...], dict[tuple[str, ...], LabelFacts]] = {}
    for label in labels:
        group = groups.setdefault((label.judge, label.judge_digest, label.kind, label.rubric, label.task.value), {})
        group[label.pair_id, label.content_key, label.options] = label
    return tuple(card for key in sorted(groups) if (card := _card_of(list(groups[key].values()))) is not None)


def share_of(hits: Sequence[float]) -> Share | None:
    """The mean of hits (1, 0, or 0.5 where it cannot be said) with its interval; None where there are none."""
    if not hits:
        return None
    total = math.fsum(hits)
    return Share(total / len(hits), *wilson_interval(total, len(hits)), len(hits))


def human_agreement(labels: Sequence[LabelFacts]) -> list[float]:
    """1 for each decided pair on which judge and people take the same response, 0 where not; pairs without a human preference are left out."""
    return [float((label.outcome == "a") == (human > 0.5)) for label, human in _compared(labels)]


def length_baseline(labels: Sequence[LabelFacts]) -> list[float]:
    """The same as `human_agreement`, on the same pairs, for a judge that takes the longer response; 0.5 where both are as long."""
    return [_longer_is_a(label) if human > 0.5 else 1.0 - _longer_is_a(label) for label, human in _compared(labels)]


def longer_preferred(labels: Sequence[LabelFacts]) -> list[float]:
    """1 for each decided pair whose preferred response is the longer one, 0 where it is the shorter one; equal lengths are left out."""
    decided = [label for label in labels if label.outcome in ("a", "b") and label.length_a != label.length_b]
    return [float((label.outcome == "a") == (label.length_a > label.length_b)) for label in decided]


def first_preferred(labels: Sequence[LabelFacts]) -> list[float]:
    """1 for each judgement of a verdict judge that prefers the response shown first, 0 for the second; even ones are left out."""
    return [float(first > 0.5) for label in labels for first in _shown(label).values() if first != 0.5]


def same_position_after_swap(labels: Sequence[LabelFacts]) -> list[float]:
    """1 for each pair asked in both orders whose two judgements prefer the same position, 0 where they prefer the same response."""
    both = [_shown(label) for label in labels]
    decided = [shown for shown in both if len(shown) == 2 and 0.5 not in shown.values()]
    return [float((shown[True] > 0.5) == (shown[False] > 0.5)) for shown in decided]


def _card_of(labels: Sequence[LabelFacts]) -> LabelCard | None:
    """The card of labels among which there may be those of pairs that a job added; None where there is nothing else."""
    clean = [label for label in labels if not is_added(label.pair_id)]
    if not clean:
        return None
    card = _with_injections(_card(clean), [label for label in labels if is_twin(label.pair_id)])
    return replace(card, notes=notes_on(card, clean))


def _with_injections(card: LabelCard, twins: Sequence[LabelFacts]) -> LabelCard:
    found = hits_by_family(twins)
    return replace(
        card,
        injection_flips=share_of([hit for hits in found.values() for hit in hits.flips]),
        control_flips=share_of([hit for hits in found.values() for hit in hits.control_flips]),
        injection_families=tuple(
            InjectionFamily(name, share_of(hits.flips), share_of(hits.wins), share_of(hits.control_flips)) for name, hits in found.items()
        ),
    )


def _card(labels: Sequence[LabelFacts]) -> LabelCard:
    first = labels[0]
    judgements = {judgement.key: judgement for label in labels for judgement in label.judgements if judgement.paid}
    shown_in_order = first.kind == "verdict"
    reasons = Counter(label.abstention_reason.partition(":")[0] for label in labels if label.outcome == "abstain")
    return LabelCard(
        judge=first.judge,
        kind=first.kind,
        rubric=first.rubric,
        task=first.task,
        pairs=len(labels),
        human_agreement=share_of(human_agreement(labels)),
        length_baseline=share_of(length_baseline(labels)),
        first_preferred=share_of(first_preferred(labels)) if shown_in_order else None,
        same_position_after_swap=share_of(same_position_after_swap(labels)) if shown_in_order else None,
        longer_preferred=share_of(longer_preferred(labels)),
        abstentions=dict(sorted(reasons.items())),
        tokens=sum(judgement.tokens for judgement in judgements.values()),
        cached_judgements=sum(judgement.cached for label in labels for judgement in label.judgements),
        notes=(),
    )


def _compared(labels: Sequence[LabelFacts]) -> list[tuple[LabelFacts, float]]:
    """Labels with a winner, whose pair has one by people too, with P(A better) by people."""
    return [
        (label, label.human_preference)
        for label in labels
        if label.outcome in ("a", "b") and label.human_preference is not None and label.human_preference != 0.5
    ]


def _longer_is_a(label: LabelFacts) -> float:
    return 0.5 if label.length_a == label.length_b else float(label.length_a > label.length_b)


def _shown(label: LabelFacts) -> dict[bool, float]:
    """P(first shown is better) by whether A was first, of the judgements that a judge made."""

    def usable(judgement: JudgementFacts) -> bool:
        return judgement.by_judge and judgement.probability_first is not None

    return {judgement.a_first: judgement.probability_first or 0.0 for judgement in label.judgements if usable(judgement)}
