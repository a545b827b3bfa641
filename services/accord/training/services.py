"""How a run reaches the services that it needs: addresses, channels that try once, and whether they hold the run's own base model.

What does not belong here: the calls (`accord.training.rollout`, `scorers`, `sampled_pairs`), waiting (`accord.training.waiting`).
"""

from __future__ import annotations

from accord.client.messages import ModelDigests
from accord.errors import FailedPreconditionError, InvalidArgumentError
from accord.rpc.channels import ChannelConfig, ChannelTls, LoadBalancing
from accord.training.context import RunContext

CALL_SECONDS = 900.0


def check_endpoints(context: RunContext, *names: str) -> None:
    """Raises InvalidArgumentError naming a service that the run's algorithm needs and that it has no address of."""
    for name in names:
        if not getattr(context.run.endpoints, name):
            raise InvalidArgumentError(f"{context.spec.algorithm} needs the {name} service; its address is empty", field=f"endpoints.{name}")


def check_digests(context: RunContext, service: str, theirs: ModelDigests) -> None:
    """Compares a service's base model with this process's.

    Raises:
        FailedPreconditionError: the service holds another model, tokenizer or template; both digests are named.
    """
    mine = context.base.digests
    for name in ("base_model", "tokenizer", "chat_template"):
        if getattr(mine, name) != getattr(theirs, name):
            reason = f"the {service} service has {name} {getattr(theirs, name)}, this run {getattr(mine, name)}"
            raise FailedPreconditionError(reason, field=f"endpoints.{service}")


def one_attempt(address: str, balancing: LoadBalancing = "round_robin", *, tls: ChannelTls | None = None) -> ChannelConfig:
    """A channel that tries a call once: `with_patience` tries again, and says so. gRPC's retries can lose the end of a stream whose server dies."""
    return ChannelConfig(address=address, tls=tls, load_balancing=balancing, attempts=1)
