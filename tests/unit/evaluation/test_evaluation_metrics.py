"""METEOR, ROUGE and BLEU of rows: by hand, and equal to the libraries' own calls on whole corpora."""

import random
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU

from accord.evaluation.bleu import ORDERS, bleu, bleu_counts, bleu_signature, bleu_statistic
from accord.evaluation.metrics import COMPUTED, has_rouge_words, lexical_scores, meteor, rouge
from accord.evaluation.sentences import sentences

TEXTS = [
    ("The cat sat on the mat.", "The cat sat on a mat, purring."),
    ("He sold the old car to a friend.", "He sold his car. A friend bought it!"),
    ("", "Nothing was said here at all."),
    ("Prices rose 3.5% in May; rents did not.", "Rents did not rise in May, but prices did, by 3.5%."),
    ("an an an an an an", "an apple a day"),
]


def test_meteor_by_hand() -> None:
    # three matches (one by stem) in one chunk: F = 1, penalty .5 / 3^3
    assert meteor("the cats sat", "the cat sat") == pytest.approx(1 - 0.5 / 27)
    # two matches in two chunks: P = R = 2/3, penalty .5; a METEOR with synonyms would have matched all three
    assert meteor("the car stopped", "the automobile stopped") == pytest.approx(2 / 3 * 0.5)
    # P = 1, R = 1/2: recall counts nine times as much
    assert meteor("the cat", "the cat sat down") == pytest.approx(0.5 / (0.9 + 0.1 * 0.5) * (1 - 0.5 / 8))
    assert meteor("the cat sat down", "the cat") == pytest.approx(0.5 / (0.9 * 0.5 + 0.1) * (1 - 0.5 / 8))
    assert meteor("x y z", "a b c") == 0
    # the full stops of both sentences are words of their own
    assert meteor("One. Two.", "One. Two.") == pytest.approx(1 - 0.5 / 4**3)


def test_rouge_by_hand() -> None:
    same = rouge("Two cats sat. One dog ran.", "Two cats sat. One dog ran.")
    assert same == {"rouge_1": 1, "rouge_2": 1, "rouge_l": 1, "rouge_lsum": 1}
    assert set(rouge("alpha beta", "gamma delta").values()) == {0.0}
    # sentences swapped: all words match and Lsum does not mind, the longest common subsequence is half, 4 of 5 bigrams match
    swapped = rouge("One dog ran. Two cats sat.", "Two cats sat. One dog ran.")
    assert swapped["rouge_1"] == 1
    assert swapped["rouge_2"] == pytest.approx(0.8)
    assert swapped["rouge_l"] == pytest.approx(0.5)
    assert swapped["rouge_lsum"] == 1
    # F1 of P = 1, R = 1/2, and the stemmer is on
    assert rouge("cats", "cat sleeping")["rouge_1"] == pytest.approx(2 / 3)


def test_a_row_has_every_metric_but_bertscore() -> None:
    numbers = lexical_scores("The cat sat.", "The cat sat down.").numbers()
    assert set(numbers) == set(COMPUTED) - {"bertscore"}
    assert numbers["response_words"] == 3


@pytest.mark.parametrize("response", ["", " ", "\n\n", "\t"])
def test_an_empty_response_scores_zero(response: str) -> None:
    assert set(lexical_scores(response, "The reference says something.").numbers().values()) == {0.0}


def test_unicode() -> None:
    same = lexical_scores("Zoë naïvely ate crème brûlée 🍮", "Zoë naïvely ate crème brûlée 🍮").numbers()
    assert same["meteor"] == pytest.approx(1 - 0.5 / 6**3)
    assert same["bleu_4"] == pytest.approx(1)
    # rouge-score has no words for other scripts; the notes count such rows
    foreign = lexical_scores("猫が座った。", "猫が座った。").numbers()
    assert foreign["rouge_l"] == 0
    assert foreign["meteor"] > 0.4
    assert not has_rouge_words("猫が座った。😀")
    assert has_rouge_words("É A")
    lexical_scores("\x00\u200b\u202e\ufeff", "plain")


