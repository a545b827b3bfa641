"""Ratings as rewards: what is asked of the judge, what counts as the lowest rating, and what ends a run instead of being learned from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.training.surroundings import make_context, planted_pairs, write_rows

from accord.client.feedback import ABSTENTION, Judge, Rating, Ratings, Rubric
from accord.client.policy import Sample
from accord.data.records import Prompt
from accord.errors import (
    AccordError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    OutOfRangeError,
    ResourceExhaustedError,
    UnavailableError,
)
from accord.rundir import Endpoints
from accord.runspec_parts import JudgeRewardSpec
from accord.text.chat import Message
from accord.text.tasks import Task
from accord.training import judge_scores
from accord.training.context import RunContext
from accord.training.examples import EncodedPrompt
from accord.training.judge_scores import JudgeScorer, OneJudge
from accord.training.scorers import Response, Score

MESSAGES = (Message("user", "hello"),)
PROMPT = EncodedPrompt("p7", (1, 2), Prompt("p7", Task.CONVERSATION, MESSAGES))
FACTS = {"judge": "fake", "judge_digest": "d" * 64, "rubric": "conversation/rating/1", "rubric_digest": "r" * 64}
Fault = Callable[[int], AccordError | Rating]


def rating(score: float) -> Rating:
    return Rating((0.1,) * 10, 5.5, score, "conversation/rating/1", "r" * 64)


class FakeFeedback:
    """Rates a response by its length; `faults` are answers to responses by their text, `errors` those to whole calls."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.faults: dict[str, Fault] = {}
        self.errors: list[AccordError] = []
        self.digest = "d" * 64

    def rate_responses(self, task: Task, items: Sequence[tuple[Any, str]], judge: Judge, *, timeout_seconds: float) -> Ratings:
        self.asked.append([text for _, text in items])
        assert (task, judge.kind, timeout_seconds) == (Task.CONVERSATION, "rating", 900.0)
        assert all(messages == MESSAGES for messages, _ in items)
        if self.errors:
            raise self.errors.pop()
        return Ratings(tuple(self._rate(place, text) for place, (_, text) in enumerate(items)), "fake", self.digest)

    def _rate(self, place: int, text: str) -> Rating | AccordError:
        return self.faults[text](place) if text in self.faults else rating(len(text) / 100)

    def list_rubrics(self) -> tuple[Rubric, ...]:
        return (
            Rubric("conversation/rating/1", "r", Task.CONVERSATION, "rating", ""),
            Rubric("conversation/detailed/1", "r", Task.CONVERSATION, "verdict", ""),
            Rubric("summarization/rating/1", "r", Task.SUMMARIZATION, "rating", ""),
        )

    def close(self) -> None: ...


@pytest.fixture
def feedback(monkeypatch: pytest.MonkeyPatch) -> FakeFeedback:
    made = FakeFeedback()
    monkeypatch.setattr(judge_scores, "FeedbackClient", lambda channel: made)
    return made


@pytest.fixture
def context(tmp_path: Path, tiny_folder: Path) -> RunContext:
    part = {"data": write_rows(tmp_path / "rows.jsonl", planted_pairs()), "judge_reward": {"task": "conversation"}}
    return make_context(tmp_path, tiny_folder, {"rloo": {**part, "group_size": 2}}, endpoints=Endpoints(policy="127.0.0.1:1", feedback="127.0.0.1:1"))


def judge(**spec: Any) -> OneJudge:
    return OneJudge(JudgeRewardSpec(task="conversation", **spec), "rloo.judge_reward")


def scored(context: RunContext, one: OneJudge, texts: Sequence[str]) -> dict[int, Score | AccordError]:
    responses = [Response(place, PROMPT, Sample(0, text, (5,), (-1.0,), "eos", 1)) for place, text in enumerate(texts)]
    found = list(JudgeScorer(context, one).scores([responses]))
    errors = [each for each in found if isinstance(each, AccordError)]
    scores = {each.place: each for each in found if isinstance(each, Score)}
    assert len(errors) + len(scores) == len(texts)
    missing = [place for place in range(len(texts)) if place not in scores]
    return {**scores, **dict(zip(missing, errors, strict=True))}


def test_expected_ratings_are_scores_and_who_judged_is_kept(context: RunContext, feedback: FakeFeedback) -> None:
    one = judge()
    found = scored(context, one, ["x" * n for n in range(1, 12)])
    assert found == {place: Score(place, (place + 1) / 100, ((place + 1) / 100,), FACTS) for place in range(11)}
    assert [len(part) for part in feedback.asked] == [8, 3]
    assert one.facts == FACTS


def unreadable(place: int) -> AccordError:
    return InvalidArgumentError("control token", field=f"items[{place}].response", metadata={ABSTENTION: "unreadable text"})


