"""The server runtime itself, on the echo service: what the shared suite cannot ask of services that only work as they should."""

from __future__ import annotations

import json
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.contract.echo_proto import SERVICE, EchoReply, EchoRequest, EchoStub
from tests.contract.harness import MAX_MESSAGE_BYTES, ServerProcess, eventually

from accord.errors import (
    AccordError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    OutOfRangeError,
    ResourceExhaustedError,
    UnavailableError,
    error_classes,
)
from accord.rpc.channels import ChannelConfig, open_async_channel, open_channel, wait_ready_async
from accord.rpc.status import from_rpc_error
from accord.rpc.stubs import guard_stub

CANARY = "Wombat quincunx 4711"
MODULE = "tests.contract.echo_server"
WATCH = f"/{SERVICE}/Watch"


def start(folder: Path, *, wait: str = "serving", server: dict[str, Any] | None = None, **config: Any) -> ServerProcess:
    return ServerProcess(MODULE, {**config, "server": server or {}}, folder, wait=wait)


def refusal(call: Any) -> AccordError:
    """The error that iterating or calling ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return from_rpc_error(caught.value)


def rpc_lines(server: ServerProcess, request_id: str) -> list[dict[str, Any]]:
    return [line for line in server.log_lines if line.get("request_id") == request_id]


# Errors over a real wire


def assert_is_what_the_server_raised(error: AccordError, error_class: type[AccordError]) -> None:
    assert type(error) is error_class
    assert error.message == f"{error_class.__name__} was asked for"
    assert error.field == "raise_error"
    assert error.retry_after_seconds == 1.25
    assert error.metadata == {"digest": "abc", "limit": "7"}


@pytest.mark.parametrize("error_class", error_classes(), ids=lambda cls: cls.__name__)
class TestEveryErrorReachesTheClientAsItself:
    def test_in_a_unary_call(self, echo: ServerProcess, error_class: type[AccordError]) -> None:
        with echo.channel() as channel, pytest.raises(AccordError) as caught:
            guard_stub(EchoStub(channel), 10).Echo(EchoRequest(prompts=["p"], raise_error=error_class.__name__))
        assert_is_what_the_server_raised(caught.value, error_class)

    def test_in_the_middle_of_a_server_stream(self, echo: ServerProcess, error_class: type[AccordError]) -> None:
        with echo.channel() as channel:
            replies = guard_stub(EchoStub(channel), 10).Stream(EchoRequest(prompts=["p", "q"], raise_error=error_class.__name__))
            assert [next(replies).prompts, next(replies).prompts] == [["p"], ["q"]]
            with pytest.raises(AccordError) as caught:
                next(replies)
        assert_is_what_the_server_raised(caught.value, error_class)

    async def test_in_asyncio(self, echo: ServerProcess, error_class: type[AccordError]) -> None:
        request = EchoRequest(prompts=["p"], raise_error=error_class.__name__)
        async with open_async_channel(ChannelConfig(address=echo.address, attempts=1)) as channel:
            stub = guard_stub(EchoStub(channel), 10)
            with pytest.raises(AccordError) as caught:
                await stub.Echo(request)
            assert_is_what_the_server_raised(caught.value, error_class)
            with pytest.raises(AccordError) as caught:
                await stub.Collect(iter([request]))
            assert_is_what_the_server_raised(caught.value, error_class)
            replies = stub.Chat(iter([EchoRequest(prompts=["p"]), request]))
            assert (await anext(replies)).prompts == ["p"]
            with pytest.raises(AccordError) as caught:
                await anext(replies)
            assert_is_what_the_server_raised(caught.value, error_class)


def test_a_defect_is_hidden_on_the_wire_and_told_in_the_log(echo: ServerProcess, stub: EchoStub) -> None:
    error = refusal(lambda: stub.Echo(EchoRequest(prompts=[CANARY], raise_error="ValueError"), timeout=10, metadata=(("x-request-id", "defect-1"),)))
    assert type(error) is InternalError
    assert error.message == "internal error, see server log (request defect-1)"
    defect = eventually(lambda: [line for line in rpc_lines(echo, "defect-1") if line["event"] == "rpc_defect"])[0]
    assert [text.partition(":")[0] for text in defect["error"]] == ["ValueError", "KeyError"]
    assert any("echo_server.py" in frame and "misbehave" in frame for frame in defect["traceback"])
    assert CANARY not in echo.log


@pytest.mark.parametrize("defect", ["bad_reply", "TimeoutError"])
def test_other_defects_are_internal_too_and_no_deadline(stub: EchoStub, defect: str) -> None:
    error = refusal(lambda: stub.Echo(EchoRequest(prompts=["p"], raise_error=defect), timeout=10))
    assert type(error) is InternalError
    assert error.message.startswith("internal error, see server log (request ")


def test_an_abort_of_the_handler_is_kept_and_is_no_defect(echo: ServerProcess, stub: EchoStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Echo(EchoRequest(prompts=["p"], raise_error="abort"), timeout=10, metadata=(("x-request-id", "abort-1"),))
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.ALREADY_EXISTS, "aborted by hand")
    lines = eventually(lambda: rpc_lines(echo, "abort-1"))
    assert [(line["event"], line["code"]) for line in lines] == [("rpc", "ALREADY_EXISTS")]


def test_a_reply_over_the_limit_says_so(stub: EchoStub) -> None:
    error = refusal(lambda: stub.Echo(EchoRequest(prompts=["p"], reply_bytes=MAX_MESSAGE_BYTES), timeout=10))
    assert isinstance(error, OutOfRangeError)
    assert str(MAX_MESSAGE_BYTES) in error.message


# Requests


def test_each_message_of_a_client_stream_is_checked(stub: EchoStub) -> None:
    good, bad = EchoRequest(prompts=["p"]), EchoRequest(prompts=["p", ""])
    for call in (lambda requests: stub.Collect(requests, timeout=10), lambda requests: list(stub.Chat(requests, timeout=10))):
        error = refusal(lambda call=call: call(iter([good, good, bad])))
        assert isinstance(error, InvalidArgumentError)
        assert error.field == "prompts[1]"
    assert stub.Collect(iter([good, good]), timeout=10).prompts == ["p", "p"]


@pytest.mark.parametrize("method", ["Stream", "Collect", "Chat"])
def test_malformed_bytes_are_invalid_in_every_kind_of_call(echo: ServerProcess, method: str) -> None:
    raw = b"\xff\xff\xff\xff"
    with echo.channel() as untyped:
        channel: Any = untyped
        calls: dict[str, Callable[[], object]] = {
            "Stream": lambda: list(channel.unary_stream(f"/{SERVICE}/Stream")(raw, timeout=10)),
            "Collect": lambda: channel.stream_unary(f"/{SERVICE}/Collect")(iter([raw]), timeout=10),
            "Chat": lambda: list(channel.stream_stream(f"/{SERVICE}/Chat")(iter([raw]), timeout=10)),
        }
        error = refusal(calls[method])
    assert isinstance(error, InvalidArgumentError)
    assert error.message == "the request's 4 bytes are not a message of this method's request type"


def test_a_request_id_that_is_free_text_is_replaced(stub: EchoStub) -> None:
    reply = stub.Echo(EchoRequest(prompts=["p"]), timeout=10, metadata=(("x-request-id", "my secret prompt"),))
    assert reply.request_id
    assert " " not in reply.request_id


def test_huge_metadata_is_refused(stub: EchoStub) -> None:
    error = refusal(lambda: stub.Echo(EchoRequest(prompts=["p"]), timeout=10, metadata=(("x-note", "x" * 40_000),)))
    assert error.code == "RESOURCE_EXHAUSTED"


# Deadlines


def test_a_handler_sees_the_deadline_that_applies(tmp_path: Path) -> None:
    with start(tmp_path, server={"default_deadline_seconds": 20, "max_deadline_seconds": 30}) as server, server.channel() as channel:
        stub = EchoStub(channel)
        seen = {given: stub.Echo(EchoRequest(prompts=["p"]), timeout=given).time_remaining for given in (None, 5, 1000)}
    assert 19 < seen[None] <= 20
    assert 4 < seen[5] < 5.1  # gRPC rounds a timeout up on the wire
    assert 29 < seen[1000] <= 30


def test_only_the_streams_named_long_lived_outlive_the_default_deadline(tmp_path: Path) -> None:
    limits = {"default_deadline_seconds": 0.4, "max_deadline_seconds": 0.5}
    with start(tmp_path, server=limits) as server, server.channel() as channel:
        error = refusal(lambda: list(EchoStub(channel).Watch(EchoRequest(prompts=["p"]))))
        assert isinstance(error, DeadlineExceededError)
    with start(tmp_path, server={**limits, "long_lived_methods": [WATCH]}) as server, server.channel() as channel:
        call = EchoStub(channel).Watch(EchoRequest(prompts=["p"]))
        began = time.monotonic()
        while time.monotonic() - began < 1.2:
            assert next(call).time_remaining == -1
        call.cancel()


def test_a_storm_of_expiring_and_cancelled_calls_leaves_a_clean_log_and_a_working_server(tmp_path: Path) -> None:
    dice = random.Random(7)
    with start(tmp_path, server={"max_concurrent_calls": 1000}) as server, server.channel() as channel:
        stub = EchoStub(channel)
        calls = []
        for number in range(300):
            request = EchoRequest(prompts=["p"], steps=dice.randrange(3))
            calls.append((stub.Echo.future if number % 2 else stub.Stream)(request, timeout=dice.uniform(0.0005, 0.2)))
            if number % 5 == 0:
                calls[-1].cancel()
        codes = {call.code() for call in calls}
        ended = {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert codes <= ended, codes
        eventually(lambda: server.metric("accord_rpc_in_flight", service=SERVICE) == 0)
        eventually(lambda: server.metric("accord_queue_depth") == 0)
        assert stub.Echo(EchoRequest(prompts=["p"]), timeout=10).prompts[0] == "p"
        assert server.stop() == 0
        unstructured = [line for line in server.log.splitlines() if not line.startswith('{"')]
        assert unstructured == []
        assert {line.get("level") for line in server.log_lines} == {"info"}


# Retries


@pytest.mark.parametrize("prompt_bytes", [1, MAX_MESSAGE_BYTES - 1000], ids=["small", "large"])
def test_a_client_that_retries_waits_as_long_as_it_is_told(echo: ServerProcess, prompt_bytes: int) -> None:
    request = EchoRequest(prompts=["p" * prompt_bytes], raise_error="ResourceExhaustedError")
    with echo.channel(attempts=2) as channel:
        began = time.monotonic()
        error = refusal(lambda: EchoStub(channel).Echo(request, timeout=10))
    assert isinstance(error, ResourceExhaustedError)
    assert 1.2 < time.monotonic() - began < 4


@pytest.mark.alone
def test_a_retry_that_would_come_too_late_is_not_waited_for(echo: ServerProcess) -> None:
    with echo.channel(attempts=4) as channel:
        began = time.monotonic()
        error = refusal(lambda: EchoStub(channel).Echo(EchoRequest(prompts=["p"], raise_error="ResourceExhaustedError"), timeout=1.0))
    assert isinstance(error, ResourceExhaustedError), "waiting for 1.25 s would turn it into DEADLINE_EXCEEDED"
    assert time.monotonic() - began < 0.9


def test_a_client_with_retries_survives_a_restart_of_the_server(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = {"listen": f"127.0.0.1:{port}"}
    with start(tmp_path, server=config) as server, open_channel(ChannelConfig(address=server.address, attempts=5)) as channel:
        stub = EchoStub(channel)
        assert stub.Echo(EchoRequest(prompts=["p"]), timeout=10)
        assert server.stop() == 0
        with start(tmp_path, server=config, wait="announced", warm_seconds=0.5):
            assert stub.Echo(EchoRequest(prompts=["p"]), timeout=30, wait_for_ready=True).prompts[0] == "p"


# Streams, health and the life of the process


def asked_then_broken() -> Iterator[Any]:
    yield EchoRequest(prompts=["p"])
    raise LookupError("no second request")


def test_what_the_requests_of_a_stream_raise_its_reader_gets(echo: ServerProcess, caplog: pytest.LogCaptureFixture) -> None:
    with echo.channel() as channel:
        replies = guard_stub(EchoStub(channel), 10).Chat(asked_then_broken())
        assert next(replies).prompts == ["p"]
        with pytest.raises(LookupError, match="no second request"):
            next(replies)
    assert caplog.records == []


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_what_the_requests_of_a_stream_raise_its_reader_gets_in_asyncio(echo: ServerProcess, asynchronous: bool) -> None:
    async def requests() -> AsyncIterator[Any]:
        for request in asked_then_broken():
            yield request

    async with open_async_channel(ChannelConfig(address=echo.address, attempts=1)) as channel:
        replies = guard_stub(EchoStub(channel), 10).Chat(requests() if asynchronous else asked_then_broken())
        assert (await anext(replies)).prompts == ["p"]
        with pytest.raises(LookupError, match="no second request"):
            await anext(replies)


async def test_leaving_a_guarded_stream_early_cancels_the_call(tmp_path: Path) -> None:
    with start(tmp_path, server={"long_lived_methods": [WATCH]}) as server:
        async with open_async_channel(ChannelConfig(address=server.address)) as channel:
            await wait_ready_async(server.address, SERVICE, 10)
            stream = guard_stub(EchoStub(channel), 60).Watch(EchoRequest(prompts=["p"]))
            await anext(stream)
            assert server.metric("accord_rpc_in_flight", service=SERVICE) == 1
            await stream.aclose()
            eventually(lambda: server.metric("accord_rpc_in_flight", service=SERVICE) == 0)


def test_a_drain_ends_long_lived_streams_so_that_their_clients_move_on(tmp_path: Path) -> None:
    with start(tmp_path, server={"long_lived_methods": [WATCH], "drain_seconds": 30}) as server, server.channel() as channel:
        call = EchoStub(channel).Watch(EchoRequest(prompts=["p"]), timeout=60)
        next(call)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        error = refusal(lambda: list(call))
        assert isinstance(error, UnavailableError)
        assert error.retry_after_seconds is not None
        assert server.wait(10) == 0
        assert time.monotonic() - began < 5


def test_a_call_that_outlives_the_drain_is_cut(tmp_path: Path) -> None:
    with start(tmp_path, server={"drain_seconds": 0.5}) as server, server.channel() as channel:
        call = EchoStub(channel).Echo.future(EchoRequest(prompts=["p"], steps=2000), timeout=60)
        eventually(lambda: server.metric("accord_rpc_in_flight", service=SERVICE) == 1)
        began = time.monotonic()
        assert server.stop(20) == 0
        assert time.monotonic() - began < 8
        assert call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert [line["in_progress"] for line in server.log_lines if line["event"] == "drain_incomplete"] == [1]


def test_health_follows_a_fault_and_those_who_watch_are_told(tmp_path: Path) -> None:
    fault = tmp_path / "fault"
    with start(tmp_path, fault_file=str(fault)) as server, server.channel() as channel:
        watch: Iterator[Any] = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=20)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        fault.write_text("the disk is full")
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        fault.unlink()
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        events = [(line["event"], line.get("reason")) for line in server.log_lines if line["event"] in ("fault", "recovered")]
        assert events == [("fault", "the disk is full"), ("recovered", None)]


def test_a_component_that_cannot_start_ends_the_process_with_its_reason(tmp_path: Path) -> None:
    with start(tmp_path, wait="nothing", start_error="the weights are missing") as server:
        assert server.wait(20) == 1
        failed = [line for line in server.log_lines if line["event"] == "failed"]
        assert [(line["reason"], line["code"]) for line in failed] == [("the weights are missing", "FAILED_PRECONDITION")]


def test_a_port_in_use_ends_the_process_and_names_the_address(tmp_path: Path, echo: ServerProcess) -> None:
    with start(tmp_path, wait="nothing", server={"listen": echo.address}) as server:
        assert server.wait(20) == 1
        assert f"cannot listen on {echo.address}" in server.log


@pytest.mark.parametrize("in_thread", [False, True])
def test_sigterm_during_the_warm_up_does_not_wait_for_it(tmp_path: Path, in_thread: bool) -> None:
    with start(tmp_path, wait="announced", warm_seconds=60, warm_in_thread=in_thread) as server:
        assert server.stop(15) == 0


def test_the_announcement_is_gone_after_the_end(tmp_path: Path) -> None:
    with start(tmp_path) as server:
        announcement = next(tmp_path.rglob("announce.json"))
        assert json.loads(announcement.read_text())["pid"] == server.pid
        assert server.stop() == 0
        assert not announcement.exists()


def test_a_connection_that_says_nothing_is_closed(echo: ServerProcess) -> None:
    host, port = echo.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=5) as silent:
        began = time.monotonic()
        while silent.recv(4096):
            pass
        assert time.monotonic() - began < 4


def test_replies_come_back_in_full(stub: EchoStub) -> None:
    prompts = [f"prompt {number}" for number in range(500)]
    assert [reply.prompts[0] for reply in stub.Stream(EchoRequest(prompts=prompts), timeout=20)] == prompts
    assert stub.Collect(iter([EchoRequest(prompts=[prompt]) for prompt in prompts]), timeout=20).prompts == prompts
    assert isinstance(stub.Echo(EchoRequest(prompts=prompts), timeout=20), EchoReply)
