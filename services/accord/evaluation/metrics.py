"""What one response scores against its reference by words: METEOR, ROUGE, BLEU's counts, length. No torch, no data to download.

What does not belong here: BERTScore, which needs a model (`accord.evaluation.bertscore`), and means and intervals (`summary`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from accord.evaluation.bleu import ORDERS, bleu, bleu_counts
from accord.evaluation.sentences import sentences

METEOR, BERTSCORE, WORDS = "meteor", "bertscore", "response_words"
BLEU_NAMES = {f"bleu_{order}": order for order in ORDERS}
ROUGE_NAMES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}
COMPUTED = (METEOR, *BLEU_NAMES, *ROUGE_NAMES, BERTSCORE, WORDS)
_ROUGE_WORD = re.compile("[a-z0-9]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LexicalScores:
    """Scores of one response: METEOR and ROUGE F1 in [0, 1], the counts of `bleu_counts`, words between white space."""

    meteor: float
    rouge: dict[str, float]
    bleu_counts: tuple[int, ...]
    response_words: int

    def numbers(self) -> dict[str, float]:
        """All by name. BLEU here is this row's own; the BLEU of an arm is not the mean of them."""
        own_bleu = {name: float(bleu(np.array(self.bleu_counts, dtype=np.float64), order)) for name, order in BLEU_NAMES.items()}
        return {METEOR: self.meteor, **own_bleu, **self.rouge, WORDS: float(self.response_words)}


def lexical_scores(response: str, reference: str) -> LexicalScores:
    """The scores of a response; an empty one scores 0 everywhere."""
    return LexicalScores(meteor(response, reference), rouge(response, reference), bleu_counts(response, reference), len(response.split()))


class _NoSynonyms:
    """Stands where nltk expects WordNet, whose data would have to be downloaded: it knows no word."""

    def synsets(self, _: str) -> list[Any]:
        return []


def meteor(response: str, reference: str) -> float:
    """METEOR by its exact and stem modules, in [0, 1]; without the synonym module, which needs WordNet.

    Lavie & Agarwal 2007 with their parameters, by nltk: F = PR / (.9 P + .1 R), times 1 - .5 (chunks / matches)^3. Identical texts of m
    words score 1 - .5 / m^3, not 1.
    """
    from nltk.translate.meteor_score import single_meteor_score

    return float(single_meteor_score(_words(reference), _words(response), wordnet=_NoSynonyms()))


def _words(text: str) -> list[str]:
    """Words and punctuation as nltk's word_tokenize gives them, but with our sentences: its splitter needs data."""
    tokenizer = _tokenizer()
    return [word for sentence in sentences(text) for word in tokenizer.tokenize(sentence)]


@cache
def _tokenizer() -> Any:
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()


def rouge(response: str, reference: str) -> dict[str, float]:
    """ROUGE-1, -2, -L and -Lsum F1 (Lin 2004) with Porter's stemmer, in [0, 1], by rouge-score; Lsum gets a sentence a line.

    rouge-score knows a-z and 0-9 alone: a text in another script has no words for it and scores 0 (see `has_rouge_words`).
    """
    scorer = _rouge_scorer()
    plain = scorer.score(reference, response)
    lines = scorer.score("\n".join(sentences(reference)), "\n".join(sentences(response)))
    return {name: float((lines if kind == "rougeLsum" else plain)[kind].fmeasure) for name, kind in ROUGE_NAMES.items()}


def has_rouge_words(text: str) -> bool:
    """Whether rouge-score finds any word in a text."""
    return _ROUGE_WORD.search(text) is not None


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE_NAMES.values()), use_stemmer=True)
