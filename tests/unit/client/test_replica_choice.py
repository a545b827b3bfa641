"""Which replica takes what, what a call does when one fails, and how replies become one: without a network, on wire messages."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from accord.api.common.v1 import common_pb2
from accord.api.policy.v1 import policy_pb2 as pb
from accord.client.dispatch import Dispatch, Send
from accord.client.merging import item_keys
from accord.client.replica_set import Replica, ReplicaSet
from accord.client.resolving import Resolver, look_up
from accord.errors import (
    AccordError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from accord.rpc.channels import ChannelConfig

A, B, C = (f"10.0.0.{number}:1" for number in (1, 2, 3))


class Links:
    """Opens links that are their addresses, and remembers those that were closed."""

    def __init__(self) -> None:
        self.closed: list[str] = []

    def replicas(self, *names: str, **settings: Any) -> ReplicaSet:
        config = ChannelConfig(address="ipv4:" + ",".join(names), **{"load_balancing": "prefix", **settings})
        return self.of(config, Resolver(config.address))

    def of(self, config: ChannelConfig, resolver: Resolver) -> ReplicaSet:
        found = ReplicaSet(config, resolver, lambda address: address, self.closed.append)
        found.refresh()
        return found


def replicas(*names: str, **settings: Any) -> ReplicaSet:
    return Links().replicas(*(names or (A, B, C)), **settings)


def request(*prompts: str, adapter: str = "", **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(items=[pb.GenerateItem(prompt=common_pb2.Prompt(text=text)) for text in prompts], adapter=adapter, **fields)


def reply(send: Send, version: str = "", digest: str = "d") -> pb.GenerateResponse:
    """Each item answered by its own prompt."""
    return pb.GenerateResponse(
        items=[pb.GenerateItemResult(item_id=item.prompt.text) for item in send.request.items],
        adapter_version=version,
        digests=common_pb2.ModelDigests(base_model=digest),
        usage=common_pb2.Usage(prompt_tokens=3 * len(send.request.items), response_tokens=1, compute_seconds=0.5),
    )


def many(count: int) -> pb.GenerateRequest:
    return request(*(f"{number} question" for number in range(count)))


def shares(found: list[tuple[Any, list[int]]]) -> dict[str, int]:
    return {replica.name: len(positions) for replica, positions in found}


# Choice


def test_a_key_keeps_its_replica_and_only_the_keys_of_one_that_is_away_move() -> None:
    keys = [f"key {number}".encode() for number in range(300)]
    homes = {key: replicas().place([key], 1, ())[0][0].name for key in keys}
    assert all(80 <= count <= 120 for count in Counter(homes.values()).values())
    without = {key: replicas(A, C).place([key], 1, ())[0][0].name for key in keys}
    assert {key for key in keys if homes[key] != without[key]} == {key for key in keys if homes[key] == B}
    assert 30 <= sum(without[key] == A for key in keys if homes[key] == B) <= 70, "the keys of one that is away go to all others"


def test_a_replica_with_too_much_leaves_its_keys_to_the_next() -> None:
    idle = replicas(prefix_load_factor=1.5)
    found = sorted(shares(idle.place([b"key"] * 30, 1, ())).values())
    assert found == [15, 15], "one and a half times the mean of 10 each"
    (home, _), (second, _) = replicas(prefix_load_factor=1.5).place([b"key"] * 30, 1, ())
    loaded = replicas(prefix_load_factor=1.5)
    taken = [replica for _ in range(40) for replica, _ in loaded.place([b"key"], 1, ())]
    names = [replica.name for replica in taken]
    assert names[:8] == [home.name] * 8, "eight items are no load"
    assert second.name in names
    assert max(Counter(names).values()) <= 1.5 * 40 / 3 + 1
    for replica in taken:
        loaded.release(replica, 1)
    assert loaded.place([b"key"], 1, ())[0][0].name == home.name


def test_the_fewest_items_win_and_ties_take_turns() -> None:
    three = replicas(load_balancing="least_loaded")
    first = three.place(None, 5, ())[0][0]
    others = [three.place(None, 2, ())[0][0] for _ in range(4)]
    assert first not in others
    assert Counter(replica.name for replica in others) == {replica.name: 2 for replica in others}
    three.release(first, 5)
    assert three.place(None, 1, ())[0][0] is first


def test_a_replica_that_failed_is_avoided_for_a_while_that_grows_and_is_used_when_all_are() -> None:
    three = replicas(initial_backoff_seconds=0.05, max_backoff_seconds=0.2)
    (home, _) = three.place([b"key"], 1, ())[0]
    three.release(home, 1)
    for seconds in (0.05, 0.1, 0.2, 0.2):
        assert_avoided_for(seconds, three, home, UnavailableError("gone"))
    assert three.place([b"key"], 1, ())[0][0] is not home
    time.sleep(0.25)
    assert three.place([b"key"], 1, ())[0][0] is home
    three.answered(home)
    assert_avoided_for(0.15, three, home, ResourceExhaustedError("full", retry_after_seconds=0.15))
    assert home.failures == 0
    alone = replicas(A)
    (only, _) = alone.place([b"key"], 1, ())[0]
    alone.failed(only, UnavailableError("gone"))
    assert alone.place([b"key"], 1, ())[0][0] is only
    assert alone.place([b"key"], 1, {only.address}) == []


def assert_avoided_for(seconds: float, of: ReplicaSet, replica: Replica, error: AccordError) -> None:
    """After a failure, exactly, however long this process stood still meanwhile."""
    before = time.monotonic()
    of.failed(replica, error)
    assert before + seconds <= replica.avoided_until <= time.monotonic() + seconds


def test_the_beginning_of_the_prompt_and_the_adapter_make_the_key() -> None:
    def keys(*prompts: common_pb2.Prompt, adapter: str = "") -> list[bytes]:
        items = [pb.GenerateItem(prompt=prompt) for prompt in prompts]
        return item_keys(pb.GenerateRequest(items=items, adapter=adapter), 16)

    def chat(*turns: tuple[int, str]) -> common_pb2.Prompt:
        return common_pb2.Prompt(messages=common_pb2.ChatMessages(messages=[common_pb2.ChatMessage(role=r, content=c) for r, c in turns]))  # type: ignore[arg-type]

    text, longer, other = (common_pb2.Prompt(text=text) for text in ("0123456789abcdef", "0123456789abcdefgh", "0123456789abcdeX"))
    assert keys(text)[0] == keys(longer)[0] != keys(other)[0]
    assert keys(text)[0] != keys(text, adapter="adapters/x")[0]
    ids = [common_pb2.Prompt(token_ids=common_pb2.TokenIds(ids=ids)) for ids in ([1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [1, 2, 3, 5, 5], [12, 3, 4])]
    found = keys(*ids)
    assert found[0] == found[1]
    assert len(set(found)) == 3
    system, user = common_pb2.ROLE_SYSTEM, common_pb2.ROLE_USER
    found = keys(
        chat((system, "x" * 20), (user, "a")), chat((system, "x" * 20), (user, "b")), chat((system, "x"), (user, "a")), chat((user, "x" * 20))
    )
    assert found[0] == found[1]
    assert len(set(found)) == 3


# The life of a call


def test_items_come_back_in_order_with_usage_summed() -> None:
    three = replicas()
    dispatch = Dispatch(three, many(40), 10)
    sends = dispatch.due()
    assert len(sends) == 3
    for send in reversed(sends):
        assert not dispatch.complete
        dispatch.answered(send, reply(send))
    assert dispatch.complete
    whole = dispatch.reply()
    assert [item.item_id for item in whole.items] == [f"{number} question" for number in range(40)]
    assert (whole.usage.prompt_tokens, whole.usage.response_tokens, whole.usage.compute_seconds) == (120, 3, 1.5)
    assert three.place(None, 0, ())[0][0].items == 0


def test_what_a_replica_loses_goes_to_the_others_at_once_and_each_is_asked_once_in_a_round() -> None:
    three = replicas(attempts=2, initial_backoff_seconds=0.2)
    dispatch = Dispatch(three, many(40), 10)
    lost, *kept = dispatch.due()
    for send in kept:
        dispatch.answered(send, reply(send))
    dispatch.failed(lost, UnavailableError("gone"))
    second = dispatch.due()
    assert {send.replica.name for send in second} <= {A, B, C} - {lost.replica.name}
    assert sorted(place for send in second for place in send.part.places) == sorted(lost.part.places)
    while second:
        for send in second:
            dispatch.failed(send, UnavailableError("gone too"))
        second = dispatch.due()
    wait = dispatch.wait_seconds()
    assert wait is not None
    assert 0.1 < wait < 0.25
    while not dispatch.complete:
        time.sleep(dispatch.wait_seconds() or 0.0)
        answer_all(dispatch, lambda _: "")
    assert [item.item_id for item in dispatch.reply().items] == [f"{number} question" for number in range(40)]


def test_the_wait_between_rounds_is_what_the_first_replica_to_be_free_asks_for() -> None:
    two = replicas(A, B, attempts=2, load_balancing="least_loaded")
    dispatch = Dispatch(two, many(2), 10)
    for seconds in (3.0, 2.0):
        (send,) = dispatch.due()
        dispatch.failed(send, ResourceExhaustedError("full", retry_after_seconds=seconds))
    assert dispatch.due() == []
    assert dispatch.wait_seconds() == pytest.approx(2.0, abs=0.05)
    hasty = Dispatch(replicas(A, attempts=2), many(2), 1.5)
    (send,) = hasty.due()
    with pytest.raises(ResourceExhaustedError, match=A) as error:
        hasty.failed(send, ResourceExhaustedError("full", retry_after_seconds=2.0))
    assert error.value.retry_after_seconds == 2.0


@pytest.mark.parametrize(
    "error",
    [
        DeadlineExceededError("late"),
        InternalError("bug"),
        InvalidArgumentError("bad"),
        NotFoundError("none"),
        ResourceExhaustedError("message too large"),
    ],
)
def test_other_errors_are_final(error: AccordError) -> None:
    dispatch = Dispatch(replicas(), many(1), 10)
    (send,) = dispatch.due()
    with pytest.raises(type(error)):
        dispatch.failed(send, error)


def test_an_error_names_the_callers_item() -> None:
    dispatch = Dispatch(replicas(), many(40), 10)
    send = dispatch.due()[-1]
    with pytest.raises(InvalidArgumentError) as error:
        dispatch.failed(send, InvalidArgumentError("items[1].n is 0", field="items[1].n"))
    assert error.value.field == f"items[{send.part.places[1]}].n"
    assert error.value.message == f"items[{send.part.places[1]}].n is 0"


def answer_all(dispatch: Dispatch, version: Callable[[Send], str]) -> list[Send]:
    sends = dispatch.due()
    for send in sends:
        dispatch.answered(send, reply(send, version(send)))
    return sends


def test_groups_that_answered_with_an_older_version_are_asked_for_the_newest_by_its_full_name() -> None:
    dispatch = Dispatch(replicas(), request(*(f"{number} q" for number in range(40)), adapter="adapters/x", min_policy_version=9), 10)
    first = answer_all(dispatch, lambda send: f"adapters/x/versions/{10 if send.replica.name == B else 9}")
    assert not dispatch.complete
    second = dispatch.due()
    assert sorted(place for send in second for place in send.part.places) == sorted(
        place for send in first if send.replica.name != B for place in send.part.places
    )
    for send in second:
        assert send.request.adapter == "adapters/x/versions/10"
        assert not send.request.HasField("min_policy_version")
        dispatch.answered(send, reply(send, send.request.adapter))
    assert dispatch.reply().adapter_version == "adapters/x/versions/10"
    assert [item.item_id for item in dispatch.reply().items] == [f"{number} q" for number in range(40)]


def test_a_replica_that_cannot_find_the_newest_or_answers_with_another_is_an_error_that_names_both() -> None:
    def torn() -> tuple[Dispatch, list[Send]]:
        dispatch = Dispatch(replicas(A, B), request(*(f"{number} q" for number in range(40)), adapter="adapters/x"), 10)
        answer_all(dispatch, lambda send: f"adapters/x/versions/{2 if send.replica.name == B else 1}")
        return dispatch, dispatch.due()

    dispatch, sends = torn()
    with pytest.raises(FailedPreconditionError, match=r"versions/1 and adapters/x/versions/2"):
        dispatch.failed(sends[0], NotFoundError("no such version"))
    dispatch, sends = torn()
    for send in sends[:-1]:
        dispatch.answered(send, reply(send, "adapters/x/versions/1"))
    with pytest.raises(FailedPreconditionError, match=r"versions/1 and adapters/x/versions/2"):
        dispatch.answered(sends[-1], reply(sends[-1], "adapters/x/versions/1"))


def test_replicas_of_different_models_are_an_error_that_names_both() -> None:
    dispatch = Dispatch(replicas(A, B), many(40), 10)
    first, second = dispatch.due()
    dispatch.answered(first, reply(first, digest="one"))
    with pytest.raises(FailedPreconditionError, match=r"10\.0\.0\..*one.*10\.0\.0\..*two"):
        dispatch.answered(second, reply(second, digest="two"))


def test_a_call_that_fails_leaves_no_load_behind() -> None:
    two = replicas(A, B, attempts=1)
    dispatch = Dispatch(two, many(40), 10)
    first, second = dispatch.due()
    dispatch.failed(first, UnavailableError("gone"))
    (moved,) = dispatch.due()
    with pytest.raises(UnavailableError, match=A):
        dispatch.failed(moved, UnavailableError("gone"))
    dispatch.abandoned(second)
    assert [replica.items for replica in (first.replica, second.replica)] == [0, 0]


# Addresses


def test_a_name_is_looked_up_again_and_a_replica_that_is_gone_keeps_its_link_until_its_calls_are_over() -> None:
    answers = [("ipv4:10.0.0.1:1", "ipv4:10.0.0.2:1"), ("ipv4:10.0.0.2:1", "ipv4:10.0.0.3:1")]
    asked = threading.Semaphore(0)

    def lookup(host: str, port: int) -> tuple[str, ...]:
        assert (host, port) == ("policy", 1)
        asked.release()
        return answers.pop(0)

    links, resolver = Links(), Resolver("dns:///policy:1", lookup=lookup)
    found = links.of(ChannelConfig(address="dns:///policy:1", load_balancing="least_loaded"), resolver)
    resolver.first.result(5)
    found.refresh()
    taken = [found.place(None, 1, ())[0][0] for _ in range(2)]
    assert sorted(replica.name for replica in taken) == [A, B]
    time.sleep(1.05)  # after a failure a second is long enough ago
    resolver.refresh(after_failure=True)
    assert asked.acquire(timeout=5)
    assert asked.acquire(timeout=5)
    for _ in range(50):
        found.refresh()
        time.sleep(0.01)
    assert [address.removeprefix("ipv4:") for address in found.addresses()] == [B, C]
    assert links.closed == []
    for replica in taken:
        found.release(replica, 1)
    assert links.closed == ["ipv4:10.0.0.1:1"]
    found.close()
    assert sorted(links.closed) == [f"ipv4:{name}" for name in (A, B, C)]
    with pytest.raises(ValueError, match="closed"):
        found.refresh()


def test_a_slow_or_failing_name_server_holds_up_nobody_and_the_last_addresses_stay() -> None:
    going = threading.Event()

    def lookup(host: str, port: int) -> tuple[str, ...]:
        going.wait(5)
        raise socket.gaierror("name server is away")

    resolver = Resolver("policy:1", lookup=lookup)
    began = time.monotonic()
    found = Links().of(ChannelConfig(address="policy:1", load_balancing="prefix", attempts=1), resolver)
    assert time.monotonic() - began < 1
    with pytest.raises(UnavailableError, match="policy:1 has no address"):
        Dispatch(found, many(1), 10).due()
    going.set()
    resolver.first.result(5)
    with pytest.raises(UnavailableError, match="policy cannot be looked up: name server is away"):
        Dispatch(found, many(1), 10).due()


def test_forms_of_addresses() -> None:
    assert Resolver("127.0.0.1:5").addresses == ("ipv4:127.0.0.1:5",)
    assert Resolver("dns:///[::1]:5").addresses == ("ipv6:[::1]:5",)
    assert Resolver("ipv6:[::1]:5,[::2]:6").addresses == ("ipv6:[::1]:5", "ipv6:[::2]:6")
    assert Resolver("ipv4:10.0.0.2:1,10.0.0.1:1,10.0.0.2:1").addresses == ("ipv4:10.0.0.2:1", "ipv4:10.0.0.1:1")
    assert Resolver("unix:/tmp/socket").addresses == ("unix:/tmp/socket",)
    assert (Resolver("dns:policy:5").host, Resolver("policy.accord.svc:5").host) == ("policy", "policy.accord.svc")
    assert look_up("localhost", 7) == ("ipv4:127.0.0.1:7",)
