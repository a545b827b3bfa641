"""What every service of Accord owes its callers, checked on real server processes. Services are listed in `entries.py`."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.contract.entries import ENTRIES
from tests.contract.harness import MAX_MESSAGE_BYTES, START_SECONDS, RpcCase, ServerProcess, ServiceEntry, begin, eventually, invoke

from accord.errors import AccordError, InvalidArgumentError, ResourceExhaustedError, UnavailableError
from accord.rpc.channels import wait_ready
from accord.rpc.status import from_rpc_error

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
CANARY = "Wombat quincunx 4711"

pytestmark = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
Shared = Callable[[ServiceEntry], ServerProcess]


def health(channel: grpc.Channel, name: str) -> int:
    reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
    return int(reply.status)


def serving(server: ServerProcess) -> ServerProcess:
    """The server once it serves."""
    wait_ready(server.address, "", START_SECONDS)
    return server


def refusal(channel: grpc.Channel, case: RpcCase, text: str = CANARY, **options: Any) -> AccordError:
    with pytest.raises(grpc.RpcError) as caught:
        invoke(channel, case, text, **options)
    return from_rpc_error(caught.value)


def raw_method(channel: Any, method: str) -> Any:
    """The method without serializers: takes and gives bytes."""
    return channel.unary_unary(method)


def in_flight(server: ServerProcess, entry: ServiceEntry) -> float:
    return sum(server.metric("accord_rpc_in_flight", service=name) for name in entry.services)


def warmed(server: ServerProcess, channel: grpc.Channel, entry: ServiceEntry) -> float:
    """The compute metric after a call: connecting, and what is loaded on first use, would take the half second of a slow machine."""
    invoke(channel, entry.quick, "hello")
    return server.metric(entry.compute_metric) if entry.compute_metric else 0


def has_computed(server: ServerProcess, entry: ServiceEntry, above: float) -> bool:
    """Whether its metric has risen above a number, or does so within the two seconds that what is being computed may take."""
    give_up = time.monotonic() + 2
    while entry.compute_metric is not None and server.metric(entry.compute_metric) <= above:
        if time.monotonic() > give_up:
            return False
        time.sleep(0.05)
    return True


def assert_compute_has_stopped(server: ServerProcess, entry: ServiceEntry, above: float = 0) -> None:
    """It began, so that its metric rose above a number, and does not go on."""
    if entry.compute_metric is None:
        return
    # What is being computed is finished first, which is the first of all on a slow machine; without any the check would prove nothing.
    eventually(lambda: server.metric(entry.compute_metric) > above)
    time.sleep(entry.step_seconds)
    before = server.metric(entry.compute_metric)
    time.sleep(0.5)
    assert server.metric(entry.compute_metric) == before


# Health and reflection


def test_health_is_not_serving_before_the_warm_up_and_serving_after_it(entry: ServiceEntry, fresh_server: Shared) -> None:
    with fresh_server(entry).channel() as channel:
        names = ("", *entry.services)
        if not entry.quick_start:
            first = [health(channel, name) for name in names]
            assert first == [NOT_SERVING] * len(names), "a service must not be SERVING before its start() returned"
            early = refusal(channel, entry.quick)
            assert isinstance(early, UnavailableError), early
            assert early.retry_after_seconds is not None
        eventually(lambda: [health(channel, name) for name in names] == [SERVING] * len(names), timeout_seconds=90)
        assert isinstance(invoke(channel, entry.quick, CANARY), entry.quick.reply)


def test_health_of_an_unknown_service_is_not_found(entry: ServiceEntry, shared_server: Shared) -> None:
    with shared_server(entry).channel() as channel, pytest.raises(grpc.RpcError) as caught:
        health(channel, "accord.api.nothing.v1.Nothing")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def reflected(channel: grpc.Channel) -> list[str]:
    asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
    replies = list(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter(asked), timeout=10))
    return [service.name for service in replies[0].list_services_response.service]


def test_reflection_lists_the_services(entry: ServiceEntry, shared_server: Shared) -> None:
    with shared_server(entry).channel() as channel:
        assert set(entry.services) <= set(reflected(channel))


def test_reflection_is_off_by_default(entry: ServiceEntry, limited_server: Shared) -> None:
    with limited_server(entry).channel() as channel:
        with pytest.raises(grpc.RpcError) as caught:
            reflected(channel)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# Deadlines and cancellation


def test_a_deadline_ends_the_call_and_the_compute(entry: ServiceEntry, shared_server: Shared) -> None:
    server = shared_server(entry)
    with server.channel() as channel:
        before = warmed(server, channel, entry)
        for seconds in (0.5, 2.0):  # reading a large call alone takes the half second of a slow machine
            began = time.monotonic()
            error = refusal(channel, entry.slow, timeout=seconds)
            assert error.code == "DEADLINE_EXCEEDED"
            assert time.monotonic() - began < seconds + 4.5
            eventually(lambda: in_flight(server, entry) == 0, timeout_seconds=5)
            if has_computed(server, entry, before):
                break
        assert_compute_has_stopped(server, entry, before)


def test_a_call_without_a_deadline_gets_the_servers(entry: ServiceEntry, limited_server: Shared) -> None:
    server = limited_server(entry)
    with server.channel() as channel:
        before = warmed(server, channel, entry)
        for _ in range(10):  # on a busy machine the server's half second may be over before anything is computed
            error = refusal(channel, entry.slow, timeout=None)
            assert error.code == "DEADLINE_EXCEEDED"
            eventually(lambda: in_flight(server, entry) == 0, timeout_seconds=5)
            if has_computed(server, entry, before):
                break
        assert_compute_has_stopped(server, entry, before)


def test_a_cancelled_call_leaves_nothing_behind(entry: ServiceEntry, shared_server: Shared) -> None:
    server = shared_server(entry)
    with server.channel() as channel:
        call = begin(channel, entry.slow, CANARY)
        eventually(lambda: in_flight(server, entry) == 1, timeout_seconds=10)
        time.sleep(0.2)
        call.cancel()
        eventually(lambda: in_flight(server, entry) == 0, timeout_seconds=5)
        assert_compute_has_stopped(server, entry)


# Requests that are wrong


def test_an_empty_batch_is_invalid_and_names_the_field(entry: ServiceEntry, shared_server: Shared) -> None:
    if entry.empty is None:
        pytest.skip("the service takes no batches")
    with shared_server(entry).channel() as channel:
        error = refusal(channel, entry.empty)
    assert isinstance(error, InvalidArgumentError)
    assert error.field == entry.empty.field
    assert entry.empty.field in str(error)


def test_a_message_over_the_limit_is_refused(entry: ServiceEntry, shared_server: Shared) -> None:
    with shared_server(entry).channel() as channel:
        error = refusal(channel, entry.quick, "x" * (MAX_MESSAGE_BYTES + 1000))
        assert error.code == "RESOURCE_EXHAUSTED"
        assert isinstance(invoke(channel, entry.quick, CANARY), entry.quick.reply), "the server must go on"


def test_bytes_that_are_no_message_are_invalid_and_leak_no_type_names(entry: ServiceEntry, shared_server: Shared) -> None:
    with shared_server(entry).channel() as channel, pytest.raises(grpc.RpcError) as caught:
        raw_method(channel, entry.quick.method)(b"\xff\xff\xff\xff", timeout=10)
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidArgumentError)
    assert not re.search(r"Error|pb2|Request\b|google|Traceback", error.message), error.message


def test_an_unknown_method_is_unimplemented(entry: ServiceEntry, shared_server: Shared) -> None:
    with shared_server(entry).channel() as channel, pytest.raises(grpc.RpcError) as caught:
        raw_method(channel, f"/{entry.services[0]}/NoSuchMethod")(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# Overload and the end


def test_more_calls_than_a_server_takes_are_answered_at_once_with_when_to_come_back(entry: ServiceEntry, limited_server: Shared) -> None:
    assert_overload_is_answered(limited_server(entry), entry)


def test_a_full_queue_is_answered_at_once_with_when_to_come_back(entry: ServiceEntry, fresh_server: Shared) -> None:
    if entry.full_config is None:
        pytest.skip("the service has no queue of its own")
    assert_overload_is_answered(serving(fresh_server(entry)), entry)


def assert_overload_is_answered(server: ServerProcess, entry: ServiceEntry) -> None:
    def call(_: int) -> AccordError | None:
        with server.channel() as channel:
            try:
                invoke(channel, entry.slow, CANARY, timeout=entry.slow_seconds)
            except grpc.RpcError as error:
                return from_rpc_error(error)
        return None

    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(call, range(6)))
    errors = [outcome for outcome in outcomes if outcome is not None]
    assert errors, "six slow calls must overfill the server"
    assert len(errors) < 6, "some must get through"
    for error in errors:
        assert isinstance(error, ResourceExhaustedError), error
        assert (error.retry_after_seconds or 0) > 0
    with server.channel() as channel:
        assert isinstance(invoke(channel, entry.quick, CANARY), entry.quick.reply), "the server must be well again"


def test_sigterm_finishes_what_is_in_flight_refuses_the_rest_and_exits_0(entry: ServiceEntry, limited_server: Shared) -> None:
    server = limited_server(entry)
    with server.channel() as channel, server.channel() as other:
        assert health(other, "") == SERVING
        call = begin(channel, entry.slow, CANARY, timeout=entry.slow_seconds)
        eventually(lambda: in_flight(server, entry) == 1)
        server.signal(signal.SIGTERM)
        eventually(lambda: health(other, "") == NOT_SERVING, timeout_seconds=2)
        late = refusal(other, entry.quick)
        assert isinstance(late, UnavailableError)
        assert late.retry_after_seconds is not None
        assert not call.done(), "the slow call is too quick for this test"
        assert isinstance(call.result(), entry.slow.reply)
        assert server.wait(20) == 0, server.log
        assert CANARY not in server.log


def test_a_second_signal_ends_the_process_at_once(entry: ServiceEntry, fresh_server: Shared) -> None:
    server = serving(fresh_server(entry))
    with server.channel() as channel:
        call = begin(channel, entry.slow, CANARY, timeout=60)
        eventually(lambda: in_flight(server, entry) == 1)
        server.signal(signal.SIGTERM)
        eventually(lambda: health(channel, "") == NOT_SERVING, timeout_seconds=2)
        server.signal(signal.SIGTERM)
        assert server.wait(2) == 128 + signal.SIGTERM
        assert isinstance(call.exception(timeout=10), grpc.RpcError)


# What operators see


def test_the_log_names_the_call_and_never_what_it_said(entry: ServiceEntry, shared_server: Shared) -> None:
    """Nor what the calls of the other tests said."""
    server = shared_server(entry)
    with server.channel() as channel:
        invoke(channel, entry.quick, CANARY, metadata=(("x-request-id", "canary-call-1"), ("authorization", "Bearer hush-hush-token")))
        refusal(channel, entry.slow, timeout=0.3)
        if entry.empty is not None:
            refusal(channel, entry.empty)
    eventually(lambda: in_flight(server, entry) == 0)
    lines = [line for line in server.log_lines if line.get("request_id") == "canary-call-1" and line["event"] == "rpc"]
    assert [(line["method"], line["code"]) for line in lines] == [(entry.quick.method, "OK")]
    assert {"seconds", "request_bytes", "peer"} <= lines[0].keys()
    assert CANARY not in server.log
    assert "hush-hush-token" not in server.log


def test_the_metrics_port_counts_calls_by_code(entry: ServiceEntry, shared_server: Shared) -> None:
    server = shared_server(entry)
    service, method = entry.quick.method.strip("/").split("/")
    labels = {"service": service, "method": method, "code": "OK"}
    before = server.metric("accord_rpc_calls_total", **labels)
    with server.channel() as channel:
        invoke(channel, entry.quick, CANARY)
    assert server.metric("accord_rpc_calls_total", **labels) == before + 1
    assert server.metric("accord_rpc_seconds_count", service=service, method=method) >= before + 1


def test_a_misspelt_key_is_one_clear_line_and_exit_code_2(entry: ServiceEntry, tmp_path: Path) -> None:
    for values, path, nearest in (
        ({"sevrer": {}}, "sevrer", "server"),
        ({"server": {"drain_second": 1}}, "server.drain_second", "drain_seconds"),
    ):
        with ServerProcess(entry.module, {**entry.config(tmp_path), **values}, tmp_path, wait="nothing") as server:
            assert server.wait(60) == 2, server.log
            assert len(server.log.strip().splitlines()) == 1, server.log
            assert f"{path}: unknown key; did you mean {nearest}?" in server.log
            assert "config.yaml" in server.log
