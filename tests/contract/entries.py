"""The services under the contract suite. Add a service by appending one `ServiceEntry`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.contract.echo_proto import SERVICE, EchoReply, EchoRequest
from tests.contract.harness import RpcCase, ServiceEntry


def _echo_config(_: Path) -> dict[str, Any]:
    return {"warm_seconds": 0.5}


ECHO = ServiceEntry(
    name="echo",
    module="tests.contract.echo_server",
    config=_echo_config,
    services=(SERVICE,),
    quick=RpcCase(f"/{SERVICE}/Echo", lambda text: EchoRequest(prompts=[text]), EchoReply),
    slow=RpcCase(f"/{SERVICE}/Echo", lambda text: EchoRequest(prompts=[text], steps=200), EchoReply),
    empty=RpcCase(f"/{SERVICE}/Echo", lambda _: EchoRequest(), EchoReply, field="prompts"),
    compute_metric="accord_echo_steps_total",
    full_config=lambda folder: {**_echo_config(folder), "queue_items": 1},
)

ENTRIES: list[ServiceEntry] = [ECHO]
