"""Channels and their options; what needs a server is in tests/contract."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from accord.client.policy import PolicyClient
from accord.errors import UnavailableError
from accord.rpc.channels import ChannelConfig, channel_options, wait_ready, wait_ready_async
from accord.rpc.stubs import guard_stub


@pytest.fixture
def closed_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def service_config(**values: object) -> dict[str, object]:
    options = dict(channel_options(ChannelConfig(address="h:1", **values)))  # type: ignore[arg-type]
    return json.loads(options["grpc.service_config"])  # type: ignore[arg-type,no-any-return]


def test_the_service_config_balances_and_retries() -> None:
    found = service_config(attempts=3, initial_backoff_seconds=0.25)
    assert found["loadBalancingConfig"] == [{"round_robin": {}}]
    policy = found["methodConfig"][0]["retryPolicy"]  # type: ignore[index]
    assert (policy["maxAttempts"], policy["initialBackoff"]) == (3, "0.250s")
    assert policy["retryableStatusCodes"] == ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]


def test_one_attempt_means_no_retries_at_all() -> None:
    assert "methodConfig" not in service_config(attempts=1)
    assert dict(channel_options(ChannelConfig(address="h:1", attempts=1)))["grpc.enable_retries"] == 0


def test_what_changes_one_replica_is_not_tried_on_another() -> None:
    asked: list[str] = []

    class Starting(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            def refuse(_: bytes, context: grpc.ServicerContext) -> bytes:
                asked.append(details.method.rpartition("/")[2])
                context.abort(grpc.StatusCode.UNAVAILABLE, "starting")

            return grpc.unary_unary_rpc_method_handler(refuse)

    with ThreadPoolExecutor(4) as pool, contextlib.ExitStack() as stack:
        ports = []
        for _ in range(2):
            server = grpc.server(pool, handlers=(Starting(),))
            ports.append(server.add_insecure_port("127.0.0.1:0"))
            server.start()
            stack.callback(lambda server=server: server.stop(0).wait())
        config = ChannelConfig(address="ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports), initial_backoff_seconds=0.01)
        client = stack.enter_context(PolicyClient(config))
        calls = (
            lambda: client.pause("wait"), client.resume, lambda: client.unload_adapter("adapters/x/versions/1"),
            lambda: client.update_weights("x", "ab" * 32), lambda: client.load_adapter("adapters/x"),
        )  # fmt: skip
        for call in calls:
            with pytest.raises(UnavailableError):
                call()
    assert Counter(asked) == {"PauseGeneration": 1, "ResumeGeneration": 1, "UnloadAdapter": 1, "UpdateWeights": 1, "LoadAdapter": 4}


def test_waiting_for_nobody_names_address_service_and_state(closed_address: str) -> None:
    began = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        wait_ready(closed_address, "accord.api.policy.v1.PolicyService", 0.6)
    assert 0.5 < time.monotonic() - began < 3
    assert f"accord.api.policy.v1.PolicyService at {closed_address} was not SERVING within 0.6 s; last state: UNAVAILABLE" in str(caught.value)
    assert caught.value.metadata["address"] == closed_address


async def test_waiting_for_nobody_in_asyncio(closed_address: str) -> None:
    with pytest.raises(UnavailableError, match=r"the server at .* was not SERVING within 0\.3 s"):
        await wait_ready_async(closed_address, "", 0.3)


def test_a_guarded_stub_takes_only_grpc_methods() -> None:
    class NoStub:
        def __init__(self) -> None:
            self.Score = len

    with pytest.raises(TypeError, match="is not a gRPC method"):
        guard_stub(NoStub(), 1.0)


def test_importing_rpc_brings_no_torch_and_is_quick() -> None:
    program = (
        "import sys, time; began = time.process_time()\n"
        "import accord.rpc.server, accord.rpc.channels, accord.rpc.stubs, accord.rpc.worker\n"
        "heavy = {'torch', 'transformers', 'numpy', 'kubernetes', 'sqlalchemy'} & set(sys.modules)\n"
        "print(sorted(heavy), time.process_time() - began)"
    )
    outputs = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split() for _ in range(2)]
    assert outputs[0][0] == "[]"
    assert min(float(output[1]) for output in outputs) < 5.0, "0.7 s of a processor on a fast machine"
