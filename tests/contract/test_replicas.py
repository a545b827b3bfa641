"""Policy clients over several real replicas: how calls are spread, what goes to another replica, what does not, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.contract import tiny
from tests.contract.entries import POLICY, policy_config
from tests.contract.harness import ServerProcess, eventually

from accord.client.feedback import FeedbackClient, Judge, LabelPairItem
from accord.client.messages import TokenIds
from accord.client.policy import AsyncPolicyClient, GenerateItem, Generation, LogprobsItem, PolicyClient, Sampling
from accord.client.reward import RewardClient
from accord.errors import FailedPreconditionError, InvalidArgumentError, OutOfRangeError, ResourceExhaustedError, UnavailableError
from accord.rpc.channels import ChannelConfig
from accord.text.chat import Message
from accord.text.tasks import Task

pytestmark = pytest.mark.peers
FIRST = f"adapters/{tiny.POLICIES[0]}/versions/1"
DRAWN = Sampling(temperature=0.8, max_tokens=24, seed=11)


@contextlib.contextmanager
def started(folder: Path, count: int, **settings: Any) -> Iterator[list[ServerProcess]]:
    """That many servers, started side by side."""
    tiny.store()
    servers = [ServerProcess(POLICY.module, {**policy_config(folder), **settings}, folder / str(number)) for number in range(count)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(count) as pool:
        starts = [pool.submit(server.__enter__) for server in servers]
        for start in starts:
            stack.callback(lambda start=start: start.exception() or start.result().kill())
        for start in starts:
            start.result()
        yield servers


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ServerProcess]]:
    """Three replicas, for tests that leave them as they were."""
    with started(tmp_path_factory.mktemp("three"), 3) as servers:
        yield servers


@pytest.fixture
def two(tmp_path: Path) -> Iterator[list[ServerProcess]]:
    """Two replicas of the test's own."""
    with started(tmp_path, 2) as servers:
        yield servers


def over(servers: list[ServerProcess], load_balancing: str, **settings: Any) -> ChannelConfig:
    address = "ipv4:" + ",".join(server.address for server in servers)
    return ChannelConfig(address=address, load_balancing=load_balancing, **settings)


def item(*prompt: int, sampling: Sampling = DRAWN) -> GenerateItem:
    return GenerateItem(TokenIds(prompt), sampling)


def drawn(number: int) -> GenerateItem:
    return item(*range(20 + number % 7, 40 + number), sampling=Sampling(temperature=0.8, max_tokens=24, seed=number, ignore_eos=True))


def tokens(reply: Generation) -> list[tuple[int, ...]]:
    assert all(result.error is None for result in reply.results)
    return [result.samples[0].token_ids for result in reply.results]


def alone(server: ServerProcess, items: list[GenerateItem]) -> list[tuple[int, ...]]:
    """What one server answers."""
    with PolicyClient(server.address) as client:
        return tokens(client.generate(items))


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def answered(server: ServerProcess) -> float:
    """Generate calls that the server has answered well."""
    return server.metric("accord_rpc_calls_total", method="Generate", code="OK")


def begun(server: ServerProcess) -> float:
    """Items that the server has begun to compute."""
    return server.metric("accord_policy_requests_begun_total")


def rise(servers: list[ServerProcess], before: list[float]) -> list[float]:
    return [answered(server) - start for server, start in zip(servers, before, strict=True)]


# Spreading


def test_ties_take_turns(three: list[ServerProcess]) -> None:
    before = [answered(server) for server in three]
    with PolicyClient(over(three, "least_loaded")) as client:
        for number in range(9):
            client.generate([item(7, 8, 9, 50 + number)])
    assert rise(three, before) == [3, 3, 3]


def test_a_busy_replica_gets_no_call_while_others_are_idle(three: list[ServerProcess]) -> None:
    with PolicyClient(over(three, "least_loaded")) as client:
        stream = client.generate_stream([item(9, sampling=Sampling(max_tokens=480, ignore_eos=True))] * 16)
        next(stream)
        before = [answered(server) for server in three]
        for number in range(6):
            client.generate([item(5, 6, 100 + number, sampling=Sampling(max_tokens=1))])
        spread = rise(three, before)
        assert list(stream)[-1].sample is not None
    assert sorted(spread) == [0, 3, 3]


