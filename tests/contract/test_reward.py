"""The reward server in a process of its own: scores against an independent computation, ensembles, streams, comparisons, what a model says of itself."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from tests.contract import tiny
from tests.contract.entries import REWARD
from tests.contract.harness import ServerProcess, ServiceEntry, begin, eventually
from tests.nursery import ROOT

from accord.api.common.v1 import common_pb2
from accord.api.reward.v1 import reward_pb2 as pb
from accord.api.reward.v1 import reward_pb2_grpc as rpc
from accord.artefacts.store import ArtefactStore
from accord.client.messages import ModelDigests, TokenIds
from accord.client.reward import AsyncRewardClient, ComparePair, RewardClient, RewardModel, RewardModelInfo, ScoreItem
from accord.data.readers import read_pairs
from accord.errors import (
    AccordError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
)
from accord.models.heads import HeadFacts, ScalarHead
from accord.rpc.channels import ChannelConfig
from accord.rpc.status import from_rpc_error
from accord.rundir import RunDirectory, RunFile
from accord.runspec import parse_spec

MODEL, SECOND, SHORT = (f"adapters/{name}/versions/1" for name in (tiny.REWARD_MODEL, tiny.SECOND_REWARD_MODEL, tiny.SHORT_REWARD_MODEL))
RESPONSES = ("yes", "no, never", "ünïcödé 🌊", "a long answer that goes on " * 6, "", "x")
PROMPTS = ("a", "What is a byte?", "tell me " * 9)
ITEMS = tuple(ScoreItem(tiny.user(prompt), response, f"{p}-{r}") for p, prompt in enumerate(PROMPTS) for r, response in enumerate(RESPONSES))


@pytest.fixture(scope="module")
def server(shared_server: Callable[[ServiceEntry], ServerProcess]) -> ServerProcess:
    return shared_server(REWARD)


@pytest.fixture(scope="module")
def reward(server: ServerProcess) -> Iterator[RewardClient]:
    with RewardClient(ChannelConfig(address=server.address, attempts=1)) as opened:
        yield opened


def scores(reward: RewardClient, items: tuple[ScoreItem, ...], model: RewardModel | str = MODEL) -> list[float]:
    results = reward.score(items, model).results
    assert [result.error for result in results] == [None] * len(items)
    return [result.score for result in results]


def raw_scores(items: tuple[ScoreItem, ...], version: str) -> list[float]:
    """Raw scores one by one, by transformers and PEFT alone: no padding, no batch, no code of the service but the head's file."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny.store().fetch(version)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny.model_folder()), str(folder)).eval()
    tokenizer, head = AutoTokenizer.from_pretrained(tiny.model_folder()), ScalarHead.load(folder)
    found = []
    for item in items:
        assert isinstance(item.prompt, tuple)
        turns = [{"role": "user", "content": item.prompt[0].content}]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) + str(item.response) + "<|im_end|>"
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            found.append(float(head(model(ids, output_hidden_states=True).hidden_states[-1][0, -1])))
    return found


# Scores


def test_a_score_is_the_centred_and_scaled_value_at_the_end_of_the_turn(reward: RewardClient) -> None:
    raw = raw_scores(ITEMS, MODEL)
    assert max(raw) - min(raw) > 1, "scores that hardly differ prove nothing"
    expected = [(value - tiny.HEAD_FACTS.mean) / tiny.HEAD_FACTS.std for value in raw]
    reply = reward.score(ITEMS, MODEL)
    assert [result.score for result in reply.results] == pytest.approx(expected, abs=1e-4)
    assert [result.member_scores for result in reply.results] == [(result.score,) for result in reply.results]
    assert [result.item_id for result in reply.results] == [item.item_id for item in ITEMS]
    assert reply.reward_model_versions == (MODEL,)
    assert reply.usage.prompt_tokens + reply.usage.response_tokens == sum(result.tokens for result in reply.results)


