"""Corpus BLEU from what each row contributes, so that a resample of rows has a BLEU of its own without reading a text again.

What does not belong here: resampling (`accord.evaluation.bootstrap`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ORDERS = (1, 2, 3, 4)
_MOST = len(ORDERS)


def bleu_counts(response: str, reference: str) -> tuple[int, ...]:
    """What one row adds to the corpus: words of response and reference, then matches of order 1 to 4, then n-grams of order 1 to 4.

    Counted by sacrebleu (tokenizer 13a, case kept). The counts of a corpus are the sums of its rows'.
    """
    score = _sacrebleu().corpus_score([response], [[reference]])
    return (score.sys_len, score.ref_len, *score.counts, *score.totals)


def bleu_signature() -> str:
    """sacrebleu's own description of how it counts and smooths."""
    metric = _sacrebleu()
    metric.corpus_score(["a"], [["a"]])  # it does not know the number of references before
    return str(metric.get_signature())


@cache
def _sacrebleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU()


def bleu(counts: Array, order: int) -> Array:
    """Corpus BLEU up to an order, in [0, 1], of each row of counts.

    Papineni et al. 2002, eq. 3, with uniform weights 1/order and a single reference: the brevity penalty times the geometric mean of the
    n-gram precisions of order 1 to `order`. An order without a match counts 1 / (2^k n-grams), k being how many orders up to it had none
    ("exp", NIST's method, sacrebleu's default). 0 where no word matches, and where there is no n-gram of some order at all.

    Args:
        counts: sums of `bleu_counts`, shape (..., 10).
        order: 1 to 4.
    """
    counts = np.asarray(counts, dtype=np.float64)
    response_words, reference_words = counts[..., 0], counts[..., 1]
    matches, ngrams = counts[..., 2 : 2 + order], counts[..., 2 + _MOST : 2 + _MOST + order]
    without_match = matches == 0
    smoothed = np.where(without_match, 0.5 ** np.cumsum(without_match, axis=-1), matches)
    defined = (matches[..., 0] > 0) & np.all(ngrams > 0, axis=-1)
    log_precisions = np.log(smoothed / np.where(ngrams > 0, ngrams, 1.0))
    log_penalty = np.minimum(0.0, 1.0 - reference_words / np.where(response_words > 0, response_words, 1.0))
    return np.where(defined, np.exp(log_penalty + log_precisions.mean(axis=-1)), 0.0)


def bleu_statistic(counts: Array, order: int) -> Callable[[Array], Array]:
    """Corpus BLEU as a function of how often each row counts: weights of shape (resamples, rows) to values of shape (resamples,)."""

    def of(weights: Array) -> Array:
        return bleu(weights @ counts, order)

    return of
