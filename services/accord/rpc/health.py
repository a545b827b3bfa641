"""grpc.health.v1 and reflection of a server: honest health, NOT_SERVING until somebody says otherwise.

What does not belong here: deciding whether the service is well (`accord.rpc.server`).
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

LIVE = "live"
"""A name in the health service that is SERVING as long as the process answers at all, also while it loads and while what it needs is away: a liveness
probe that followed the service's own health would restart it for another's fault."""


class HealthBoard:
    """Health of each service and of the server as a whole ("").

    Args:
        names: full names of the services.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._servicer = health.aio.HealthServicer()

    def add_to(self, server: grpc.aio.Server, *, reflection: bool) -> None:
        """Registers the health service, and reflection over all services if wanted."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        if reflection:
            _enable_reflection(self._names, server)

    async def set_serving(self, serving: bool) -> None:
        """Sets every name but `LIVE` to SERVING or NOT_SERVING; those who watch are told."""
        await self._servicer.set(LIVE, health_pb2.HealthCheckResponse.SERVING)
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._names):
            await self._servicer.set(name, status)

    async def shut_down(self) -> None:
        """Sets every name to NOT_SERVING for good."""
        await self._servicer.enter_graceful_shutdown()


def _enable_reflection(names: Sequence[str], server: grpc.aio.Server) -> None:
    reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
