"""Where the four services are, as one YAML file says it: addresses, TLS, and the folder that they share.

What does not belong here: what a run is told of the services (`accord.rundir.Endpoints`), and which file a command reads (`accord.cli.connect`).
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from accord.rpc.channels import ChannelConfig, ChannelTls
from accord.rpc.config import FrozenModel, load_config

_FILES = ("ca", "cert", "key")


class ServiceEndpoints(FrozenModel):
    """Services that somebody else started, for example a release of the chart."""

    policy: str = Field("", description="host:port of the policy service, or dns:///host:port for each replica behind a name")
    reward: str = Field("", description="of the reward service")
    feedback: str = Field("", description="of the feedback service")
    trainer: str = Field("", description="of the trainer service")
    tls: ChannelTls | None = Field(None, description="use TLS towards all of them ({}: with the system's roots); plain text where absent")
    shared_folder: str = Field("", pattern=r"^(/.*)?$", description="a folder that the feedback service and the runs see at this path")

    def channel(self, name: str, *, timeout_seconds: float) -> ChannelConfig | None:
        """How to reach a service; None where there is no address of it."""
        address: str = getattr(self, name)
        return ChannelConfig(address=address, tls=self.tls, default_timeout_seconds=timeout_seconds) if address else None


def read_endpoints(path: Path) -> ServiceEndpoints:
    """The endpoints of a file; certificate files that it names are beside it where their paths are not absolute.

    Raises:
        InvalidArgumentError: as `load_config`.
    """
    found = load_config(path, ServiceEndpoints)
    if found.tls is None:
        return found
    files = {name: path.parent / file for name in _FILES if (file := getattr(found.tls, name)) is not None}
    return found.model_copy(update={"tls": found.tls.model_copy(update=files)})
