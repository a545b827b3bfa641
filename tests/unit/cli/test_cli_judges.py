"""judges: the paper's tables out of label jobs that are shared where they ask the same, and found again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.conftest import Accord
from tests.unit.cli.fakes import FakeFeedback, add_feedback, serving

from accord.api.feedback.v1 import feedback_pb2 as pb

Start = Callable[[FakeFeedback], str]
BOTH = ("judges", "summarization=sample:summarization", "conversation=sample:conversation", "--limit", "40")
FORMS = "is not TASK=DATASET, or NAME=TASK:DATASET or NAME=TASK/FAMILY:DATASET, with a task of summarization, conversation"


class Judging(FakeFeedback):
    """Its agreement says which judge, rubric and rationale a job asked for."""

    digest = "a0" * 30

    def GetLabelCard(self, request: pb.GetLabelCardRequest, context: Any) -> pb.GetLabelCardResponse:
        asked = next(each for each in self.requests if f"labelJobs/{each.request_id}" == request.job)  # asked for again, it is the same
        value = 0.5 + 0.1 * (asked.judge.judge == "large") + 0.2 * asked.judge.rationale + 0.05 * ("base" in asked.judge.rubric)
        agreement = pb.Share(value=value, low=value - 0.1, high=value + 0.1, n=40)
        position = pb.Share(value=0.25, low=0.15, high=0.35, n=40) if asked.judge.kind == pb.JUDGE_KIND_VERDICT else None
        card = pb.LabelCard(
            judge="fake", judge_digest=f"{self.digest}5d98", kind=asked.judge.kind, task=asked.task, pairs=40, human_agreement=agreement, same_position_after_swap=position,
            length_baseline=pb.Share(value=0.625, low=0.5, high=0.75, n=40), random_baseline=pb.Share(value=0.5, low=0.35, high=0.65, n=40),
        )  # fmt: skip
        return pb.GetLabelCardResponse(cards=[card])


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda feedback: stack.enter_context(serving(add_feedback(feedback)))


def rows_of(tables: dict[str, Any], name: str, figure: str = "agreement") -> dict[str, dict[str, float]]:
    found = {row["name"]: {task: cell[figure] for task, cell in row["cells"].items()} for row in tables[name]["rows"]}
    return {row: {task: round(share["value"], 3) if share else None for task, share in cells.items()} for row, cells in found.items()}


def test_the_tables_of_the_paper(accord: Accord, start: Start, tmp_path: Path) -> None:
    feedback = Judging()
    address = start(feedback)
    arguments = (*BOTH, "--rationale", "--judge", "default", "--judge", "large", "--judge", "default:likelihood", "--feedback", address)
    result = accord(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    tables = json.loads((tmp_path / "judges" / "judges.json").read_text())
    both = {"summarization": 0.5, "conversation": 0.5}
    longer = {"always the longer response": {task: 0.625 for task in both}, "a coin": both}
    assert rows_of(tables, "rubrics") == {
        "base/1": {"conversation": 0.55}, "base/1, reasons first": {"conversation": 0.75}, "cot/1": {"conversation": 0.5}, "detailed/1": both,
        "detailed/1, reasons first": {task: 0.7 for task in both}, **longer,
    }  # fmt: skip
    assert rows_of(tables, "judges") == {"default": both, "large": {task: 0.6 for task in both}, "default:likelihood": both, **longer}
    assert tables["judges"]["rows"][0]["cells"]["summarization"]["same_position"]["value"] == 0.25
    assert tables["judges"]["rows"][2]["cells"]["summarization"]["same_position"] is None
    assert "samples" not in tables
    assert (tmp_path / "judges" / "judges.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    text = (tmp_path / "judges" / "judges.md").read_text()
    assert "| detailed/1, reasons first | 70.0 (60.0 to 80.0, n=40) | 70.0 (60.0 to 80.0, n=40) |" in text
    assert "| base/1 | – | 55.0 (45.0 to 65.0, n=40) |" in text
    assert "| | summarization | conversation | summarization, same position | conversation, same position |" in text
    assert "large 0.60 (0.50 to 0.70, n=40), same position 0.25 0.60 (0.50 to 0.70, n=40), same position 0.25" in " ".join(result.stdout.split())
    assert len(feedback.jobs) == 7 + 6  # rubrics and judges; no cell of one asks what one of the other does, whose rubric is the service's default

    again = accord(*arguments, "--json")
    assert json.loads(again.stdout)["tables"] == tables
    assert len(feedback.jobs) == 13


def test_who_judged_is_named_and_that_it_would_be_another_now(accord: Accord, start: Start, tmp_path: Path) -> None:
    """As after `accord up` with another base model: the figures are those of the first, under the same row names."""
    feedback = Judging()
    arguments = (*BOTH, "--judge", "default:likelihood", "--rubric", "conversation/base/1", "--feedback", start(feedback))
    first = accord(*arguments)
    assert (first.exit_code, first.stderr) == (0, "")
    assert "judged by fake (digest a0a0a0a0a0a0): 3 figures" in first.stdout.splitlines()
    text = (tmp_path / "judges" / "judges.md").read_text()
    assert "Judged by fake (digest a0a0a0a0a0a0): 3 figures." in text.splitlines()
    feedback.changes = "the judge is another one now (fake, digest b; then a)"
    again = accord(*arguments)
    said = f"3 figures made before: {feedback.changes}"
    assert (again.exit_code, again.stderr) == (0, f"{said}; another --output has them labelled as it is now\n")
    assert (tmp_path / "judges" / "judges.md").read_text() == text.replace("\n\nShares", f"\n\n{said}.\n\nShares")
    cell = json.loads((tmp_path / "judges" / "judges.json").read_text())["judges"]["rows"][0]["cells"]["conversation"]
    assert (cell["judge"], cell["judge_digest"], cell["note"]) == ("fake", f"{feedback.digest}5d98", feedback.changes)


class WithFamilies(Judging):
    """It has the rubrics of the paper's two kinds of conversation."""

    def ListRubrics(self, request: pb.ListRubricsRequest, context: Any) -> pb.ListRubricsResponse:
        found = super().ListRubrics(request, context)
        names = [f"conversation/{family}-{kind}/1" for family in ("helpful", "harmless") for kind in ("base", "base-few-shot", "detailed")]
        task = next(each.task for each in found.rubrics if each.id.startswith("conversation/"))
        found.rubrics.extend(pb.Rubric(id=name, task=task, kind=pb.JUDGE_KIND_VERDICT) for name in names)
        return found


