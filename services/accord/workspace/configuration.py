"""The services' YAML files: what `accord up` sets in them, and what it leaves alone.

A file that is there keeps every key that is not set here, so that a workspace can be tuned by hand. What does not belong here: starting
services (`accord.workspace.workspace`).
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from pydantic import BaseModel

from accord.errors import FailedPreconditionError
from accord.feedback.config import FeedbackConfig
from accord.policy.config import PolicyConfig
from accord.reward.config import RewardConfig
from accord.rpc.config import load_config, parse_config
from accord.rundir import write_atomically
from accord.trainer.config import TrainerConfig
from accord.workspace.layout import Layout, ServiceName
from accord.workspace.state import ServiceRecord

CONFIG_CLASSES: Mapping[ServiceName, type[BaseModel]] = {
    "policy": PolicyConfig,
    "reward": RewardConfig,
    "feedback": FeedbackConfig,
    "trainer": TrainerConfig,
}
UPSTREAM: Mapping[ServiceName, tuple[ServiceName, ...]] = {
    "policy": (),
    "reward": (),
    "feedback": ("policy", "reward"),
    "trainer": ("policy", "reward", "feedback"),
}
_LOOPBACK = "127.0.0.1"
_ANY_PORT = f"{_LOOPBACK}:0"
_HEADER = """\
# Configuration of the {name} service. `accord up` sets again, each time: {keys};
# every other key is yours, and so is server.listen once you change it. All keys: accord.{name}.config.
"""


@dataclass(frozen=True, slots=True)
class JudgeTable:
    """Judges and prices that the feedback service is to have beside those of its file, by name, as its YAML has them."""

    judges: Mapping[str, Any] = field(default_factory=dict)
    prices: Mapping[str, Any] = field(default_factory=dict)

    def merged(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the feedback service's file with these; those of the same name are replaced."""
        more = {"prices": self.prices, "judges": self.judges}
        return {**values, **{key: {**values.get(key, {}), **items} for key, items in more.items() if items}}


@dataclass(frozen=True, slots=True)
class Setting:
    """What the services of a workspace have in common; `model_folder` is empty where the base model's files are not at hand."""

    base_model: str
    model_folder: str
    threads: int
    judge_table: JudgeTable = JudgeTable()


def default_threads() -> int:
    """Physical cores that this process may use: more threads than that slow matrix products down."""
    process = psutil.Process()
    allowed = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else (psutil.cpu_count() or 1)
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def write_configuration(layout: Layout, name: ServiceName, setting: Setting, upstream: Mapping[str, str], record: ServiceRecord) -> str:
    """Writes a service's file and returns where it is told to listen.

    Raises:
        InvalidArgumentError: the file that is there has an unknown key or a bad value.
        FailedPreconditionError: it names a port that another program has.
    """
    path = layout.config(name)
    kept = read_configuration(layout, name)
    if name == "feedback":
        kept = setting.judge_table.merged(kept)
    listen = _listen(name, path, kept, record)
    owned = _owned(layout, name, setting, upstream)
    values = {**kept, **owned, "server": {**_server_defaults(), **kept.get("server", {}), **owned["server"], "listen": listen}}
    parse_config(values, CONFIG_CLASSES[name], source=str(path))
    keys = [key for key in owned if key != "server"] + ["server.announce_path"]
    write_atomically(path, _HEADER.format(name=name, keys=", ".join(keys)) + yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return listen


def read_configuration(layout: Layout, name: ServiceName) -> dict[str, Any]:
    """The values of a service's file; empty where there is none yet. Raises InvalidArgumentError as `load_config`."""
    path = layout.config(name)
    if not path.exists():
        return {}
    load_config(path, CONFIG_CLASSES[name])
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


def fixed_listen(values: Mapping[str, Any], record: ServiceRecord) -> str | None:
    """The address that a person has set in a service's file, None where `accord up` may choose."""
    listen = values.get("server", {}).get("listen")
    return None if listen in (None, record.listen, _ANY_PORT) else str(listen)


def port_is_taken(listen: str) -> bool:
    """Whether another socket listens at a ``host:port`` of this machine; port 0 and Unix sockets never are."""
    host, _, port = listen.rpartition(":")
    if listen.startswith("unix:") or not port.isdigit() or port == "0":
        return False
    host = host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            return True
    return False


def _listen(name: ServiceName, path: Path, kept: Mapping[str, Any], record: ServiceRecord) -> str:
    """The address set by hand; else the earlier one, so that others find the service again; else any free port."""
    fixed = fixed_listen(kept, record)
    if fixed is not None:
        if port_is_taken(fixed):
            raise FailedPreconditionError(
                f"{fixed} is taken by another program; free it, or change server.listen in {path}", field=f"{name}.server.listen"
            )
        return fixed
    if record.address.startswith(f"{_LOOPBACK}:") and not port_is_taken(record.address):
        return record.address
    return _ANY_PORT


def _owned(layout: Layout, name: ServiceName, setting: Setting, upstream: Mapping[str, str]) -> dict[str, Any]:
    """What a service is told in any case."""
    server = {"server": {"announce_path": str(layout.announcement(name))}}
    if name == "feedback":
        return {**server, "policy": upstream["policy"], "reward": upstream["reward"], "ledger": str(layout.ledger), "jobs": str(layout.label_jobs)}
    model = {**server, "base_model": setting.base_model, "artefacts": str(layout.artefacts), "threads": setting.threads}
    if name == "trainer":
        return {
            **model,
            "model_folder": setting.model_folder,
            "runs": str(layout.runs),
            "database": f"sqlite:///{layout.registry}",
            "endpoints": dict(upstream),
        }
    return model


def _server_defaults() -> dict[str, Any]:
    """What a new file has and a person may change: on loopback, so reflection and metrics are open."""
    return {"listen": _ANY_PORT, "metrics_listen": _ANY_PORT, "reflection": True}