def test_a_score_depends_on_neither_batch_nor_order_nor_padding(reward: RewardClient) -> None:
    together = dict(zip(ITEMS, scores(reward, ITEMS), strict=True))
    assert scores(reward, ITEMS[::-1]) == pytest.approx([together[item] for item in ITEMS[::-1]], abs=1e-4)
    for item in ITEMS[::4]:
        assert scores(reward, (item,)) == pytest.approx([together[item]], abs=1e-4)
        longest = ScoreItem(tiny.user("p" * 350), "y")
        assert scores(reward, (longest, item, longest))[1] == pytest.approx(together[item], abs=1e-4)


def test_token_ids_score_as_the_text_that_they_are(reward: RewardClient) -> None:
    from transformers import AutoTokenizer

    ids = tuple(AutoTokenizer.from_pretrained(tiny.model_folder())("yes", add_special_tokens=False)["input_ids"])
    text, same, without_end = reward.score([ScoreItem(tiny.user("a"), form) for form in ("yes", TokenIds((*ids, 2)), TokenIds(ids))], MODEL).results
    assert (same.tokens, same.score) == (text.tokens, pytest.approx(text.score, abs=1e-6))
    assert without_end.tokens == text.tokens - 1
    assert without_end.score != pytest.approx(text.score, abs=1e-3)


def test_an_empty_response_has_a_score_of_its_own(reward: RewardClient) -> None:
    empty, other = reward.score([ScoreItem(tiny.user("a"), ""), ScoreItem(tiny.user("a"), "x")], MODEL).results
    assert empty.error is None
    assert empty.tokens == other.tokens - 1
    assert math.isfinite(empty.score)
    assert empty.score != other.score


def test_a_response_that_is_too_long_is_its_own_error_and_names_the_limit(reward: RewardClient) -> None:
    good = ScoreItem(tiny.user("a"), "yes")
    for model, limit, text in ((MODEL, 400, "x" * 390), (SHORT, 40, "x" * 30), (SECOND, 512, "x" * 500)):
        fine, long, also = reward.score([good, replace(good, response=text), good], model).results
        assert type(long.error) is OutOfRangeError
        assert long.error.field == "items[1]"
        assert f"at most {limit}" in long.error.message
        assert fine.error is None
        assert fine.score == pytest.approx(also.score, abs=1e-6)
        assert fine.score == pytest.approx(scores(reward, (good,), model)[0], abs=1e-4)


def test_a_bad_item_never_fails_its_neighbours(reward: RewardClient) -> None:
    good = ScoreItem(tiny.user("a"), "yes")
    bad = [replace(good, response="nul \x00"), replace(good, prompt=tiny.user("nul \x00")), replace(good, response=TokenIds((9999,)))]
    results = reward.score([good, *bad, good], MODEL).results
    assert results[0].score == pytest.approx(results[4].score, abs=1e-6)
    assert [(type(result.error), result.error and result.error.field) for result in results[1:4]] == [
        (InvalidArgumentError, "items[1].response.text"),
        (InvalidArgumentError, "items[2].prompt.messages[0].content"),
        (InvalidArgumentError, "items[3].response.token_ids.ids[0]"),
    ]


# Ensembles


@pytest.mark.parametrize("coefficient", [0.0, 1.0, 2.5])
def test_an_ensemble_is_the_mean_minus_k_standard_deviations(reward: RewardClient, coefficient: float) -> None:
    model = RewardModel((MODEL, f"adapters/{tiny.SECOND_REWARD_MODEL}"), coefficient)
    reply = reward.score(ITEMS, model)
    singles = list(zip(scores(reward, ITEMS, MODEL), scores(reward, ITEMS, SECOND), strict=True))
    for result, pair in zip(reply.results, singles, strict=True):
        assert result.member_scores == pytest.approx(pair, abs=1e-4)
        expected = statistics.mean(result.member_scores) - coefficient * statistics.pstdev(result.member_scores)
        assert result.score == pytest.approx(expected, abs=1e-9)
    assert any(abs(a - b) > 0.5 for a, b in singles), "members that agree prove nothing"
    assert reply.reward_model_versions == (MODEL, SECOND)