def test_each_column_has_rubrics_of_its_own_family_in_the_rows_of_the_others(accord: Accord, start: Start, tmp_path: Path) -> None:
    """The paper's first table: summaries, helpfulness and harmlessness, each over its own data and rubrics."""
    feedback = WithFamilies()
    columns = (
        "summarization=sample:summarization",
        "helpful=conversation/helpful:sample:conversation",
        "safe=conversation/harmless:sample:conversation",
    )
    result = accord("judges", *columns, "--judge", "default", "--judge", "large", "--feedback", start(feedback))
    assert (result.exit_code, result.stderr) == (0, "")
    tables = json.loads((tmp_path / "judges" / "judges.json").read_text())
    rows = {row["name"]: set(row["cells"]) for row in tables["rubrics"]["rows"][:-2]}
    assert rows == {"base/1": {"helpful", "safe"}, "base-few-shot/1": {"helpful", "safe"}, "detailed/1": {"summarization", "helpful", "safe"}}
    asked = [each.judge.rubric for each in feedback.requests if each.judge.judge == "large"]
    assert asked == ["", "conversation/helpful-detailed/1", "conversation/harmless-detailed/1"]
    assert "| | summarization | helpful | safe |" in (tmp_path / "judges" / "judges.md").read_text()
    refused = accord("judges", "safe=conversation/harmles:sample:conversation", "--feedback", start(feedback))
    assert "no rubric of conversation begins with 'harmles'; there are harmless, helpful" in refused.stderr


