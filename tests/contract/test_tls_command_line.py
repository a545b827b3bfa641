"""The command line before servers that speak mutual TLS: real processes, certificates made by openssl."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract import tiny
from tests.contract.certificates import Authority
from tests.contract.entries import POLICY, TRAINER
from tests.contract.harness import ServerProcess

from accord.rpc.channels import ChannelTls, wait_ready

pytestmark = [
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command to make certificates"),
    pytest.mark.timeout(300),
]


class World:
    """An authority, a policy and a trainer server with one certificate for the name `accord.test`, and a client's certificate."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder, "ours")
        self.client = self.authority.issue("client")
        cert, key = self.authority.issue("server", names="DNS:accord.test")
        self._tls = {"cert": str(cert), "key": str(key), "client_ca": str(self.authority.roots)}
        self.known = ChannelTls(ca=self.authority.roots, cert=self.client[0], key=self.client[1], server_name="accord.test")

    def server(self, entry: object) -> ServerProcess:
        """A service whose every client shows a certificate."""
        config = {**entry.config(self.folder), "server": {"tls": self._tls}}  # type: ignore[attr-defined]
        return ServerProcess(entry.module, config, self.folder, wait="announced")  # type: ignore[attr-defined]

    def options(self) -> list[str]:
        """TLS as options."""
        cert, key = self.client
        return ["--tls-ca", str(self.authority.roots), "--tls-cert", str(cert), "--tls-key", str(key), "--tls-server-name", "accord.test"]

    def accord(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command in a process of its own."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-m", "accord.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment, cwd=self.folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def trainer(world: World) -> Iterator[str]:
    with world.server(TRAINER) as server:
        wait_ready(server.address, "", 60, tls=world.known)
        yield server.address


def test_a_trainer_lists_its_runs_to_those_with_a_certificate(world: World, trainer: str) -> None:
    known = world.accord("runs", "--json", "--trainer", trainer, *world.options())
    assert (known.returncode, json.loads(known.stdout)) == (0, []), known.stderr
    for unknown in (world.options()[:2], [*world.options()[:2], "--tls-server-name", "accord.test"], []):
        refused = world.accord("runs", "--trainer", trainer, "--timeout", "5", *unknown)
        assert (refused.returncode, refused.stdout) == (1, ""), unknown
        assert "wants TLS (--tls-ca)" in refused.stderr or "more time" in refused.stderr


def test_a_certificate_of_another_authority_or_name_is_refused(world: World, trainer: str) -> None:
    other = Authority(world.folder, "other")
    wrong_roots = ["--tls-ca", str(other.roots), *world.options()[2:]]
    wrong_name = [*world.options()[:-1], "elsewhere.test"]
    for options in (wrong_roots, wrong_name):
        assert world.accord("runs", "--trainer", trainer, "--timeout", "5", *options).returncode == 1


def test_a_policy_service_generates_over_an_endpoints_file_with_certificates_beside_it(world: World) -> None:
    cert, key = world.client
    file = world.authority.roots.parent / "endpoints.yaml"
    with world.server(POLICY) as server:
        wait_ready(server.address, "", 90, tls=world.known)
        file.write_text(
            f"policy: {server.address}\ntls: {{ca: {world.authority.roots.name}, cert: {cert.name}, key: {key.name}, server_name: accord.test}}\n"
        )
        made = world.accord("generate", "Say hello", "--max-tokens", "3", "--temperature", "0", "--json", "--endpoints", str(file))
        assert made.returncode == 0, made.stderr
        reply = json.loads(made.stdout)
        assert len(reply["results"][0]["samples"][0]["token_ids"]) == 3
        adapter = f"adapters/{tiny.POLICIES[0]}/versions/1"
        other = world.accord(
            "generate", "Say hello", "--max-tokens", "3", "--json", "--adapter", adapter, "--policy", server.address, *world.options()
        )
        assert json.loads(other.stdout)["adapter_version"] == adapter
