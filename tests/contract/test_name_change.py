"""A name whose address changes, as a headless service's does when its only pod is replaced: callers go on without a failed call."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.contract.echo_proto import EchoRequest, EchoStub
from tests.contract.harness import ServerProcess

from accord.rpc.channels import ChannelConfig, open_channel

MODULE = "tests.contract.echo_server"
A_RECORD = 1


class NameServer:
    """Answers every question for an IPv4 address with `ip`, and any other question with nothing (RFC 1035, over UDP)."""

    def __init__(self, ip: str) -> None:
        self.ip = ip
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]

    def serve(self) -> None:
        """Until the socket is closed."""
        with contextlib.suppress(OSError):
            while True:
                question, client = self._socket.recvfrom(512)
                if not question:
                    return
                self._socket.sendto(self._answer(question), client)

    def stop(self) -> None:
        """Ends `serve`, whose thread may wait for a question."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as poke:
            poke.sendto(b"", ("127.0.0.1", self.port))

    def _answer(self, packet: bytes) -> bytes:
        end = packet.index(b"\0", 12) + 5  # the name's end, then type and class
        asked = packet[12:end]
        found = struct.unpack("!H", asked[-4:-2])[0] == A_RECORD
        head = packet[:2] + struct.pack("!HHHHH", 0x8580, 1, int(found), 0, 0)
        record = b"\xc0\x0c" + struct.pack("!HHIH", A_RECORD, 1, 0, 4) + socket.inet_aton(self.ip)
        return head + asked + (record if found else b"")


@contextlib.contextmanager
def name_server(ip: str) -> Iterator[NameServer]:
    server = NameServer(ip)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(10)


def test_a_replica_that_takes_another_s_place_is_found_at_its_new_address(tmp_path: Path) -> None:
    """The old replica drains at once after the name was looked up; gRPC by itself looks a name up again 30 s later at the earliest."""
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(ServerProcess(MODULE, {}, tmp_path))
        port = old.address.rpartition(":")[2]
        new = stack.enter_context(ServerProcess(MODULE, {"server": {"listen": f"127.0.0.2:{port}"}}, tmp_path))
        names = stack.enter_context(name_server("127.0.0.1"))
        config = ChannelConfig(address=f"dns://127.0.0.1:{names.port}/replicas.test:{port}", attempts=5)
        stub = EchoStub(stack.enter_context(open_channel(config)))
        for number in range(20):
            if number == 10:
                names.ip = "127.0.0.2"
                assert old.stop() == 0
            assert stub.Echo(EchoRequest(prompts=[str(number)]), timeout=60).prompts[0] == str(number)
        assert new.metric("accord_rpc_calls_total", method="Echo", code="OK") == 10
        assert old.log_lines[-1]["event"] == "stopped"
