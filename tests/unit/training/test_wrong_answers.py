"""Services that answer what cannot be, or what was not asked: the run says so and keeps none of it; of two answers the first one counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.training.surroundings import NOWHERE, make_context, planted_pairs, write_rows
from tests.unit.training.test_rollouts import DRAW, ONE, PROMPTS, FakePolicy, FakeReward

from accord.client.feedback import Label, LabelResult
from accord.client.policy import GenerateItem, Sample, StreamEvent
from accord.client.reward import RewardModel, ScoreItem, ScoreResult
from accord.data.records import Prompt, Task
from accord.errors import InternalError
from accord.text.chat import Message
from accord.training import sampler, scorers
from accord.training.examples import EncodedPrompt
from accord.training.rollout import RolloutSource
from accord.training.sampled_pairs import _PairBatch
from accord.training.sampler import Draw
from accord.training.stopping import keeps_state

GOOD = Sample(0, "", (5, 2), (-0.5, -0.25), "eos", 11)


class Saying(FakePolicy):
    """Says what it is told, whatever it is asked."""

    def __init__(self, said: Sequence[tuple[int, Sample]]) -> None:
        super().__init__()
        self.said = said

    def generate_stream(self, items: Sequence[GenerateItem], *, adapter: str, timeout_seconds: float) -> Iterator[StreamEvent]:
        for index, sample in self.said:
            yield StreamEvent(index, 0, sample=sample)


class Scoring(FakeReward):
    """Gives each response these scores, one after the other, under its own name or another."""

    def __init__(self, *scores: float, name: str = "") -> None:
        super().__init__()
        self.given, self.name = scores, name

    def score_stream(self, items: Iterable[ScoreItem], model: RewardModel, *, timeout_seconds: float) -> Iterator[ScoreResult]:
        for item in items:
            for score in self.given:
                yield ScoreResult(self.name or item.item_id, None, score, (score,), 3)


@pytest.fixture
def source(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A source of rollouts whose services the test chooses."""
    spec = {"ppo": {"data": write_rows(tmp_path / "rows.jsonl", planted_pairs()), "reward_model": "adapters/rm"}}
    context = make_context(tmp_path, tiny_folder, spec, endpoints=NOWHERE)

    def made(policy: FakePolicy, reward: FakeReward) -> RolloutSource:
        monkeypatch.setattr(sampler, "PolicyClient", lambda target, **_: policy)
        monkeypatch.setattr(scorers, "RewardClient", lambda target: reward)
        return RolloutSource(context, ONE)

    return made


def refused(source: RolloutSource) -> str:
    """Why a batch is refused; the run ends after a checkpoint, since nothing was learnt."""
    with pytest.raises(InternalError) as caught:
        source.collect(PROMPTS, DRAW, "v")
    assert keeps_state(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token_ids": (), "logprobs": ()}, "it has no token"),
        ({"logprobs": (-0.5, -0.25, -0.1)}, "it has 2 tokens and 3 logprobs"),
        ({"logprobs": (-0.5,)}, "it has 2 tokens and 1 logprobs"),
        ({"token_ids": (1,) * 6, "logprobs": (-0.5,) * 6}, "it has 6 tokens, and 5 were asked for at most"),
        ({"token_ids": (10**6, 2)}, "it has a token 1000000, and the vocabulary has "),
        ({"token_ids": (-1, 2)}, "it has a token -1, and the vocabulary has "),
    ],
)
def test_what_is_no_response_is_refused_by_prompt_and_reason(source: Any, change: dict[str, Any], words: str) -> None:
    said = refused(source(Saying([(0, GOOD), (2, replace(GOOD, **change))]), FakeReward()))
    assert f"the policy service at 127.0.0.1:1 gives a response to prompt p2 that cannot be one: {words}" in said


@pytest.mark.parametrize("index", [3, -1])
def test_an_answer_to_what_was_not_asked_is_refused(source: Any, index: int) -> None:
    """The last place of a batch would take -1 for its own."""
    said = refused(source(Saying([(0, GOOD), (index, GOOD)]), FakeReward()))
    assert f"the policy service at 127.0.0.1:1 answers item {index}, and 3 were asked for" in said


def test_the_first_of_two_samples_counts(source: Any) -> None:
    """The second one may come when the first is scored: the score would be another response's."""
    other = replace(GOOD, token_ids=(9, 2))
    broken = replace(GOOD, logprobs=(math.nan, 0.0))
    made = source(Saying([(0, GOOD), (0, other), (1, other), (1, broken), (2, GOOD), (0, replace(GOOD, token_ids=()))]), FakeReward())
    found = made.collect(PROMPTS, DRAW, "v")
    assert [(each.response_ids, each.score) for each in found] == [((5, 2), 5.0), ((9, 2), 9.0), ((5, 2), 5.0)]


def test_the_first_of_two_scores_counts(source: Any) -> None:
    found = source(FakePolicy(), Scoring(1.0, 9.0)).collect(PROMPTS, DRAW, "v")
    assert [(each.score, each.member_scores) for each in found] == [(1.0, (1.0,))] * 3


@pytest.mark.parametrize("name", ["77", "no number"])
def test_a_score_of_what_was_not_given_is_refused(source: Any, name: str) -> None:
    said = refused(source(FakePolicy(), Scoring(1.0, name=name)))
    assert f"the reward service at 127.0.0.1:1 gives a score of item '{name}', which it was not asked for" in said


def label(pair_id: str, preference: float) -> LabelResult:
    return LabelResult(pair_id, None, Label(pair_id, preference, "a", "", (), "verdict", "r/1", "r" * 64, "fake", "j" * 64))


def test_the_first_label_of_a_pair_counts_and_no_other_is_taken() -> None:
    words = Prompt("p", Task.CONVERSATION, (Message("user", "say it"),))
    batch = _PairBatch([EncodedPrompt("p", (1, 2))], {"p": words}, Draw(5, 0.7, (11, 12)), "v")
    for place, token in enumerate((5, 6)):
        batch.keep_sample(place, replace(GOOD, token_ids=(token, 2), seed=11 + place))
    asked = batch.label_item(0, "runs/r").pair_id
    with pytest.raises(InternalError, match="answers pair 'runs/r/99', which it was not asked for"):
        batch.keep_label(label("runs/r/99", 0.5))
    for wrong in (math.nan, 1.5):
        with pytest.raises(InternalError, match=f"a preference of {wrong}, which is no probability"):
            batch.keep_label(label(asked, wrong))
    batch.keep_label(label(asked, 0.75))
    batch.keep_label(label(asked, 0.25))
    assert [pair.preference for pair in batch.pairs()] == [0.75]
