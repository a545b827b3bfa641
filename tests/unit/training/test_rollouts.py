"""Sampling and scoring through clients that behave like the services: order, what is missing, what is broken, models that differ."""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.training.surroundings import NOWHERE, make_context, planted_pairs, publish_reward_model, write_rows

from accord.client.messages import ModelDigests
from accord.client.policy import GenerateItem, Sample, StreamEvent
from accord.client.reward import RewardModel, ScoreItem, ScoreResult
from accord.errors import AccordError, DataLossError, FailedPreconditionError, InternalError, OutOfRangeError, UnavailableError
from accord.rundir import LOCAL_SCORES
from accord.training import rollout, sampler, scorers
from accord.training.context import RunContext
from accord.training.examples import EncodedPrompt
from accord.training.local_scores import LocalScores
from accord.training.rollout import RolloutSource, read_rollouts, write_rollouts
from accord.training.sampler import Draw
from accord.training.scorers import scored_ids
from accord.training.stopping import keeps_state
from accord.training.waiting import ServiceAwayError

DIGESTS = ModelDigests("b" * 64, "t" * 64, "c" * 64)
PROMPTS = [EncodedPrompt(f"p{n}", (1, 10 + n)) for n in range(3)]
DRAW = Draw(5, 0.7, (11, 22, 33))
ONE = RewardModel(("adapters/rm/versions/1",))


class FakePolicy:
    """Answers each prompt with its seed as the only token and an end, last prompt first; `lose` prompts get no answer.

    With `awaits`, the last answer is withheld until that has happened, for a moment at most; `awaited` says whether it did.
    """

    def __init__(self) -> None:
        self.end = 2
        self.digests, self.lose, self.errors = DIGESTS, set[int](), list[AccordError]()
        self.awaits: threading.Event | None = None
        self.awaited: bool | None = None
        self.aborts = 0
        self.dies_after = 1_000
        self.broken = dict[int, int]()
        self.asked: list[tuple[Sequence[GenerateItem], str]] = []

    def model_info(self) -> Any:
        return SimpleNamespace(digests=self.digests)

    def generate_stream(self, items: Sequence[GenerateItem], *, adapter: str, timeout_seconds: float) -> Iterator[StreamEvent]:
        self.asked.append((items, adapter))
        if self.errors:
            raise self.errors.pop()
        self.aborts -= 1
        for count, index in enumerate(reversed(range(len(items)))):
            if count == self.dies_after:
                raise UnavailableError("gone in the middle")
            if index == 0 and self.awaits is not None:
                self.awaited = self.awaits.wait(5.0)
            seed = items[index].sampling.seed or 0
            if self.broken.get(index, 0):
                self.broken[index] -= 1
                yield StreamEvent(index, 0, sample=Sample(0, "", (seed, 2), (-0.5, math.nan), "eos", seed))
                continue
            if index not in self.lose:
                whole = Sample(0, "", (seed, self.end), (-0.5, -0.25), "eos" if index else "length", seed)
                cut = Sample(0, "", (seed,), (-0.5,), "aborted", seed)
                yield StreamEvent(index, 0, sample=cut if self.aborts >= 0 and index == 1 else whole)

    def close(self) -> None: ...


