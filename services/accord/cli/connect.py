"""Where a command finds a service, and what it says where there is none.

What does not belong here: clients (`accord.client`).
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from accord.cli.failures import advice
from accord.errors import UnavailableError

if TYPE_CHECKING:
    from accord.rpc.channels import ChannelConfig
    from accord.workspace.layout import ServiceName


@contextlib.contextmanager
def reach(name: ServiceName, home: Path, address: str | None, timeout_seconds: float) -> Iterator[ChannelConfig]:
    """How to reach a service: at the address that was given, else at the workspace's; a call has `timeout_seconds`.

    An UnavailableError inside says what to do about it.

    Raises:
        FailedPreconditionError: no address was given, and the workspace's service does not run.
    """
    from accord.rpc.channels import ChannelConfig

    what = "check the address, and whether that service runs"
    if address is None:
        from accord.workspace import Workspace

        address = Workspace(home).address(name)
        what = f"see `{command('status', home)}`; `{command('up', home)}` starts what does not run"
    with advice(UnavailableError, text=what):
        yield ChannelConfig(address=address, default_timeout_seconds=timeout_seconds)


def command(line: str, home: Path) -> str:
    """`accord LINE` with the workspace where it is not the default one, to be copied."""
    from accord.cli.options import DEFAULT_HOME

    return f"accord {line}" if home == DEFAULT_HOME else f"accord {line} --home {shlex.quote(str(home))}"
