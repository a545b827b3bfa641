"""The policy server under many kinds of callers: what shares a pass, what waits for what, what is reused, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract import tiny
from tests.contract.entries import POLICY, policy_config
from tests.contract.harness import ServerProcess, ServiceEntry, eventually

from accord.client.messages import TokenIds
from accord.client.policy import GenerateItem, LogprobsItem, Origin, PolicyClient, Sampling
from accord.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, ResourceExhaustedError, UnavailableError
from accord.models.base import load_base_model
from accord.models.testing import tiny_model_folder
from accord.rpc.channels import ChannelConfig

FIRST, SECOND, THIRD = (f"adapters/{name}/versions/1" for name in tiny.POLICIES)
DRAWN = Sampling(temperature=0.8, max_tokens=24, seed=11)
LONG = tuple(range(3, 203))


def client(server: ServerProcess, **options: Origin) -> PolicyClient:
    return PolicyClient(ChannelConfig(address=server.address, attempts=1), **options)


@pytest.fixture(scope="module")
def server(shared_server: Callable[[ServiceEntry], ServerProcess]) -> ServerProcess:
    return shared_server(POLICY)


@pytest.fixture(scope="module")
def policy(server: ServerProcess) -> Iterator[PolicyClient]:
    with client(server) as opened:
        yield opened


def ids(prompt: tuple[int, ...], sampling: Sampling = DRAWN, n: int = 1) -> GenerateItem:
    return GenerateItem(TokenIds(prompt), sampling, n)


def close_to(logprobs: tuple[float, ...]) -> object:
    return pytest.approx(logprobs, abs=1e-4)


# Shared prefixes


def test_a_prefix_that_recurs_is_read_once_and_changes_nothing(server: ServerProcess, policy: PolicyClient) -> None:
    def counts() -> tuple[float, float]:
        return tuple(server.metric("accord_policy_prefix_tokens_total", found=found) for found in ("yes", "no"))  # type: ignore[return-value]

    prefix = tuple(range(60, 160))  # twelve whole blocks of 8, and 4
    asked = [ids((*prefix, 200 + number, 7)) for number in range(4)]
    reused, computed = counts()
    together = policy.generate(asked, adapter=FIRST).results
    assert counts() == (reused + 3 * 96, computed + 102 + 3 * 6)
    again = policy.generate(asked, adapter=FIRST).results
    assert counts() == (reused + 7 * 96, computed + 102 + 7 * 6)
    assert [result.samples[0].token_ids for result in again] == [result.samples[0].token_ids for result in together]
    for one, other in zip(again, together, strict=True):
        assert one.samples[0].logprobs == close_to(other.samples[0].logprobs)
    policy.generate(asked[:1], adapter=SECOND)
    assert counts() == (reused + 7 * 96, computed + 102 + 7 * 6 + 102), "another adapter has other keys and values"


def test_the_prompt_of_several_samples_is_read_once(server: ServerProcess, policy: PolicyClient) -> None:
    before = server.metric("accord_policy_tokens_total", kind="read")
    policy.generate([ids(tuple(range(90, 130)), replace(DRAWN, max_tokens=1), n=8)])
    assert server.metric("accord_policy_tokens_total", kind="read") - before == 40


def test_logprobs_reuse_prefixes_too_and_a_template_with_two_verdicts_costs_its_tail(server: ServerProcess, policy: PolicyClient) -> None:
    template = tuple(range(30, 158))
    items = [LogprobsItem(TokenIds((*template, 200 + number)), (TokenIds((5,)), TokenIds((6,)))) for number in range(3)]
    policy.compute_logprobs(items[:1])
    before = server.metric("accord_policy_tokens_total", kind="read")
    found = policy.compute_logprobs(items).results
    assert server.metric("accord_policy_tokens_total", kind="read") - before == 3
    assert len({result.responses[0].logprobs for result in found}) == 3


# Chunks and passes


@pytest.fixture(scope="module")
def small_steps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    config = {**policy_config(Path()), "step_tokens": 32, "prefix_cache_bytes": 0, "max_batch_tokens": 4096, "max_batch_rows": 8}
    with ServerProcess(POLICY.module, {**config, "server": {"drain_seconds": 20}}, tmp_path_factory.mktemp("small")) as started:
        yield started


def test_chunks_of_a_prompt_give_what_one_pass_gives(policy: PolicyClient, small_steps: ServerProcess) -> None:
    items = [ids(LONG), ids(LONG[:33]), ids(LONG[:64]), ids((9,))]
    with client(small_steps) as chunked:
        for one, other in zip(policy.generate(items).results, chunked.generate(items).results, strict=True):
            assert one.samples[0].token_ids == other.samples[0].token_ids
            assert one.samples[0].logprobs == close_to(other.samples[0].logprobs)
        responses = tuple(TokenIds(LONG[start : start + length]) for start, length in ((0, 1), (5, 90), (7, 2), (100, 60), (20, 33)))
        asked = [LogprobsItem(TokenIds(LONG[:70]), responses), LogprobsItem(TokenIds((4, 5)), responses)]
        for one, other in zip(policy.compute_logprobs(asked).results, chunked.compute_logprobs(asked).results, strict=True):
            assert [response.logprobs for response in other.responses] == [close_to(response.logprobs) for response in one.responses]


def test_more_responses_than_fit_beside_a_prompt_take_turns(policy: PolicyClient) -> None:
    responses = tuple(TokenIds(tuple(3 + (start + place) % 250 for place in range(90))) for start in range(30))
    together = policy.compute_logprobs([LogprobsItem(TokenIds(LONG[:50]), responses)]).results[0].responses
    for index in (0, 11, 12, 29):
        alone = policy.compute_logprobs([LogprobsItem(TokenIds(LONG[:50]), responses[index : index + 1])]).results[0].responses[0]
        assert together[index].logprobs == close_to(alone.logprobs)


def test_a_long_prompt_does_not_stall_a_stream(small_steps: ServerProcess) -> None:
    with client(small_steps) as policy, ThreadPoolExecutor(1) as pool:
        stream = policy.generate_stream([ids((9,), Sampling(max_tokens=300, ignore_eos=True))])
        next(stream)
        before = small_steps.metric("accord_policy_decode_steps_total")
        call = pool.submit(policy.generate, [ids(LONG * 2, Sampling(max_tokens=1))])
        call.result(30)
        steps = small_steps.metric("accord_policy_decode_steps_total") - before
        assert steps >= 400 // 32, "400 tokens in passes of 32"
        assert sum(event.sample is not None for event in stream) == 1


# Whose turn it is


def test_interactive_calls_go_before_rollouts_and_those_before_labelling(small_steps: ServerProcess) -> None:
    order: list[str] = []
    with ThreadPoolExecutor(8) as pool, client(small_steps) as admin:
        blocker = admin.generate_stream([ids((9,), Sampling(max_tokens=400, ignore_eos=True), n=6)])
        next(blocker)

        def ask(priority: str) -> None:
            with client(small_steps, origin=Origin(priority)) as caller:  # type: ignore[arg-type]
                caller.generate([ids((8,), Sampling(max_tokens=8, ignore_eos=True), n=7)])
            order.append(priority)

        calls = []
        for waiting, priority in enumerate(("labelling", "rollout", "interactive"), start=1):
            calls.append(pool.submit(ask, priority))
            eventually(lambda waiting=waiting: small_steps.metric("accord_queue_depth") == waiting)
        blocker.close()
        for call in calls:
            call.result(30)
    assert order[0] == "interactive"
    # Seven rows of eight, two of which are kept for interactive calls: rollouts and labelling wait for an empty engine and then go in turn.
    assert order == ["interactive", "rollout", "labelling"]


def test_bulk_work_leaves_rows_for_people(small_steps: ServerProcess) -> None:
    bulk = Sampling(max_tokens=400, ignore_eos=True)
    with client(small_steps, origin=Origin("labelling")) as labelling, client(small_steps) as person:
        stream = labelling.generate_stream([ids((9,), bulk) for _ in range(8)])
        next(stream)
        eventually(lambda: small_steps.metric("accord_queue_depth") == 2)
        person.generate([ids((8,), Sampling(max_tokens=2), n=2)], timeout_seconds=5)
        assert small_steps.metric("accord_queue_depth") == 2, "the bulk call had ended before"
        stream.close()


def test_a_crowding_caller_is_refused_while_another_is_served(tmp_path: Path) -> None:
    config = {**policy_config(tmp_path), "max_queue_tokens": 4000, "caller_share": 0.25, "max_batch_rows": 1, "interactive_rows": 0}
    item = ids((9,), Sampling(max_tokens=300, ignore_eos=True))
    with ServerProcess(POLICY.module, config, tmp_path) as own, client(own) as other, client(own, origin=Origin(caller="crowd")) as crowd:
        stream = crowd.generate_stream([item])
        next(stream)
        other.pause("keep")
        with ThreadPoolExecutor(4) as pool:
            crowding = [pool.submit(crowd.generate, [item]) for _ in range(3)]
            eventually(lambda: own.metric("accord_queue_depth") == 3)
            with pytest.raises(ResourceExhaustedError, match="caller crowd has a cost of 903 waiting") as caught:
                crowd.generate([item])
            assert caught.value.retry_after_seconds is not None
            call = pool.submit(other.generate, [ids((8,), Sampling(max_tokens=2))], timeout_seconds=30)
            eventually(lambda: own.metric("accord_queue_depth") == 4)
            other.resume()
            call.result(20)
            assert sum(waiting.done() for waiting in crowding) <= 1, "callers take turns: the one that came last goes second"
            assert all(waiting.result(30).results[0].samples for waiting in crowding)


# What a call may ask


def test_top_logprobs_are_the_likeliest_tokens_of_the_model(policy: PolicyClient) -> None:
    (result,) = policy.generate([ids(LONG[:20], replace(DRAWN, temperature=0, top_logprobs=5, max_tokens=6))]).results
    (sample,) = result.samples
    assert [len(place) for place in sample.top_logprobs] == [5] * 6
    for token, logprob, place in zip(sample.token_ids, sample.logprobs, sample.top_logprobs, strict=True):
        assert place[0] == (token, pytest.approx(logprob, abs=1e-5))
        assert [value for _, value in place] == sorted((value for _, value in place), reverse=True)
        assert len({candidate for candidate, _ in place}) == 5
    first = tuple(TokenIds((token,)) for token, _ in sample.top_logprobs[0])
    computed = policy.compute_logprobs([LogprobsItem(TokenIds(LONG[:20]), first)]).results[0].responses
    assert [response.logprobs[0] for response in computed] == close_to(tuple(value for _, value in sample.top_logprobs[0]))
    assert policy.generate([ids((5,), DRAWN)]).results[0].samples[0].top_logprobs == ()
    with pytest.raises(InvalidArgumentError, match="20") as caught:
        policy.generate([ids((5,), replace(DRAWN, top_logprobs=21))])
    assert caught.value.field == "items[0].sampling.top_logprobs"


def test_a_call_waits_for_the_version_that_it_needs_at_most_to_its_deadline(policy: PolicyClient) -> None:
    name = "awaited"
    first = tiny.publish(tiny.store(), name, seed=31)
    assert policy.generate([ids((5,))], adapter=f"adapters/{name}", min_policy_version=1).adapter_version == first
    began = time.monotonic()
    with pytest.raises(
        FailedPreconditionError, match="no version 2 or newer within the deadline; its newest is adapters/awaited/versions/1"
    ) as caught:
        policy.generate([ids((5,))], adapter=f"adapters/{name}", min_policy_version=2, timeout_seconds=1.5)
    assert caught.value.field == "min_policy_version"
    assert 0.5 < time.monotonic() - began < 1.5
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(policy.generate, [ids((5,))], adapter=f"adapters/{name}", min_policy_version=2, timeout_seconds=20)
        time.sleep(0.3)
        assert not call.done()
        second = tiny.publish(tiny.store(), name, seed=32)
        assert call.result(10).adapter_version == second
    with pytest.raises(InvalidArgumentError, match="without a version") as wrong:
        policy.generate([ids((5,))], adapter=first, min_policy_version=1)
    assert wrong.value.field == "min_policy_version"


def test_more_than_all_memory_is_refused_at_once(small_steps: ServerProcess) -> None:
    with client(small_steps) as policy:
        for item, message in (
            (ids((5,), replace(DRAWN, max_tokens=500), n=9), "n is 9; at most 8"),
            (ids(LONG * 2, replace(DRAWN, max_tokens=100), n=8), ""),
        ):
            error = policy.generate([item]).results[0].error
            if message:
                assert isinstance(error, InvalidArgumentError)
                assert error.field == "items[0].n"
                assert message in error.message
            else:
                assert error is None, "eight slots of 512 are all of the memory, and no more"


def test_a_new_version_never_disturbs_what_is_in_flight(policy: PolicyClient) -> None:
    name = "moving"
    tiny.publish(tiny.store(), name, seed=41)
    item = ids((9, 10, 11), replace(DRAWN, max_tokens=300, ignore_eos=True))
    alone = policy.generate([item], adapter=f"adapters/{name}").results[0].samples[0]
    stream = policy.generate_stream([item], adapter=f"adapters/{name}")
    next(stream)
    second = tiny.publish(tiny.store(), name, seed=42)
    other = policy.generate([ids((9, 10, 11), replace(DRAWN, max_tokens=5))], adapter=f"adapters/{name}")
    assert other.adapter_version == second
    samples = [event.sample for event in stream if event.sample is not None]
    assert [sample.token_ids for sample in samples] == [alone.token_ids]
    assert other.results[0].samples[0].token_ids != alone.token_ids[:5]


def test_an_adapter_waits_for_room_and_newcomers_do_not_keep_it_waiting(policy: PolicyClient) -> None:
    long = Sampling(max_tokens=400, ignore_eos=True)
    streams = [policy.generate_stream([ids((9,), long)], adapter=version) for version in (FIRST, SECOND)]
    for stream in streams:
        next(stream)
    with ThreadPoolExecutor(2) as pool:
        third = pool.submit(policy.generate, [ids((8,), replace(DRAWN, max_tokens=4))], adapter=THIRD, timeout_seconds=30)
        time.sleep(0.2)
        late = pool.submit(policy.generate, [ids((7,), long)], adapter=FIRST, timeout_seconds=60)
        assert third.result(40).adapter_version == THIRD
        assert not late.done(), "who came later waited for its turn"
        assert late.result(60).adapter_version == FIRST
    for stream in streams:
        stream.close()


# Full weights


def test_full_weights_are_replaced_by_digest_after_what_is_in_flight(tmp_path: Path) -> None:
    update = tiny_model_folder(tmp_path / "update", seed=5)
    wanted = load_base_model(str(update), threads=1).digests
    narrow = load_base_model(str(tiny_model_folder(tmp_path / "narrow", hidden=64)), threads=1)
    item = ids((9, 10, 11), replace(DRAWN, max_tokens=450, ignore_eos=True))  # outlasts the reading of the new weights
    config = {**policy_config(tmp_path), "max_batch_rows": 1, "interactive_rows": 0}
    with ServerProcess(POLICY.module, config, tmp_path) as own, client(own) as policy, ThreadPoolExecutor(1) as pool:
        before = policy.generate([item]).results[0].samples[0]
        policy.generate([ids((5,))], adapter=FIRST)
        with pytest.raises(FailedPreconditionError, match="the caller expects") as caught:
            policy.update_weights(str(update), "0" * 64)
        assert wanted.base_model in caught.value.message
        with pytest.raises(FailedPreconditionError, match="hidden_size is 64, the served one's is 32"):
            policy.update_weights(str(narrow.folder), narrow.digests.base_model)
        with pytest.raises(NotFoundError):
            policy.update_weights(str(tmp_path / "nowhere"), "0" * 64)
        assert policy.generate([item]).results[0].samples[0].token_ids == before.token_ids
        stream = policy.generate_stream([item])
        next(stream)
        waiting = pool.submit(policy.generate, [item])
        eventually(lambda: own.metric("accord_queue_depth") == 1)
        assert policy.update_weights(update.as_uri(), wanted.base_model).base_model == wanted.base_model
        assert [event.sample.token_ids for event in stream if event.sample is not None] == [before.token_ids]
        with pytest.raises(UnavailableError, match="other weights are served since the call came") as replaced:
            waiting.result(10)
        assert replaced.value.retry_after_seconds
        assert policy.list_adapters() == ()
        after = policy.generate([item])
        assert after.digests.base_model == wanted.base_model == policy.model_info().digests.base_model
        assert after.results[0].samples[0].token_ids != before.token_ids
        with pytest.raises(FailedPreconditionError, match="trained on base model"):
            policy.generate([ids((5,))], adapter=FIRST)
        # As a trainer does it: pause, replace, resume.
        policy.pause("wait")
        policy.update_weights(str(tiny.model_folder()), tiny.base_model().digests.base_model)
        policy.resume()
        assert policy.generate([item]).results[0].samples[0].token_ids == before.token_ids
        assert policy.generate([ids((5,))], adapter=FIRST).adapter_version == FIRST


def test_a_paused_server_still_drains(small_steps: ServerProcess) -> None:
    """The last test: that server is gone after it."""
    with client(small_steps) as policy, ThreadPoolExecutor(1) as pool:
        policy.pause("wait")
        call = pool.submit(policy.generate, [ids((5,))])
        eventually(lambda: small_steps.metric("accord_rpc_in_flight", service=POLICY.services[0]) == 1)
        assert small_steps.stop(20) == 0
        assert call.result(5).results[0].samples
