"""Label cards: how far to trust a judge, out of the labels that it gave. Pure but for the texts of its worst disagreements, which it asks for.

A card is for one judge, kind, rubric and task. Shares come with a 95 % interval over prompts, agreement with people beside that of taking the longer
response and of a coin on the very same pairs: a judge that does not beat these has shown nothing. Pairs that a job added to measure something
count where they measure it, and for what they cost, and nowhere else. What does not belong here: reading the ledger, and the arithmetic
(`accord.feedback.shares`, `accord.feedback.calibration`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from accord.client.label_cards import Disagreement, InjectionFamily, LabelCard
from accord.data.reliability import calibration_error
from accord.feedback.attacks import is_twin
from accord.feedback.calibration import human_kappa, reliability
from accord.feedback.card_notes import notes_on
from accord.feedback.injections import hits_by_family
from accord.feedback.records import JudgementFacts, LabelFacts, PairText, is_added
from accord.feedback.repeats import repeated_alike
from accord.feedback.shares import (
    agreement_by_length,
    compared,
    first_preferred,
    hit,
    human_agreement,
    length_baseline,
    longer_preferred,
    random_baseline,
    same_position_after_swap,
    share_of,
)
from accord.text.chat import Message

TextsOf = Callable[[Sequence[str]], Mapping[str, PairText]]
_DISAGREEMENTS = 5
_PROMPT_CHARACTERS, _RESPONSE_CHARACTERS = 600, 400


def make_cards(labels: Iterable[LabelFacts], texts_of: TextsOf) -> tuple[LabelCard, ...]:
    """One card for each judge, kind, rubric and task, in the order of these.

    A pair that was labelled more than once with the same settings counts once, with its last label. Where a job's added pairs are all that there is
    of a judge, there is no card.

    Args:
        labels: in the order in which they were made.
        texts_of: texts of pairs by content key, as far as they are known; asked for the worst disagreements alone.
    """
    groups: dict[tuple[str, ...], dict[tuple[str, ...], LabelFacts]] = {}
    for label in labels:
        group = groups.setdefault((label.judge, label.judge_digest, label.kind, label.rubric, label.task.value), {})
        group[label.pair_id, label.content_key, label.options] = label
    cards = [_card_of(list(groups[key].values()), texts_of) for key in sorted(groups)]
    return tuple(card for card in cards if card is not None)


def _card_of(everything: Sequence[LabelFacts], texts_of: TextsOf) -> LabelCard | None:
    """The card of labels among which there may be those of pairs that a job added; None where there is nothing else."""
    labels = [label for label in everything if not is_added(label.pair_id)]
    if not labels:
        return None
    card = _with_measurements(_with_people(_card(labels, everything), labels, texts_of), everything)
    return replace(card, notes=notes_on(card, labels))


def _card(labels: Sequence[LabelFacts], everything: Sequence[LabelFacts]) -> LabelCard:
    """What the labels of the data say by themselves, and what all have cost."""
    first = labels[0]
    paid = [judgement for judgement in _judgements(everything) if judgement.paid]
    shown_in_order = first.kind == "verdict"
    reasons = Counter(label.abstention_reason.partition(":")[0] for label in labels if label.outcome == "abstain")
    agreements = [label.agreement for label in labels if label.agreement is not None]
    return LabelCard(
        judge=first.judge,
        judge_digest=first.judge_digest,
        kind=first.kind,
        rubric=first.rubric,
        task=first.task,
        pairs=len(labels),
        human_agreement=None,
        length_baseline=None,
        first_preferred=share_of(first_preferred(labels)) if shown_in_order else None,
        same_position_after_swap=share_of(same_position_after_swap(labels)) if shown_in_order else None,
        longer_preferred=share_of(longer_preferred(labels)),
        ensemble_agreement=fmean(agreements) if agreements else None,
        escalated=share_of([hit(label, label.escalated) for label in labels]) if any(label.escalated for label in labels) else None,
        abstentions=dict(sorted(reasons.items())),
        tokens=sum(judgement.tokens for judgement in paid),
        cost=math.fsum(judgement.cost for judgement in paid),
        cost_per_thousand_pairs=_cost_per_thousand(labels),
        cached_judgements=sum(judgement.cached for label in everything for judgement in label.judgements),
        notes=(),
    )


def _with_people(card: LabelCard, labels: Sequence[LabelFacts], texts_of: TextsOf) -> LabelCard:
    """The card with what people's labels of the same pairs say."""
    bins = reliability(labels)
    return replace(
        card,
        human_agreement=share_of(human_agreement(labels)),
        length_baseline=share_of(length_baseline(labels)),
        random_baseline=share_of(random_baseline(labels)),
        agreement_by_length=agreement_by_length(labels),
        kappa=human_kappa(labels),
        calibration_error=calibration_error(bins),
        reliability=bins,
        disagreements=_disagreements(labels, texts_of),
    )


def _with_measurements(card: LabelCard, everything: Sequence[LabelFacts]) -> LabelCard:
    """The card with what the pairs that jobs added say."""
    found = hits_by_family(label for label in everything if is_twin(label.pair_id))
    return replace(
        card,
        repeat_consistency=share_of(repeated_alike(everything)),
        injection_flips=share_of([each for hits in found.values() for each in hits.flips]),
        control_flips=share_of([each for hits in found.values() for each in hits.control_flips]),
        injection_families=tuple(
            InjectionFamily(name, share_of(hits.flips), share_of(hits.wins), share_of(hits.control_flips)) for name, hits in found.items()
        ),
    )


def _judgements(labels: Sequence[LabelFacts]) -> Iterable[JudgementFacts]:
    """Each judgement once."""
    return {judgement.key: judgement for label in labels for judgement in label.judgements}.values()


def _cost_per_thousand(labels: Sequence[LabelFacts]) -> float | None:
    """What the judgements behind the labels have cost, whoever paid, for 1,000 pairs; None where they have no price."""
    cost = math.fsum(judgement.cost for judgement in _judgements(labels))
    return 1000 * cost / len(labels) if cost else None


def _disagreements(labels: Sequence[LabelFacts], texts_of: TextsOf) -> tuple[Disagreement, ...]:
    """The pairs on which the judge was surest and people chose the other response, with their texts, shortened."""
    wrong = [label for label, human in compared(labels) if (label.outcome == "a") != (human > 0.5)]
    worst = sorted(wrong, key=lambda label: (-_confidence(label), label.pair_id))[:_DISAGREEMENTS]
    texts = texts_of([label.content_key for label in worst]) if worst else {}
    return tuple(_disagreement(label, texts[label.content_key]) for label in worst if label.content_key in texts)


def _disagreement(label: LabelFacts, text: PairText) -> Disagreement:
    takes_low = (label.outcome == "a") == label.a_is_low
    taken, other = (_shortened(response, _RESPONSE_CHARACTERS) for response in ((text.low, text.high) if takes_low else (text.high, text.low)))
    return Disagreement(label.pair_id, _shortened(_prompt_text(text.messages), _PROMPT_CHARACTERS), taken, other, _confidence(label))


def _confidence(label: LabelFacts) -> float:
    preference = label.preference if label.preference is not None else 0.5
    return max(preference, 1.0 - preference)


def _prompt_text(messages: Sequence[Message]) -> str:
    if len(messages) == 1:
        return messages[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in messages)


def _shortened(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 1]}…"
