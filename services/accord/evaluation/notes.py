"""What a reader must know beside the figures: how each was computed, and what in these rows limits it.

What does not belong here: the figures (`accord.evaluation.summary`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from accord.evaluation.bertscore import BertScores
from accord.evaluation.bleu import bleu_signature
from accord.evaluation.metrics import has_rouge_words
from accord.evaluation.rows import WIN_VALUES, EvaluationRow
from accord.evaluation.summary import ADJUSTED, ArmSummary

_FEW = 20


def notes(rows: Sequence[EvaluationRow], arms: Sequence[ArmSummary], scores: BertScores, *, samples: int, seed: int) -> tuple[str, ...]:
    """One sentence or two each: first the methods, then what is special about these rows."""
    return (*_methods(scores, arms, samples, seed), *_limits(rows, scores, arms))


def _methods(scores: BertScores, arms: Sequence[ArmSummary], samples: int, seed: int) -> list[str]:
    found = [
        f"Intervals: 95 %, percentile bootstrap over prompts, {samples} resamples, seed {seed}; differences between arms are paired by prompt. "
        "They hold for one comparison at a time: with many, some exclude 0 by chance. A figure that is the same in every row gets no width.",
        "share_a_better is the share of resamples in which a's figure is higher, a tie counting half; for lengths and kl, higher is not better.",
        "METEOR (nltk, parameters of 2007): exact and stem modules only, no synonyms, since WordNet is not shipped; with them it would be higher.",
        f"BLEU (sacrebleu, {bleu_signature()}): of each arm's corpus, cumulative over orders 1 to n, scaled to [0, 1]; an order without a match is "
        "smoothed (exp). In evaluation_rows.jsonl it is each row's own, whose mean it is not.",
        "ROUGE (rouge-score): mean F1 with Porter's stemmer; Lsum over sentences found by rule. It knows a-z and 0-9 alone.",
    ]
    if scores.f1 is None:
        found.append(f"BERTScore was not computed: {scores.missing}.")
    else:
        found.append(
            "BERTScore: mean F1 with all-MiniLM-L6-v2, layer 6, no idf, no baseline rescaling; not comparable with figures from other encoders, "
            "such as roberta-large."
        )
    if any(name in arm.metrics for arm in arms for name in ADJUSTED):
        found.append(
            "Length-adjusted win rates: what a logistic model of win on tanh of the scaled log length ratio predicts at equal length (after Dubois "
            "et al. 2024, without a term for the prompt), with a weak prior that keeps them off 0 and 1."
        )
    return found


def _limits(rows: Sequence[EvaluationRow], scores: BertScores, arms: Sequence[ArmSummary]) -> list[str]:
    found = []
    few = [f"{arm.task} {arm.arm} ({arm.n})" for arm in arms if arm.n < _FEW]
    if few:
        found.append(f"Fewer than {_FEW} prompts, so that percentile intervals are too narrow: {', '.join(few)}.")
    empty = Counter(f"{row.task} {row.arm}" for row in rows if not row.response.strip())
    if empty:
        counted = ", ".join(f"{name} ({count})" for name, count in empty.items())
        found.append(f"Empty responses, which score 0: {counted}.")
    foreign = sum(1 for row in rows if row.response.strip() and not (has_rouge_words(row.response) and has_rouge_words(row.reference)))
    if foreign:
        found.append(f"{foreign} rows have a response or a reference without a single letter a-z or digit; their ROUGE is 0 by construction.")
    if scores.truncated:
        found.append(f"{scores.truncated} rows have a text over 512 word pieces; BERTScore reads the first 512.")
    return [*found, *_unequal_prompts(rows), *_one_sided(rows)]


def _unequal_prompts(rows: Sequence[EvaluationRow]) -> list[str]:
    prompts: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        prompts.setdefault(row.task, {}).setdefault(row.arm, set()).add(row.prompt_id)
    return [
        f"The arms of {task} answered different prompts; their differences are over those that both answered."
        for task, by_arm in prompts.items()
        if len({frozenset(answered) for answered in by_arm.values()}) > 1
    ]


def _one_sided(rows: Sequence[EvaluationRow]) -> list[str]:
    """An arm that is always longer, or always shorter, has no response near equal length to learn from."""
    ratios: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        for win, ratio in WIN_VALUES.items():
            won, longer = row.values.get(win), row.values.get(ratio)
            if won is not None and longer is not None:
                ratios.setdefault((row.task, row.arm, win), []).append(longer)
    sided = [f"{task} {arm} {win}" for (task, arm, win), found in ratios.items() if min(found) > 0 or max(found) < 0]
    return (
        [f"Always longer, or always shorter, than the opponent, so that the length-adjusted win rate extrapolates: {', '.join(sided)}."]
        if sided
        else []
    )
