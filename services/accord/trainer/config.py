"""What a trainer server is configured with: one YAML file."""

from __future__ import annotations

from pydantic import Field, field_validator

from accord.rpc.config import FrozenModel, ServerConfig
from accord.rundir import Endpoints

WATCH_METHOD = "/accord.api.trainer.v1.TrainerService/WatchRun"


class TrainerConfig(FrozenModel):
    """Configuration of `python -m accord.trainer`."""

    server: ServerConfig = Field(default=ServerConfig(), validate_default=True)
    runs: str = Field(min_length=1, description="folder of run directories")
    database: str = Field(min_length=1, description="SQLAlchemy URL of the registry, for example sqlite:////path/registry.sqlite")
    artefacts: str = Field(min_length=1, description="URI of the artefact store")
    base_model: str = Field(default="embedded", min_length=1, description="embedded, a folder or a hub id")
    model_folder: str = Field(default="", description="where the base model's files are, for memory plans; empty where not at hand")
    threads: int = Field(default=2, ge=1, le=1024, description="torch threads of a run")
    endpoints: Endpoints = Field(default=Endpoints(), description="addresses of the services, for the runs")
    max_running: int = Field(default=1, ge=1, description="runs at once; others wait QUEUED")
    max_queued: int = Field(default=1000, ge=1, description="runs waiting before RESOURCE_EXHAUSTED")
    wait_seconds: float = Field(default=600.0, gt=0, description="longest wait of a run for a service")
    stop_grace_seconds: float = Field(default=120.0, ge=0, description="time to checkpoint after SIGTERM before SIGKILL")
    poll_seconds: float = Field(default=0.5, gt=0, le=60, description="time between two looks at the runs")
    command: tuple[str, ...] = Field(default=(), description="how a run's process is started; the path of run.yaml is appended")
    nice: int = Field(default=0, ge=0, le=19, description="niceness of the runs")

    @field_validator("server")
    @classmethod
    def _watching_has_no_deadline(cls, server: ServerConfig) -> ServerConfig:
        """A run is watched for as long as it takes, whatever the deadline of other calls."""
        if WATCH_METHOD in server.long_lived_methods:
            return server
        return server.model_copy(update={"long_lived_methods": (*server.long_lived_methods, WATCH_METHOD)})