def test_a_third_model_takes_the_place_of_the_least_recently_used_one(server: ServerProcess, reward: RewardClient) -> None:
    short = tuple(item for item in ITEMS if item.item_id in ("0-0", "0-1"))
    before = {model: scores(reward, short, model) for model in (MODEL, SECOND, SHORT)}
    assert server.metric("accord_reward_loaded_models") == 2
    for model in (MODEL, SHORT, SECOND):
        assert scores(reward, short, model) == pytest.approx(before[model], abs=1e-6)
    assert len({values[0] for values in before.values()}) == 3


# Streams


def test_a_stream_gives_the_scores_of_the_batch(reward: RewardClient) -> None:
    streamed = {result.item_id: result.score for result in reward.score_stream(iter(ITEMS), MODEL)}
    assert streamed == {item.item_id: pytest.approx(score, abs=1e-4) for item, score in zip(ITEMS, scores(reward, ITEMS), strict=True)}


def test_a_stream_answers_out_of_order_and_a_bad_item_does_not_end_it(server: ServerProcess, reward: RewardClient) -> None:
    """While the engine has other work, an item that cannot be scored is answered at once, although it came behind the others."""
    bad = ScoreItem(tiny.user("a"), "nul \x00", "bad")
    items = [*(ScoreItem(tiny.user("p"), f"{number}", f"n{number}") for number in range(9)), bad]
    with server.channel() as channel:
        other_work = begin(channel, REWARD.slow, "other work")
        eventually(lambda: server.metric("accord_queue_depth") > 0)
        results = list(reward.score_stream(iter(items), MODEL))
        other_work.cancel()
    order = [result.item_id for result in results]
    assert order[0] == "bad"
    assert sorted(order) == sorted(item.item_id for item in items)
    errors = {result.item_id: result.error for result in results if result.error is not None}
    assert list(errors) == ["bad"]
    assert errors["bad"] is not None
    assert errors["bad"].field == "item.response.text"


async def test_scores_come_while_items_are_still_to_be_sent(server: ServerProcess) -> None:
    """Each item is sent only once the one before has its score: a server that reads to the end first would never answer."""
    answered: asyncio.Queue[str] = asyncio.Queue()

    async def items() -> AsyncIterator[ScoreItem]:
        for number in range(5):
            yield ScoreItem(tiny.user("a"), f"{number}", str(number))
            assert await answered.get() == str(number)

    async with AsyncRewardClient(ChannelConfig(address=server.address, attempts=1)) as client:
        seen = []
        async for result in client.score_stream(items(), MODEL, timeout_seconds=20):
            seen.append(result.item_id)
            answered.put_nowait(result.item_id)
    assert seen == ["0", "1", "2", "3", "4"]


def test_an_id_that_comes_twice_ends_the_stream_and_is_named(reward: RewardClient) -> None:
    item = ScoreItem(tiny.user("a"), "yes", "same")
    with pytest.raises(InvalidArgumentError, match="'same' came twice") as caught:
        list(reward.score_stream(iter([item, item]), MODEL))
    assert caught.value.field == "item.item_id"


# Comparisons


def test_a_comparison_is_the_sigmoid_of_the_raw_difference(reward: RewardClient) -> None:
    pairs = [ComparePair(tiny.user(prompt), a, b, f"{prompt[:3]} {a[:3]} {b[:3]}") for prompt in PROMPTS for a, b in itertools.pairwise(RESPONSES)]
    raw_a = raw_scores(tuple(ScoreItem(pair.prompt, pair.response_a) for pair in pairs), MODEL)
    raw_b = raw_scores(tuple(ScoreItem(pair.prompt, pair.response_b) for pair in pairs), MODEL)
    reply = reward.compare(pairs, MODEL)
    probabilities = [result.probability_a for result in reply.results]
    assert probabilities == pytest.approx([1 / (1 + math.exp(b - a)) for a, b in zip(raw_a, raw_b, strict=True)], abs=1e-4)
    assert min(probabilities) < 0.4
    assert max(probabilities) > 0.6
    for result, pair in zip(reply.results, pairs, strict=True):
        both = scores(reward, (ScoreItem(pair.prompt, pair.response_a), ScoreItem(pair.prompt, pair.response_b)))
        assert [result.score_a, result.score_b] == pytest.approx(both, abs=1e-4)
    swapped = reward.compare([replace(pair, response_a=pair.response_b, response_b=pair.response_a) for pair in pairs], MODEL)
    assert [result.probability_a for result in swapped.results] == pytest.approx([1 - value for value in probabilities], abs=1e-5)


