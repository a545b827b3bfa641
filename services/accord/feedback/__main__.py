"""`python -m accord.feedback CONFIG.yaml`: the feedback service as a process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from accord.api.feedback.v1 import feedback_pb2_grpc as rpc
from accord.client.reward import AsyncRewardClient
from accord.feedback.candidates import CandidateSource
from accord.feedback.config import FeedbackConfig
from accord.feedback.desk import Desk
from accord.feedback.jobs import LabelJobs
from accord.feedback.judge_model import RemotePolicy
from accord.feedback.labeller import Labeller
from accord.feedback.ledger import Ledger
from accord.feedback.roster import Roster, make_roster
from accord.feedback.servicer import FeedbackServicer, Served
from accord.rpc.channels import ChannelConfig
from accord.rpc.server import Component, ServiceBinding, main
from accord.serving.holder import Holder


class FeedbackComponent:
    """The ledger, the desk, the jobs and the servicer. Implements `accord.rpc.server.Component`."""

    def __init__(self, config: FeedbackConfig) -> None:
        self._config = config
        self._holder: Holder[Served] = Holder()
        self._ledger: Ledger | None = None
        self._roster: Roster | None = None
        self._desk: Desk | None = None
        self._jobs: LabelJobs | None = None
        self._source: CandidateSource | None = None

    @property
    def bindings(self) -> Sequence[ServiceBinding]:
        """FeedbackService."""
        servicer = FeedbackServicer(self._holder)
        return (ServiceBinding("accord.api.feedback.v1.FeedbackService", lambda server: rpc.add_FeedbackServiceServicer_to_server(servicer, server)),)

    async def start(self) -> None:
        """Opens the ledger and takes up the jobs. Judges may be away: calls that need them say so, jobs wait for them. Their keys must be there."""
        config = self._config
        self._ledger = await asyncio.to_thread(Ledger, config.ledger)
        self._roster = make_roster(config)
        self._desk = Desk(self._ledger, self._roster.lanes)
        labeller = Labeller(self._ledger, self._roster, self._desk, config)
        self._source = _candidate_source(config)
        self._jobs = LabelJobs(labeller, self._ledger, config, self._source)
        await self._jobs.start()
        self._holder.value = Served(labeller, self._jobs, self._ledger, config)

    async def drain(self) -> None:
        """Jobs finish the pairs in work; they go on after the next start."""
        if self._jobs is not None:
            await self._jobs.stop_taking()

    async def close(self) -> None:
        """Ends what still runs and closes the ledger."""
        if self._jobs is not None:
            await self._jobs.close()
        if self._desk is not None:
            await self._desk.close()
        if self._roster is not None:
            await self._roster.close()
        if self._source is not None:
            await self._source.close()
        if self._ledger is not None:
            await asyncio.to_thread(self._ledger.close)

    def fault(self) -> str | None:
        """Why labels cannot be kept, or None. A judge that is away is no fault of this service."""
        return None if self._ledger is None else self._ledger.check()


def _candidate_source(config: FeedbackConfig) -> CandidateSource | None:
    """What samples candidates, over channels of its own; None without a policy."""
    if config.policy is None:
        return None
    policy = RemotePolicy(ChannelConfig(address=config.policy, tls=config.policy_tls, load_balancing=config.policy_balancing))
    reward = AsyncRewardClient(ChannelConfig(address=config.reward, tls=config.reward_tls)) if config.reward else None
    return CandidateSource(policy, reward, timeout_seconds=config.judge_timeout_seconds)


def build(config: FeedbackConfig) -> Component:
    """Returns the component of a configuration."""
    return FeedbackComponent(config)


if __name__ == "__main__":
    sys.exit(main(FeedbackConfig, build))
