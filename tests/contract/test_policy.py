"""The policy server in a process of its own: what it samples, which adapters it takes, and how it stops and starts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from tests.contract import tiny
from tests.contract.entries import POLICY
from tests.contract.harness import ServerProcess, ServiceEntry, eventually

from accord.client.messages import ModelDigests, TokenIds
from accord.client.policy import GenerateItem, LogprobsItem, PolicyClient, Sample, Sampling, StreamEvent
from accord.errors import (
    AccordError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    UnavailableError,
)
from accord.rpc.channels import ChannelConfig

GREEDY = Sampling(temperature=0, max_tokens=40)
DRAWN = Sampling(temperature=0.7, max_tokens=30, seed=7)
SLOW = Sampling(max_tokens=400, ignore_eos=True)
PROMPTS = ("a", "What is a byte?", "Name three rivers, and say which one is the longest of them.", "ünïcödé 🌊", "tell me " * 9)
FIRST, SECOND, THIRD = (f"adapters/{name}/versions/1" for name in tiny.POLICIES)


@pytest.fixture(scope="module")
def server(shared_server: Callable[[ServiceEntry], ServerProcess]) -> ServerProcess:
    return shared_server(POLICY)


@pytest.fixture(scope="module")
def policy(server: ServerProcess) -> Iterator[PolicyClient]:
    with PolicyClient(ChannelConfig(address=server.address, attempts=1)) as opened:
        yield opened


def ask(text: str, sampling: Sampling = GREEDY, n: int = 1) -> GenerateItem:
    return GenerateItem(tiny.user(text), sampling, n)


def one(policy: PolicyClient, item: GenerateItem, *, adapter: str = "") -> Sample:
    """The only sample of an item asked alone."""
    (result,) = policy.generate([item], adapter=adapter).results
    assert result.error is None, result.error
    (sample,) = result.samples
    return sample


def close_to(logprobs: tuple[float, ...]) -> object:
    return pytest.approx(logprobs, abs=1e-4)


# What is sampled


@pytest.mark.parametrize(("adapter", "penalty"), [("", 1.0), (FIRST, 1.0), (FIRST, 1.3)])
def test_greedy_is_what_transformers_generates_token_for_token(policy: PolicyClient, adapter: str, penalty: float) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny.model_folder())
    if adapter:
        model = PeftModel.from_pretrained(model, str(tiny.store().fetch(adapter)))
    tokenizer = AutoTokenizer.from_pretrained(tiny.model_folder())
    reply = policy.generate([ask(text, replace(GREEDY, repetition_penalty=penalty)) for text in PROMPTS], adapter=adapter)
    for text, result in zip(PROMPTS, reply.results, strict=True):
        turns = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.inference_mode():
            expected = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40, eos_token_id=2, pad_token_id=0,
                repetition_penalty=penalty,
            )  # fmt: skip
        assert result.prompt_token_ids == tuple(ids[0].tolist())
        (sample,) = result.samples
        assert sample.token_ids == tuple(expected[0, ids.shape[1] :].tolist())
        assert sample.text == tokenizer.decode(sample.token_ids, skip_special_tokens=True)
        assert sample.finish_reason == ("eos" if sample.token_ids[-1] == 2 else "length")
    texts = {result.samples[0].token_ids for result in reply.results}
    assert len(texts) == len(PROMPTS), "prompts that all give the same prove nothing"


def test_a_seed_gives_the_same_alone_in_a_full_batch_and_at_another_place(policy: PolicyClient) -> None:
    item = ask(PROMPTS[1], DRAWN)
    alone = one(policy, item)
    others = [ask(text * (1 + number % 3), replace(DRAWN, seed=number, temperature=1.3)) for number, text in enumerate(PROMPTS * 6)]
    for place in (0, 17, 30):
        batch = [*others[:place], item, *others[place:]]
        sample = policy.generate(batch).results[place].samples[0]
        assert (sample.token_ids, sample.text, sample.seed) == (alone.token_ids, alone.text, 7)
        assert sample.logprobs == close_to(alone.logprobs)
    streamed = [event.sample for event in policy.generate_stream([others[0], item]) if event.sample is not None and event.item_index == 1]
    assert [sample.token_ids for sample in streamed if sample is not None] == [alone.token_ids]
    assert one(policy, ask(PROMPTS[1], replace(DRAWN, seed=8))).token_ids != alone.token_ids
    assert one(policy, ask(PROMPTS[2], DRAWN)).token_ids != alone.token_ids


def test_without_a_seed_the_server_chooses_one_and_says_which(policy: PolicyClient) -> None:
    item = ask(PROMPTS[1], replace(DRAWN, seed=None))
    first, second = one(policy, item), one(policy, item)
    assert first.seed != second.seed
    assert one(policy, ask(PROMPTS[1], replace(DRAWN, seed=first.seed))).token_ids == first.token_ids


@pytest.mark.parametrize("adapter", ["", SECOND])
def test_samples_of_a_prompt_differ_and_their_logprobs_are_those_that_the_model_computes(policy: PolicyClient, adapter: str) -> None:
    """Also under truncation and penalties, which choose the token and leave its logprob alone."""
    plain, cut = replace(DRAWN, max_tokens=20), replace(DRAWN, max_tokens=20, top_p=0.5, top_k=40, min_p=0.01, repetition_penalty=1.3)
    results = policy.generate([ask(PROMPTS[1], plain, n=6), ask(PROMPTS[3], cut, n=3)], adapter=adapter).results
    samples = results[0].samples
    assert [sample.index for sample in samples] == list(range(6))
    assert len({sample.token_ids for sample in samples}) == 6
    for text, result in zip((PROMPTS[1], PROMPTS[3]), results, strict=True):
        responses = tuple(TokenIds(sample.token_ids) for sample in result.samples)
        given = policy.compute_logprobs([LogprobsItem(tiny.user(text), responses)], adapter=adapter, temperature=0.7).results[0]
        assert given.prompt_token_ids == result.prompt_token_ids
        for sample, computed in zip(result.samples, given.responses, strict=True):
            assert sample.logprobs == close_to(computed.logprobs)
            assert computed.sequence_logprob == pytest.approx(sum(computed.logprobs), abs=1e-5)
    other = policy.compute_logprobs([LogprobsItem(tiny.user(PROMPTS[1]), (TokenIds(samples[0].token_ids),))], adapter=adapter, temperature=1.0)
    assert other.results[0].responses[0].sequence_logprob != pytest.approx(sum(samples[0].logprobs), abs=0.01)


def test_greedy_logprobs_are_those_at_temperature_one(policy: PolicyClient) -> None:
    sample = one(policy, ask(PROMPTS[1]))
    computed = policy.compute_logprobs([LogprobsItem(tiny.user(PROMPTS[1]), (TokenIds(sample.token_ids),))]).results[0].responses[0]
    assert sample.logprobs == close_to(computed.logprobs)


def test_logprobs_do_not_depend_on_the_batch(policy: PolicyClient) -> None:
    items = [LogprobsItem(tiny.user(text), ("yes", "no, never again", text)) for text in PROMPTS]
    together = policy.compute_logprobs(items, append_eos=True).results
    for item, result in zip(items, together, strict=True):
        for index, response in enumerate(item.responses):
            alone = policy.compute_logprobs([LogprobsItem(item.prompt, (response,))], append_eos=True).results[0].responses[0]
            assert alone.token_ids == result.responses[index].token_ids
            assert alone.token_ids[-1] == 2
            assert alone.logprobs == close_to(result.responses[index].logprobs)


def test_top_k_of_one_is_greedy_and_more_is_not(policy: PolicyClient) -> None:
    greedy = one(policy, ask(PROMPTS[1])).token_ids
    assert one(policy, ask(PROMPTS[1], Sampling(temperature=2, top_k=1, max_tokens=40))).token_ids == greedy
    assert one(policy, ask(PROMPTS[1], Sampling(temperature=2, top_k=50, max_tokens=40, seed=1))).token_ids != greedy
    assert one(policy, ask(PROMPTS[1], Sampling(temperature=1e-6, max_tokens=40, seed=1))).token_ids == greedy


def middle_of(text: str) -> str:
    """Two characters out of the middle of a text, whole ones, that do not stand at its very begin."""
    pairs = (text[place : place + 2] for place in range(4, len(text) - 4))
    return next(pair for pair in pairs if "�" not in pair and text.find(pair) >= 3)


def test_a_response_ends_before_a_stop_string_and_at_a_stop_token(policy: PolicyClient) -> None:
    sampling = Sampling(max_tokens=60, seed=3, ignore_eos=True)
    whole = one(policy, ask(PROMPTS[1], sampling))
    stop = middle_of(whole.text)
    item = ask(PROMPTS[1], replace(sampling, stop=("never in there", stop)))
    cut = one(policy, item)
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.find(stop)]
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    events = list(policy.generate_stream([item]))
    assert "".join(event.text for event in events) == cut.text
    token = whole.token_ids[9]
    place = whole.token_ids.index(token)
    ended = one(policy, ask(PROMPTS[1], replace(sampling, stop_token_ids=(token,))))
    assert (ended.finish_reason, ended.token_ids) == ("stop", whole.token_ids[: place + 1])
    assert whole.finish_reason == "length"
    assert len(whole.token_ids) == 60


def test_a_response_ends_where_the_context_does(policy: PolicyClient) -> None:
    context = policy.model_info().context_tokens
    result = policy.generate([ask("x" * (context - 60), Sampling(max_tokens=1000, ignore_eos=True))]).results[0]
    assert len(result.prompt_token_ids) + len(result.samples[0].token_ids) == context
    assert result.samples[0].finish_reason == "length"


def test_the_chunks_of_a_stream_add_up_to_what_generate_returns(policy: PolicyClient) -> None:
    items = [ask(text, Sampling(seed=number, max_tokens=50, temperature=1.2), n=2) for number, text in enumerate(PROMPTS)]
    reply = policy.generate(items, adapter=FIRST)
    pieces: dict[tuple[int, int], list[StreamEvent]] = {}
    for event in policy.generate_stream(items, adapter=FIRST):
        assert event.error is None
        pieces.setdefault((event.item_index, event.sample_index), []).append(event)
    assert len(pieces) == 10
    for (item, index), events in pieces.items():
        *chunks, last = events
        assert last.sample == reply.results[item].samples[index]
        assert last.adapter_version == FIRST
        assert "".join(chunk.text for chunk in chunks) == last.sample.text
        assert tuple(itertools.chain.from_iterable(chunk.token_ids for chunk in chunks)) == last.sample.token_ids
        assert len(chunks) > 1 or len(last.sample.token_ids) <= 4
        assert len(chunks) <= len(last.sample.token_ids) // 4 + 1, "a few tokens share a message"
    assert any("�" not in chunk.text and not chunk.text.isascii() for events in pieces.values() for chunk in events), "no wide character was whole"


def test_no_more_rows_are_decoded_together_than_the_server_may(server: ServerProcess, policy: PolicyClient) -> None:
    results = policy.generate([ask(PROMPTS[0], Sampling(max_tokens=3), n=9) for _ in range(8)]).results
    assert [len(result.samples) for result in results] == [9] * 8
    assert server.metric("accord_policy_batch_rows_bucket", le="32.0") == server.metric("accord_policy_batch_rows_count") > 0


# One bad item among others

BAD_ITEMS = [
    (ask("nul \x00 here"), InvalidArgumentError, "prompt.messages[0].content", "NUL"),
    (ask("x" * 600), OutOfRangeError, "prompt", "at most 511"),
    (GenerateItem(TokenIds((5, 100_000))), InvalidArgumentError, "prompt.token_ids.ids[1]", "vocabulary of 259"),
    (GenerateItem(TokenIds(())), InvalidArgumentError, "prompt.token_ids.ids", "at least one"),
    (ask("hello", n=100), InvalidArgumentError, "n", "at most 32"),
]


def test_a_bad_item_never_fails_its_neighbours(policy: PolicyClient) -> None:
    good = [ask(text, DRAWN) for text in PROMPTS]
    mixed = [item for pair in zip(good, (bad[0] for bad in BAD_ITEMS), strict=True) for item in pair]
    reply = policy.generate([replace(item, item_id=f"item-{index}") for index, item in enumerate(mixed)])
    assert [result.item_id for result in reply.results] == [f"item-{index}" for index in range(10)]
    assert [result.samples[0].token_ids for result in reply.results[::2]] == [one(policy, item).token_ids for item in good]
    for index, (_, error_class, field, allowed) in enumerate(BAD_ITEMS):
        error = reply.results[2 * index + 1].error
        assert type(error) is error_class
        assert error.field == f"items[{2 * index + 1}].{field}"
        assert allowed in error.message
    events = list(policy.generate_stream(mixed))
    assert sorted(event.item_index for event in events if event.error is not None) == [1, 3, 5, 7, 9]
    assert sorted(event.item_index for event in events if event.sample is not None) == [0, 2, 4, 6, 8]


def test_a_bad_response_never_fails_its_neighbours(policy: PolicyClient) -> None:
    items = [LogprobsItem(tiny.user("q"), (response,)) for response in ("good", "", "x" * 600, "bad \x00", "good")]
    results = policy.compute_logprobs(items).results
    assert results[0].responses[0].logprobs == close_to(results[4].responses[0].logprobs)
    assert [type(result.error) for result in results[1:4]] == [InvalidArgumentError, OutOfRangeError, InvalidArgumentError]
    assert [result.error.field for result in results[1:4] if result.error] == [
        "items[1].responses[0].text",
        "items[2].responses[0]",
        "items[3].responses[0].text",
    ]


# Adapters


def test_an_adapter_is_loaded_on_demand_and_named_with_digests_in_the_reply(policy: PolicyClient) -> None:
    info = policy.model_info()
    bare = policy.generate([ask(PROMPTS[1])])
    assert (bare.adapter_version, bare.digests) == ("", info.digests)
    reply = policy.generate([ask(PROMPTS[1])], adapter=f"adapters/{tiny.POLICIES[0]}")
    assert (reply.adapter_version, reply.digests) == (FIRST, info.digests)
    assert all(len(digest) == 64 for digest in (info.digests.base_model, info.digests.tokenizer, info.digests.chat_template))
    other = policy.generate([ask(PROMPTS[1])], adapter=SECOND)
    assert len({each.results[0].samples[0].token_ids for each in (bare, reply, other)}) == 3
    assert policy.compute_logprobs([LogprobsItem(tiny.user("q"), ("yes",))], adapter=FIRST).adapter_version == FIRST


def test_the_bare_name_means_the_newest_version_from_one_call_to_the_next(policy: PolicyClient) -> None:
    first = tiny.publish(tiny.store(), "grows", seed=21)
    assert policy.generate([ask("q")], adapter="adapters/grows").adapter_version == first
    second = tiny.publish(tiny.store(), "grows", seed=22)
    assert second != first
    assert policy.generate([ask("q")], adapter="adapters/grows").adapter_version == second
    assert policy.generate([ask("q")], adapter=first).adapter_version == first


def test_the_least_recently_used_adapter_makes_room(policy: PolicyClient) -> None:
    for version in (FIRST, SECOND, FIRST, THIRD):
        policy.generate([ask("q")], adapter=version)
    assert [info.name for info in policy.list_adapters()] == [FIRST, THIRD]
    before = one(policy, ask(PROMPTS[1]), adapter=SECOND)
    policy.generate([ask("q")], adapter=FIRST)
    policy.generate([ask("q")], adapter=THIRD)
    assert one(policy, ask(PROMPTS[1]), adapter=SECOND).token_ids == before.token_ids


def test_adapters_are_loaded_and_forgotten_when_asked(policy: PolicyClient) -> None:
    manifest = tiny.store().manifest(THIRD)
    info = policy.load_adapter(f"adapters/{tiny.POLICIES[2]}")
    assert (info.name, info.digest, info.size_bytes, info.in_use) == (THIRD, manifest.digest, tiny.policy_bytes(), 0)
    assert info in policy.list_adapters()
    policy.unload_adapter(THIRD)
    assert THIRD not in [loaded.name for loaded in policy.list_adapters()]
    with pytest.raises(NotFoundError, match=f"{THIRD} is not loaded") as caught:
        policy.unload_adapter(THIRD)
    assert caught.value.field == "name"
    assert policy.generate([ask("q")], adapter=THIRD).adapter_version == THIRD


def test_calls_that_use_an_adapter_are_counted_until_they_end(policy: PolicyClient) -> None:
    stream = policy.generate_stream([ask("q", SLOW), ask("p", SLOW)], adapter=FIRST)
    next(stream)
    assert {info.name: info.in_use for info in policy.list_adapters()}[FIRST] == 1
    stream.close()
    eventually(lambda: {info.name: info.in_use for info in policy.list_adapters()}[FIRST] == 0)


def test_what_the_caller_believes_of_the_model_is_checked(policy: PolicyClient) -> None:
    served = policy.model_info().digests
    assert policy.generate([ask("q")], expected_digests=served).results[0].samples
    assert policy.generate([ask("q")], expected_digests=ModelDigests()).results[0].samples
    for name in ("base_model", "tokenizer", "chat_template"):
        wrong = "0" * 64
        with pytest.raises(FailedPreconditionError) as caught:
            policy.generate([ask("q")], expected_digests=replace(served, **{name: wrong}))
        assert caught.value.field == f"expected_digests.{name}"
        assert wrong in caught.value.message
        assert getattr(served, name) in caught.value.message


def test_an_adapter_of_another_base_model_is_refused_by_both_digests(policy: PolicyClient) -> None:
    other = "f" * 64
    version = tiny.publish(tiny.store(), "of-another-base", seed=23, base_model_digest=other)
    for call, field in ((lambda: policy.generate([ask("q")], adapter=version), "adapter"), (lambda: policy.load_adapter(version), "name")):
        with pytest.raises(FailedPreconditionError) as caught:
            call()
        assert caught.value.field == field
        assert other in caught.value.message
        assert policy.model_info().digests.base_model in caught.value.message
    assert version not in [info.name for info in policy.list_adapters()]


# Pausing, leaving, waiting


@pytest.fixture
def resumed(policy: PolicyClient) -> Iterator[None]:
    yield
    policy.resume()


@pytest.mark.usefixtures("resumed")
def test_an_abort_ends_what_computes_and_refuses_what_comes_until_the_resumption(server: ServerProcess, policy: PolicyClient) -> None:
    with ThreadPoolExecutor(2) as pool:
        steps = server.metric("accord_policy_decode_steps_total")
        call = pool.submit(policy.generate, [ask("q", SLOW, n=29), ask("p", SLOW)])
        eventually(lambda: server.metric("accord_policy_decode_steps_total") > steps + 1)
        waiting = pool.submit(policy.generate, [ask("q", SLOW, n=3)], adapter=FIRST)
        eventually(lambda: server.metric("accord_queue_depth") == 1)
        assert policy.pause("abort") == 33
        assert [(sample.finish_reason, sample.token_ids) for sample in waiting.result(10).results[0].samples] == [("aborted", ())] * 3
        samples = [sample for result in call.result(10).results for sample in result.samples]
    assert {sample.finish_reason for sample in samples} == {"aborted"}
    assert all(0 < len(sample.token_ids) < 400 for sample in samples)
    assert all(len(sample.logprobs) == len(sample.token_ids) for sample in samples)
    with pytest.raises(UnavailableError, match="paused") as caught:
        policy.generate([ask("q")])
    assert caught.value.retry_after_seconds is not None
    policy.resume()
    assert one(policy, ask("q")).finish_reason in ("eos", "length")
    policy.resume()  # what is not paused is no error


@pytest.mark.usefixtures("resumed")
def test_a_pause_that_waits_finishes_what_computes_and_keeps_what_comes(policy: PolicyClient) -> None:
    stream = policy.generate_stream([ask("q", SLOW)])
    next(stream)
    began = time.monotonic()
    assert policy.pause("wait") == 0
    samples = [event.sample for event in stream if event.sample is not None]
    assert [(sample.finish_reason, len(sample.token_ids)) for sample in samples] == [("length", 400)]
    assert time.monotonic() - began < 20
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(one, policy, ask("q"))
        time.sleep(0.4)
        assert not call.done()
        policy.resume()
        assert call.result(10).text == one(policy, ask("q")).text


@pytest.mark.usefixtures("resumed")
def test_a_pause_that_keeps_goes_on_where_it_stood(server: ServerProcess, policy: PolicyClient) -> None:
    item = ask("q", replace(SLOW, seed=5))
    undisturbed = one(policy, item)
    stream = policy.generate_stream([item])
    next(stream)
    assert policy.pause("keep") == 0
    steps = server.metric("accord_policy_decode_steps_total")
    time.sleep(0.4)
    assert server.metric("accord_policy_decode_steps_total") == steps
    policy.resume()
    assert [event.sample.token_ids for event in stream if event.sample is not None] == [undisturbed.token_ids]
    assert server.metric("accord_policy_decode_steps_total") > steps


@pytest.mark.usefixtures("resumed")
def test_a_call_to_an_engine_that_does_not_move_ends_at_its_deadline_and_is_never_computed(server: ServerProcess, policy: PolicyClient) -> None:
    policy.pause("wait")
    began = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        policy.generate([ask("q")], timeout_seconds=0.5)
    with pytest.raises(DeadlineExceededError):
        list(policy.generate_stream([ask("q")], adapter=FIRST, timeout_seconds=0.5))
    assert time.monotonic() - began < 4
    steps = server.metric("accord_policy_decode_steps_total")
    policy.resume()
    time.sleep(0.5)
    assert server.metric("accord_policy_decode_steps_total") == steps
    assert one(policy, ask("q")).text
    assert server.metric("accord_queue_depth") == 0


def test_a_call_beside_a_long_one_under_another_adapter_does_not_wait_for_it(policy: PolicyClient) -> None:
    alone = one(policy, ask("p", DRAWN), adapter=FIRST)
    stream = policy.generate_stream([ask("q", SLOW, n=16)], adapter=SECOND)
    next(stream)
    assert one(policy, ask("p", DRAWN), adapter=FIRST).token_ids == alone.token_ids
    assert one(policy, ask("p", DRAWN)).token_ids != alone.token_ids
    rest = list(stream)
    assert sum(event.sample is not None for event in rest) == 16
    assert sum(event.sample is None for event in rest) > 16, "the long one had ended before"


def test_a_call_behind_a_full_engine_ends_at_its_deadline(policy: PolicyClient) -> None:
    stream = policy.generate_stream([ask("q", SLOW, n=32)])
    next(stream)
    began = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        policy.generate([ask("p")], adapter=FIRST, timeout_seconds=0.3)
    assert time.monotonic() - began < 3
    stream.close()


def test_a_cancelled_stream_frees_its_slot(server: ServerProcess, policy: PolicyClient) -> None:
    before = server.metric("accord_policy_decode_steps_total")
    stream = policy.generate_stream([ask("q", SLOW, n=16)])
    assert next(stream).token_ids
    stream.close()
    assert one(policy, ask("p", Sampling(max_tokens=2)), adapter=SECOND).token_ids
    assert server.metric("accord_policy_decode_steps_total") - before < 300, "the stream was decoded to its end"
    eventually(lambda: server.metric("accord_rpc_in_flight", service=POLICY.services[0]) == 0)
    steps = server.metric("accord_policy_decode_steps_total")
    time.sleep(0.3)
    assert server.metric("accord_policy_decode_steps_total") == steps
    assert not [line for line in server.log_lines if line["event"] in ("rpc_defect", "compute_failed")]


def test_the_error_of_an_adapter_that_is_away_names_those_that_are_there(policy: PolicyClient) -> None:
    with pytest.raises(AccordError) as caught:
        policy.generate([ask("q")], adapter="adapters/nobody")
    assert type(caught.value) is NotFoundError
    assert caught.value.field == "adapter"
    assert f"adapters/{tiny.POLICIES[0]}" in caught.value.message