def test_equal_responses_are_even_and_a_bad_pair_is_its_own_error(reward: RewardClient) -> None:
    good = ComparePair(tiny.user("a"), "same", "same", "good")
    even, bad, also = reward.compare([good, replace(good, response_b="nul \x00", item_id="bad"), good], MODEL).results
    assert even.probability_a == pytest.approx(0.5, abs=1e-6)
    assert also.error is None
    assert type(bad.error) is InvalidArgumentError
    assert bad.error.field == "pairs[1].response_b.text"


# What a model says of itself


def test_the_info_carries_what_the_manifest_says(reward: RewardClient) -> None:
    manifest = tiny.store().manifest(MODEL)
    info = reward.reward_model_info(f"adapters/{tiny.REWARD_MODEL}")
    facts = tiny.HEAD_FACTS
    assert (info.reward_model, info.digest) == (MODEL, manifest.digest)
    assert (info.score_mean, info.score_std, info.max_tokens) == (facts.mean, facts.std, facts.max_tokens)
    assert (info.held_out_accuracy, info.training_data_digest) == (facts.held_out_accuracy, facts.training_data_digest)
    assert reward.reward_model_info(SECOND).held_out_accuracy is None
    bare = reward.reward_model_info()
    assert (bare.reward_model, bare.digests) == ("", info.digests)
    assert len(info.digests.base_model) == 64