def test_cells_that_ask_the_same_are_one_job(accord: Accord, start: Start, tmp_path: Path) -> None:
    feedback = Judging()
    result = accord("judges", "conversation=sample:conversation", "--judge", "large", "--judge", "large:verdict", "--feedback", start(feedback))
    assert result.exit_code == 0
    assert len(feedback.jobs) == 3 + 1


def test_after_a_change_of_the_data_other_jobs_write_to_other_folders(accord: Accord, start: Start, tmp_path: Path) -> None:
    """The service lets no job write where another that succeeded has."""
    feedback = Judging()
    address = start(feedback)
    data = tmp_path / "pairs.jsonl"

    def folders(text: str) -> dict[str, str]:
        data.write_text(text)
        assert accord("judges", f"conversation={data}", "--rubric", "conversation/base/1", "--feedback", address).exit_code == 0
        return {each.request_id: each.output_uri for each in feedback.requests}

    assert len(folders("one")) == 2
    assert len(folders("one")) == 2
    both = folders("two")
    assert len(both) == len(set(both.values())) == 4


def test_rubrics_can_be_chosen(accord: Accord, start: Start, tmp_path: Path) -> None:
    feedback = Judging()
    chosen = ("--rubric", "conversation/base/1", "--rubric", "summarization/detailed/1", "--rationale", "--judge", "default:likelihood")
    result = accord("judges", "conversation=sample:conversation", *chosen, "--feedback", start(feedback))
    assert result.exit_code == 0
    asked = [(each.judge.kind, each.judge.rubric, each.judge.rationale) for each in feedback.requests]
    base = (pb.JUDGE_KIND_VERDICT, "conversation/base/1")  # a rubric of another task than the data's gives no row, and rubrics are for verdicts
    assert asked == [(*base, False), (*base, True), (pb.JUDGE_KIND_LIKELIHOOD, "", False)]


def test_a_cell_that_fails_says_why_and_leaves_the_others(accord: Accord, start: Start, tmp_path: Path) -> None:
    result = accord("judges", "conversation=sample:conversation", "--samples", "4", "--feedback", start(Judging()))
    assert result.exit_code == 1
    tables = json.loads((tmp_path / "judges" / "judges.json").read_text())
    off, four = tables["samples"]["rows"][:2]
    assert (off["name"], round(off["cells"]["conversation"]["agreement"]["value"], 3)) == ("off", 0.7)
    assert (four["name"], four["cells"]["conversation"]["error"]) == ("4 samples", "judge.consistency_samples: no self-consistency here")
    assert "failed: judge.consistency_samples" in (tmp_path / "judges" / "judges.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("sample:summarization",), f"error: COLUMN=DATASET: 'sample:summarization' {FORMS}"),
        (("poetry=x",), f"error: COLUMN=DATASET: 'poetry=x' {FORMS}"),
        (("harmless=poetry/harmless:sample:conversation",), f"error: COLUMN=DATASET: 'harmless=poetry/harmless:sample:conversation' {FORMS}"),
        (
            ("harmless=conversation/harmles:sample:conversation",),
            "error: COLUMN=DATASET: no rubric of conversation begins with 'harmles'; there are no families",
        ),
        (
            ("conversation=sample:conversation", "conversation=sample:conversation"),
            "error: COLUMN=DATASET: each column has a name of its own: NAME=TASK:DATASET",
        ),
        (
            ("conversation=sample:conversation", "--rubric", "poetry/base/1"),
            "error: --rubric: 'poetry/base/1' is not one of conversation/base/1, conversation/cot/1, conversation/detailed/1, summarization/detailed/1",
        ),
        (("conversation=none.jsonl",), "error: DATASET: there is no file none.jsonl; give a file, sample:NAME or hub:NAME"),
        (
            ("conversation=sample:conversation", "--judge", "x:guess"),
            "error: --judge: 'x:guess' is not NAME[:KIND] with a kind of verdict, rating, likelihood",
        ),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_judged(accord: Accord, start: Start, arguments: tuple[str, ...], line: str) -> None:
    feedback = Judging()
    result = accord("judges", *arguments, "--feedback", start(feedback))
    assert (result.exit_code, result.stderr.strip()) == (2, line)
    assert feedback.jobs == {}