class FakeReward:
    """Scores a response by its first token, each further member one lower, in the order of the questions.

    `until` are the faulty answers that come before the right one.
    """

    def __init__(self) -> None:
        self.digests, self.errors = DIGESTS, dict[str, AccordError]()
        self.described: list[str] = []
        self.until = dict[str, list[Any]]()
        self.dies_after = 1_000
        self.reached = threading.Event()
        self.asked, self.answered, self.read = list[list[str]](), list[str](), dict[str, tuple[int, ...]]()

    def reward_model_info(self, name: str) -> Any:
        self.described.append(name)
        return SimpleNamespace(digests=self.digests)

    def score_stream(self, items: Iterable[ScoreItem], model: RewardModel, *, timeout_seconds: float) -> Iterator[ScoreResult]:
        asked: list[str] = []
        self.asked.append(asked)
        for item in items:
            asked.append(item.item_id)
            self.reached.set()
            self.read[item.item_id] = item.response.ids  # type: ignore[union-attr]
            if len(asked) > self.dies_after:
                raise UnavailableError("gone in the middle")
            fault = self.until.get(item.item_id)
            first: Any = fault.pop(0) if fault else float(item.response.ids[0])  # type: ignore[union-attr]
            self.answered.append(item.item_id)
            error = first if isinstance(first, AccordError) else self.errors.get(item.item_id)
            if error is not None:
                yield ScoreResult(item.item_id, error, 0.0, (), 3)
                continue
            members = tuple(first - place for place in range(len(model.members)))
            mean = sum(members) / len(members)
            score = mean - model.std_coefficient * math.sqrt(sum((each - mean) ** 2 for each in members) / len(members))
            yield ScoreResult(item.item_id, None, score, members, 3)

    def close(self) -> None: ...


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> tuple[FakePolicy, FakeReward]:
    policy, reward = FakePolicy(), FakeReward()
    monkeypatch.setattr(sampler, "PolicyClient", lambda target, **_: policy)
    monkeypatch.setattr(scorers, "RewardClient", lambda target: reward)
    monkeypatch.setattr("accord.training.waiting._FIRST_SECONDS", 0.01)
    return policy, reward


@pytest.fixture
def context(tmp_path: Path, tiny_folder: Path) -> RunContext:
    spec = {"ppo": {"data": write_rows(tmp_path / "rows.jsonl", planted_pairs()), "reward_model": "adapters/rm"}}
    return make_context(tmp_path, tiny_folder, spec, endpoints=NOWHERE)


def test_rollouts_are_in_the_order_of_the_prompts_with_their_own_scores(context: RunContext, services: tuple[FakePolicy, FakeReward]) -> None:
    found = RolloutSource(context, ONE).collect(PROMPTS, DRAW, "adapters/a-rollout/versions/4")
    assert [each.id for each in found] == ["p0", "p1", "p2"]
    assert [each.score for each in found] == [11, 22, 33]
    assert [each.response_ids for each in found] == [(11, 2), (22, 2), (33, 2)]
    assert [each.ended for each in found] == [False, True, True]
    assert {each.adapter_version for each in found} == {"adapters/a-rollout/versions/4"}
    ((items, adapter),) = services[0].asked
    assert adapter == "adapters/a-rollout/versions/4"
    assert [(item.sampling.temperature, item.sampling.max_tokens, item.sampling.seed) for item in items] == [(0.7, 5, 11), (0.7, 5, 22), (0.7, 5, 33)]


def test_responses_are_scored_while_others_are_still_being_sampled(context: RunContext, services: tuple[FakePolicy, FakeReward]) -> None:
    policy, reward = services
    policy.awaits = reward.reached
    found = RolloutSource(context, ONE).collect(PROMPTS, DRAW, "v")
    assert policy.awaited, "the reward service was asked nothing before the policy service's last answer"
    assert [each.score for each in found] == [11, 22, 33]


def test_a_group_is_given_as_soon_as_its_last_response_is_there() -> None:
    """As a judge is asked: in groups, none of which waits for the responses of another one."""
    batch = rollout._Batch([EncodedPrompt(f"p{n}", (1,)) for n in range(5)], Draw(5, 0.7, tuple(range(5))), "v", ())
    log: list[Any] = []

    def places() -> Iterator[int]:
        for place in (3, 0, 2, 4, 1):
            batch.keep_sample(place, Sample(0, "", (place, 2), (-0.5, -0.25), "eos", place))
            log.append(place)
            yield place

    for group in batch.groups(places(), 2):
        log.append([response.place for response in group])
    assert log == [3, 0, 2, [2, 3], 4, [4], 1, [0, 1]]


