"""`python -m accord.policy CONFIG.yaml`: the policy service as a process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from accord.api.policy.v1 import policy_pb2_grpc as rpc
from accord.policy.config import PolicyConfig
from accord.policy.servicer import PolicyAdminServicer, PolicyServicer, Served
from accord.rpc.server import Component, ServiceBinding, main
from accord.serving.holder import Holder

_STOP_SECONDS = 10.0
_SWITCH_SECONDS = 0.0005  # CPython's 5 ms let a flood of calls, which the event loop refuses, hold up each step of the compute thread


class PolicyComponent:
    """Loads the model, serves it, lets go of it. Implements `accord.rpc.server.Component`."""

    def __init__(self, config: PolicyConfig) -> None:
        self._config = config
        self._holder: Holder[Served] = Holder()

    @property
    def bindings(self) -> Sequence[ServiceBinding]:
        """PolicyService and PolicyAdminService."""
        policy, admin = PolicyServicer(self._holder), PolicyAdminServicer(self._holder)
        return (
            ServiceBinding("accord.api.policy.v1.PolicyService", lambda server: rpc.add_PolicyServiceServicer_to_server(policy, server)),
            ServiceBinding("accord.api.policy.v1.PolicyAdminService", lambda server: rpc.add_PolicyAdminServiceServicer_to_server(admin, server)),
        )

    async def start(self) -> None:
        """Loads the base model in a thread and starts the compute thread, or waits for the server that this one forwards to."""
        if self._config.backend == "transformers":
            self._holder.value = await asyncio.to_thread(_load, self._config)
        else:
            self._holder.value = await _connect(self._config)

    async def drain(self) -> None:
        """Nothing runs besides the calls in flight."""
        if self._holder.value is not None:
            self._holder.value.engine.resume()

    async def close(self) -> None:
        """Stops what computes."""
        if self._holder.value is not None:
            await asyncio.to_thread(self._holder.value.engine.stop, _STOP_SECONDS)

    def fault(self) -> str | None:
        """Whether what computes lives and moves."""
        return None if self._holder.value is None else self._holder.value.engine.fault()


def _load(config: PolicyConfig) -> Served:
    from accord.artefacts.store import ArtefactStore
    from accord.models.base import load_base_model
    from accord.policy.convert import RequestReader
    from accord.policy.inprocess import InProcessEngine

    sys.setswitchinterval(_SWITCH_SECONDS)
    base = load_base_model(config.base_model, device=config.device, threads=config.threads)
    engine = InProcessEngine(base, ArtefactStore(config.artefacts), config)
    return Served(engine, RequestReader(base.encoder, engine.info, config), config)


async def _connect(config: PolicyConfig) -> Served:
    from accord.artefacts.store import ArtefactStore
    from accord.policy.convert import RequestReader
    from accord.policy.remote_build import build_remote

    assert config.remote is not None
    assert config.backend != "transformers"
    engine, encoder = await build_remote(config.backend, config.remote, ArtefactStore(config.artefacts), config)
    return Served(engine, RequestReader(encoder, engine.info, config), config)


def build(config: PolicyConfig) -> Component:
    """Returns the component of a configuration."""
    return PolicyComponent(config)


if __name__ == "__main__":
    sys.exit(main(PolicyConfig, build))