def test_what_no_judge_is_shown_has_the_lowest_rating_by_rule(context: RunContext, feedback: FakeFeedback) -> None:
    feedback.faults["nul"] = lambda place: InvalidArgumentError("holds a NUL", field=f"items[{place}].response")
    feedback.faults["token"] = unreadable
    found = scored(context, judge(), ["", " \n", "\u200b", "nul", "token", "fine"])
    assert [found[place].score for place in range(6)] == [-1.0, -1.0, -1.0, -1.0, -1.0, 0.04]  # type: ignore[union-attr]
    assert [bool(found[place].judge) for place in range(6)] == [False] * 5 + [True]  # type: ignore[union-attr]
    assert feedback.asked == [["nul", "token", "fine"]], "nobody is asked about a response in which there is nothing to see"


def abstains(reason: str) -> Fault:
    return lambda place: InvalidArgumentError("fake cannot rate this", field=f"items[{place}].response", metadata={ABSTENTION: reason})


FAULTS: dict[str, Fault] = {
    "overflow": lambda place: OutOfRangeError("too long", field=f"items[{place}].response", metadata={ABSTENTION: "context overflow"}),
    "no-verdict": abstains("no rating"),
    "not-finite": abstains("not finite"),
    "nan": lambda place: rating(math.nan),
    "prompt": lambda place: InvalidArgumentError("the prompt is too long", field=f"items[{place}].prompt.messages"),
    "refused": lambda place: FailedPreconditionError("no such judge"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_abstention_is_no_reward(context: RunContext, feedback: FakeFeedback, fault: str) -> None:
    feedback.faults["bad"] = FAULTS[fault]
    with pytest.raises(FailedPreconditionError, match="fake has no rating of the response to prompt p7 that could be a reward") as stopped:
        scored(context, judge(), ["bad"])
    assert stopped.value.field == "rloo.judge_reward"


@pytest.mark.parametrize("fault", FAULTS)
def test_an_abstention_is_the_lowest_rating_where_that_is_asked_for_and_a_broken_judge_never(
    context: RunContext, feedback: FakeFeedback, fault: str
) -> None:
    feedback.faults["bad"] = FAULTS[fault]
    one = judge(abstentions="lowest")
    if fault in ("overflow", "no-verdict"):
        assert scored(context, one, ["bad", "fine"]) == {0: Score(0, -1.0, (-1.0,)), 1: Score(1, 0.04, (0.04,), FACTS)}
        return
    with pytest.raises(FailedPreconditionError):
        scored(context, one, ["bad", "fine"])


@pytest.mark.parametrize("error", [UnavailableError("away"), ResourceExhaustedError("full"), DeadlineExceededError("slow")])
def test_a_judge_that_is_away_holds_up_no_other_and_is_asked_again(context: RunContext, feedback: FakeFeedback, error: AccordError) -> None:
    feedback.faults["later"] = lambda place: error
    found = scored(context, judge(), ["later", "fine"])
    assert found == {0: error, 1: Score(1, 0.04, (0.04,), FACTS)}


def test_a_call_that_fails_names_the_field_of_the_specification(context: RunContext, feedback: FakeFeedback) -> None:
    feedback.errors = [InvalidArgumentError("there is no judge large; there are default", field="judge")]
    with pytest.raises(InvalidArgumentError, match="no judge large") as refused:
        scored(context, judge(judge="large"), ["x"])
    assert refused.value.field == "rloo.judge_reward.judge"


def test_another_judge_ends_the_run(context: RunContext, feedback: FakeFeedback) -> None:
    one = judge()
    scored(context, one, ["x"])
    feedback.digest = "e" * 64
    with pytest.raises(FailedPreconditionError, match=r"ratings by fake \(dddddddddddd\) .* these are by fake \(eeeeeeeeeeee\)"):
        scored(context, one, ["y"])
    assert one.facts == FACTS


def test_a_rubric_of_another_kind_or_task_is_refused_with_those_there_are(context: RunContext, feedback: FakeFeedback) -> None:
    JudgeScorer(context, judge(rubric="conversation/rating/1")).check_service()
    for rubric in ("summarization/rating/1", "conversation/detailed/1"):
        with pytest.raises(InvalidArgumentError, match=r"no rating rubric .* for conversation; it has conversation/rating/1$") as refused:
            JudgeScorer(context, judge(rubric=rubric)).check_service()
        assert refused.value.field == "rloo.judge_reward.rubric"


def test_prompts_of_another_task_are_refused() -> None:
    other = replace(PROMPT, record=Prompt("p8", Task.SUMMARIZATION, MESSAGES))
    judge().check_prompts([PROMPT])
    with pytest.raises(InvalidArgumentError, match="conversation, but there are prompts of the task summarization") as refused:
        judge().check_prompts([PROMPT, other])
    assert refused.value.field == "rloo.judge_reward.task"