@pytest.mark.parametrize("load_balancing", ["least_loaded", "prefix"])
async def test_answers_are_those_of_one_server_in_the_order_of_the_items(three: list[ServerProcess], load_balancing: str) -> None:
    items = [drawn(number) for number in range(40)]
    expected = alone(three[0], items)
    asked = [LogprobsItem(TokenIds(tuple(range(20, 30 + number))), (TokenIds((5, 6, 7)),)) for number in range(20)]
    with PolicyClient(three[0].address) as one:
        logprobs = one.compute_logprobs(asked)
    with PolicyClient(over(three, load_balancing)) as client:
        reply = client.generate(items)
        spread = client.compute_logprobs(asked)
    assert tokens(reply) == expected
    assert len(set(expected)) > 30, "items that all give the same prove no order"
    assert reply.usage.response_tokens == sum(len(ids) for ids in expected)
    assert reply.usage.prompt_tokens == sum(len(result.prompt_token_ids) for result in reply.results)
    assert spread.digests == reply.digests == logprobs.digests
    for one_result, other in zip(logprobs.results, spread.results, strict=True):
        assert other.responses[0].logprobs == pytest.approx(one_result.responses[0].logprobs, abs=1e-4)
    async with AsyncPolicyClient(over(three, load_balancing)) as client:
        assert tokens(await client.generate(items)) == expected
        many = await asyncio.gather(*(client.generate(items[start : start + 4]) for start in range(0, 40, 4)))
        assert [ids for part in many for ids in tokens(part)] == expected


def test_a_call_with_prefix_goes_to_several_replicas_side_by_side(three: list[ServerProcess]) -> None:
    calls, items = [answered(server) for server in three], [begun(server) for server in three]
    with PolicyClient(over(three, "prefix")) as client:
        client.generate([item(*range(3 + 2 * number, 13 + 2 * number)) for number in range(48)])
    assert rise(three, calls) == [1, 1, 1]
    shares = [begun(server) - start for server, start in zip(three, items, strict=True)]
    assert sum(shares) == 48
    assert max(shares) <= 24, "more than half as much again as a third"


async def test_calls_with_one_prefix_reach_one_replica_whose_cache_has_it(three: list[ServerProcess]) -> None:
    def found(server: ServerProcess) -> float:
        return server.metric("accord_policy_prefix_tokens_total", found="yes")

    template = tuple(range(100, 228))  # four whole blocks of 32
    hits, items = [found(server) for server in three], [begun(server) for server in three]
    for turn in range(2):  # clients of their own: the choice is the same in each
        with PolicyClient(over(three, "prefix")) as client:
            for number in range(4):
                client.generate([item(*template, 30 + 4 * turn + number, sampling=Sampling(max_tokens=1))], adapter=FIRST)
        async with AsyncPolicyClient(over(three, "prefix")) as asynchronous:
            await asynchronous.compute_logprobs([LogprobsItem(TokenIds((*template, 60 + turn)), (TokenIds((5,)),))], adapter=FIRST)
    assert sorted(found(server) - start for server, start in zip(three, hits, strict=True)) == [0, 0, 9 * 128]
    assert sorted(begun(server) - start for server, start in zip(three, items, strict=True)) == [0, 0, 10]


def test_an_error_of_an_item_is_in_the_callers_numbering(three: list[ServerProcess]) -> None:
    items = [item(*range(3 + 2 * number, 13 + 2 * number)) for number in range(30)]
    items[23] = item(*([5] * 5000))
    with PolicyClient(over(three, "prefix")) as client:
        results = client.generate(items).results
        assert [index for index, result in enumerate(results) if result.error is not None] == [23]
        error = results[23].error
        assert isinstance(error, OutOfRangeError)
        assert str(error.field).startswith("items[23]")
        items[23] = item(5, sampling=Sampling(temperature=11.0))
        with pytest.raises(InvalidArgumentError) as refused:
            client.generate(items)
    assert str(refused.value.field).startswith("items[23]")


# Failures


