"""TLS, mutual TLS and the rotation of certificates, on the echo service with certificates made by openssl."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.contract.certificates import Authority
from tests.contract.echo_proto import SERVICE, EchoRequest, EchoStub
from tests.contract.harness import ServerProcess

from accord.errors import AccordError, UnavailableError
from accord.rpc.channels import ChannelConfig, ChannelTls, open_channel, wait_ready
from accord.rpc.stubs import guard_stub

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command to make certificates")


def start(folder: Path, tls: dict[str, Any]) -> ServerProcess:
    return ServerProcess("tests.contract.echo_server", {"server": {"tls": tls}}, folder, wait="announced")


def call(server: ServerProcess, tls: ChannelTls | None) -> str:
    wait = ChannelConfig(address=server.address, tls=tls, attempts=1)
    with open_channel(wait) as channel:
        reply = guard_stub(EchoStub(channel), 5).Echo(EchoRequest(prompts=["p"]))
        return str(reply.prompts[0])


def test_tls_serves_those_who_trust_its_authority_and_nobody_in_plain_text(tmp_path: Path) -> None:
    ours, other = Authority(tmp_path, "ours"), Authority(tmp_path, "other")
    cert, key = ours.issue("server")
    with start(tmp_path, {"cert": str(cert), "key": str(key)}) as server:
        wait_ready(server.address, SERVICE, 20, tls=ChannelTls(ca=ours.roots))
        assert call(server, ChannelTls(ca=ours.roots)) == "p"
        for wrong in (ChannelTls(ca=other.roots), None):
            with pytest.raises(UnavailableError):
                call(server, wrong)


def test_mutual_tls_serves_only_clients_of_its_authority(tmp_path: Path) -> None:
    ours, other = Authority(tmp_path, "ours"), Authority(tmp_path, "other")
    cert, key = ours.issue("server")
    good, bad = ours.issue("client"), other.issue("client")
    with start(tmp_path, {"cert": str(cert), "key": str(key), "client_ca": str(ours.roots)}) as server:
        known = ChannelTls(ca=ours.roots, cert=good[0], key=good[1])
        wait_ready(server.address, SERVICE, 20, tls=known)
        assert call(server, known) == "p"
        for unknown in (ChannelTls(ca=ours.roots), ChannelTls(ca=ours.roots, cert=bad[0], key=bad[1])):
            with pytest.raises(UnavailableError):
                call(server, unknown)


def test_a_replaced_certificate_is_used_without_a_restart(tmp_path: Path) -> None:
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    cert, key = first.issue("server")
    new_cert, new_key = second.issue("server")
    with start(tmp_path, {"cert": str(cert), "key": str(key)}) as server:
        wait_ready(server.address, SERVICE, 20, tls=ChannelTls(ca=first.roots))
        shutil.copy(new_key, key)
        shutil.copy(new_cert, cert)
        assert call(server, ChannelTls(ca=second.roots)) == "p"
        with pytest.raises(UnavailableError):
            call(server, ChannelTls(ca=first.roots))


def test_a_missing_certificate_ends_the_process_and_names_the_file(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.pem")
    config = {"server": {"tls": {"cert": missing, "key": missing}}}
    with ServerProcess("tests.contract.echo_server", config, tmp_path, wait="nothing") as server:
        assert server.wait(20) == 1
        assert f"{missing} cannot be read: No such file or directory" in server.log


def test_half_a_client_certificate_is_refused_before_anything_is_dialled(tmp_path: Path) -> None:
    with pytest.raises(AccordError, match="cert and key are given together"):
        open_channel(ChannelConfig(address="127.0.0.1:1", tls=ChannelTls(cert=tmp_path / "cert.pem")))
