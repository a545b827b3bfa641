"""Where the files of a run's base model are on this machine. Nothing is downloaded or converted here, and no model stands in for another one.

What does not belong here: what is read out of the files (`accord.trainer.shape`), and fetching them (`accord.models.fetch`).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from accord.artefacts.store import cache_folder
from accord.errors import FailedPreconditionError
from accord.runspec import RunSpec
from accord.trainer.config import EMBEDDED, TrainerConfig

EMBEDDED_FOLDERS = "smollm2-135m-instruct-*"  # its conversions in the cache, as accord.models.embedded names them
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def find_model_folder(config: TrainerConfig, spec: RunSpec) -> Path | None:
    """The folder with the files of the run's base model; None where they are not at hand. `model_folder` is of the trainer's own base model alone."""
    name = spec.base_model or config.base_model
    if name == config.base_model and _is_whole(Path(config.model_folder)):
        return Path(config.model_folder)
    if name == EMBEDDED:
        return _newest_embedded()
    given = Path(name).expanduser()
    if given.is_dir() or not _HUB_ID.fullmatch(name):
        return given if _is_whole(given) else None
    return _cached(name)


def check_memory_known(config: TrainerConfig, spec: RunSpec) -> None:
    """Refuses a run whose pods would get the memory of no model: its base model's files are not at hand, and nobody says how much it needs.

    Raises:
        FailedPreconditionError: it is so.
    """
    kubernetes, kind = config.kubernetes, spec.algorithm
    if kubernetes is None or kind == "evaluate" or kubernetes.for_kind(kind).memory or find_model_folder(config, spec) is not None:
        return
    raise FailedPreconditionError(
        f"the files of base model {spec.base_model or config.base_model} are not where the trainer can read them, so that its pods' memory cannot be "
        f"planned: set kubernetes.kinds.{kind}.memory or kubernetes.defaults.memory, or put the model into the trainer's cache",
        field="spec.base_model",
    )


def _is_whole(folder: Path) -> bool:
    """Whether a folder, which is one only where its name is not empty, has a configuration and weights: without them a plan would count none."""
    return folder != Path() and (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _newest_embedded() -> Path | None:
    """The embedded model's conversion; of several, which differ in no size, the newest."""
    found = [folder for folder in (cache_folder() / "models").glob(EMBEDDED_FOLDERS) if _is_whole(folder)]
    return max(found, key=os.path.getmtime, default=None)


def _cached(name: str) -> Path | None:
    """The snapshot of a hub id in the hub's cache."""
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, "config.json")
    except (ModuleNotFoundError, ValueError):  # the second: no name that a model of the hub can have
        return None
    return Path(found).parent if isinstance(found, str) and _is_whole(Path(found).parent) else None