def test_a_cut_response_is_scored_with_an_end_where_the_context_has_room(context: RunContext, services: tuple[FakePolicy, FakeReward]) -> None:
    """Reward models learn from responses with an end; what is learnt from is what was sampled."""
    end = context.base.encoder.end_of_turn_id
    found = RolloutSource(context, ONE).collect(PROMPTS, DRAW, "v")
    assert services[1].read == {"0": (11, 2, end), "1": (22, 2), "2": (33, 2)}
    assert found[0].response_ids == (11, 2)
    prompt = (1,) * (context.base.context_tokens - 2)
    assert scored_ids(context.base, prompt, (11, 12), ended=False) == (11, 12)
    assert scored_ids(context.base, prompt[1:], (11, 12), ended=False) == (11, 12, end)


@pytest.mark.parametrize("local", [False, True])
def test_a_response_that_ended_with_another_end_token_is_scored_with_the_end_of_the_turn(
    tmp_path: Path, tiny_folder: Path, services: tuple[FakePolicy, FakeReward], local: bool
) -> None:
    """Llama 3 has three, Qwen2.5 two; reward models have learnt to read at the end of the turn alone."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [0, 2]}))
    spec = {"ppo": {"data": write_rows(tmp_path / "rows.jsonl", planted_pairs()), "reward_model": "adapters/rm"}}
    context = make_context(tmp_path, folder, spec, endpoints=NOWHERE.model_copy(update={"reward": LOCAL_SCORES} if local else {}))
    assert context.base.eos_token_ids == (2, 0)
    model = RewardModel((publish_reward_model(context),)) if local else ONE
    source, found = RolloutSource(context, model), []
    for end in (2, 0):
        services[0].end = end
        found.append(source.collect(PROMPTS, DRAW, "v")[1:])
    assert [[each.response_ids for each in rollouts] for rollouts in found] == [[(22, 2), (33, 2)], [(22, 0), (33, 0)]]
    assert [each.score for each in found[0]] == pytest.approx([each.score for each in found[1]], abs=1e-6)
    assert abs(found[0][0].score - found[0][1].score) > 1e-3
    if not local:
        assert (services[1].read["1"], services[1].read["2"]) == ((22, 2), (33, 2))


def test_an_ensemble_scores_as_one_and_its_members_stay_on_record(
    context: RunContext, services: tuple[FakePolicy, FakeReward], tmp_path: Path
) -> None:
    three = RewardModel(("adapters/rm/versions/1", "adapters/rm/versions/2", "adapters/other/versions/1"), 0.5)
    found = RolloutSource(context, three).collect(PROMPTS, DRAW, "v")
    assert [each.member_scores for each in found] == [(11, 10, 9), (22, 21, 20), (33, 32, 31)]
    assert [each.score for each in found] == pytest.approx([mean - 0.5 * math.sqrt(2 / 3) for mean in (10, 21, 32)])
    write_rollouts(tmp_path / "0.jsonl", found)
    assert read_rollouts(tmp_path / "0.jsonl") == found


def test_a_held_out_reward_model_scores_the_same_responses(context: RunContext, services: tuple[FakePolicy, FakeReward], tmp_path: Path) -> None:
    asked: dict[tuple[str, ...], list[str]] = {}
    plain = services[1].score_stream

    def score_stream(items: Iterable[ScoreItem], model: RewardModel, *, timeout_seconds: float) -> Iterator[ScoreResult]:
        for result in plain(items, model, timeout_seconds=timeout_seconds):
            asked.setdefault(model.members, []).append(result.item_id)
            other = 100.0 - result.score
            yield result if model == ONE else replace(result, score=other, member_scores=(other,))

    services[1].score_stream = score_stream  # type: ignore[method-assign]
    services[0].digests = services[1].digests = context.base.digests
    source = RolloutSource(context, ONE, held_out="adapters/honest/versions/3")
    source.check_services()
    assert services[1].described == ["adapters/rm/versions/1", "adapters/honest/versions/3"]
    found = source.collect(PROMPTS, DRAW, "v")
    assert [each.score for each in found] == [11, 22, 33]
    assert [each.held_out_score for each in found] == [89, 78, 67]
    assert {name: sorted(items) for name, items in asked.items()} == {ONE.members: ["0", "1", "2"], ("adapters/honest/versions/3",): ["0", "1", "2"]}
    assert source.score_seconds > 0
    write_rollouts(tmp_path / "0.jsonl", found)
    assert read_rollouts(tmp_path / "0.jsonl") == found


def test_the_wait_for_scores_of_a_source_beside_another_is_known_to_both(context: RunContext, services: tuple[FakePolicy, FakeReward]) -> None:
    source = RolloutSource(context, ONE)
    assert source.score_seconds == 0
    beside = source.beside()
    beside.collect(PROMPTS, DRAW, "v")
    assert source.score_seconds == beside.score_seconds > 0
    once = source.score_seconds
    source.collect(PROMPTS, DRAW, "v")
    assert source.score_seconds == beside.score_seconds > once


def test_only_the_run_itself_tries_again(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC's retries would hide from the run's state what it waits for, and have hung a score stream whose server died until its deadline."""
    targets: list[Any] = []
    for module, name in ((sampler, "PolicyClient"), (scorers, "RewardClient")):
        monkeypatch.setattr(module, name, lambda target, **_: targets.append(target))
    RolloutSource(context, ONE)
    assert [(target.address, target.attempts) for target in targets] == [("127.0.0.1:1", 1)] * 2


