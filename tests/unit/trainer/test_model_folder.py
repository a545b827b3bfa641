"""Plans are of the run's own base model, or of none: another model's files never stand in for it, and on a cluster none is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from tests.unit.launch.orders import run_file

from accord.artefacts.store import ArtefactStore, cache_folder
from accord.errors import FailedPreconditionError
from accord.models import embedded
from accord.models.testing import tiny_model_folder
from accord.runspec import RunSpec, parse_spec
from accord.trainer.__main__ import build_launcher
from accord.trainer.config import TrainerConfig
from accord.trainer.model_folder import EMBEDDED_FOLDERS, check_memory_known, find_model_folder
from accord.trainer.registry import Registry
from accord.trainer.servicer import TrainerServicer
from accord.trainer.supervisor import Supervisor

HUB_ID = "org/name-7B"


def spec(base_model: str = "", algorithm: str = "sft") -> RunSpec:
    values = {"adapter": "a", "steps": 2, "base_model": base_model, "sft": {"data": {"uri": "sample:summarization"}}}
    if algorithm == "evaluate":
        values = {"steps": 1, "base_model": base_model, "evaluate": {"uri": __file__}}
    return parse_spec(values)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def make(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainerConfig]:
    """A trainer's configuration, whose own base model is `embedded`, of which it knows the folder; caches are empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def build(**values: Any) -> TrainerConfig:
        places = {"runs": str(tmp_path / "runs"), "database": f"sqlite:///{tmp_path}/r.sqlite", "artefacts": str(tmp_path / "artefacts")}
        return TrainerConfig.model_validate({**places, "model_folder": str(model), **values})

    return build


def on_cluster(folder: Path, **more: Any) -> dict[str, Any]:
    section = {"image": "accord/training:1.0", "claims": [{"claim": "data", "mount_path": str(folder)}], **more}
    return {"launcher": "kubernetes", "kubernetes": section}


def into_hub_cache(model: Path, cache: Path) -> Path:
    """As `snapshot_download` leaves it."""
    repository = cache / "models--org--name-7B"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    return shutil.copytree(model, repository / "snapshots" / ("0" * 40))


def test_the_trainers_folder_is_of_its_own_base_model_alone(make: Callable[..., TrainerConfig], model: Path, tmp_path: Path) -> None:
    config = make()
    assert find_model_folder(config, spec()) == find_model_folder(config, spec("embedded")) == model
    other = shutil.copytree(model, tmp_path / "other")
    assert find_model_folder(config, spec(str(other))) == other
    for elsewhere in (HUB_ID, str(tmp_path / "nothing"), "no name"):
        assert find_model_folder(config, spec(elsewhere)) is None
    assert find_model_folder(make(base_model=HUB_ID), spec(HUB_ID)) == model
    assert find_model_folder(make(base_model=str(other), model_folder=""), spec()) == other
    assert find_model_folder(make(model_folder=""), spec()) is None


def test_a_hub_id_is_found_in_the_hubs_cache_once_it_has_weights(make: Callable[..., TrainerConfig], model: Path, tmp_path: Path) -> None:
    folder = into_hub_cache(model, tmp_path / "hub")
    assert find_model_folder(make(), spec(HUB_ID)) == folder
    assert find_model_folder(make(base_model=HUB_ID, model_folder=""), spec()) == folder
    (folder / "model.safetensors").unlink()
    assert find_model_folder(make(), spec(HUB_ID)) is None, "a plan would count no weights"


def test_the_embedded_model_is_found_in_the_cache_by_a_trainer_of_another_one(make: Callable[..., TrainerConfig], model: Path) -> None:
    assert f"{embedded.FOLDER_PREFIX}-*" == EMBEDDED_FOLDERS
    config = make(base_model=HUB_ID)
    assert find_model_folder(config, spec("embedded")) is None
    folder = shutil.copytree(model, cache_folder() / "models" / f"{embedded.FOLDER_PREFIX}-0123456789ab")
    assert find_model_folder(config, spec("embedded")) == folder


def test_a_cluster_gives_no_run_the_memory_of_no_model(make: Callable[..., TrainerConfig], tmp_path: Path) -> None:
    unknown = make(**on_cluster(tmp_path))
    with pytest.raises(FailedPreconditionError) as caught:
        check_memory_known(unknown, spec(HUB_ID))
    assert f"the files of base model {HUB_ID} are not where the trainer can read them" in caught.value.message
    assert "set kubernetes.kinds.sft.memory or kubernetes.defaults.memory" in caught.value.message
    check_memory_known(unknown, spec())
    check_memory_known(unknown, spec(HUB_ID, "evaluate"))
    check_memory_known(make(**on_cluster(tmp_path, kinds={"sft": {"memory": "20Gi"}})), spec(HUB_ID))
    check_memory_known(make(**on_cluster(tmp_path, defaults={"memory": "20Gi"})), spec(HUB_ID))
    check_memory_known(make(), spec(HUB_ID))  # runs of this machine have no limit of their own


def test_neither_a_run_nor_its_job_is_made_where_its_memory_is_not_known(
    make: Callable[..., TrainerConfig], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accord.launch.kubernetes.Cluster", lambda config: None)
    config = make(**on_cluster(tmp_path))
    launcher, registry = build_launcher(config), Registry(config.database)
    servicer = TrainerServicer(registry, Supervisor(registry, launcher, config), ArtefactStore(config.artefacts), config)
    run = run_file("sft").model_copy(update={"spec": spec(HUB_ID)})
    for refused in (lambda: servicer._create("one", spec(HUB_ID), validate_only=False), lambda: launcher._peak_bytes(run)):  # type: ignore[attr-defined]
        with pytest.raises(FailedPreconditionError, match="its pods' memory cannot be planned"):
            refused()
    into_hub_cache(model, tmp_path / "hub")
    assert servicer._create("one", spec(HUB_ID), validate_only=False) is not None
    assert launcher._peak_bytes(run) > 470 * 2**20  # type: ignore[attr-defined]
    registry.close()