def held_out() -> Path:
    """The pairs of the small data set behind other prompts."""
    path = tiny.small_dataset().with_name("held-out.jsonl")
    rows = [json.loads(line) for line in tiny.small_dataset().read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "prompt": f"tell {row['prompt']}"}) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reward model that accord.training has really trained, published into the store of the server."""
    folder = tmp_path_factory.mktemp("trained")
    data = {"uri": str(tiny.small_dataset())}
    spec = {
        "adapter": "trained-reward",
        "steps": 4,
        "batch_size": 4,
        "lora": {"rank": 4},
        "reward_model": {"data": data, "eval_data": {"uri": str(held_out())}},
    }
    run = RunFile(
        name="runs/trained-reward", artefacts=tiny.store().uri, base_model=str(tiny.model_folder()), threads=1, spec=parse_spec(spec)
    )  # fmt: skip
    RunDirectory(folder).write_run_file(run)
    command = [sys.executable, "-m", "accord.training", "--config", str(folder / "run.yaml")]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT / "services")}, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    result = RunDirectory(folder).result()
    assert result is not None
    return result.adapter_version


def test_a_trained_model_says_how_good_it_is_and_its_scores_are_centred_on_its_data(reward: RewardClient, trained: str) -> None:
    info: RewardModelInfo = reward.reward_model_info(trained)
    pairs = read_pairs(str(tiny.small_dataset())).rows
    chosen = scores(reward, tuple(ScoreItem(pair.messages, pair.chosen) for pair in pairs), trained)
    rejected = scores(reward, tuple(ScoreItem(pair.messages, pair.rejected) for pair in pairs), trained)
    assert statistics.mean(chosen + rejected) == pytest.approx(0, abs=1e-3)
    assert statistics.pstdev(chosen + rejected) == pytest.approx(1, abs=1e-3)
    held = read_pairs(str(held_out())).rows
    better = scores(reward, tuple(ScoreItem(pair.messages, pair.chosen) for pair in held), trained)
    worse = scores(reward, tuple(ScoreItem(pair.messages, pair.rejected) for pair in held), trained)
    hits = [a > b for a, b in zip(better, worse, strict=True)]
    assert info.held_out_accuracy == pytest.approx(sum(hits) / len(hits))
    assert info.training_data_digest == tiny.store().manifest(trained).data_digest != ""
    assert info.score_std > 0
    assert info.max_tokens == 512 + 128 + 1  # a cut response is given an end
    comparison = reward.compare([ComparePair(pairs[0].messages, pairs[0].chosen, pairs[0].rejected)], trained).results[0]
    expected = 1 / (1 + math.exp(-(chosen[0] - rejected[0]) * info.score_std))
    assert comparison.probability_a == pytest.approx(expected, abs=1e-4)


# Models that may not score


def refused(call: Callable[[], object]) -> AccordError:
    with pytest.raises(AccordError) as caught:
        call()
    return caught.value


def test_a_model_that_may_not_score_is_refused_with_the_member_that_it_is(reward: RewardClient) -> None:
    store: ArtefactStore = tiny.store()
    other_base = "e" * 64
    stranger = tiny.publish_reward_model(store, "of-another-base-reward", HeadFacts(), seed=31, base_model_digest=other_base)
    damaged = tiny.publish_reward_model(store, "damaged-reward", HeadFacts(), seed=32)
    head = store.fetch(damaged) / "head.safetensors"
    content = bytearray(head.read_bytes())
    content[-3] ^= 1
    head.write_bytes(bytes(content))
    cases = [
        ("adapters/nobody", NotFoundError, tiny.REWARD_MODEL),
        (f"adapters/{tiny.POLICIES[0]}", FailedPreconditionError, "kind policy and has no scalar head"),
        (stranger, FailedPreconditionError, other_base),
        (damaged, DataLossError, "head.safetensors"),
        ("adapters/../../etc", InvalidArgumentError, "adapters/{adapter}"),
    ]
    item = ScoreItem(tiny.user("a"), "yes")
    for name, error_class, text in cases:
        for error in (
            refused(lambda name=name: reward.score([item], RewardModel((MODEL, name)))),
            refused(lambda name=name: list(reward.score_stream(iter([item]), RewardModel((MODEL, name))))),
            refused(lambda name=name: reward.compare([ComparePair(item.prompt, "a", "b")], RewardModel((MODEL, name)))),
        ):
            assert type(error) is error_class, (name, error)
            assert error.field == "reward_model.members[1]"
            assert text in error.message
        if name != damaged:  # describing reads the manifest alone
            assert refused(lambda name=name: reward.reward_model_info(name)).field == "reward_model"
    assert scores(reward, (item,))


def test_what_the_caller_believes_of_the_model_is_checked(reward: RewardClient) -> None:
    item, served = ScoreItem(tiny.user("a"), "yes"), reward.reward_model_info().digests
    assert reward.score([item], MODEL, expected_digests=served).results[0].error is None
    error = refused(lambda: reward.score([item], MODEL, expected_digests=ModelDigests(tokenizer="0" * 64)))
    assert type(error) is FailedPreconditionError
    assert error.field == "expected_digests.tokenizer"
    assert "0" * 64 in error.message
    assert served.tokenizer in error.message


def test_the_first_message_of_a_stream_must_name_the_model(server: ServerProcess) -> None:
    turn = common_pb2.ChatMessage(role=common_pb2.ROLE_USER, content="a")
    prompt = common_pb2.Prompt(messages=common_pb2.ChatMessages(messages=[turn]))
    selector = pb.RewardModelSelector(members=[MODEL])

    def request(name: str, reward_model: pb.RewardModelSelector | None) -> pb.ScoreStreamRequest:
        return pb.ScoreStreamRequest(
            item=pb.ScoreItem(item_id=name, prompt=prompt, response=common_pb2.Response(text="x")), reward_model=reward_model
        )

    with server.channel() as channel:
        stub = rpc.RewardServiceStub(channel)
        replies = list(stub.ScoreStream(iter([request("1", selector), request("2", None)]), timeout=20))
        assert {reply.result.item_id: list(reply.reward_model_versions) for reply in replies} == {"1": [MODEL], "2": [MODEL]}
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.ScoreStream(iter([request("1", None)]), timeout=20))
    error = from_rpc_error(caught.value)
    assert (type(error), error.field) == (InvalidArgumentError, "reward_model")