def test_a_prompt_without_an_answer_is_no_silent_loss(context: RunContext, services: tuple[FakePolicy, FakeReward]) -> None:
    services[0].lose = {1}
    with pytest.raises(InternalError, match="left 1 of 3 prompts without an answer"):
        RolloutSource(context, ONE).collect(PROMPTS, DRAW, "v")


@pytest.mark.parametrize("fault", [math.nan, math.inf, DataLossError("gives this response a score of nan; its weights or facts are damaged")])
def test_a_score_that_is_no_number_is_asked_for_again_alone(context: RunContext, services: tuple[FakePolicy, FakeReward], fault: Any) -> None:
    policy, reward = services
    reward.until["1"] = [fault, fault]
    found = RolloutSource(context, ONE).collect(PROMPTS, DRAW, "v")
    assert [each.score for each in found] == [11, 22, 33]
    assert [ids for ids in reward.asked if ids] == [["2", "1", "0"], ["1"], ["1"]]
    assert [len(items) for items, _ in policy.asked] == [3], "what was sampled is not sampled again"
    waits = [event.waiting_on for event in context.directory.events() if event.waiting_on]
    assert len(waits) == 2
    for part in (
        "reward service at 127.0.0.1:1",
        "the response to prompt p1 has no score that is a number",
        "adapters/rm/versions/1 gives inf" if fault == math.inf else "nan",
    ):
        assert part in waits[0]


def test_a_score_that_stays_no_number_ends_the_run_by_name(context: RunContext, services: tuple[FakePolicy, FakeReward]) -> None:
    context.run = context.run.model_copy(update={"wait_seconds": 0.2})
    services[1].until["1"] = [math.nan] * 1000
    with pytest.raises(ServiceAwayError, match=r"the response to prompt p1 has no score that is a number: adapters/rm/versions/1 gives nan"):
        RolloutSource(context, ONE).collect(PROMPTS, DRAW, "v")