def test_long_texts_take_seconds_at_most() -> None:
    generator = random.Random(3)
    words = [f"word{generator.randrange(200)}" for _ in range(4000)]
    started = time.monotonic()
    numbers = lexical_scores(" ".join(words), "A short reference about word1 and word2. It ends here.").numbers()
    assert time.monotonic() - started < 10
    assert numbers["response_words"] == 4000
    assert 0 < numbers["rouge_1"] < 0.02


@pytest.mark.parametrize("order", ORDERS)
def test_bleu_of_a_corpus_is_sacrebleu_s(order: int) -> None:
    counts = np.array([bleu_counts(*pair) for pair in TEXTS], dtype=float)
    expected = BLEU(max_ngram_order=order).corpus_score([pair[0] for pair in TEXTS], [[pair[1] for pair in TEXTS]]).score / 100
    assert float(bleu(counts.sum(axis=0), order)) == pytest.approx(expected, rel=1e-12)
    assert 0 < expected < 1
    assert "smooth:exp" in bleu_signature()


def test_bleu_of_a_resample_is_sacrebleu_s_of_the_resampled_texts() -> None:
    counts = np.array([bleu_counts(*pair) for pair in TEXTS], dtype=float)
    weights = np.array([[1, 1, 1, 1, 1], [3, 0, 1, 1, 0], [0, 0, 5, 0, 0], [0, 2, 0, 1, 2]])
    for order in ORDERS:
        ours = bleu_statistic(counts, order)(weights.astype(float))
        for row, value in zip(weights, ours, strict=True):
            texts = [pair for pair, times in zip(TEXTS, row, strict=True) for _ in range(times)]
            score = BLEU(max_ngram_order=order).corpus_score([pair[0] for pair in texts], [[pair[1] for pair in texts]]).score
            assert value == pytest.approx(score / 100, rel=1e-12, abs=1e-15)


@given(st.lists(st.tuples(st.text("ab c.", max_size=12), st.text("ab c.", min_size=1, max_size=12)), min_size=1, max_size=4), st.sampled_from(ORDERS))
@settings(max_examples=150, deadline=None)
def test_bleu_agrees_with_sacrebleu_where_matches_are_few(pairs: list[tuple[str, str]], order: int) -> None:
    counts = np.array([bleu_counts(*pair) for pair in pairs], dtype=float).sum(axis=0)
    expected = BLEU(max_ngram_order=order).corpus_score([pair[0] for pair in pairs], [[pair[1] for pair in pairs]]).score / 100
    assert float(bleu(counts, order)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(st.text(max_size=60), st.text(min_size=1, max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text_scores_between_0_and_1(response: str, reference: str) -> None:
    numbers = lexical_scores(response, reference).numbers()
    del numbers["response_words"]
    assert all(0 <= value <= 1 + 1e-12 for value in numbers.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Li left. He ran!", ["Dr. Li left.", "He ran!"]),
        ("It cost 3.5 euros, e.g. at Kim's. 12 people came.", ["It cost 3.5 euros, e.g. at Kim's.", "12 people came."]),
        ('She said "Stop!" Then she left... Why? (Nobody knows.)', ['She said "Stop!"', "Then she left...", "Why?", "(Nobody knows.)"]),
        ("no mark\nnext line\r\n\n  last ", ["no mark", "next line", "last"]),
        ("猫が座った。犬は走った！", ["猫が座った。", "犬は走った！"]),
        ("J. Smith wrote it.", ["J. Smith wrote it."]),
        (" \n ", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_the_metrics_and_the_job_load_without_torch() -> None:
    code = "import sys, accord.evaluation.job as j, accord.evaluation.metrics as m; m.lexical_scores('a b', 'a c'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
