"""Where a study's services are: started in its own workspace, or elsewhere and only addressed, and what both share then.

What does not belong here: calling them (`accord.study.actions`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import accord
from accord.client.endpoints import ServiceEndpoints
from accord.client.policy import PolicyClient
from accord.client.reward import RewardClient
from accord.client.trainer import TrainerClient
from accord.data.files import is_url, local_path
from accord.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from accord.rpc.channels import ChannelConfig
from accord.study.recipe import StudyRecipe
from accord.study.steps import StepResult

if TYPE_CHECKING:
    from accord.workspace.layout import ServiceName

SERVICES: tuple[ServiceName, ...] = ("policy", "reward", "feedback", "trainer")
# There while services run that a study started: a call that continues a killed one stops them, too.
_STARTED_FILE = "services-started"
_CALL_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class StudyServices:
    """How a study reaches its services; `label_folder` is where its label jobs write, empty for a folder of the step."""

    channels: Mapping[ServiceName, ChannelConfig]
    label_folder: str = ""


@contextlib.contextmanager
def started(recipe: StudyRecipe, home: Path, study_folder: Path, report: Callable[[str], None], *, keep: bool) -> Iterator[StudyServices]:
    """The services of the workspace `home`, started where they do not run and stopped at the end where this or a killed call started them.

    Args:
        recipe: says the base model and the judges.
        home: the workspace.
        study_folder: where it is noted that a study started them.
        report: told in sentences how it goes.
        keep: leaves them running.

    Raises:
        AccordError: as `Workspace.up`.
    """
    from accord.workspace import JudgeTable, Workspace

    workspace, note = Workspace(home), study_folder / _STARTED_FILE
    if not any(status.health == "serving" for status in workspace.status()):
        note.touch()
    try:
        addresses = workspace.up(base_model=recipe.base_model, judge_table=JudgeTable(**recipe.judge_table), report=report)
        yield StudyServices({name: ChannelConfig(address=getattr(addresses, name), default_timeout_seconds=_CALL_SECONDS) for name in SERVICES})
    finally:
        if note.exists():
            if not keep:
                report("stopping the services")
                workspace.down()
            note.unlink()


def addressed(recipe: StudyRecipe, endpoints: ServiceEndpoints) -> StudyServices:
    """Services that run elsewhere; nothing is called.

    Raises:
        InvalidArgumentError: an address or the shared folder is missing, or the recipe names data that the services cannot read.
    """
    channels = {}
    for name in SERVICES:
        channel = endpoints.channel(name, timeout_seconds=_CALL_SECONDS)
        if channel is None:
            raise InvalidArgumentError(f"there is no address of the {name} service; a study calls all four ({', '.join(SERVICES)})", field=name)
        channels[name] = channel
    if not endpoints.shared_folder:
        raise InvalidArgumentError(
            "shared_folder is missing: a folder that the feedback service and the runs see at one path, for labels", field="shared_folder"
        )
    for index, part in enumerate(recipe.tasks):
        for field, uri in (("uri", part.uri), ("test_uri", part.test_uri)):
            if uri:
                _check_shared(uri, f"tasks[{index}].{field}", Path(endpoints.shared_folder))
    return StudyServices(channels, endpoints.shared_folder)


def _check_shared(uri: str, field: str, shared: Path) -> None:
    """A study's data is read here, by the feedback service and by the runs: under one name by all."""
    if uri.startswith(("sample:", "hub:")) or is_url(uri):
        return
    path = local_path(uri)
    if not path.is_absolute() or not path.is_relative_to(shared) or ".." in path.parts:
        raise InvalidArgumentError(
            f"{field} is {uri}, a path of this machine: the services elsewhere cannot read it; sample:NAME, hub:NAME, a URL such as "
            f"s3://bucket/pairs.jsonl, or a path below the shared folder {shared} is allowed",
            field=field,
        )
    if not path.is_file():
        raise NotFoundError(
            f"{field} is {uri}, which is not there: a study reads its data itself, too; where the shared folder is not mounted, run the study in "
            "the cluster, or use a URL",
            field=field,
        )


def check_same_model(recipe: StudyRecipe, policy: PolicyClient, reward: RewardClient, report: Callable[[str], None]) -> None:
    """Holds services that somebody else started against the recipe. Folders are compared by name: their paths are the services' own.

    Another version of Accord than this one is only reported.

    Raises:
        FailedPreconditionError: the policy service serves another base model than the recipe's, or the reward service another than it.
    """
    served = policy.model_info()
    if Path(recipe.base_model).name != Path(served.base_model).name:
        raise FailedPreconditionError(
            f"the recipe's base_model is {recipe.base_model}, the policy service serves {served.base_model}; say base_model: {served.base_model}",
            field="base_model",
        )
    scored = reward.reward_model_info().digests
    if scored.base_model != served.digests.base_model:
        raise FailedPreconditionError(
            f"policy and reward service serve different base models: {served.digests.base_model[:12]} and {scored.base_model[:12]} (sha256)",
            field="reward",
        )
    if served.server_version != accord.__version__:
        report(f"note: the policy service is Accord {served.server_version}, this is {accord.__version__}; sample: may differ between them")


def check_known_runs(home: Path, known: Mapping[str, StepResult], trainer: TrainerClient) -> None:
    """Holds the results of earlier calls against the trainer that goes on with them: their adapters must be those of these services.

    Raises:
        FailedPreconditionError: a run is not there, or published another version: the results belong to other services.
    """
    for name, result in known.items():
        run, version = str(result.values.get("run", "")), result.values.get("adapter_version", "")
        if not run:
            continue
        try:
            found = trainer.get_run(run).adapter_version
        except NotFoundError:
            found = None
        if found != version:
            what = f"the trainer does not know {run}" if found is None else f"{run} published {found or 'nothing'} here and {version} there"
            raise FailedPreconditionError(
                f"{home} holds results of a study with other services ({name}: {what}); use another --home, or those services", field="home"
            )
