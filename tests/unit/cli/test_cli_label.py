"""label: one pair, and jobs that are found again, fail, and are interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.unit.cli.conftest import Accord
from tests.unit.cli.fakes import FakeFeedback, add_feedback, serving

from accord.api.feedback.v1 import feedback_pb2 as pb
from accord.cli import label as command
from accord.cli.progress import ProgressBar

Start = Callable[[FakeFeedback], str]
JOB = ("label", "sample:summarization", "--task", "summarization", "--output", "labels")


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda feedback: stack.enter_context(serving(add_feedback(feedback)))


def test_one_pair(accord: Accord, start: Start) -> None:
    address = start(FakeFeedback())
    pair = (
        "label",
        "--task",
        "conversation",
        "--kind",
        "likelihood",
        "--prompt",
        "Name it.",
        "--a",
        "long one",
        "--b",
        "short",
        "--feedback",
        address,
    )
    result = accord(*pair)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == "a  P(A is better) = 0.953  by likelihood, fake for task 2: Name it."
    label = json.loads(accord(*pair, "--json").stdout)
    assert (label["outcome"], label["kind"]) == ("a", "likelihood")
    assert label["judgements"][0]["evidence_b"] is None


def test_a_data_set_gives_a_card_and_says_what_next(accord: Accord, start: Start, tmp_path: Path) -> None:
    feedback = FakeFeedback()
    address = start(feedback)
    result = accord(*JOB, "--kind", "likelihood", "--limit", "20", "--seed", "3", "--repeats", "4", "--feedback", address)
    assert result.exit_code == 0
    (request,) = feedback.requests
    assert (request.dataset_uri, request.limit, request.seed, request.split) == ("sample:summarization", 20, 3, "train")
    assert (request.judge.kind, request.task) == (pb.JUDGE_KIND_LIKELIHOOD, pb.TASK_SUMMARIZATION)
    assert request.output_uri == str(tmp_path / "labels")
    assert request.repeats == 4
    rows = {" ".join(line.split()) for line in result.stdout.splitlines()}
    assert "agrees with people 0.80 0.40 to 0.96 5" in rows
    assert "prefers what is shown first not measured" in rows
    assert "note: a small number of pairs: the interval is wide" in rows
    assert {"same label when asked again not measured", "Cohen's kappa with people 0.62 0.50 to 0.75 5", "cost of 1,000 pairs 1.5"} <= rows
    assert {"/out/card.json", "/out/card.html"} <= rows
    assert "2 rows were not used: prompt is missing" in rows
    assert "5 of 5 pairs labelled, 0 abstentions: succeeded" in rows
    assert result.stderr.splitlines()[-1] == (
        "next: accord train reward-model --set reward_model.data.uri=/out/labels.jsonl --set reward_model.eval_data.uri=sample:summarization"
    )
    again = json.loads(accord(*JOB, "--kind", "likelihood", "--limit", "20", "--seed", "3", "--repeats", "4", "--json", "--feedback", address).stdout)
    assert again["job"]["name"] == f"labelJobs/{request.request_id}"
    assert again["cards"][0]["human_agreement"]["n"] == 5
    assert len(feedback.jobs) == 1


def test_of_a_file_nothing_is_known_to_be_held_out(accord: Accord, start: Start, tmp_path: Path) -> None:
    """What the recipe holds out is of another data set."""
    (tmp_path / "pairs.jsonl").write_text("")
    job = ("label", "pairs.jsonl", "--task", "conversation", "--output", "labels")
    assert accord(*job, "--feedback", start(FakeFeedback())).stderr.endswith("labels.jsonl --set reward_model.eval_data=null\n")


def test_other_options_and_another_file_are_another_job(accord: Accord, start: Start, tmp_path: Path) -> None:
    feedback = FakeFeedback()
    address = start(feedback)
    data = tmp_path / "pairs.jsonl"
    for number, (text, limit) in enumerate((("a\n", "1"), ("b\n", "1"), ("b\n", "2")), start=1):
        data.write_text(text)
        accord("label", "pairs.jsonl", "--task", "conversation", "--output", "out", "--limit", limit, "--detach", "--feedback", address)
        assert len(feedback.jobs) == number
    assert feedback.requests[0].dataset_uri == str(data)


def test_a_command_given_again_says_that_nothing_is_judged_and_by_whom_it_would_be(accord: Accord, start: Start) -> None:
    """Also with --detach, where nothing else is shown."""
    feedback = FakeFeedback()
    job = (*JOB, "--feedback", start(feedback))
    assert "labelled this before" not in accord(*job).stderr
    feedback.changes = "the judge is another one now (fake, digest b; then a)"
    for result in (accord(*job), accord(*job, "--detach"), accord(*job, "--json")):
        assert result.exit_code == 0
        first, second = result.stderr.splitlines()[:2]
        assert "has labelled this before" in first
        assert second == f"{feedback.changes}: its labels are as they were; another --output has the data labelled as it is now"
    feedback.changes = ""
    assert "another --output" not in accord(*job, "--detach").stderr
    assert len(feedback.jobs) == 1


def test_a_job_that_failed_is_tried_again_under_the_next_id(accord: Accord, start: Start) -> None:
    feedback = FakeFeedback(fail_first=True)
    result = accord(*JOB, "--feedback", start(feedback))
    assert result.exit_code == 0
    first, second = feedback.jobs
    assert second == f"{first}-2"


def test_interrupting_cancels_the_job(accord: Accord, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    feedback = FakeFeedback(hold=True)

    def interrupted(self: ProgressBar, *arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command.ProgressBar, "set", interrupted)
    result = accord(*JOB, "--feedback", start(feedback))
    assert result.exit_code == 130
    assert feedback.cancelled == list(feedback.jobs)
    assert "what was judged is kept: the same command goes on from there" in result.stderr


def test_waiting_has_an_end(accord: Accord, start: Start) -> None:
    feedback = FakeFeedback(hold=True)
    result = accord(*JOB, "--timeout", "1", "--feedback", start(feedback))
    assert result.exit_code == 1
    assert "has not ended within 1 s; it goes on" in result.stderr
    assert feedback.cancelled == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("sample:summarization",), "error: --task: say what the responses are meant to do: summarization or conversation\n"),
        (("--task", "conversation"), "error: give DATASET and --output, or --prompt, --a and --b\n"),
        (("x.jsonl", "--task", "conversation", "--output", "o"), "error: DATASET: there is no file x.jsonl; give a file, sample:NAME or hub:NAME\n"),
        (("--task", "conversation", "--prompt", "p", "--a", "a"), "error: one pair needs --prompt, --a and --b, and no DATASET\n"),
        (
            ("sample:conversation", "--task", "conversation", "--output", "o", "--kind", "verdit"),
            "error: judge.kind: kind 'verdit' is not one of default, verdict, rating, likelihood\n",
        ),
    ],
)
def test_wrong_requests(accord: Accord, start: Start, arguments: tuple[str, ...], line: str) -> None:
    result = accord("label", *arguments, "--feedback", start(FakeFeedback()))
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", line)
