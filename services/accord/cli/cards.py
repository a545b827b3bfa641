"""Labels and label cards as tables.

What does not belong here: measuring (`accord.feedback.cards`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from accord.cli.output import number_text, print_line, print_table
from accord.text.judge import named

if TYPE_CHECKING:
    from accord.client.feedback import Judgement, Label
    from accord.client.label_cards import Kappa, LabelCard, Share


def show_label(label: Label) -> None:
    """Prints one label with its judgements."""
    preference = "" if label.preference is None else f"P(A is better) = {label.preference:.3f}"
    print_line(f"{label.outcome}  {preference}  by {label.kind}, {label.judge}".strip())
    if label.agreement is not None:
        print_line(f"{label.agreement:.0%} of the judges take this side")
    if label.escalated:
        print_line("the larger judge was asked, since the smaller one was unsure")
    if label.abstention_reason:
        print_line(f"abstained: {label.abstention_reason}")
    rows = [_judgement_row(judgement) for judgement in label.judgements]
    print_table(("judge", "order", "P(A)>", "evidence A>", "evidence B>", "tokens>", "cost>", "known", "rationale"), rows)


def _judgement_row(judgement: Judgement) -> tuple[str, ...]:
    order = "A, B" if judgement.a_first else "B, A"
    numbers = [_number(value) for value in (judgement.probability_a, judgement.evidence_a, judgement.evidence_b)]
    tokens = str(judgement.prompt_tokens + judgement.response_tokens)
    cost = f"{judgement.cost:.2g}" if judgement.cost else ""
    return (judgement.judge, order, *numbers, tokens, cost, "yes" if judgement.cached else "no", judgement.abstention_reason or judgement.rationale)


def show_cards(cards: Sequence[LabelCard]) -> None:
    """Prints how far to trust each judge: shares with their 95 % intervals, and what to know about them."""
    for card in cards:
        rows = [(name, *_share(share)) for name, share in card.shares]
        rows += [("Cohen's kappa with people", *_share(card.kappa))] if card.kappa else []
        rows += [(name, number_text(value), "", "") for name, value in _numbers(card) if value is not None]
        rows += [(f"abstained: {reason}", str(count), "", "") for reason, count in card.abstentions.items()]
        task = card.task.value if card.task else "all tasks"
        judge = named(card.judge, card.judge_digest)
        title = f"{card.kind} {card.rubric} by {judge}, {task}, {card.pairs} pairs, {card.tokens} tokens, {card.cached_judgements} known"
        print_table(("label card", "share>", "95 % interval", "n>"), rows, title=" ".join(title.split()))
        for note in card.notes:
            print_line(f"note: {note}")


def _numbers(card: LabelCard) -> list[tuple[str, float | None]]:
    return [
        ("expected calibration error", card.calibration_error),
        ("agreement within the ensemble", card.ensemble_agreement), ("cost of 1,000 pairs", card.cost_per_thousand_pairs),
    ]  # fmt: skip


def _share(share: Share | Kappa | None) -> tuple[str, str, str]:
    if share is None:
        return "not measured", "", ""
    return f"{share.value:.2f}", f"{share.low:.2f} to {share.high:.2f}", str(share.n)


def _number(value: float | None) -> str:
    return "" if value is None else number_text(value)
