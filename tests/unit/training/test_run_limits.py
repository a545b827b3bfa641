"""What a run asks against what services take and reward models read: cut into calls that a service takes, or refused before anything is sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.unit.training import test_online_dpo
from tests.unit.training.surroundings import NOWHERE, make_context, planted_pairs, publish_reward_model, write_rows
from tests.unit.training.test_rollouts import ONE, FakePolicy, FakeReward

from accord.client.messages import TokenIds
from accord.client.policy import MOST_ITEMS, MOST_TOKENS, GenerateItem, Origin, Sampling, StreamEvent
from accord.client.policy_wire import stream_request
from accord.errors import InvalidArgumentError, UnavailableError
from accord.rpc.validation import validate
from accord.rundir import LOCAL_SCORES, Endpoints
from accord.runspec import parse_spec
from accord.serving.run_limits import check_reach, check_sampled_tokens
from accord.training import sampler, scorers
from accord.training.__main__ import build
from accord.training.examples import EncodedPrompt
from accord.training.rollout import RolloutSource
from accord.training.sampler import Draw

COUNT = 2 * MOST_ITEMS + 76
PROMPTS = [EncodedPrompt(f"p{n}", (1, 10 + n % 7)) for n in range(COUNT)]
SEEDS = tuple(n % 251 for n in range(COUNT))  # `FakePolicy` answers with them, as tokens; no two calls have the same ones in the same places


class StrictPolicy(FakePolicy):
    """Holds each call to policy.proto's rules, as the service does; `dies_in` is the number of a call that answers one item."""

    dies_in = -1

    def generate_stream(self, items: Sequence[GenerateItem], *, adapter: str, timeout_seconds: float) -> Iterator[StreamEvent]:
        validate(stream_request(items, adapter, Origin()))
        for count, event in enumerate(super().generate_stream(items, adapter=adapter, timeout_seconds=timeout_seconds)):
            if len(self.asked) == self.dies_in and count:
                raise UnavailableError("gone in the middle")
            yield event


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> StrictPolicy:
    made = StrictPolicy()
    reward = FakeReward()
    monkeypatch.setattr(sampler, "PolicyClient", lambda target, **_: made)
    monkeypatch.setattr(scorers, "RewardClient", lambda target: reward)
    monkeypatch.setattr("accord.training.waiting._FIRST_SECONDS", 0.01)
    return made


def spec_of(root: Path, kind: str, **values: Any) -> dict[str, Any]:
    data = write_rows(root / "rows.jsonl", planted_pairs())
    return {**values, kind: {"data": data} | ({} if kind == "online_dpo" else {"reward_model": "adapters/rm"})}


@pytest.mark.parametrize("dies_in", [-1, 2])
def test_more_prompts_than_a_call_takes_are_asked_for_in_several(tmp_path: Path, tiny_folder: Path, policy: StrictPolicy, dies_in: int) -> None:
    """As those of a large batch or a whole test split; what has come stays where one of the calls dies."""
    policy.dies_in = dies_in
    context = make_context(tmp_path, tiny_folder, spec_of(tmp_path, "ppo"), endpoints=NOWHERE)
    found = RolloutSource(context, ONE).collect(PROMPTS, Draw(5, 0.7, SEEDS), "v")
    assert [(each.id, each.score, each.seed) for each in found] == [(f"p{n}", seed, seed) for n, seed in enumerate(SEEDS)]
    sizes = [len(items) for items, _ in policy.asked]
    assert sizes == ([512, 512, 76] if dies_in < 0 else [512, 512, 512, 75])


