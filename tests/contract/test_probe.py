"""`python -m accord.rpc.probe` as a kubelet runs it: exit code and words, fast and without torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.contract.echo_proto import SERVICE
from tests.contract.harness import ServerProcess
from tests.contract.test_tls import Authority


def probe(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "accord.rpc.probe", *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_a_server_that_serves_is_well_and_an_unknown_service_is_not(tmp_path: Path) -> None:
    with ServerProcess("tests.contract.echo_server", {}, tmp_path) as server:
        for service in ("", SERVICE, "live"):
            assert probe(server.address, "--service", service).returncode == 0, service
        unknown = probe(server.address, "--service", "accord.api.Nobody", "--timeout", "2")
        assert unknown.returncode == 1
        assert "last state: unknown to this server" in unknown.stderr
    gone = probe(server.address, "--timeout", "0.5")
    assert gone.returncode == 1
    assert "was not SERVING within 0.5 s" in gone.stderr


def test_a_server_that_still_loads_is_alive_and_not_ready(tmp_path: Path) -> None:
    with ServerProcess("tests.contract.echo_server", {"warm_seconds": 30.0}, tmp_path, wait="announced") as server:
        assert probe(server.address, "--service", "live", "--timeout", "10").returncode == 0
        loading = probe(server.address, "--timeout", "2")
        assert loading.returncode == 1
        assert "NOT_SERVING" in loading.stderr


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command to make certificates")
def test_mutual_tls_is_asked_with_certificates(tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")
    (cert, key), client = ours.issue("server"), ours.issue("client")
    config = {"server": {"tls": {"cert": str(cert), "key": str(key), "client_ca": str(ours.roots)}}}
    with ServerProcess("tests.contract.echo_server", config, tmp_path, wait="announced") as server:
        known = ("--ca", str(ours.roots), "--cert", str(client[0]), "--key", str(client[1]), "--server-name", "localhost", "--timeout", "20")
        assert probe(server.address, *known).returncode == 0
        assert probe(server.address, "--timeout", "0.5").returncode == 1


def test_a_certificate_that_is_not_there_and_a_name_that_is_too_long_are_said(tmp_path: Path) -> None:
    missing = probe("127.0.0.1:9", "--ca", str(tmp_path / "ca.crt"))
    assert missing.returncode == 1
    assert f"{tmp_path / 'ca.crt'} cannot be read: No such file or directory" in missing.stderr
    assert "130 bytes; at most 127 are allowed" in probe("127.0.0.1:9", "--service", "a" * 130).stderr


def test_it_imports_grpc_and_nothing_else_of_weight() -> None:
    """A kubelet starts it every few seconds for each pod."""
    heavy = ("torch", "numpy", "transformers", "typer", "pydantic", "yaml", "google.protobuf", "accord.rpc.channels")
    code = f"import sys, accord.rpc.probe; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout.strip() == "[]"