def test_a_local_score_that_is_no_number_is_not_waited_for(
    context: RunContext, services: tuple[FakePolicy, FakeReward], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same process would compute the same again."""
    monkeypatch.setattr(LocalScores, "_scores", lambda self, member, rows: [math.nan] * len(rows))
    context.run = context.run.model_copy(update={"endpoints": NOWHERE.model_copy(update={"reward": LOCAL_SCORES})})
    with pytest.raises(FailedPreconditionError, match=r"the response to prompt p\d has no score .*adapters/rm/versions/1 gives nan") as caught:
        RolloutSource(context, ONE).collect(PROMPTS, DRAW, "v")
    assert caught.value.metadata["service"] == "reward models in the run's own process"
    assert keeps_state(caught.value), "the run ends after a checkpoint"
    assert not [event for event in context.directory.events() if event.waiting_on]


def test_logprobs_that_are_no_numbers_are_sampled_again(context: RunContext, services: tuple[FakePolicy, FakeReward]) -> None:
    services[0].broken = {1: 1}
    found = RolloutSource(context, ONE).collect(PROMPTS, DRAW, "v")
    assert [each.sampler_logprobs for each in found] == [(-0.5, -0.25)] * 3
    assert [len(items) for items, _ in services[0].asked] == [3, 1]


def test_what_came_before_a_service_went_is_kept(context: RunContext, services: tuple[FakePolicy, FakeReward]) -> None:
    """A service that dies after every single answer is got through, and nothing is asked for twice."""
    policy, reward = services
    policy.dies_after = 1
    reward.dies_after = 1
    found = RolloutSource(context, ONE).collect(PROMPTS, DRAW, "v")
    assert [each.score for each in found] == [11, 22, 33]
    assert [[item.sampling.seed for item in items] for items, _ in policy.asked[:3]] == [[11, 22, 33], [11, 22], [11]]
    assert sorted(reward.answered) == ["0", "1", "2"]


def test_an_item_that_the_reward_service_refuses_is_an_error(context: RunContext, services: tuple[FakePolicy, FakeReward]) -> None:
    services[1].errors["2"] = OutOfRangeError("too long")
    with pytest.raises(OutOfRangeError, match="too long"):
        RolloutSource(context, ONE).collect(PROMPTS, DRAW, "v")


def test_a_service_that_comes_back_is_asked_the_same_again(context: RunContext, services: tuple[FakePolicy, FakeReward]) -> None:
    services[0].errors = [UnavailableError("gone"), UnavailableError("gone")]
    found = RolloutSource(context, ONE).collect(PROMPTS, DRAW, "v")
    assert [each.score for each in found] == [11, 22, 33]
    assert len(services[0].asked) == 3
    assert services[0].asked[0] == services[0].asked[2]
    waits = [event.waiting_on for event in context.directory.events() if event.waiting_on]
    assert len(waits) == 2
    assert "policy service at 127.0.0.1:1: UNAVAILABLE: gone" in waits[0]


def test_a_response_that_was_cut_off_by_a_pause_is_sampled_again(context: RunContext, services: tuple[FakePolicy, FakeReward]) -> None:
    """Half a response is none: its end is neither the model's nor the limit's."""
    services[0].aborts = 1
    found = RolloutSource(context, ONE).collect(PROMPTS, DRAW, "v")
    assert [len(items) for items, _ in services[0].asked] == [3, 1]
    assert [len(each.response_ids) for each in found] == [2, 2, 2]


@pytest.mark.parametrize("service", ["policy", "reward"])
@pytest.mark.parametrize("digest", ["base_model", "tokenizer", "chat_template"])
def test_services_with_another_model_are_refused_by_name(
    context: RunContext, services: tuple[FakePolicy, FakeReward], service: str, digest: str
) -> None:
    mine = context.base.digests
    same = ModelDigests(mine.base_model, mine.tokenizer, mine.chat_template)
    for each in services:
        each.digests = same
    source = RolloutSource(context, ONE)
    source.check_services()
    assert services[1].described == list(ONE.members)
    services[service == "reward"].digests = replace(same, **{digest: "f" * 64})
    with pytest.raises(FailedPreconditionError) as error:
        source.check_services()
    assert error.value.field == f"endpoints.{service}"
    for part in (service, digest, "f" * 64, getattr(mine, digest)):
        assert part in str(error.value)