def test_more_pairs_than_a_call_takes_are_asked_for_in_several(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = test_online_dpo.Services(tmp_path, tiny_folder)
    plain, sizes = services.policy.generate_stream, list[int]()

    def strict(items: Sequence[GenerateItem], *, adapter: str, timeout_seconds: float) -> Iterator[StreamEvent]:
        validate(stream_request(items, adapter, Origin()))
        sizes.append(len(items))
        return plain(items, adapter=adapter, timeout_seconds=timeout_seconds)

    services.policy.generate_stream = strict  # type: ignore[method-assign]
    monkeypatch.setattr(sampler, "PolicyClient", lambda target, **_: services.policy)
    monkeypatch.setattr(test_online_dpo.sampled_pairs, "FeedbackClient", lambda target: services.feedback)
    context, algorithm = services.made(batch_size=300, max_response_tokens=2)
    algorithm.setup()
    algorithm._sampled(0)
    assert sizes == [512, 88]
    assert len((context.directory.rollouts / "00000000.jsonl").read_text().splitlines()) == 300 + 1


def test_the_limits_are_those_of_the_protocol() -> None:
    def asked(count: int, tokens: int) -> None:
        validate(stream_request([GenerateItem(TokenIds((1,)), Sampling(max_tokens=tokens))] * count, "", Origin()))

    asked(MOST_ITEMS, MOST_TOKENS)
    for count, tokens, field in ((MOST_ITEMS + 1, 1, "items"), (1, MOST_TOKENS + 1, "items[0].sampling.max_tokens")):
        with pytest.raises(InvalidArgumentError) as caught:
            asked(count, tokens)
        assert caught.value.field == field


@pytest.mark.parametrize("kind", ["ppo", "grpo", "rloo", "online_dpo"])
def test_longer_responses_than_the_policy_service_samples_are_refused_by_field(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    values = spec_of(tmp_path, kind, batch_size=8, adapter="a", steps=1)
    check_sampled_tokens(parse_spec({**values, "max_response_tokens": MOST_TOKENS}))
    endpoints = Endpoints(policy="127.0.0.1:1", reward="127.0.0.1:1", feedback="127.0.0.1:1")
    context = make_context(tmp_path, tiny_folder, {**values, "max_response_tokens": MOST_TOKENS + 1}, endpoints=endpoints)
    publish_reward_model(context)
    with pytest.raises(InvalidArgumentError, match=rf"8193 is more than the policy service samples; a run of {kind} allows at most 8192") as caught:
        build(context)
    assert caught.value.field == "max_response_tokens"


@pytest.mark.parametrize("reward", ["127.0.0.1:1", LOCAL_SCORES])
@pytest.mark.parametrize("field", ["ppo.reward_model", "ppo.more_reward_models[0]", "guards.held_out_reward_model"])
def test_a_reward_model_that_reads_less_than_the_run_samples_is_refused_by_field(
    tmp_path: Path, tiny_folder: Path, field: str, reward: str
) -> None:  # fmt: skip
    """A prompt of 120 tokens, a response of 10, and the end that it is given where it was cut."""
    values = spec_of(tmp_path, "ppo", guards={"held_out_reward_model": "adapters/held"}, max_response_tokens=10)
    values["ppo"]["more_reward_models"] = ["adapters/more"]
    names = {"ppo.reward_model": "rm", "ppo.more_reward_models[0]": "more", "guards.held_out_reward_model": "held"}
    context = make_context(tmp_path, tiny_folder, values, endpoints=Endpoints(policy="127.0.0.1:1", reward=reward))
    for name in names.values():
        publish_reward_model(context, name=name, reads=131)
    build(context)
    publish_reward_model(context, name=names[field], reads=130)
    again = make_context(tmp_path, tiny_folder, values, name="again", endpoints=Endpoints(policy="127.0.0.1:1", reward=reward))
    with pytest.raises(InvalidArgumentError) as caught:
        build(again)
    assert caught.value.field == field
    for part in (f"adapters/{names[field]}/versions/2 reads at most 130", "max_prompt_tokens 120", "max_response_tokens 10", "come to 131"):
        assert part in str(caught.value)


def test_the_models_context_bounds_what_must_be_read(tmp_path: Path) -> None:
    spec = parse_spec(spec_of(tmp_path, "rloo", max_prompt_tokens=100, max_response_tokens=20, adapter="a", steps=1))
    scorers = {"rloo.reward_model": "adapters/rm/versions/1"}
    check_reach(spec, scorers, lambda _: {"max_tokens": 90}, context_tokens=90)
    check_reach(spec, scorers, lambda _: {})
    for context in (0, 91, 4096):
        with pytest.raises(InvalidArgumentError) as caught:
            check_reach(spec, scorers, lambda _: {"max_tokens": 90}, context_tokens=context, prefix="spec.")
        assert caught.value.field == "spec.rloo.reward_model"
