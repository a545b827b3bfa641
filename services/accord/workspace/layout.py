"""Where things are in a workspace's folder.

What does not belong here: what is in the files (`configuration`, `state` beside this file).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from accord.errors import FailedPreconditionError

ServiceName = Literal["policy", "reward", "feedback", "trainer"]
SERVICE_NAMES: tuple[ServiceName, ...] = get_args(ServiceName)


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of a workspace; `home` is absolute."""

    home: Path

    def config(self, name: ServiceName) -> Path:
        """The YAML file of a service."""
        return self.home / "config" / f"{name}.yaml"

    def log(self, name: ServiceName) -> Path:
        """What a service has written."""
        return self.home / "logs" / f"{name}.log"

    def announcement(self, name: ServiceName) -> Path:
        """Where a service says what address it is bound to."""
        return self.home / "addresses" / f"{name}.json"

    @property
    def artefacts(self) -> Path:
        """The artefact store."""
        return self.home / "artefacts"

    @property
    def runs(self) -> Path:
        """The run directories."""
        return self.home / "runs"

    @property
    def label_jobs(self) -> Path:
        """The files of label jobs."""
        return self.home / "label-jobs"

    @property
    def registry(self) -> Path:
        """The trainer's database."""
        return self.home / "registry.sqlite"

    @property
    def ledger(self) -> Path:
        """The database of judgements and labels."""
        return self.home / "ledger.sqlite"

    @property
    def state(self) -> Path:
        """Which processes are the services."""
        return self.home / "services.json"

    @property
    def lock(self) -> Path:
        """Held by whoever starts or stops services."""
        return self.home / ".lock"

    def make(self) -> None:
        """Makes the folders. What is in them is nobody's source code: git is told to leave them alone.

        Raises:
            FailedPreconditionError: they cannot be made.
        """
        try:
            for folder in ("config", "logs", "addresses", "artefacts", "runs", "label-jobs"):
                (self.home / folder).mkdir(parents=True, exist_ok=True)
            ignore = self.home / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n", encoding="utf-8")
        except OSError as error:
            raise FailedPreconditionError(f"{self.home} cannot be a workspace: {error.strerror}: {error.filename}", field="home") from error


def command_line(line: str, home: Path) -> str:
    """`accord LINE` of the workspace, which a person may copy."""
    return f"`accord {line} --home {shlex.quote(str(home))}`"