@pytest.mark.parametrize("load_balancing", ["least_loaded", "prefix"])
def test_no_call_is_lost_when_a_replica_is_killed_in_the_middle(two: list[ServerProcess], load_balancing: str) -> None:
    calls = [[drawn(3 * number + place) for place in range(3)] for number in range(60)]
    expected = [alone(two[0], call) for call in calls]
    before = [begun(server) for server in two]
    with PolicyClient(over(two, load_balancing)) as client, ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(lambda call=call: tokens(client.generate(call, timeout_seconds=60))) for call in calls]
        eventually(lambda: begun(two[1]) > before[1] + 12 and begun(two[0]) > before[0] + 12)
        two[1].signal(signal.SIGKILL)
        late = [answer for answer in answers if not answer.done()]
        assert [answer.result() for answer in answers] == expected
    assert len(late) > 10, "too few calls were left for the other replica"


async def test_no_call_of_asyncio_is_lost_when_a_replica_is_killed(two: list[ServerProcess]) -> None:
    items = [drawn(number) for number in range(60)]
    expected = alone(two[0], items)
    async with AsyncPolicyClient(over(two, "prefix")) as client:
        calls = [asyncio.create_task(client.generate(items[start : start + 5])) for start in range(0, 60, 5)]
        await asyncio.sleep(0.05)
        two[1].signal(signal.SIGKILL)
        replies = await asyncio.gather(*calls)
        assert [ids for reply in replies for ids in tokens(reply)] == expected
        again = await client.generate(items)
    assert tokens(again) == expected


def test_a_replica_that_comes_back_is_used_again(three: list[ServerProcess]) -> None:
    gone = closed_port()
    config = ChannelConfig(address=f"ipv4:{three[0].address},{gone}", load_balancing="least_loaded", max_backoff_seconds=0.3)
    before = answered(three[1])
    with PolicyClient(config) as client:
        for number in range(4):
            client.generate([item(5, number + 3)])
        assert answered(three[1]) == before

        def reached() -> bool:
            client.generate([item(5, 6, 7)])
            return answered(three[1]) > before

        with Relay(int(gone.rpartition(":")[2]), three[1].address):
            assert eventually(reached, timeout_seconds=20)


def test_a_stream_that_has_begun_is_not_sent_again(two: list[ServerProcess]) -> None:
    long = item(9, sampling=Sampling(max_tokens=480, ignore_eos=True, seed=1))
    with PolicyClient(over(two, "least_loaded")) as client:
        stream = client.generate_stream([long] * 16)
        next(stream)
        (busy,) = [index for index, server in enumerate(two) if begun(server)]
        two[busy].signal(signal.SIGKILL)
        with pytest.raises(UnavailableError):
            for _ in stream:
                pass
        assert begun(two[1 - busy]) == 0
        for _ in range(2):
            assert list(client.generate_stream([item(5, 6)]))[-1].sample is not None
    assert begun(two[1 - busy]) == 2


