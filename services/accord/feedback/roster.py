"""The judges of a server by their names in the configuration: who each is now, what it can do, and how much may be asked of it.

What does not belong here: what is asked (`accord.feedback.judges`) and what several judges come to (`accord.feedback.panels`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from accord.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from accord.feedback.config import FeedbackConfig
from accord.feedback.desk import Lane
from accord.feedback.endpoint import ChatEndpoint
from accord.feedback.judge_config import EnsembleJudge, EscalationJudge, OpenAIJudge, PolicyJudge, parts_of, price_entry
from accord.feedback.judge_model import JudgeModel, RemotePolicy
from accord.feedback.judges import make_judges, make_written_judges
from accord.feedback.panels import Ensemble, Escalation, Seat
from accord.feedback.records import KINDS, JudgeIdentity, Kind
from accord.rpc.channels import ChannelConfig


class JudgeSource(Protocol):
    """One judge: who it is, and the end of its connections."""

    async def identify(self, adapter: str) -> JudgeIdentity:
        """Who would answer now under an adapter."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Backend:
    """A judge that answers itself, and how it is asked; `adapter` is its own where a caller names none."""

    source: JudgeSource
    lane: Lane
    adapter: str = ""


class Roster:
    """The judges of a server. Lives on one event loop.

    Args:
        config: names them.
        backends: those that answer themselves, by name.
    """

    def __init__(self, config: FeedbackConfig, backends: Mapping[str, Backend]) -> None:
        self._judges = config.named_judges
        self._default = config.default_judge_name
        self._default_kind = config.default_judge
        self._backends = backends

    @property
    def lanes(self) -> dict[str, Lane]:
        """How each judge that answers itself is asked."""
        return {name: backend.lane for name, backend in self._backends.items()}

    def name_of(self, wanted: str) -> str:
        """The name that is meant, the default's where none is given.

        Raises:
            NotFoundError: there is no such judge; the message lists those there are.
        """
        name = wanted or self._default
        if name not in self._judges:
            raise NotFoundError(f"there is no judge {name!r}; there are {', '.join(sorted(self._judges))}", field="judge.judge")
        return name

    def default_kind(self, name: str) -> Kind:
        """The kind where a caller names none: the configuration's `default_judge` where this judge can do it, else verdict."""
        return self._default_kind if self._default_kind in self._kinds(name) else "verdict"

    def check(self, name: str, kind: Kind, adapter: str) -> None:
        """Raises where a judge cannot be asked so.

        Raises:
            FailedPreconditionError: it, or one that it asks, cannot judge in this way; the message says what it can do.
            InvalidArgumentError: an adapter is named for judges that have adapters of their own, or none.
        """
        kinds = self._kinds(name)
        if kind not in kinds:
            raise FailedPreconditionError(
                f"the judge {name!r} cannot do {kind}, since a chat endpoint does not score given texts; it can do {', '.join(kinds)}",
                field="judge.kind",
            )
        if adapter and not isinstance(self._judges[name], PolicyJudge):
            raise InvalidArgumentError(
                f"the judge {name!r} takes no adapter: only a policy does; name it in the configuration of that one", field="judge.adapter"
            )

    def has_price(self, name: str) -> bool:
        """Whether a judge, or one that it asks, has a price, be it 0."""
        return price_entry(self._judges[name]) is not None or any(self.has_price(part) for part in parts_of(self._judges[name]))

    async def seat(self, name: str, adapter: str = "") -> Seat:
        """Who a judge is now; a judge of others is who those are. Raises as `JudgeSource.identify`."""
        judge = self._judges[name]
        if isinstance(judge, EnsembleJudge):
            return Ensemble(tuple(await asyncio.gather(*(self.seat(member) for member in judge.members))), judge.combine)
        if isinstance(judge, EscalationJudge):
            first, then = await asyncio.gather(self.seat(judge.first), self.seat(judge.then))
            return Escalation(first, then, judge.threshold)
        backend = self._backends[name]
        return await backend.source.identify(adapter or backend.adapter)

    async def close(self) -> None:
        """Closes all connections."""
        for backend in self._backends.values():
            await backend.source.close()

    def _kinds(self, name: str) -> tuple[Kind, ...]:
        parts = parts_of(self._judges[name])
        if not parts:
            return tuple(kind for kind in KINDS if kind in self._backends[name].lane.judges)
        return tuple(kind for kind in KINDS if all(kind in self._kinds(part) for part in parts))


def make_roster(config: FeedbackConfig) -> Roster:
    """The judges of a configuration. Raises FailedPreconditionError where an API key is not to be had."""
    backends: dict[str, Backend] = {}
    for name, judge in config.named_judges.items():
        if isinstance(judge, PolicyJudge):
            channel = ChannelConfig(address=judge.address, tls=judge.tls, load_balancing=judge.balancing)
            model = JudgeModel(RemotePolicy(channel), judge.address, timeout_seconds=config.judge_timeout_seconds, name=name)
            price = None if judge.price is None else config.prices[judge.price]
            backends[name] = Backend(model, Lane(make_judges(model, price, name), config.concurrency, config.batch_pairs), judge.adapter)
        elif isinstance(judge, OpenAIJudge):
            endpoint = ChatEndpoint(name, judge, config.prices[judge.price or judge.model])
            backends[name] = Backend(endpoint, Lane(make_written_judges(endpoint), judge.max_concurrency, 1))
    return Roster(config, backends)
