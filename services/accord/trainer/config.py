"""What a trainer server is configured with: one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from accord.launch.settings import KubernetesConfig
from accord.rpc.config import FrozenModel, ServerConfig
from accord.rundir import Endpoints

EMBEDDED = "embedded"
WATCH_METHOD = "/accord.api.trainer.v1.TrainerService/WatchRun"

_LOCAL = ("", "file", "local")


class TrainerConfig(FrozenModel):
    """Configuration of `python -m accord.trainer`."""

    server: ServerConfig = Field(default=ServerConfig(), validate_default=True)
    runs: str = Field(min_length=1, description="folder of run directories")
    database: str = Field(min_length=1, description="SQLAlchemy URL of the registry, for example sqlite:////path/registry.sqlite")
    artefacts: str = Field(min_length=1, description="URI of the artefact store")
    base_model: str = Field(default="embedded", min_length=1, description="embedded, a folder or a hub id")
    model_folder: str = Field(default="", description="where base_model's files are, for memory plans; empty: in a cache, or not at hand")
    threads: int = Field(default=2, ge=1, le=1024, description="torch threads of a run")
    endpoints: Endpoints = Field(default=Endpoints(), description="addresses of the services, for the runs")
    max_running: int = Field(default=1, ge=1, description="runs at once; others wait QUEUED")
    max_queued: int = Field(default=1000, ge=1, description="runs waiting before RESOURCE_EXHAUSTED")
    wait_seconds: float = Field(default=600.0, gt=0, description="longest wait of a run for a service")
    stop_grace_seconds: float = Field(default=120.0, ge=0, description="time to checkpoint after SIGTERM before SIGKILL")
    poll_seconds: float = Field(default=0.5, gt=0, le=60, description="time between two looks at the runs")
    launcher: Literal["local", "kubernetes"] = Field(default="local", description="runs as processes of this machine, or as Kubernetes Jobs")
    command: tuple[str, ...] = Field(default=(), description="local: how a run's process is started; the path of run.yaml is appended")
    nice: int = Field(default=0, ge=0, le=19, description="local: niceness of the runs")
    stop_runs: bool = Field(
        default=False,
        description="local: a server that is asked to stop has runs checkpoint and stop first, within server.drain_seconds, as where they end with "
        "its container; without it they go on",
    )
    kubernetes: KubernetesConfig | None = Field(default=None, description="how runs become Jobs; required with launcher kubernetes")

    @field_validator("runs")
    @classmethod
    def _whole_path(cls, path: str) -> str:
        """A run begins in its own folder: there a relative path would be another place than here."""
        return _absolute(path)

    @field_validator("artefacts")
    @classmethod
    def _whole_uri(cls, uri: str) -> str:
        scheme, separator, path = uri.rpartition("://")
        return f"{scheme}{separator}{_absolute(path)}" if scheme in _LOCAL else uri

    @field_validator("base_model", "model_folder")
    @classmethod
    def _whole_folder(cls, name: str) -> str:
        """`embedded` and hub ids stay."""
        is_path = name.startswith((".", "~")) or (name not in ("", EMBEDDED) and Path(name).is_dir())
        return _absolute(name) if is_path else name

    @field_validator("endpoints")
    @classmethod
    def _whole_certificates(cls, endpoints: Endpoints) -> Endpoints:
        if endpoints.tls is None:
            return endpoints
        paths = {name: path.expanduser().absolute() for name in ("ca", "cert", "key") if (path := getattr(endpoints.tls, name)) is not None}
        return endpoints.model_copy(update={"tls": endpoints.tls.model_copy(update=paths)})

    @field_validator("server")
    @classmethod
    def _watching_has_no_deadline(cls, server: ServerConfig) -> ServerConfig:
        """A run is watched for as long as it takes, whatever the deadline of other calls."""
        if WATCH_METHOD in server.long_lived_methods:
            return server
        return server.model_copy(update={"long_lived_methods": (*server.long_lived_methods, WATCH_METHOD)})

    @model_validator(mode="after")
    def _check_launcher(self) -> Self:
        if (self.launcher == "kubernetes") != (self.kubernetes is not None):
            raise ValueError(f"launcher is {self.launcher}; the section kubernetes belongs to launcher kubernetes, which needs it")
        if self.kubernetes is None:
            return self
        if self.stop_runs:
            raise ValueError("stop_runs is of launcher local: Jobs go on without the trainer")
        local = [
            ("runs", self.runs),
            *([("artefacts", self.artefacts.removeprefix("file://"))] if self.artefacts.startswith(("/", "file://")) else []),
        ]
        for field, path in local:
            if not self.kubernetes.holds(path):
                raise ValueError(f"{field} is {path}, which lies on none of kubernetes.claims: the runs would not see it")
        return self


def _absolute(path: str) -> str:
    return path if path.startswith("/") else str(Path(path).expanduser().absolute())