async def test_a_stream_that_has_not_begun_goes_to_another_replica(three: list[ServerProcess]) -> None:
    address = f"ipv4:{closed_port()},{three[0].address}"
    with PolicyClient(ChannelConfig(address=address, load_balancing="least_loaded")) as client:
        for _ in range(2):
            assert list(client.generate_stream([item(5, 6)]))[-1].sample is not None
    async with AsyncPolicyClient(ChannelConfig(address=address, load_balancing="prefix")) as asynchronous:
        for number in range(6):
            events = [event async for event in asynchronous.generate_stream([item(5, number + 3)])]
            assert events[-1].sample is not None


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A replica whose queue of six is full, as generation stands still."""
    with (
        started(tmp_path_factory.mktemp("full"), 1, max_queue_items=6) as (server,),
        PolicyClient(ChannelConfig(address=server.address, attempts=1)) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        client.pause("keep")
        waiting = pool.submit(client.generate, [item(9)] * 6, timeout_seconds=550)  # outlives all tests of the module
        eventually(lambda: server.metric("accord_queue_depth") == 6)
        yield server
        client.resume()
        assert len(waiting.result().results) == 6


def test_what_a_full_replica_refuses_goes_to_the_other(three: list[ServerProcess], full: ServerProcess) -> None:
    items = [drawn(number) for number in range(6)]
    expected = alone(three[0], items)
    before, refused = answered(three[0]), full.metric("accord_rpc_calls_total", method="Generate", code="RESOURCE_EXHAUSTED")
    with PolicyClient(over([full, three[0]], "least_loaded", attempts=1)) as client:
        for _ in range(4):
            assert tokens(client.generate(items)) == expected
    assert answered(three[0]) - before == 4
    again = full.metric("accord_rpc_calls_total", method="Generate", code="RESOURCE_EXHAUSTED")
    assert again - refused == 1, "it is avoided for as long as it asked for"


def test_a_full_service_is_asked_again_when_it_said_and_named(full: ServerProcess) -> None:
    items = [drawn(number) for number in range(6)]
    began = time.monotonic()
    with PolicyClient(over([full], "prefix", attempts=2)) as client, pytest.raises(ResourceExhaustedError) as error:
        client.generate(items, timeout_seconds=100)
    assert 1.0 <= time.monotonic() - began < 60
    assert "2 of 2 attempts" in str(error.value)
    assert full.address in str(error.value)
    assert error.value.retry_after_seconds is not None
    with PolicyClient(over([full], "prefix", attempts=2)) as client, pytest.raises(ResourceExhaustedError, match="1 of 2 attempts"):
        client.generate(items, timeout_seconds=0.9)  # the wait would outlive the deadline
    with PolicyClient(over([full], "prefix", attempts=2)) as client, pytest.raises(InvalidArgumentError, match="at most 6"):
        client.generate(items + items)


@pytest.mark.parametrize("load_balancing", ["least_loaded", "prefix"])
async def test_all_replicas_away_is_an_error_that_names_them_within_the_deadline(load_balancing: str) -> None:
    gone = [closed_port(), closed_port()]
    config = ChannelConfig(address="ipv4:" + ",".join(gone), load_balancing=load_balancing)  # type: ignore[arg-type]
    began = time.monotonic()
    with PolicyClient(config) as client:
        with pytest.raises(UnavailableError) as away:
            client.generate([item(5)], timeout_seconds=2)
        with pytest.raises(UnavailableError):
            list(client.generate_stream([item(5)], timeout_seconds=2))
    async with AsyncPolicyClient(config) as asynchronous:
        with pytest.raises(UnavailableError) as also_away:
            await asynchronous.model_info(timeout_seconds=2)
    assert time.monotonic() - began < 6.5
    for name in gone:
        assert name in str(away.value)
        assert name in str(also_away.value)


async def test_a_replica_that_takes_connections_and_says_nothing_is_left(three: list[ServerProcess]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"ipv4:127.0.0.1:{mute.getsockname()[1]},{three[0].address}"
        with PolicyClient(ChannelConfig(address=address, load_balancing="least_loaded", attempts=1)) as client:
            for number in range(3):
                client.generate([item(5, number + 3)], timeout_seconds=10)
        async with AsyncPolicyClient(ChannelConfig(address=address, load_balancing="prefix", attempts=1)) as asynchronous:
            for number in range(6):
                await asynchronous.generate([item(5, number + 3)], timeout_seconds=10)


async def test_a_name_that_nobody_knows_is_said() -> None:
    config = ChannelConfig(address="dns:///no-such-name.invalid:50051", load_balancing="least_loaded", attempts=1)
    with PolicyClient(config) as client, pytest.raises(UnavailableError, match=r"no-such-name\.invalid"):
        client.generate([item(5)], timeout_seconds=20)
    async with AsyncPolicyClient(config) as asynchronous:
        with pytest.raises(UnavailableError, match=r"no-such-name\.invalid"):
            await asynchronous.generate([item(5)], timeout_seconds=20)


def test_a_name_stands_for_its_addresses(three: list[ServerProcess]) -> None:
    port = three[0].address.rpartition(":")[2]
    for address in (f"dns:///localhost:{port}", f"localhost:{port}", three[0].address):
        with PolicyClient(ChannelConfig(address=address, load_balancing="prefix", attempts=1)) as client:
            assert client.model_info().backend == "transformers"


# One version, and one replica


def test_one_call_has_one_version_of_an_adapter(tmp_path: Path) -> None:
    from accord.artefacts.store import ArtefactStore

    behind, ahead = ArtefactStore(str(tmp_path / "behind")), ArtefactStore(str(tmp_path / "ahead"))
    for store, count in ((behind, 1), (ahead, 2)):
        for version in range(count):
            tiny.publish(store, "moving", seed=50 + version)
    folders = [(tmp_path / "a", behind), (tmp_path / "b", ahead)]
    servers = [ServerProcess(POLICY.module, {**policy_config(folder), "artefacts": store.uri}, folder) for folder, store in folders]
    items = [item(*range(3 + 2 * number, 13 + 2 * number)) for number in range(24)]
    with servers[0], servers[1], PolicyClient(over(servers, "prefix")) as client:
        with pytest.raises(FailedPreconditionError) as torn:
            client.generate(items, adapter="adapters/moving")
        for version in ("adapters/moving/versions/1", "adapters/moving/versions/2"):
            assert version in str(torn.value)
        tiny.publish(behind, "moving", seed=51)  # the store catches up
        before = [begun(server) for server in servers]
        reply = client.generate(items, adapter="adapters/moving")
        assert reply.adapter_version == "adapters/moving/versions/2"
        with PolicyClient(servers[1].address) as one:
            assert tokens(reply) == tokens(one.generate(items, adapter="adapters/moving/versions/2"))
        assert all(begun(server) > start for server, start in zip(servers, before, strict=True))


def test_what_changes_one_replica_is_refused_and_loading_reaches_one(three: list[ServerProcess]) -> None:
    with PolicyClient(over(three, "least_loaded")) as client:
        assert client.load_adapter(f"adapters/{tiny.POLICIES[1]}").name == f"adapters/{tiny.POLICIES[1]}/versions/1"
        for refused in (
            lambda: client.pause("wait"),
            client.resume,
            client.list_adapters,
            lambda: client.unload_adapter(FIRST),
            lambda: client.update_weights("x", "y"),
        ):
            with pytest.raises(FailedPreconditionError, match="own address") as error:
                refused()
            assert error.value.field == "load_balancing"


def test_other_services_and_unclear_addresses_refuse() -> None:
    with pytest.raises(InvalidArgumentError) as error:
        RewardClient(ChannelConfig(address="127.0.0.1:1", load_balancing="prefix"))
    assert error.value.field == "load_balancing"
    for address in ("dns://8.8.8.8/name:1", "name", "name:0", "ipv4:1.2.3.4", "ipv4:name:1", "ipv4:", "::1:1", "xds:///name:1"):
        with pytest.raises(InvalidArgumentError) as error:
            PolicyClient(ChannelConfig(address=address, load_balancing="least_loaded"))
        assert error.value.field == "address", address


class Relay(contextlib.AbstractContextManager["Relay"]):
    """Listens on a port of the loopback and carries bytes to a server, as if the server listened there."""

    def __init__(self, port: int, to: str) -> None:
        self._port, self._to = port, to

    def __enter__(self) -> Relay:
        self._socket = socket.create_server(("127.0.0.1", self._port))
        self._pairs: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for opened in [self._socket, *self._pairs]:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()

    def _accept(self) -> None:
        host, _, port = self._to.rpartition(":")
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._socket.accept()
                far = socket.create_connection((host, int(port)))
                self._pairs += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)


# A service in front of them


@pytest.mark.parametrize("balancing", ["prefix", "round_robin"])
def test_a_feedback_service_chooses_its_judges_replicas_as_it_is_told(three: list[ServerProcess], tmp_path: Path, balancing: str) -> None:
    """One conversation stays on few replicas by prefix and goes to all in turn; the adapter of the judge is found in both ways."""
    config = {
        "policy": "ipv4:" + ",".join(server.address for server in three), "policy_balancing": balancing, "concurrency": 1,
        "ledger": str(tmp_path / "ledger.sqlite"), "jobs": str(tmp_path / "jobs"),
    }  # fmt: skip
    before = [begun(server) for server in three]
    with ServerProcess("accord.feedback", config, tmp_path) as server, FeedbackClient(ChannelConfig(address=server.address, attempts=1)) as feedback:
        for number in range(6):
            messages = (Message("user", "How do I keep basil alive on a balcony?"),)
            pair = LabelPairItem(Task.CONVERSATION, messages, f"advice {number}", "other words", f"p{number}")
            label = feedback.label_pair(pair, Judge("likelihood", adapter=FIRST), timeout_seconds=60)
            assert label.preference is not None
            assert FIRST in label.judge
    grown = [begun(server) - earlier for server, earlier in zip(three, before, strict=True)]
    assert (0 in grown) is (balancing == "prefix")
    assert sum(grown) > 0
