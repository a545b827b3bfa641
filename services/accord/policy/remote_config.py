"""Configuration of a replica that forwards to another server.

What does not belong here: what is asked of that server (`accord.policy.vllm`, `accord.policy.tgi`).
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from accord.artefacts.names import AdapterName
from accord.errors import AccordError
from accord.rpc.config import EnvironmentVariable, FrozenModel, checked_url
from accord.rpc.secrets import Secret, read_secret


class RemoteConfig(FrozenModel):
    """Where the other server is and how much is asked of it at once. Proxies named in the environment are not used."""

    url: str = Field(min_length=1, description="http(s)://host:port of the vLLM or TGI server, without /v1")
    model: str = Field(default="", description="vllm: name under which the base model is served; empty where it serves one")
    api_key_env: EnvironmentVariable | None = Field(default=None, description="environment variable that holds the server's API key")
    api_key_file: Path | None = Field(default=None, description="file that holds the server's API key")
    max_concurrency: int = Field(default=64, ge=1, le=4096, description="requests in flight to the server at once; each sample is one")
    connect_seconds: float = Field(default=5.0, gt=0, description="time for a connection")
    read_seconds: float = Field(default=300.0, gt=0, description="longest silence of the server; calls' own deadlines hold beside it")
    start_seconds: float = Field(default=180.0, ge=0, description="how long this replica waits at its start for the server")
    probe_seconds: float = Field(default=2.0, gt=0, description="time between health probes of the server")
    probe_timeout_seconds: float = Field(default=2.5, gt=0, description="a probe without answer for longer has failed; two in a row are a fault")
    max_adapters: int = Field(default=8, ge=1, description="vllm: adapter versions loaded at once; the least recently used goes first")
    adapters_here: Path | None = Field(default=None, description="vllm: folder of this machine below which adapters lie, see adapters_there")
    adapters_there: str | None = Field(default=None, description="vllm: the same folder as the server sees it; default: the same path")
    adapters: dict[str, str] = Field(
        default={}, description="tgi: adapter version (adapters/{adapter}/versions/{n}) to the adapter id that the server was started with"
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        return checked_url(value)

    @field_validator("adapters")
    @classmethod
    def _check_adapters(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            try:
                AdapterName.parse_version(name)
            except AccordError as error:
                raise ValueError(error.message) from error
        return value

    @model_validator(mode="after")
    def _check_pairs(self) -> RemoteConfig:
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("api_key_env and api_key_file are both given; at most one is allowed")
        if (self.adapters_here is None) != (self.adapters_there is None):
            raise ValueError("adapters_here and adapters_there are given together or not at all")
        return self

    def api_key(self) -> Secret:
        """Returns the key, empty where none is configured. It is put into the header, nowhere else. Raises as `read_secret`."""
        return read_secret(self.api_key_env, self.api_key_file, "remote")
