"""Where a command finds a service and how it talks to it, and what it says where there is none.

A service is at the address that its option gives, else where the endpoints file says (`--endpoints`, ACCORD_ENDPOINTS), else in the workspace.
Every command that has an option for an address gets those for TLS and the file, too. What does not belong here: clients (`accord.client`).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from accord.cli.failures import advice
from accord.errors import InvalidArgumentError, UnavailableError

if TYPE_CHECKING:
    from accord.client.endpoints import ServiceEndpoints
    from accord.rpc.channels import ChannelConfig, ChannelTls
    from accord.workspace.layout import ServiceName

_ADDRESSES = frozenset({"policy", "reward", "feedback", "trainer"})


def _file(flag: str, text: str, *, environment: str | None = None) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        flag, metavar="FILE", help=text, show_default=False, envvar=environment, rich_help_panel="Services elsewhere"
    )
    return option


_NAME = typer.Option("--tls-server-name", metavar="NAME", show_default=False, rich_help_panel="Services elsewhere",
                     help="Name in the server's certificate, where it is not the address's (port-forward).")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Connection:
    """What a command line says about all services; each field is an option of every command that calls one."""

    endpoints: Annotated[
        Path | None, _file("--endpoints", "YAML with the services' addresses and TLS (accord.client.endpoints).", environment="ACCORD_ENDPOINTS")
    ] = None
    tls_ca: Annotated[Path | None, _file("--tls-ca", "PEM roots of the services' certificates; turns TLS on.")] = None
    tls_cert: Annotated[Path | None, _file("--tls-cert", "PEM client certificate, for mutual TLS; with --tls-key.")] = None
    tls_key: Annotated[Path | None, _file("--tls-key", "PEM private key of the client certificate.")] = None
    tls_server_name: Annotated[str | None, _NAME] = None


_NOTHING = Connection()
_connection: ContextVar[Connection] = ContextVar("connection", default=_NOTHING)


def with_connection(command: Callable[..., object]) -> Callable[..., object]:
    """The command with the options of `Connection`, which `reach` heeds; as it is where it takes no address of a service."""
    own = inspect.signature(command, eval_str=True)
    if not _ADDRESSES & set(own.parameters):
        return command
    options = inspect.signature(Connection, eval_str=True).parameters.values()
    names = [field.name for field in fields(Connection)]

    @functools.wraps(command)
    def run(**arguments: Any) -> object:
        token = _connection.set(Connection(**{name: arguments.pop(name) for name in names}))
        try:
            return command(**arguments)
        finally:
            _connection.reset(token)

    parameters = [*own.parameters.values(), *options]
    run.__signature__ = own.replace(parameters=[each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters])  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def endpoints_file() -> Path | None:
    """The endpoints file that the command line or the environment names."""
    return _connection.get().endpoints


def endpoints_of(given: Mapping[str, str]) -> ServiceEndpoints:
    """What the command line's endpoints file says, with what else the command line gives over it; empty where nothing is said.

    Raises:
        InvalidArgumentError: the file or a value cannot be used, or a certificate comes without its key.
    """
    from accord.client.endpoints import ServiceEndpoints, read_endpoints
    from accord.rpc.config import parse_config

    connection = _connection.get()
    found = ServiceEndpoints() if connection.endpoints is None else read_endpoints(connection.endpoints)
    tls = _tls(connection, found.tls)
    if tls is not None and (tls.cert is None) != (tls.key is None):
        raise InvalidArgumentError("--tls-cert and --tls-key are given together or not at all", field="--tls-cert")
    return parse_config({**dict(found), **given, "tls": tls}, ServiceEndpoints, source="the command line")


def _tls(given: Connection, known: ChannelTls | None) -> ChannelTls | None:
    from accord.rpc.channels import ChannelTls

    said = {"ca": given.tls_ca, "cert": given.tls_cert, "key": given.tls_key, "server_name": given.tls_server_name}
    update = {name: value for name, value in said.items() if value is not None}
    return (known or ChannelTls()).model_copy(update=update) if update else known


@contextlib.contextmanager
def reach(name: ServiceName, home: Path, address: str | None, timeout_seconds: float) -> Iterator[ChannelConfig]:
    """How to reach a service: at the address that was given, else at the endpoints file's, else at the workspace's.

    A call has `timeout_seconds`. An UnavailableError inside says what to do about it.

    Raises:
        InvalidArgumentError: the endpoints file cannot be used, or has no address of this service.
        FailedPreconditionError: no address was given, and the workspace's service does not run.
    """
    what = "check the address, and whether that service runs and wants TLS (--tls-ca)"
    if address is None and endpoints_file() is None:
        from accord.workspace import Workspace

        address = Workspace(home).address(name)
        what = f"see `{command('status', home)}`; `{command('up', home)}` starts what does not run"
    target = endpoints_of({} if address is None else {name: address}).channel(name, timeout_seconds=timeout_seconds)
    if target is None:
        raise InvalidArgumentError(f"{endpoints_file()} has no address of the {name} service; add it, or give --{name}", field=name)
    with advice(UnavailableError, text=what):
        yield target


def command(line: str, home: Path) -> str:
    """`accord LINE` with the workspace where it is not the default one, or the endpoints file where one was given, to be copied."""
    file = endpoints_file()
    return local_command(line, home) if file is None else f"accord {line} --endpoints {shlex.quote(str(file))}"


def local_command(line: str, home: Path, *, artefacts: str | None = None) -> str:
    """As `command`, of a command that reads the workspace itself, or the artefact store that was given in its place."""
    from accord.cli.options import DEFAULT_HOME

    where = "" if home == DEFAULT_HOME else f" --home {shlex.quote(str(home))}"
    return f"accord {line}{where}{f' --artefacts {shlex.quote(artefacts)}' if artefacts else ''}"
