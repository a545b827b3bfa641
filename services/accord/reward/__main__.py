"""`python -m accord.reward CONFIG.yaml`: the reward service as a process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from accord.api.reward.v1 import reward_pb2_grpc as rpc
from accord.reward.config import RewardConfig
from accord.rpc.server import Component, ServiceBinding, main
from accord.serving.holder import Holder

_STOP_SECONDS = 10.0


class RewardComponent:
    """Loads the model, serves it, lets go of it. Implements `accord.rpc.server.Component`."""

    def __init__(self, config: RewardConfig) -> None:
        from accord.reward.servicer import RewardServicer, Served

        self._config = config
        self._holder: Holder[Served] = Holder()
        self._servicer = RewardServicer(self._holder)

    @property
    def bindings(self) -> Sequence[ServiceBinding]:
        """RewardService."""
        return (ServiceBinding("accord.api.reward.v1.RewardService", lambda server: rpc.add_RewardServiceServicer_to_server(self._servicer, server)),)

    async def start(self) -> None:
        """Loads the base model in a thread and starts the compute thread."""
        self._holder.value = await asyncio.to_thread(self._load)

    async def drain(self) -> None:
        """Nothing runs besides the calls in flight."""

    async def close(self) -> None:
        """Stops the compute thread."""
        if self._holder.value is not None:
            await asyncio.to_thread(self._holder.value.engine.stop, _STOP_SECONDS)

    def fault(self) -> str | None:
        """Whether the compute thread lives and moves."""
        return None if self._holder.value is None else self._holder.value.engine.fault()

    def _load(self):  # type: ignore[no-untyped-def]
        from accord.artefacts.store import ArtefactStore
        from accord.client.messages import ModelDigests
        from accord.models.base import load_base_model
        from accord.reward.engine import RewardEngine
        from accord.reward.servicer import Served
        from accord.serving.reader import SequenceReader

        config = self._config
        base = load_base_model(config.base_model, device=config.device, threads=config.threads)
        engine = RewardEngine(base, ArtefactStore(config.artefacts), config)
        reader = SequenceReader(base.encoder, vocabulary_size=base.vocabulary_size, max_bytes=config.max_text_bytes)
        digests = ModelDigests(base.digests.base_model, base.digests.tokenizer, base.digests.chat_template)
        return Served(engine, reader, config, digests)


def build(config: RewardConfig) -> Component:
    """Returns the component of a configuration."""
    return RewardComponent(config)


if __name__ == "__main__":
    sys.exit(main(RewardConfig, build))
